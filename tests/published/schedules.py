"""Whole runs of the published samplers, as oracles: DDIM in two halves, and ancestral DDPM on part of the times."""

from __future__ import annotations

import torch
from cascadevsr.models.schedules import (
    DiffusionSettings,
    alphas_cumprod,
    betas,
    ddim_timesteps,
    ddim_update,
    ddpm_posterior,
    ddpm_timesteps,
    ddpm_update,
)


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


class SpacedDDPM:
    """An ancestral run of `steps` steps; step k goes from timesteps[k], which the network receives, to the next.

    Coefficients are float64 scalars on the CPU; results keep the dtype and device of x.
    """

    def __init__(self, settings: DiffusionSettings, steps: int):
        self.settings = settings
        self.timesteps = ddpm_timesteps(steps, settings.num_train_timesteps)
        powers = betas(settings.beta_schedule, settings.beta_start, settings.beta_end, settings.num_train_timesteps)
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
