"""SDEdit degradation: a clip as a base model would have made it, had it seen it through noise (paper section 3.3, A.4).

The clip is brought to the base model's resolution and into its latent space, noised by the forward process to step k
of the base model's schedule, denoised over those k steps, and decoded. Structure drifts locally, as in a base model
that ignored its references. Flow matching; any base fits that gives `encode`, `decode` and `predict`.

Clips are (b, 3, t, h, w) in 0..1, latents (b, c, T, h, w).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..layout.sizes import clip_size, crop_clip, pad_clip, padded_size, resize_clip
from ..schedules import flow_sigmas, shift_sigma

# (noisy latent, sigma, the encoded clip: for bases that want it as a condition) -> clean latent
Predict = Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class SDEdit:
    """The base model's schedule of `steps` steps; k is drawn from `lowest` .. `highest`, both included.

    The paper names neither: `highest` is "the most that keeps the main structure", here half of the schedule.
    """

    lowest: int = 10
    highest: int = 25
    steps: int = 50
    shift: float = 1.0

    def __post_init__(self):
        if not 0 <= self.lowest <= self.highest <= self.steps or self.steps < 1:
            raise ValueError(
                "SDEdit: steps must run 0 <= lowest <= highest <= steps; got "
                f"{self.lowest}, {self.highest}, {self.steps}. Start from 10, 25 and 50."
            )

    def draw(self, rng: np.random.Generator) -> int:
        """Draw k, the number of steps that are undone and done again."""
        return int(rng.integers(self.lowest, self.highest + 1))

    def start(self, k: int) -> float:
        """Give the share of noise at step k."""
        return float(shift_sigma(k / self.steps, self.shift))

    def sigmas(self, k: int) -> torch.Tensor:
        """Give the (k + 1,) sigmas of the last k steps; k = 0 is no step at all."""
        return flow_sigmas(k, self.start(k), self.shift) if k else torch.zeros(1)


def denoise_again(latent: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor, predict: Predict) -> torch.Tensor:
    """Noise a latent to the first of the sigmas and follow the flow back to the last, 0, in straight steps."""
    if len(sigmas) < 2:
        return latent
    z = (1 - sigmas[0]) * latent + sigmas[0] * noise
    for now, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        clean = predict(z, now, latent)
        z = clean if after == 0 else clean + after / now * (z - clean)
    return z


def sdedit(
    clip: torch.Tensor,
    height: int,
    width: int,
    sigmas: torch.Tensor,
    *,
    encode: Callable[[torch.Tensor], torch.Tensor],
    decode: Callable[[torch.Tensor], torch.Tensor],
    predict: Predict,
    noise: Callable[[torch.Tensor], torch.Tensor],
    space: int = 8,
    time: int = 4,
) -> torch.Tensor:
    """Degrade a clip to height x width px; `noise(latent)` draws noise like it.

    `encode` is given clips of 1 + n * `time` frames and sides that `space` divides; without steps (one sigma) what
    it gives is decoded as it is.
    """
    small = resize_clip(clip, height, width, "bicubic").clamp(0, 1)
    size = clip_size(small)
    latent = encode(pad_clip(small, padded_size(size, space, time)))
    latent = denoise_again(latent, noise(latent), sigmas.to(latent), predict)
    return crop_clip(decode(latent), size).clamp(0, 1)
