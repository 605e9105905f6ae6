"""Steady Upscaled Video behind diffusion models, at toy size: results waver less and have the clip's colours.

Networks of random weights draw random structure that differs from frame to frame. It is laid over the enlarged clip, as
strong as what a trained model draws, with colours that are not quite the clip's.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from . import small_seedvr2
from .base_models import make_model, make_prompt, make_vae
from .mgld_release import write_checkpoints
from .uav_release import recorded, write_release

FRAMES, LOW = 9, (32, 40)
SIZE = {"target": "exact size", "height": 128, "width": 160}


@pytest.fixture(scope="module")
def low():
    from cascadevsr.runner.sample import make_sample

    return torch.from_numpy(np.stack(make_sample(FRAMES, 4 * LOW[1], 4 * LOW[0]).low)).float() / 255


def near(images, low):
    """Bring the colours near those of the clip, and random detail to about the strength that a trained model's has."""
    from cascadevsr.nodes.colour import ColourMatch

    matched = ColourMatch.execute(images, low, "wavelet", 0.5).args[0]
    return torch.lerp(enlarged(low), matched, 0.25)


def enlarged(low):
    size = (SIZE["height"], SIZE["width"])
    return F.interpolate(low.movedim(-1, 1), size, mode="bicubic").clamp(0, 1).movedim(1, -1)


def through(core, run, low, level=0.0, denoise=1.0):
    """Give the frames (T, H, W, 3) that a MODEL and a VAE make of the clip, by our own nodes."""
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.frames import CascadeInput, TemporalDecode

    latent, frames, *_ = CascadeInput.execute(run.vae, SIZE, "bilinear", frames=low).args
    texts, start = run.texts, latent
    if run.conditioned:
        *texts, start = VSRConditioning.execute(latent, level, 3, *texts).args
    start = core.nodes.common_ksampler(run.model, 0, 2, 1.0, "euler", "simple", *texts, start, denoise=denoise)[0]
    return near(TemporalDecode.execute(start, run.vae, 1.0, 16, 0, frames if run.sees_lr else None).args[0], low)


def released(path):
    from cascadevsr.nodes.loaders import load_restorer

    model, vae, clip = load_restorer(path, "auto")
    texts = [None, None]
    if clip is not None:
        texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("best quality", "blur")]
    return SimpleNamespace(model=model, vae=vae, texts=texts, conditioned=True, sees_lr=True)


def upscale_a_video(core, low, folder):
    return through(core, released(write_release(recorded("pipeline_short_3d"), folder)), low, level=0.1)


def mgld_vsr(core, low, folder):
    run = released(write_checkpoints(folder))
    run.vae.shortest = 32  # px; a picture of the size that the published networks ask for would take minutes
    return through(core, run, low)


def wan_cascade(core, low, _):
    texts = [make_prompt("wan21")] * 2
    run = {"model": make_model("wan21"), "vae": make_vae("wan21"), "texts": texts}
    return through(core, SimpleNamespace(**run, conditioned=False, sees_lr=False), low, denoise=0.4)


def seedvr2(core, low, _):
    """Run the host's own nodes around its own classes."""
    pytest.importorskip("comfy_extras.nodes_seedvr", reason="this ComfyUI has no SeedVR2")
    from cascadevsr.nodes.frames import TemporalDecode
    from comfy_extras.nodes_seedvr import SeedVR2Conditioning, SeedVR2PostProcessing, SeedVR2Preprocess

    model, vae = small_seedvr2.make_model(), small_seedvr2.make_vae()
    resized = enlarged(low)
    latent = {"samples": vae.encode(SeedVR2Preprocess.execute(resized).args[0])}
    texts = SeedVR2Conditioning.execute(model, latent).args
    sampled = core.nodes.common_ksampler(model, 0, 1, 1.0, "euler", "simple", *texts, latent)[0]
    frames = TemporalDecode.execute(sampled, vae, 1.0, 16, 0).args[0]
    return near(SeedVR2PostProcessing.execute(frames, resized, "lab").args[0], low)


def warping_error(frames, low):
    """Give the mean squared difference of frames along the motion of the clip, where it is visible."""
    from cascadevsr.models.motion.blockflow import BlockFlow
    from cascadevsr.models.motion.estimation import estimate_pairs
    from cascadevsr.models.motion.flow import resize_flow, visible, warp

    motion, errors = estimate_pairs(low, BlockFlow()), []
    for number in range(len(frames) - 1):
        there, back = (
            resize_flow(part[number : number + 1].float(), *frames.shape[1:3])
            for part in (motion.forward, motion.backward)
        )
        first, second = (frames[each : each + 1].movedim(-1, 1) for each in (number, number + 1))
        errors.append((first - warp(second, there)).square()[visible(there, back).expand_as(first)].mean())
    return float(torch.stack(errors).mean())


def away(frames, low):
    """Give the largest difference of a frame's mean colours from those of the clip."""
    return float((frames.mean((1, 2)) - low.mean((1, 2))).abs().max())


@pytest.fixture(
    scope="module", params=[upscale_a_video, mgld_vsr, wan_cascade, seedvr2], ids=lambda each: each.__name__
)
def frames(request, core, low, tmp_path_factory):
    with torch.inference_mode():
        return request.param(core, low, tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize("source", ["clean", "compressed"])
def test_results_waver_less_and_have_the_colours_of_the_clip(frames, low, source):
    from cascadevsr.nodes.steady import SteadyUpscaledVideo

    assert frames.shape == (FRAMES, SIZE["height"], SIZE["width"], 3) and away(frames, low) > 0.003
    results = [SteadyUpscaledVideo.execute(low, share, 1.0, 1.0, source, frames).args[0] for share in (0.0, 0.5, 1.0)]
    errors = [warping_error(result, low) for result in results]
    assert errors[2] < errors[1] < 0.5 * warping_error(frames, low)
    assert max(away(result, low) for result in results) < 0.001
