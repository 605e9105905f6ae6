"""A fourth system is a folder in models/ and a file in nodes/systems/: a toy that is both goes through the nodes."""

import sys
from pathlib import Path

import pytest
import torch

TOY = Path(__file__).parent / "toy"


@pytest.fixture
def toy(core, tmp_path, listed):
    """The toy among the systems, with its file in the list of Load Video Restorer; gives the file's name."""
    from cascadevsr import models
    from cascadevsr.models.checkpoints import save_state
    from cascadevsr.nodes import systems

    paths = [(models, str(TOY / "models")), (systems, str(TOY / "systems"))]
    for package, path in paths:
        package.__path__.append(path)
    systems.all_systems.cache_clear()
    from cascadevsr.models.toy.networks import toy_state

    save_state(tmp_path / "toy.safetensors", toy_state())
    listed(tmp_path)
    yield "toy.safetensors"
    for package, path in paths:
        package.__path__.remove(path)
    systems.all_systems.cache_clear()
    for name in [
        name for name in sys.modules if name.startswith(("cascadevsr.models.toy", "cascadevsr.nodes.systems.toy"))
    ]:
        del sys.modules[name]


def _run(core, name, frames, tiling="off", windows="off"):
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.frames import CascadeInput, TemporalDecode
    from cascadevsr.nodes.loaders import LoadVideoRestorer
    from cascadevsr.nodes.sampling import AddressedNoise, RefineSigmas
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows

    model, vae, clip = LoadVideoRestorer.execute(name, "auto").args
    assert clip is None and model.model.system.name == vae.system.name == "Toy"
    model = SpatialTiles.execute(model, {"tiling": tiling}).args[0]
    model = TemporalWindows.execute(model, {"windows": windows}).args[0]
    lr, low, *_ = CascadeInput.execute(vae, {"target": "scale", "scale": 4.0}, "bilinear", frames=frames).args
    positive, negative, samples = VSRConditioning.execute(lr, 0.0, 1).args
    guider = core.custom.CFGGuider.execute(model, positive, negative, 1.0).args[0]
    sigmas = RefineSigmas.execute(model, 1.0, 3, 1.0).args[0]
    euler = core.custom.KSamplerSelect.execute("euler").args[0]
    sampled = core.custom.SamplerCustomAdvanced.execute(AddressedNoise(3), guider, euler, sigmas, samples).args[0]
    return TemporalDecode.execute(sampled, vae, 1.0, 16, 0, lr_frames=low).args[0]


@pytest.mark.parametrize(("tiling", "windows"), [("off", "off"), ("auto", "auto")])
def test_a_toy_system_goes_through_the_nodes(core, toy, noise, tiling, windows):
    """Its network answers with the LR clip: the result is that clip, resized, whatever cut it on the way."""
    from cascadevsr.models.layout.sizes import resize_clip

    frames = noise(7, 11, 15)
    result = _run(core, toy, frames, tiling, windows)
    expected = resize_clip(frames.movedim(-1, 0)[None], 44, 60, "bilinear")[0].movedim(0, -1)
    assert result.shape == (7, 44, 60, 3)
    assert torch.allclose(result, expected, atol=1e-5)


def test_auto_takes_the_sizes_of_the_system(core, toy, noise):
    from cascadevsr.nodes.loaders import LoadVideoRestorer
    from cascadevsr.nodes.tiling import TemporalWindows

    model = LoadVideoRestorer.execute(toy, "auto").args[0]
    handler = TemporalWindows.execute(model, {"windows": "auto"}).args[0].model_options["context_handler"]
    assert (handler.context_length, handler.context_overlap) == (4, 2)


def test_a_wrong_file_is_told_of_the_toy_too(core, toy, tmp_path):
    from cascadevsr.models.checkpoints import save_state
    from cascadevsr.nodes.loaders import load_restorer

    save_state(tmp_path / "other.safetensors", {"something.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"Toy: entries toy\.\*"):
        load_restorer(tmp_path / "other.safetensors", "auto")
    assert load_restorer(tmp_path / toy, "auto")[0].model.system.licence == "Toy: no rights reserved."


def test_the_toy_is_gone_afterwards(core):
    from cascadevsr.nodes.systems import all_systems

    assert [system.key for system in all_systems()] == ["mgld_vsr", "unimmvsr", "upscale_a_video"]
