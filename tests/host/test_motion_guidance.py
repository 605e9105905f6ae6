"""Motion Guidance in the host: any video model, inference mode, both forms, ranges, errors, and what it gains."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

FRAMES = 9


@pytest.fixture
def still():
    """Make motion of a clip that stands still."""

    def make(count=FRAMES, height=12, width=20, cuts=()):
        from cascadevsr.models.motion.estimation import Motion

        flow = torch.zeros(count - 1, 2, height, width, dtype=torch.float16)
        return Motion(flow, flow, cuts, count, height, width)

    return make


@pytest.fixture
def guided(core):
    """Run Motion Guidance: guided(model, motion, strength=..., ...) -> MODEL."""

    def run(model, motion, strength=1.0, part=(0.0, 1.0), direction="both", form="default"):
        from cascadevsr.nodes.motion_guidance import MotionGuidance

        return MotionGuidance.execute(model, motion, strength, *part, direction, form).args[0]

    return run


def unsteadiness(latent):
    return float(latent.diff(dim=2).abs().mean())


def test_one_step_is_the_guided_prediction(model, clip, ksample, still, guided):
    """Inside the host's inference mode; the incoming model stays as it was."""
    from cascadevsr.models.motion.guidance import Flows, guide_clean

    assert torch.is_inference_mode_enabled()
    plain = ksample(model, clip)["samples"]
    flows = Flows(*still().on_grid(*plain.shape[2:], time=4))
    for form in ("default", "published"):
        for direction in ("both", "forward", "backward"):
            result = ksample(guided(model, still(), direction=direction, form=form), clip)["samples"]
            expected = guide_clean(plain, flows, form=form, direction=direction)
            assert torch.allclose(result, expected, atol=1e-5) and not torch.allclose(result, plain, atol=1e-3)
    assert torch.equal(ksample(model, clip)["samples"], plain)


def test_a_still_clip_becomes_stiller_with_strength(model, clip, ksample, still, guided):
    found = [
        unsteadiness(ksample(guided(model, still(), strength), clip, steps=2)["samples"])
        for strength in (0.0, 0.5, 1.0, 10.0)
    ]
    assert found == sorted(found, reverse=True) and found[3] < 0.5 * found[0]
    plain = unsteadiness(ksample(model, clip, steps=2)["samples"])
    assert found[0] == plain


def test_a_part_of_the_denoising(model, clip, ksample, still, guided):
    plain = ksample(model, clip, steps=4)["samples"]
    whole = ksample(guided(model, still()), clip, steps=4)["samples"]
    late = ksample(guided(model, still(), part=(0.5, 1.0)), clip, steps=4)["samples"]
    assert not torch.equal(late, plain) and not torch.equal(late, whole)
    with pytest.raises(ValueError, match="Motion Guidance: start_percent must be below end_percent; got 0.5"):
        guided(model, still(), part=(0.5, 0.5))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "ddim", "uni_pc"])
def test_the_hosts_samplers_run_with_it(model, clip, ksample, still, guided, sampler):
    result = ksample(guided(model, still()), clip, steps=4, cfg=2.0, sampler=sampler)["samples"]
    assert torch.isfinite(result).all()


def test_nothing_crosses_a_cut_and_tiles_and_windows_do_not_matter(model, prepare, ksample, still, guided):
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows

    clip = prepare(17, 24, 24, (96, 96))
    tiled = SpatialTiles.execute(model, {"tiling": "manual", "tile_width": 64, "tile_height": 64, "overlap": 32}).args[
        0
    ]
    windowed = TemporalWindows.execute(tiled, {"windows": "manual", "window": 9, "overlap": 4}).args[0]
    plain = ksample(windowed, clip)["samples"]
    result = ksample(guided(windowed, still(17, 24, 24, cuts=(9,)), 10.0), clip)["samples"]
    for scene in (slice(0, 3), slice(3, 5)):
        assert unsteadiness(result[:, :, scene]) < 0.5 * unsteadiness(plain[:, :, scene])
        moved = result[:, :, scene].mean(2) - plain[:, :, scene].mean(2)
        # What a pair gains the other frame loses, but for the limit on large differences.
        assert moved.abs().mean() < 0.05 * plain.abs().mean()


def test_one_frame_is_left_alone(model, prepare, ksample, still, guided):
    clip = prepare(1, 12, 20, (48, 80))
    plain = ksample(model, clip)["samples"]
    assert torch.equal(ksample(guided(model, still(1)), clip)["samples"], plain)


def test_picture_models_hold_frames_in_the_batch(core, still):
    from cascadevsr.nodes.host.keys import UNEDITED_KEY
    from cascadevsr.nodes.motion_guidance import _Guidance

    kept = {"x0": None}
    options = {"transformer_options": {"sample_sigmas": torch.tensor([1.0, 0.0]), UNEDITED_KEY: kept}}
    clean = torch.randn(FRAMES, 4, 6, 10)
    wrapper = _Guidance(still(), 4, lambda *_: True, 10.0, "both", "default")
    result = wrapper(lambda *_: clean, torch.zeros_like(clean), torch.ones(FRAMES), options)
    assert result.shape == clean.shape and result.diff(dim=0).abs().mean() < 0.5 * clean.diff(dim=0).abs().mean()
    assert kept["x0"] is clean, "the sampler's noise estimate needs the prediction as it was"
    with pytest.raises(ValueError, match=r"Motion Guidance: .* packs sound or other data"):
        wrapper(lambda *_: clean, torch.zeros(1, 1, 99), torch.ones(1), options)


def test_the_published_form_leaves_the_sample_to_a_sampler_that_asks_for_it(core, model, still, guided):
    """Where the sampler calls what acts after a step, the prediction stays and the sample moves as published."""
    from cascadevsr.models.motion.guidance import Flows, motion_gradient
    from cascadevsr.nodes.host.keys import AFTER_STEP_KEY, STEPPING_KEY
    from comfy.patcher_extension import WrappersMP

    patched = guided(model, still(), 0.5, form="published")
    options = patched.model_options["transformer_options"]
    (change,) = options[AFTER_STEP_KEY]
    assert AFTER_STEP_KEY not in model.model_options.get("transformer_options", {})
    wrapper = patched.get_all_wrappers(WrappersMP.PREDICT_NOISE)[-1]
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    running = {"transformer_options": {**options, STEPPING_KEY: True, "sample_sigmas": sigmas}}
    x = torch.randn(1, 4, 3, 6, 10)
    assert wrapper(lambda x, *_: x, x, torch.ones(1), running) is x
    flows = Flows(*still().on_grid(3, 6, 10, time=4))
    gradient = motion_gradient(x, flows, form="published", segment=5)[1]
    assert torch.allclose(change(x, -3.0, 1.0, running["transformer_options"]), x - 15 * gradient, atol=1e-6)


def test_what_does_not_fit_is_refused(core, model, clip, ksample, still, guided):
    with pytest.raises(ValueError, match="Motion Guidance: .*motion of 5 frames, which is 2 latent frames"):
        ksample(guided(model, still(5)), clip)
    with pytest.raises(ValueError, match="Motion Guidance: motion must come from Estimate Motion; got int"):
        guided(model, 3)
    with pytest.raises(ValueError, match="Motion Guidance: form must be one of default, published .* 'other'"):
        guided(model, still(), form="other")


def test_the_built_in_model_holds_together_along_the_motion(core, ksample):
    """With exact motion, from degraded frames: towards the truth's own warping error, as close to the truth."""
    import numpy as np
    from cascadevsr.models.motion.estimation import Motion
    from cascadevsr.models.pixels.degradation import PRESETS, degrade
    from cascadevsr.models.pixels.metrics import psnr_y, warping_error
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.frames import CascadeInput, TemporalDecode
    from cascadevsr.nodes.loaders import LoadVideoRestorer
    from cascadevsr.nodes.motion_guidance import MotionGuidance
    from cascadevsr.runner.sample import make_sample

    count, height, width = 9, 96, 160
    made = make_sample(count, width, height)
    truth = torch.from_numpy(made.truth.copy()).float() / 255
    flows = torch.from_numpy(made.forward), torch.from_numpy(made.backward)
    small = [F.avg_pool2d(flow, 4) / 4 for flow in flows]
    motion = Motion(*small, (), count, height // 4, width // 4)
    rng = np.random.default_rng(3)
    lr = degrade(truth.movedim(-1, 1), height // 4, width // 4, PRESETS["real"](rng), rng).movedim(1, -1)
    model, vae = LoadVideoRestorer.execute("built-in", "auto").args[:2]
    latent, low = CascadeInput.execute(vae, {"target": "scale", "scale": 4.0}, "bilinear", frames=lr).args[:2]
    conditions = VSRConditioning.execute(latent, 0.3, 1).args
    clip = SimpleNamespace(**dict(zip(("positive", "negative", "samples"), conditions, strict=True)))

    def run(each):
        """Give (warping error, PSNR-Y) decoded with the LR frames, then the same without, where latents count more."""
        sampled = ksample(each, clip, steps=4)
        decoded = [TemporalDecode.execute(sampled, vae, 1.0, 16, 0, guide).args[0] for guide in (low, None)]
        return [value for frames in decoded for value in (warping_error(frames, flows), psnr_y(frames, truth))]

    plain = run(model)
    default, published = (
        run(MotionGuidance.execute(model, motion, 1.0, 0.0, 1.0, "both", form).args[0])
        for form in ("default", "published")
    )
    own = warping_error(truth, flows)
    assert own < default[0] < plain[0] and own < default[2] < 0.9 * plain[2]
    assert default[1] > plain[1] - 0.1 and default[3] > plain[3] - 0.1
    assert published[3] < default[3], "wrong pairs cost detail"
