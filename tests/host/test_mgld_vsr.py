"""MGLD-VSR in the host: recorded runs through the graph, loading, sizes, sampling, errors."""

import logging
from types import SimpleNamespace

import pytest
import torch

from .mgld_release import recorded, write_checkpoints, write_recorded
from .test_upscale_a_video import Given

SCALE = {"target": "scale", "scale": 4.0}
LATENT_SCALE = 0.18215


@pytest.fixture(scope="module")
def folder(core, tmp_path_factory):
    """A folder with the two published checkpoints, of tiny networks."""
    return write_checkpoints(tmp_path_factory.mktemp("releases") / "mgld_vsr")


def _load(path, *options):
    from cascadevsr.nodes.restorers import load_restorer

    return SimpleNamespace(**dict(zip(("model", "vae", "clip"), load_restorer(path, *options), strict=True)))


@pytest.fixture(scope="module")
def loaded(folder):
    with torch.inference_mode():
        run = _load(folder, "auto")
    run.vae.shortest = 32  # px; a picture of the size that the published networks ask for would take minutes
    return run


def _prepare(run, frames, target=SCALE, noise=None, texts=(None, None), level=0.0):
    from cascadevsr.nodes.cascade import CascadeInput
    from cascadevsr.nodes.conditioning import VSRConditioning

    latent, low, *_ = CascadeInput.execute(run.vae, target, "bicubic", frames=frames).args
    conditions = VSRConditioning.execute(latent, level, 3, *texts, noise=noise).args
    names = ("positive", "negative", "samples")
    return SimpleNamespace(lr=latent, low=low, **dict(zip(names, conditions, strict=True)))


def _ddpm(core, model, clip, steps=3, noise=None):
    from cascadevsr.nodes.sampling import AddressedNoise, RefineSigmas, RestorerSampler

    sigmas = RefineSigmas.execute(model, 1.0, steps, 1.0).args[0]
    sampler = RestorerSampler.execute("ddpm").args[0]
    guider = core.custom.CFGGuider.execute(model, clip.positive, clip.negative, 1.0).args[0]
    return core.custom.SamplerCustomAdvanced.execute(
        AddressedNoise(5) if noise is None else noise, guider, sampler, sigmas, clip.samples
    ).args[0]


def _decode(latent, vae, low=None, weight=1.0, chunk=16, tile=0):
    from cascadevsr.nodes.decode import TemporalDecode

    return TemporalDecode.execute(latent, vae, weight, chunk, tile, low).args[0]


def _tiles(model, side, overlap):
    from cascadevsr.nodes.tiling import SpatialTiles

    choice = {"tiling": "manual", "tile_width": side, "tile_height": side, "overlap": overlap}
    return SpatialTiles.execute(model, choice).args[0]


def _windows(model, **manual):
    from cascadevsr.nodes.tiling import TemporalWindows

    return TemporalWindows.execute(model, {"windows": "manual" if manual else "auto", **manual}).args[0]


# Recorded runs


def _clip(recorded_frames):
    """Turn recorded (t, c, h, w) into (1, c, t, h, w)."""
    return recorded_frames.transpose(0, 1)[None]


def _guided(model, given):
    """Guide along the recorded flows by the node, in the published form."""
    from cascadevsr.models.motion.field import Motion
    from cascadevsr.nodes.motion_guidance import MotionGuidance

    backward, forward = (given[name][0] for name in ("flow_fwd_prop", "flow_bwd_prop"))
    motion = Motion(forward, backward, (), len(forward) + 1, *forward.shape[2:])
    return MotionGuidance.execute(model, motion, 1.0, 0.0, 1.0, "both", "published").args[0]


def _recorded_noise(monkeypatch, given):
    from cascadevsr.nodes import sampling

    noises = given["step_noise"].transpose(1, 2).unsqueeze(1)
    monkeypatch.setattr(sampling, "_fresh_noise", lambda x, extra_args, step: noises[step])


def _far(produced, expected):
    """Count how many values lie further off than 2e-3 of the largest, and how far the rest lies off."""
    error = (produced - expected).abs() / expected.abs().max()
    return float((error > 2e-3).double().mean()), float(error.quantile(0.998))


@pytest.mark.parametrize("guided", ["guided", "unguided"])
@pytest.mark.parametrize("kind", ["full", "canvas"])
def test_recorded_sampling_comes_out_of_the_graph(core, tmp_path, monkeypatch, kind, guided):
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.keys import KIND_KEY, LR_START

    case = recorded(f"sampling_{kind}_{guided}")
    given, settings = case.group("in"), case.meta["config"]
    run = _load(write_recorded(case, tmp_path / "run.safetensors"), "fp32", "auto", "reference")
    latent = {"samples": _clip(given["lr_latent"]) / LATENT_SCALE, KIND_KEY: LR_START}
    names = ("positive", "negative", "samples")
    clip = SimpleNamespace(**dict(zip(names, VSRConditioning.execute(latent, 0.0, 0).args, strict=True)))
    model = run.model
    if settings["tile_size"]:
        model = _tiles(model, 8 * settings["tile_size"], 8 * settings["tile_overlap"])
    if settings["motion_guidance"]:
        model = _guided(model, given)
    _recorded_noise(monkeypatch, given)
    sampled = _ddpm(core, model, clip, settings["steps"], Given(_clip(given["noise_T"])))
    share, rest = _far(sampled["samples"] * LATENT_SCALE, _clip(case.group("out")["x0"]))
    assert share <= 2e-3 and rest < 2e-4


def test_the_recorded_segment_comes_out_of_the_graph(core, tmp_path, monkeypatch):
    case = recorded("segment_pipeline")
    given, settings, expected = case.group("in"), case.meta["config"], case.group("out")
    run = _load(write_recorded(case, tmp_path / "run.safetensors"), "fp32", "auto", "reference")
    run.vae.shortest = 64
    frames = (given["frames"].permute(0, 2, 3, 1) + 1) / 2
    same = {"target": "exact size", "height": 64, "width": 96}
    clip = _prepare(run, frames, same, Given(_clip(given["posterior_noise"])))
    lr = clip.samples["samples"] * LATENT_SCALE
    assert (lr - _clip(expected["lr_latent"])).abs().max() < 1e-4
    model = _tiles(_guided(run.model, given), 8 * settings["tile_size"], 8 * settings["tile_overlap"])
    _recorded_noise(monkeypatch, given)
    sampled = _ddpm(core, model, clip, settings["steps"], Given(_clip(given["noise_T"])))
    share, rest = _far(sampled["samples"] * LATENT_SCALE, _clip(expected["x0"]))
    assert share <= 2e-3 and rest < 2e-4
    decoded = _decode(sampled, run.vae, clip.low, settings["dec_w"])
    wanted = (expected["decoded"].permute(0, 2, 3, 1).clamp(-1, 1) + 1) / 2
    assert float(((decoded - wanted).abs() > 2e-3).double().mean()) <= 2e-3
