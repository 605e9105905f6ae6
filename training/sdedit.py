"""The two degradations of the paper in one: LR = synthetic(sdedit(HR)), with the built-in model as the base.

Frames are (t, 3, h, w) in 0..1, as in :mod:`..models.pixels.degradation`.
"""

from __future__ import annotations

import numpy as np
import torch

from ..models.pixels.degradation import Degradation, degrade
from ..models.unimmvsr.dit import UniMMVSRDiT
from ..models.unimmvsr.sdedit import SDEdit, sdedit
from ..models.unimmvsr.vae import CausalVideoVAE


class BuiltInBase:
    """The built-in model as the base of SDEdit: its LR condition is the clip itself, noised to the start level."""

    def __init__(self, vae: CausalVideoVAE, dit: UniMMVSRDiT):
        self.vae, self.dit = vae, dit

    def encode(self, clip: torch.Tensor) -> torch.Tensor:
        """(b, 3, t, h, w) in 0..1 -> latent."""
        return self.vae.encode(clip * 2 - 1)[0].float()

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent -> (b, 3, t, h, w) in about 0..1, without low-resolution frames: the latent alone speaks."""
        return (self.vae.decode(latent).float() + 1) / 2

    def predict(self, z: torch.Tensor, sigma: float, lr: torch.Tensor, level: float) -> torch.Tensor:
        """Give the clean latent; `lr` is the LR latent, already noised to `level`."""
        t, levels = (torch.full((len(z),), value, device=z.device) for value in (sigma, level))
        return z + sigma * self.dit(z, t, lr, levels).float()


class SDEditTransform:
    """Redraws clips at the base model's resolution; the same generator state gives the same clip."""

    def __init__(self, base: BuiltInBase, schedule: SDEdit | None = None):
        self.base, self.schedule = base, schedule or SDEdit()

    @torch.no_grad()
    def __call__(
        self, frames: torch.Tensor, height: int, width: int, rng: np.random.Generator, k: int | None = None
    ) -> torch.Tensor:
        """Reduce frames (t, 3, H, W) to height x width and redraw the last `k` steps (None: drawn)."""
        k = self.schedule.draw(rng) if k is None else k
        level, seeds = self.schedule.start(k), rng.integers(2**63, size=2)

        def predict(z: torch.Tensor, sigma: float, latent: torch.Tensor) -> torch.Tensor:
            lr = (1 - level) * latent + level * _noise(latent, int(seeds[1]))
            return self.base.predict(z, sigma, lr, level)

        made = sdedit(
            frames.transpose(0, 1).unsqueeze(0),
            height,
            width,
            self.schedule.sigmas(k),
            encode=self.base.encode,
            decode=self.base.decode,
            predict=predict,
            noise=lambda latent: _noise(latent, int(seeds[0])),
        )
        return made[0].transpose(0, 1)


def _noise(like: torch.Tensor, seed: int) -> torch.Tensor:
    """Draw on the CPU, so that the device does not matter."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


def degrade_both(
    frames: torch.Tensor,
    height: int,
    width: int,
    parameters: Degradation | None,
    rng: np.random.Generator,
    redraw: SDEditTransform | None = None,
    redraw_size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Give synthetic(sdedit(frames)) at height x width; either half is left out by None.

    The base draws at `redraw_size`, or at the size of the result, as in the paper. A larger one suits clips whose
    low-resolution size is only a few latent cells.
    """
    if redraw is not None:
        frames = redraw(frames, *(redraw_size or (height, width)), rng)
    return degrade(frames, height, width, parameters or Degradation(), rng)
