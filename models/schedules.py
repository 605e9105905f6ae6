"""Sampling schedules as pure functions.

Flow matching: sigma runs from 1 (noise) to 0 (clean); shift moves steps towards the noisy end.
Diffusion: alphas_cumprod is the share of signal power at each trained time; DDIM and ancestral DDPM step down it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch

SAME = 1.0001  # sigmas closer than this are one step
_MOST_GAIN = 10.0  # sum of |weights| of a multistep; 6.7 are those of order 4 on an even grid
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Fields of a scheduler json that change the numbers, and the value under which they do not.
_PLAIN = {
    "thresholding": False,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "timestep_spacing": "leading",
}


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
            f"Refine Sigmas: needs at least 1 step, a start sigma in (0, 1] and a positive shift; "
            f"got {steps} steps, start {start}, shift {shift}. Start from steps 1, start 1.0, shift 1.0."
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
    set_alpha_to_one: bool = (
        True  # what follows the last step: a clean sample, else that of alphas_cumprod[0]
    )
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
        return alphas_cumprod(
            betas(self.beta_schedule, self.beta_start, self.beta_end, self.num_train_timesteps)
        )


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
            f"DDIM: needs 1 to {settings.num_train_timesteps - settings.steps_offset} steps; got {steps}. "
            "30 is the published number."
        )
    return times


def predict_clean(x, output, alpha, prediction: str = "v_prediction"):
    """Give the clean sample that a network's output means at the noisy x; alpha is alphas_cumprod there."""
    if prediction == "sample":
        return output
    if prediction == "epsilon":
        return (x - (1 - alpha) ** 0.5 * output) / alpha**0.5
    return alpha**0.5 * x - (1 - alpha) ** 0.5 * output


def predict_noise(x, output, alpha, prediction: str = "v_prediction"):
    """Give the noise that a network's output means at the noisy x."""
    if prediction == "sample":
        return (x - alpha**0.5 * output) / (1 - alpha) ** 0.5
    if prediction == "epsilon":
        return output
    return alpha**0.5 * output + (1 - alpha) ** 0.5 * x


def ddim_update(clean, noise, alpha, alpha_next, eta: float = 0.0, fresh=None):
    """Step to alpha_next from a clean sample and a noise estimate; eta > 0 mixes in `fresh` noise (DDIM eq. 12)."""
    if eta == 0:
        return alpha_next**0.5 * clean + (1 - alpha_next) ** 0.5 * noise
    if fresh is None:
        raise ValueError(
            f"DDIM: eta above 0 needs fresh noise for each step; got eta {eta} and none. Pass it."
        )
    sigma = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)) ** 0.5
    return alpha_next**0.5 * clean + (1 - alpha_next - sigma**2) ** 0.5 * noise + sigma * fresh


class DDIM:
    """A DDIM run of `steps` steps, each in two halves, so that the clean sample can be edited between them.

    Upscale-A-Video's form: the noise estimate comes from the network's output, not from the edited sample.
    Coefficients are float32 scalars; results keep the dtype and device of x.
    """

    def __init__(self, settings: DiffusionSettings, steps: int):
        self.settings = settings
        self.timesteps = ddim_timesteps(steps, settings)
        self.alphas = settings.alphas_cumprod()
        self._stride = settings.num_train_timesteps // steps

    def alpha_after(self, t: int) -> torch.Tensor:
        """Give the share of signal power that the step from t leads to."""
        if t >= self._stride:
            return self.alphas[t - self._stride]
        return self.alphas.new_ones(()) if self.settings.set_alpha_to_one else self.alphas[0]

    def predict_clean(self, x: torch.Tensor, output: torch.Tensor, t: int) -> torch.Tensor:
        """First half: the clean sample, clipped where the settings say so."""
        return self._clip(predict_clean(x, output, self.alphas[t], self.settings.prediction_type))

    def next(
        self,
        x: torch.Tensor,
        output: torch.Tensor,
        clean: torch.Tensor,
        t: int,
        eta: float = 0.0,
        fresh: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Second half: the next noisy sample, from the clean one, edited or not."""
        prediction = self.settings.prediction_type
        # A network that predicts the sample itself says nothing about the noise but through that sample.
        noise = predict_noise(x, clean if prediction == "sample" else output, self.alphas[t], prediction)
        return ddim_update(self._clip(clean), noise, self.alphas[t], self.alpha_after(t), eta, fresh)

    def _clip(self, clean: torch.Tensor) -> torch.Tensor:
        limit = self.settings.clip_sample_range
        return clean.clamp(-limit, limit) if self.settings.clip_sample else clean


# Ancestral DDPM on part of the trained times, as MGLD-VSR samples

_SMALLEST_VARIANCE = 1e-20  # the last step's variance is 0, and its logarithm is asked for


def ddpm_timesteps(steps: int, trained: int = 1000) -> list[int]:
    """Give the descending times of `steps` steps, evenly from the last trained time to 0.

    The stride is summed up in double precision and halves are rounded to even, as published.
    """
    if not 2 <= steps <= trained:
        raise ValueError(
            f"Ancestral DDPM: needs 2 to {trained} steps; got {steps}. 50 is the published number."
        )
    times, reached = [], 0.0
    for _ in range(steps):
        times.append(round(reached))
        reached += (trained - 1) / (steps - 1)
    return times[::-1]


def ddpm_posterior(
    alpha: torch.Tensor, alpha_next: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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


class SpacedDDPM:
    """An ancestral run of `steps` steps; step k goes from timesteps[k], which the network receives, to the next.

    Coefficients are float64 scalars on the CPU; results keep the dtype and device of x.
    """

    def __init__(self, settings: DiffusionSettings, steps: int):
        self.settings = settings
        self.timesteps = ddpm_timesteps(steps, settings.num_train_timesteps)
        powers = betas(
            settings.beta_schedule, settings.beta_start, settings.beta_end, settings.num_train_timesteps
        )
        self.trained_alphas = alphas_cumprod(powers.double())
        self.alphas = torch.cat((self.trained_alphas[self.timesteps], self.trained_alphas.new_ones(1)))

    def noised(self, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Give the noisy sample that the first step starts from: `clean` still shows through."""
        return self.alphas[0].sqrt() * clean + (1 - self.alphas[0]).sqrt() * noise

    def predict_clean(self, x: torch.Tensor, output: torch.Tensor, step: int) -> torch.Tensor:
        """Give the clean sample that the network's output means at a step."""
        return predict_clean(x, output, self.alphas[step], self.settings.prediction_type)

    def log_variance(self, step: int) -> float:
        """Give the logarithm of the variance of the noise that a step adds."""
        return float(ddpm_posterior(self.alphas[step], self.alphas[step + 1])[2])

    def next(self, x: torch.Tensor, clean: torch.Tensor, fresh: torch.Tensor, step: int) -> torch.Tensor:
        """Give the sample after a step."""
        return ddpm_update(x, clean, fresh, self.alphas[step], self.alphas[step + 1])
