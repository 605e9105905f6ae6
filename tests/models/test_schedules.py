"""Schedules: flow sigmas and their shift; the two halves and the settings of DDIM; ancestral DDPM; multistep."""

import itertools
import math

import pytest
import torch
from cascadevsr.models.schedules import (
    DDIM,
    DiffusionSettings,
    SpacedDDPM,
    betas,
    ddim_timesteps,
    ddim_update,
    ddpm_posterior,
    ddpm_timesteps,
    flow_sigmas,
    multistep_weights,
    pndm_weights,
    predict_clean,
    predict_noise,
    shift_sigma,
    step_index,
    unshift_sigma,
)
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 60), st.floats(0.05, 1.0), st.floats(0.2, 12.0))
def test_sigmas_run_from_start_to_zero(steps, start, shift):
    sigmas = flow_sigmas(steps, start, shift)
    assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32
    assert sigmas[0] == torch.tensor(start) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


@given(st.floats(0.0, 1.0), st.floats(0.2, 12.0))
def test_shift_has_an_inverse(sigma, shift):
    assert unshift_sigma(shift_sigma(sigma, shift), shift) == pytest.approx(sigma, abs=1e-9)
    assert shift_sigma(sigma, 1.0) == sigma


def test_one_step_and_no_shift():
    assert flow_sigmas(1).tolist() == [1.0, 0.0]
    assert flow_sigmas(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert flow_sigmas(2, shift=3.0).tolist() == [1.0, 0.75, 0.0]


@pytest.mark.parametrize("arguments", [(0,), (3, 0.0), (3, 1.1), (3, 1.0, 0.0), (3, float("nan"))])
def test_errors(arguments):
    with pytest.raises(ValueError, match="Refine Sigmas: .* got "):
        flow_sigmas(*arguments)


PUBLISHED = DiffusionSettings(
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


def test_settings_come_from_a_json_and_fall_back_to_its_defaults():
    json = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "steps_offset": 1}
    settings = DiffusionSettings.from_json(json | {"trained_betas": None, "timestep_spacing": "leading"})
    assert settings == DiffusionSettings(beta_schedule="scaled_linear", steps_offset=1)
    assert settings.clip_sample and settings.set_alpha_to_one and settings.prediction_type == "epsilon"


@pytest.mark.parametrize(
    "json",
    [
        {"thresholding": True},
        {"trained_betas": [0.1]},
        {"rescale_betas_zero_snr": True},
        {"timestep_spacing": "trailing"},
        {"prediction_type": "flow"},
    ],
)
def test_settings_that_would_change_the_numbers_are_refused(json):
    with pytest.raises(ValueError, match="Scheduler settings: .* got "):
        DiffusionSettings.from_json(json)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_betas_rise_within_their_ends(kind):
    settings = DiffusionSettings(beta_schedule=kind)
    found = betas(kind, settings.beta_start, settings.beta_end, 1000)
    assert found.dtype == torch.float32 and found.shape == (1000,) and (found.diff() >= 0).all()
    assert found[0] > 0 and found[-1] < 1
    alphas = settings.alphas_cumprod()
    assert alphas.dtype == torch.float32 and (alphas.diff() < 0).all() and 0 <= alphas[-1] < alphas[0] < 1
    with pytest.raises(ValueError, match="Scheduler settings: .* got 'cubic'"):
        betas("cubic", 0.1, 0.2, 10)


def test_times_are_multiples_of_a_whole_stride():
    assert ddim_timesteps(30, PUBLISHED)[:2] == [958, 925] and ddim_timesteps(30, PUBLISHED)[-1] == 1
    assert ddim_timesteps(7, DiffusionSettings()) == [852, 710, 568, 426, 284, 142, 0]
    assert ddim_timesteps(1, PUBLISHED) == [1] and len(ddim_timesteps(1000, DiffusionSettings())) == 1000
    for steps, settings in ((0, PUBLISHED), (1000, PUBLISHED), (1001, DiffusionSettings())):
        with pytest.raises(ValueError, match="DDIM: .* got "):
            ddim_timesteps(steps, settings)


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
    run = DDIM(PUBLISHED, 5)
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
    run = DDIM(PUBLISHED, 3)
    with pytest.raises(ValueError, match="DDIM: .* eta 0.5"):
        run.next(*torch.zeros(3, 4), run.timesteps[0], eta=0.5)


def test_half_precision_stays():
    run = DDIM(PUBLISHED, 3)
    x = torch.randn(4).half()
    clean = run.predict_clean(x, x, 334)
    assert clean.dtype == run.next(x, x, clean, 334).dtype == torch.float16


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("clip", "to_one", "eta"), [(True, True, 0.0), (False, False, 0.0), (False, True, 0.7)]
)
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_without_edits_it_is_the_well_known_ddim(prediction, clip, to_one, eta, kind):
    """Step for step what diffusers' scheduler gives."""
    if prediction == "sample" and clip:
        pytest.skip(
            "the published step estimates the noise from the clipped sample, diffusers from the output"
        )
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


# Ancestral DDPM

MGLD = DiffusionSettings(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="epsilon",
    clip_sample=False,
)


def test_ancestral_times_are_the_published_ones():
    assert ddpm_timesteps(7)[::-1] == [0, 166, 333, 500, 666, 832, 999]
    twenty_one = [
        0,
        50,
        100,
        150,
        200,
        250,
        300,
        350,
        400,
        450,
        499,
        549,
        599,
        649,
        699,
        749,
        799,
        849,
        899,
        949,
        999,
    ]
    assert ddpm_timesteps(21)[::-1] == twenty_one
    assert ddpm_timesteps(1000) == list(range(999, -1, -1)) and ddpm_timesteps(2) == [999, 0]
    assert ddpm_timesteps(50)[::-1][:5] == [0, 20, 41, 61, 82]
    for steps in (1, 1001):
        with pytest.raises(ValueError, match=f"Ancestral DDPM: needs 2 to 1000 steps; got {steps}"):
            ddpm_timesteps(steps)


@given(st.integers(2, 60))
def test_an_ancestral_step_keeps_the_share_of_signal_and_noise(steps):
    """With the true clean sample and noise, the result has the mean and variance of the next noise level."""
    run = SpacedDDPM(MGLD, steps)
    for alpha, following in zip(run.alphas[:-1], run.alphas[1:], strict=True):
        of_clean, of_x, log_variance = ddpm_posterior(alpha, following)
        assert float(of_clean + of_x * alpha.sqrt()) == pytest.approx(float(following.sqrt()), abs=1e-9)
        variance = float(of_x**2 * (1 - alpha) + log_variance.exp())
        assert variance == pytest.approx(float(1 - following), abs=1e-9)


def test_the_last_ancestral_step_is_the_prediction_without_noise():
    run = SpacedDDPM(MGLD, 5)
    x, output, fresh = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    clean = run.predict_clean(x, output, 4)
    assert torch.allclose(run.next(x, clean, fresh * float("nan"), 4), clean)
    assert run.log_variance(4) == pytest.approx(-46.0517, abs=1e-4)
    assert not torch.allclose(run.next(x, clean, fresh, 3), run.next(x, clean, 0 * fresh, 3))
    assert run.next(x.half(), clean.half(), fresh.half(), 3).dtype == torch.float16


def test_the_start_still_shows_the_clean_sample():
    run = SpacedDDPM(MGLD, 50)
    clean, noise = torch.ones(3), torch.zeros(3)
    assert run.noised(clean, noise)[0] == pytest.approx(0.0682649, abs=1e-6)
    assert run.noised(noise, clean)[0] == pytest.approx(0.9976673, abs=1e-6)


# Multistep


def test_multistep_weights_are_the_classical_ones_on_an_even_grid():
    classical = [
        (1.0,),
        (3 / 2, -1 / 2),
        (23 / 12, -16 / 12, 5 / 12),
        (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    ]
    for expected in classical:
        times = [0.5 + 0.1 * i for i in range(len(expected))]
        assert multistep_weights(times, 0.4) == pytest.approx(expected, abs=1e-9)


@given(gaps=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=5), power=st.integers(0, 3))
def test_multistep_weights_integrate_polynomials_on_any_grid(gaps, power):
    times = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    following, times = times[0], times[1:]
    power = min(power, len(times) - 1)
    weights = multistep_weights(times, following)
    mean = (following ** (power + 1) - times[0] ** (power + 1)) / (power + 1) / (following - times[0])
    found = sum(weight * time**power for weight, time in zip(weights, times, strict=True))
    assert found == pytest.approx(mean, rel=1e-6, abs=1e-6 * sum(map(abs, weights)))


def test_pndm_rises_to_order_4_and_holds_back_where_steps_grow():
    evenly = [0.6, 0.7, 0.8, 0.9, 1.0]
    assert [len(pndm_weights(evenly[:n], 0.5)) for n in (1, 2, 3, 4, 5)] == [1, 2, 3, 4, 4]
    sigmas = flow_sigmas(4, shift=8.0).tolist()
    weights = pndm_weights(sigmas[3::-1][:4], 0.0)
    assert len(weights) < 4 and sum(map(abs, weights)) <= 10


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_pndm_has_its_order_on_a_known_flow(shift):
    """Velocities of a Gaussian's flow have a closed form; with an exact start halving the steps costs 2^4."""

    def velocity(x, t):
        return -0.91 * x * t + 1.7 * torch.cos(2 * t)

    def integrate(steps, exact_start):
        times = flow_sigmas(steps, shift=shift).tolist()
        x, history = torch.tensor(1.0, dtype=torch.float64), []
        for step, (now, following) in enumerate(itertools.pairwise(times)):
            history = [velocity(x, torch.tensor(now, dtype=torch.float64)), *history[:3]]
            weights = pndm_weights(times[step::-1][:4], following)
            if exact_start and step < 3:
                x = fine(x, now, following)
            else:
                x = x + (following - now) * sum(w * v for w, v in zip(weights, history, strict=False))
        return float(x)

    def fine(x, now, following, parts=200):
        """Follow the flow by classical Runge-Kutta."""
        h = torch.tensor((following - now) / parts, dtype=torch.float64)
        for part in range(parts):
            t = now + part * h
            a = velocity(x, t)
            b = velocity(x + h / 2 * a, t + h / 2)
            c = velocity(x + h / 2 * b, t + h / 2)
            x = x + h / 6 * (a + 2 * b + 2 * c + velocity(x + h * c, t + h))
        return x

    truth = float(fine(torch.tensor(1.0, dtype=torch.float64), 1.0, 0.0, parts=20000))
    errors = {steps: abs(integrate(steps, True) - truth) for steps in (40, 80)}
    assert math.log2(errors[40] / errors[80]) > 3.6
    errors = {steps: abs(integrate(steps, False) - truth) for steps in (40, 80)}
    assert math.log2(errors[40] / errors[80]) > 1.8, "its first step is a plain one"


def test_step_index_counts_the_steps_that_began_above():
    sigmas = flow_sigmas(4)
    assert [step_index(float(sigma), sigmas) for sigma in sigmas] == [0, 1, 2, 3, 3]
    assert step_index(0.9, sigmas) == 1, "a second evaluation within a step belongs to the next"
    assert step_index(2.0, sigmas) == 0
