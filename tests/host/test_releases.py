"""What released folders and files have in common: nothing is read twice where MODEL, VAE and CLIP are made of it."""

from collections import Counter
from importlib import import_module

import pytest

from .mgld_release import write_checkpoints
from .uav_release import recorded, write_release

MGLD = ("mgldvsr_unet.ckpt", "video_vae_cfw.ckpt")
UPSCALE = ("unet_video.bin", "vae_3d.bin", "pytorch_model.bin")


@pytest.fixture
def read(core, monkeypatch):
    """Count the reads of every weight file."""
    from cascadevsr.models import checkpoints
    from cascadevsr.nodes import loaders

    counts = Counter()

    def load_state(path):
        counts[path.name] += 1
        return checkpoints.load_state(path)

    for system in ("mgld_vsr", "upscale_a_video"):
        monkeypatch.setattr(import_module(f"cascadevsr.models.{system}.checkpoint"), "load_state", load_state)
    monkeypatch.setattr(loaders, "load_state", load_state)
    return counts


@pytest.mark.parametrize(
    ("write", "file", "files"),
    [
        (write_checkpoints, "", MGLD),
        (write_checkpoints, MGLD[0], MGLD),
        (lambda path: write_release(recorded("pipeline_short_3d"), path), "", UPSCALE),
        (lambda path: write_release(recorded("pipeline_short_3d"), path), "unet/unet_video.bin", UPSCALE),
    ],
    ids=["mgld_vsr", "mgld_vsr-file", "upscale_a_video", "upscale_a_video-file"],
)
def test_every_file_is_read_once(tmp_path, read, write, file, files):
    from cascadevsr.nodes.loaders import load_restorer

    _, vae, clip = load_restorer(write(tmp_path / "release") / file, "auto")
    assert vae is not None and (clip is not None) == (files is UPSCALE)
    assert read == dict.fromkeys(files, 1)


def test_a_part_that_is_built_again_is_read_again(tmp_path, read):
    from cascadevsr.nodes.loaders import load_restorer

    model = load_restorer(write_checkpoints(tmp_path / "release"), "auto")[0]
    function, arguments = model.cached_patcher_init
    function(*arguments)
    assert read == {MGLD[0]: 2, MGLD[1]: 1}
