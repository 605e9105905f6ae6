"""Schedules: flow sigmas and their shift; settings and times of DDIM and ancestral DDPM; multistep."""

import itertools
import math

import pytest
import torch
from cascadevsr.models.schedules import (
    DiffusionSettings,
    betas,
    ddim_timesteps,
    ddpm_timesteps,
    flow_sigmas,
    multistep_weights,
    pndm_weights,
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
    with pytest.raises(ValueError, match="Flow sigmas: .* got "):
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
        with pytest.raises(ValueError, match="DDIM times: .* got "):
            ddim_timesteps(steps, settings)


# Ancestral DDPM


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
        with pytest.raises(ValueError, match=f"Ancestral DDPM times: needs 2 to 1000 steps; got {steps}"):
            ddpm_timesteps(steps)


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
