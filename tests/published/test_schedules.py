"""The published samplers step by step: the two halves of DDIM, ancestral DDPM."""

import pytest
import torch
from cascadevsr.models.mgld_vsr.published import SCHEDULE as DDPM_SCHEDULE
from cascadevsr.models.schedules import DiffusionSettings, ddim_update, ddpm_posterior
from cascadevsr.models.upscale_a_video.published import SCHEDULE as DDIM_SCHEDULE
from cascadevsr.tests.published.schedules import DDIM, SpacedDDPM, predict_clean, predict_noise
from hypothesis import given
from hypothesis import strategies as st


@given(st.floats(0.01, 0.99), st.sampled_from(["epsilon", "v_prediction", "sample"]))
def test_clean_and_noise_make_the_noisy_sample_again(alpha, prediction):
    clean, noise = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = ddim_update(clean, noise, None, alpha)
    output = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean,
    }
    assert torch.allclose(predict_clean(x, output[prediction], alpha, prediction), clean)
    assert torch.allclose(predict_noise(x, output[prediction], alpha, prediction), noise)


def test_the_right_clean_sample_leads_to_it_and_an_edit_stays():
    """With the true v all the way, the last step gives the clean sample at the last noise level, edited or not."""
    run = DDIM(DDIM_SCHEDULE, 5)
    clean, edited, noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    x = ddim_update(clean, noise, None, run.alphas[run.timesteps[0]])
    for i, t in enumerate(run.timesteps):
        alpha = run.alphas[t]
        v = alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean
        assert torch.allclose(run.predict_clean(x, v, t), clean, atol=1e-3)
        x = run.next(x, v, edited if i == 4 else clean, t)
    assert run.alpha_after(run.timesteps[-1]) == run.alphas[0]
    assert torch.allclose(x, ddim_update(edited, noise, None, run.alphas[0]), atol=1e-3)


def test_eta_needs_noise():
    run = DDIM(DDIM_SCHEDULE, 3)
    with pytest.raises(ValueError, match="DDIM step: .* eta 0.5"):
        run.next(*torch.zeros(3, 4), run.timesteps[0], eta=0.5)


def test_half_precision_stays():
    run = DDIM(DDIM_SCHEDULE, 3)
    x = torch.randn(4).half()
    clean = run.predict_clean(x, x, 334)
    assert clean.dtype == run.next(x, x, clean, 334).dtype == torch.float16


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("clip", "to_one", "eta"), [(True, True, 0.0), (False, False, 0.0), (False, True, 0.7)])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_without_edits_it_is_the_well_known_ddim(prediction, clip, to_one, eta, kind):
    """Step for step what diffusers' scheduler gives."""
    if prediction == "sample" and clip:
        pytest.skip("the published step estimates the noise from the clipped sample, diffusers from the output")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    json = {
        "num_train_timesteps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": kind,
        "prediction_type": prediction,
        "clip_sample": clip,
        "set_alpha_to_one": to_one,
        "steps_offset": 1,
    }
    theirs, ours = diffusers.DDIMScheduler(**json), DDIM(DiffusionSettings.from_json(json), 6)
    theirs.set_timesteps(6)
    assert theirs.timesteps.tolist() == ours.timesteps
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 9, generator=generator)
    for t in ours.timesteps:
        output, fresh = torch.randn(2, 2, 9, generator=generator)
        options = {"eta": eta, "variance_noise": fresh} if eta else {}
        expected = theirs.step(output, t, x, **options).prev_sample
        x = ours.next(x, output, ours.predict_clean(x, output, t), t, eta, fresh)
        assert torch.allclose(x, expected, rtol=1e-4, atol=1e-5)


@given(st.integers(2, 60))
def test_an_ancestral_step_keeps_the_share_of_signal_and_noise(steps):
    """With the true clean sample and noise, the result has the mean and variance of the next noise level."""
    run = SpacedDDPM(DDPM_SCHEDULE, steps)
    for alpha, following in zip(run.alphas[:-1], run.alphas[1:], strict=True):
        of_clean, of_x, log_variance = ddpm_posterior(alpha, following)
        assert float(of_clean + of_x * alpha.sqrt()) == pytest.approx(float(following.sqrt()), abs=1e-9)
        variance = float(of_x**2 * (1 - alpha) + log_variance.exp())
        assert variance == pytest.approx(float(1 - following), abs=1e-9)


def test_the_last_ancestral_step_is_the_prediction_without_noise():
    run = SpacedDDPM(DDPM_SCHEDULE, 5)
    x, output, fresh = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    clean = run.predict_clean(x, output, 4)
    assert torch.allclose(run.next(x, clean, fresh * float("nan"), 4), clean)
    assert run.log_variance(4) == pytest.approx(-46.0517, abs=1e-4)
    assert not torch.allclose(run.next(x, clean, fresh, 3), run.next(x, clean, 0 * fresh, 3))
    assert run.next(x.half(), clean.half(), fresh.half(), 3).dtype == torch.float16


def test_the_start_still_shows_the_clean_sample():
    run = SpacedDDPM(DDPM_SCHEDULE, 50)
    clean, noise = torch.ones(3), torch.zeros(3)
    assert run.noised(clean, noise)[0] == pytest.approx(0.0682649, abs=1e-6)
    assert run.noised(noise, clean)[0] == pytest.approx(0.9976673, abs=1e-6)
