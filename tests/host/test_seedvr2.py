"""The host's SeedVR2 in our nodes: windows are made, the plan counts right, a film goes through in one step."""

import logging
from types import SimpleNamespace

import pytest
import torch

from . import small_seedvr2
from .test_upscale_film import SETTINGS, TWICE, film, output, pictures, pixels, sampling, upscaled  # noqa: F401

FRAMES = 21


@pytest.fixture(scope="module")
def seedvr2(core):
    pytest.importorskip("comfy_extras.nodes_seedvr", reason="this ComfyUI has no SeedVR2")
    with torch.inference_mode():
        return SimpleNamespace(model=small_seedvr2.make_model(), vae=small_seedvr2.make_vae())


@pytest.fixture(scope="module")
def clip(seedvr2, noise):
    """LR latent, frames and the conditionings of VSR Conditioning of 21 frames, 24x16 -> 96x64."""
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.frames import CascadeInput

    target = {"target": "exact size", "height": 64, "width": 96}
    with torch.inference_mode():
        latent, frames = CascadeInput.execute(seedvr2.vae, target, "bilinear", frames=noise(FRAMES, 16, 24)).args[:2]
        positive, negative, samples = VSRConditioning.execute(latent, 0.0, 1).args
    return SimpleNamespace(latent=latent, frames=frames, positive=positive, negative=negative, samples=samples)


@pytest.fixture
def watched(ksample, clip):
    """Sample in one step and give (latent, shapes of the calls)."""
    from comfy.patcher_extension import WrappersMP

    def run(model, given=clip):
        seen, model = [], model.clone()

        def watch(executor, x, *args, **kwargs):
            seen.append(tuple(x.shape[2:]))
            return executor(x, *args, **kwargs)

        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
        return ksample(model, given)["samples"], seen

    return run


def windows(model, length=9, overlap=4):
    from cascadevsr.nodes.tiling import TemporalWindows

    return TemporalWindows.execute(model, {"windows": "manual", "window": length, "overlap": overlap}).args[0]


def tiles(model, width=64):
    from cascadevsr.nodes.tiling import SpatialTiles

    manual = {"tiling": "manual", "tile_width": width, "tile_height": 64, "overlap": 32}
    return SpatialTiles.execute(model, manual).args[0]


def test_vsr_conditioning_is_the_hosts_own(seedvr2, clip, watched):
    from comfy_extras.nodes_seedvr import SeedVR2Conditioning

    positive, negative = SeedVR2Conditioning.execute(seedvr2.model, clip.latent).args
    theirs = SimpleNamespace(positive=positive, negative=negative, samples=clip.samples)
    assert torch.equal(watched(seedvr2.model)[0], watched(seedvr2.model, theirs)[0])


def test_windows_are_made_and_whole_ones_are_none(seedvr2, watched):
    plain, seen = watched(seedvr2.model)
    assert seen == [(6, 8, 12)]  # 21 frames are 1 + 5 latent frames
    result, seen = watched(windows(seedvr2.model))
    assert seen == [(3, 8, 12), (4, 8, 12), (4, 8, 12), (4, 8, 12)][: len(seen)] and len(seen) > 1
    assert torch.isfinite(result).all()
    assert torch.equal(watched(windows(tiles(seedvr2.model, 96), FRAMES))[0], plain)
    result, seen = watched(windows(tiles(seedvr2.model)))
    assert {shape[1:] for shape in seen} == {(8, 8)} and torch.isfinite(result).all()
    assert {shape[1:] for shape in watched(tiles(seedvr2.model, 72))[1]} == {(8, 8)}  # of whole patches


def test_the_plan_counts_what_is_called(seedvr2, clip, watched):
    from cascadevsr.models.layout.sizes import ClipSize
    from cascadevsr.nodes import plan

    model = windows(tiles(seedvr2.model))
    conds = plan._conditions(None, 1.0, None)
    made = plan.make_plan(model, None, conds, *plan._measure(model, None, ClipSize(FRAMES, 64, 96)), 1)
    assert (made.time, made.patch, made.latent[2]) == (4, (1, 2, 2), 6)
    assert made.passes == len(watched(model)[1])


@pytest.mark.parametrize("node", ["propagation", "guidance"])
def test_what_needs_several_steps_says_so(seedvr2, watched, caplog, node):
    from cascadevsr.models.motion.estimation import Motion
    from cascadevsr.nodes.motion import LatentPropagation
    from cascadevsr.nodes.motion_guidance import MotionGuidance

    flow = torch.full((FRAMES - 1, 2, 16, 24), 0.5)
    motion = Motion(flow, -flow, (), FRAMES, 16, 24)
    whole = {"steps": "percent range", "start_percent": 0.0, "end_percent": 1.0}
    if node == "propagation":
        model = LatentPropagation.execute(seedvr2.model, motion, whole, "both", 0.3, "nearest", 0.001, 0.05).args[0]
    else:
        model = MotionGuidance.execute(seedvr2.model, motion, 0.5, 0.0, 1.0, "both", "default").args[0]
    with caplog.at_level(logging.WARNING):
        assert torch.isfinite(watched(model)[0]).all()
    lines = [record.message for record in caplog.records if "needs several steps" in record.message]
    assert len(lines) == 1 and "\n" not in lines[0]


def test_decoding_is_the_hosts_and_colours_match(seedvr2, clip, watched):
    from cascadevsr.nodes.colour import ColourMatch
    from cascadevsr.nodes.frames import TemporalDecode

    sampled = {**clip.samples, "samples": watched(seedvr2.model)[0]}
    frames = TemporalDecode.execute(sampled, seedvr2.vae, 1.0, 64, 0).args[0]
    theirs = seedvr2.vae.decode(sampled["samples"])
    assert torch.allclose(frames, theirs.reshape(-1, *theirs.shape[-3:])[:FRAMES], atol=1e-4)
    matched = ColourMatch.execute(frames, clip.frames, "wavelet", 1.0).args[0]
    low = torch.nn.functional.interpolate(clip.frames.movedim(-1, 1), frames.shape[1:3]).movedim(1, -1)
    assert (matched.mean((1, 2)) - low.mean((1, 2))).abs().max() < (frames.mean((1, 2)) - low.mean((1, 2))).abs().max()


@pytest.mark.parametrize("size", [(16, 24), (18, 28)], ids=["whole patches", "padded"])
def test_a_film_goes_through(seedvr2, upscaled, sampling, tmp_path, size):  # noqa: F811
    source = film(tmp_path / "in.mkv", pictures(12, *size), sounds=[("aac", "mono", "eng")])
    given = {"model": seedvr2.model, "vae": seedvr2.vae, **sampling(seedvr2.model)}
    out = upscaled(source, **given, colour="wavelet")
    made = pixels(out)
    assert made.shape == (12, 2 * size[0], 2 * size[1], 3) and made.std() > 1
