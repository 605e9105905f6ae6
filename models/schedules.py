"""Sampling schedules as pure functions: which noise levels a run visits, and how a sample steps from one to the next.

Flow matching: x = (1 - sigma) clean + sigma noise, sigma in 0..1.
1. `flow_sigmas`: (steps + 1,) sigmas from the start to 0; `shift_sigma` moves them towards the noisy end.
2. `step_index` finds the step of a sigma; `pndm_weights` weigh past velocities for a multistep update.

Diffusion: x = sqrt(abar) clean + sqrt(1 - abar) noise, abar = alphas_cumprod[time], the share of signal power.
1. `DiffusionSettings`, the published json, gives betas and alphas_cumprod (1000,).
2. `ddim_timesteps` or `ddpm_timesteps`: the descending times of a run.
3. `ddim_update` or `ddpm_update`: from a prediction of the clean sample at one time to the sample at the next.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch

SAME = 1.0001  # sigmas whose ratio is below this are one step
_MOST_GAIN = 10.0  # sum of |weights| of a multistep; 6.7 are those of order 4 on an even grid
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Fields of a scheduler json that change the numbers, and the value under which they do not.
_PLAIN = {"thresholding": False, "trained_betas": None, "rescale_betas_zero_snr": False, "timestep_spacing": "leading"}


def shift_sigma(sigma, shift: float):
    """Apply the time-step shift s t / (1 + (s - 1) t) to a number or tensor; 1 is the identity."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def unshift_sigma(sigma, shift: float):
    """Undo shift_sigma."""
    return sigma / (shift - (shift - 1) * sigma)


def flow_sigmas(steps: int, start: float = 1.0, shift: float = 1.0) -> torch.Tensor:
    """Give (steps + 1,) float32 sigmas, strictly descending from exactly `start` to exactly 0."""
    if steps < 1 or not 0 < start <= 1 or not 0 < shift < float("inf"):
        raise ValueError(
            "Flow sigmas: needs at least 1 step, a start sigma in (0, 1] and a positive shift; got "
            f"{steps} steps, start {start}, shift {shift}. Start from steps 1, start 1.0, shift 1.0."
        )
    times = torch.linspace(float(unshift_sigma(start, shift)), 0.0, steps + 1, dtype=torch.float64)
    sigmas = shift_sigma(times, shift)
    sigmas[0], sigmas[-1] = start, 0.0
    return sigmas.float()


def step_index(sigma: float, sigmas: torch.Tensor) -> int:
    """Count the steps of a run that began above `sigma`: 0 at its first step, the last step's number at most.

    Exact for samplers that evaluate once a step; a second evaluation within a step belongs to the next one.
    """
    return min(int((sigmas > sigma * SAME).sum()), max(0, len(sigmas) - 2))


def multistep_weights(times: Sequence[float], following: float) -> tuple[float, ...]:
    """Give the weights of past velocities, newest first, whose sum is the mean velocity from times[0] to `following`.

    Adams-Bashforth on any grid: exact where the velocity is a polynomial of a degree below len(times). Evenly spaced
    times give the classical weights, those of PNDM's pseudo linear multistep (Liu et al. 2022).
    """
    step = following - times[0]
    places = torch.tensor([(time - times[0]) / step for time in times], dtype=torch.float64)
    powers = torch.arange(len(times), dtype=torch.float64)
    return tuple(torch.linalg.solve(places[None] ** powers[:, None], 1 / (powers + 1)).tolist())


def pndm_weights(times: Sequence[float], following: float) -> tuple[float, ...]:
    """Give multistep_weights of the highest order, 4 at most, that does not blow the network's error up.

    Steps that grow quickly ask for far extrapolation: at 4 steps and shift 8 weights of 623 in sum were seen.
    """
    for order in range(min(len(times), 4), 1, -1):
        weights = multistep_weights(times[:order], following)
        if sum(map(abs, weights)) <= _MOST_GAIN:
            return weights
    return (1.0,)


def timestep_features(timestep: torch.Tensor, width: int, sines_first: bool = False) -> torch.Tensor:
    """Give sinusoids of time steps (n,), counted in 0..1000, in float32: (n, width), cosines first.

    Frequencies fall geometrically from 1 to 1e-4 radians a step (Vaswani et al. 2017).
    """
    half = width // 2
    position = torch.arange(half, dtype=torch.float32, device=timestep.device)
    angle = timestep.float().reshape(-1, 1) * torch.exp(-math.log(1e4) * position / half)
    parts = (angle.sin(), angle.cos()) if sines_first else (angle.cos(), angle.sin())
    return torch.cat(parts, 1)


def diffuse(clean: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Mix noise into a clean sample as the forward process does; `alpha` is the share of signal power, 0..1."""
    return (alpha**0.5 * clean).add_((1 - alpha) ** 0.5 * noise)


@dataclass(frozen=True)
class DiffusionSettings:
    """Hold the fields of a published scheduler_config.json; the defaults are those of a json without the field."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True  # the last step ends at a clean sample, else at that of alphas_cumprod[0]
    steps_offset: int = 0

    def __post_init__(self):
        if self.prediction_type not in PREDICTIONS:
            raise ValueError(
                f"Scheduler settings: prediction_type must be one of {', '.join(PREDICTIONS)}; "
                f"got {self.prediction_type!r}. Use the scheduler json of the published model."
            )

    @classmethod
    def from_json(cls, json: Mapping) -> "DiffusionSettings":
        """Read the fields of a DDIM or DDPM json; refuse those that would change the numbers if ignored."""
        for name, plain in _PLAIN.items():
            if json.get(name, plain) not in (plain, None):
                raise ValueError(
                    f"Scheduler settings: {name} must be {plain!r} or missing; got {json[name]!r}. "
                    "Use the scheduler json of the published model."
                )
        return cls(**{field.name: json[field.name] for field in fields(cls) if field.name in json})

    def alphas_cumprod(self) -> torch.Tensor:
        """Give the (num_train_timesteps,) float32 shares of signal power, from clean to noise."""
        return alphas_cumprod(betas(self.beta_schedule, self.beta_start, self.beta_end, self.num_train_timesteps))


def betas(kind: str, start: float, end: float, steps: int) -> torch.Tensor:
    """Give (steps,) float32 betas: linear, scaled_linear (linear in the root) or squaredcos_cap_v2 (cosine)."""
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32).square()
    if kind == "squaredcos_cap_v2":
        power = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        capped = [min(1 - after / before, 0.999) for before, after in pairwise(power)]
        return torch.tensor(capped, dtype=torch.float32)
    raise ValueError(
        f"Scheduler settings: beta_schedule must be linear, scaled_linear or squaredcos_cap_v2; got {kind!r}. "
        "Use the scheduler json of the published model."
    )


def alphas_cumprod(betas: torch.Tensor) -> torch.Tensor:
    """Give the running product of 1 - beta, in the dtype of the betas."""
    return torch.cumprod(1 - betas, 0)


def ddim_timesteps(steps: int, settings: DiffusionSettings) -> list[int]:
    """Give the descending times of `steps` steps, "leading" spacing: multiples of a whole stride, plus the offset."""
    stride = settings.num_train_timesteps // max(steps, 1)
    times = [i * stride + settings.steps_offset for i in reversed(range(steps))]
    if steps < 1 or stride < 1 or times[0] >= settings.num_train_timesteps:
        raise ValueError(
            f"DDIM times: needs 1 to {settings.num_train_timesteps - settings.steps_offset} steps; got {steps}. "
            "30 is the published number."
        )
    return times


def ddim_update(clean, noise, alpha, alpha_next, eta: float = 0.0, fresh=None):
    """Step to alpha_next from a clean sample and a noise estimate; eta > 0 mixes in `fresh` noise (DDIM eq. 12)."""
    if eta == 0:
        return alpha_next**0.5 * clean + (1 - alpha_next) ** 0.5 * noise
    if fresh is None:
        raise ValueError(
            f"DDIM step: eta above 0 needs fresh noise for each step; got eta {eta} and none. Pass `fresh`."
        )
    sigma = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)) ** 0.5
    return alpha_next**0.5 * clean + (1 - alpha_next - sigma**2) ** 0.5 * noise + sigma * fresh


# Ancestral DDPM on part of the trained times, as MGLD-VSR samples

_SMALLEST_VARIANCE = 1e-20  # the last step's variance is 0, and its logarithm is asked for


def ddpm_timesteps(steps: int, trained: int = 1000) -> list[int]:
    """Give the descending times of `steps` steps, evenly from the last trained time to 0.

    The stride is summed up in double precision and halves are rounded to even, as published.
    """
    if not 2 <= steps <= trained:
        raise ValueError(f"Ancestral DDPM times: needs 2 to {trained} steps; got {steps}. 50 is the published number.")
    times, reached = [], 0.0
    for _ in range(steps):
        times.append(round(reached))
        reached += (trained - 1) / (steps - 1)
    return times[::-1]


def ddpm_posterior(alpha: torch.Tensor, alpha_next: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give (share of the clean sample, share of x, log variance) of a step from alpha to alpha_next.

    The variance is that of the posterior, beta~ in Ho et al. 2020; log(1e-20) where it is 0, at alpha_next 1.
    """
    beta = 1 - alpha / alpha_next
    left = (1 - alpha_next) / (1 - alpha)
    log_variance = (beta * left).clamp_min(_SMALLEST_VARIANCE).log()
    return beta * alpha_next.sqrt() / (1 - alpha), left * (1 - beta).sqrt(), log_variance


def ddpm_update(x, clean, fresh, alpha: torch.Tensor, alpha_next: torch.Tensor):
    """Step from x to alpha_next with a clean sample and `fresh` noise, which a step to alpha_next 1 leaves out."""
    of_clean, of_x, log_variance = ddpm_posterior(alpha, alpha_next)
    mean = of_clean * clean + of_x * x
    return mean if float(alpha_next) == 1 else mean + (log_variance / 2).exp() * fresh
