"""The built-in weights do what the model card says, on the sample clip whose photograph was held out of training."""

import numpy as np
import pytest
import torch
from cascadevsr.models.checkpoints import load_state
from cascadevsr.models.layout.sizes import ClipSize
from cascadevsr.models.pixels.metrics import psnr_y
from cascadevsr.models.unimmvsr.checkpoint import dit_config, open_release, vae_config
from cascadevsr.models.unimmvsr.dit import UniMMVSRDiT
from cascadevsr.models.unimmvsr.vae import CausalVideoVAE
from cascadevsr.runner.sample import make_sample
from cascadevsr.tests.models.unimmvsr.clips import decode_clip, encode_clip
from PIL import Image

FRAMES = 5


@pytest.fixture(scope="module")
def networks(repository):
    path = repository / "models" / "weights" / "unimmvsr-tiny.safetensors"
    assert path.stat().st_size <= 12_000_000
    assert load_state(path)[1]["architecture"] == "unimmvsr"
    release, built = open_release(path), []
    for part, config_of, network in (
        (release.vae, vae_config, CausalVideoVAE),
        (release.dit, dit_config, UniMMVSRDiT),
    ):
        built.append(network(config_of(part)).eval())
        built[-1].load_state_dict({key: value.float() for key, value in part.items()})
    return built


@pytest.fixture(scope="module")
def sample():
    return make_sample(FRAMES)


@torch.no_grad()
def restore(networks, low, size, reference=None):
    vae, dit = networks
    frames = torch.from_numpy(low).float() / 255
    lr = encode_clip(vae, frames, ClipSize(len(low), *size))
    references = ()
    if reference is not None:
        shown = torch.from_numpy(reference).float() / 255
        references = (encode_clip(vae, shown, ClipSize(*shown.shape[:3]), mode="bicubic"),)
    clean = dit(torch.zeros_like(lr), torch.ones(1), lr, torch.zeros(1), references)
    return (decode_clip(vae, clean, frames, ClipSize(len(low), *size)) * 255).round().byte()


def test_one_step_beats_bicubic(networks, sample):
    height, width = sample.truth.shape[1:3]
    bicubic = [Image.fromarray(f).resize((width, height), Image.Resampling.BICUBIC) for f in sample.low]
    truth = torch.from_numpy(sample.truth)
    ours = psnr_y(restore(networks, sample.low, (height, width)), truth)
    assert ours > psnr_y(torch.from_numpy(np.stack([np.asarray(f) for f in bicubic])), truth) + 0.5


def test_true_neighbours_beat_copies(networks, sample):
    size = sample.truth.shape[1:3]
    truth = torch.from_numpy(sample.truth)[-1:]
    still = np.repeat(sample.low[-1:], FRAMES, 0)
    moving, copied = (restore(networks, low, size)[-1:] for low in (sample.low, still))
    assert psnr_y(moving, truth) > psnr_y(copied, truth)


def test_the_right_reference_video_beats_none_and_none_is_not_worse_than_a_wrong_one(networks, sample):
    """The unedited take, here the truth itself; the wrong one is the same picture upside down in other colours."""
    size, truth = sample.truth.shape[1:3], torch.from_numpy(sample.truth)
    wrong = np.ascontiguousarray(sample.truth[:, ::-1, ::-1, ::-1])
    right, none, wrong = (
        psnr_y(restore(networks, sample.low, size, reference), truth) for reference in (sample.truth, None, wrong)
    )
    assert right > none + 0.3
    assert none > wrong - 0.02


def test_the_true_latent_says_what_lr_frames_do_not(networks, sample):
    vae, _ = networks
    size = ClipSize(FRAMES, *sample.truth.shape[1:3])
    low, high = (torch.from_numpy(frames).float() / 255 for frames in (sample.low, sample.truth))
    results = []
    with torch.no_grad():
        for frames in (low, high):
            result = decode_clip(vae, encode_clip(vae, frames, size), low, size)
            results.append(psnr_y((result * 255).round().byte(), torch.from_numpy(sample.truth)))
    assert results[1] > 34.95  # dB; of these the LR frames alone give 34.26, and gave 34.23 with two neighbours
    assert results[1] > results[0] + 0.5


def test_without_lr_frames_the_picture_is_recognisable(networks, sample):
    vae, _ = networks
    size = ClipSize(FRAMES, *sample.truth.shape[1:3])
    with torch.no_grad():
        latent = encode_clip(vae, torch.from_numpy(sample.truth).float() / 255, size)
        guess = decode_clip(vae, latent, None, size)
    assert psnr_y((guess * 255).round().byte(), torch.from_numpy(sample.truth)) > 22
