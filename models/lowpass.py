"""Low frequencies of a latent in space: taken out, and tied to those of another latent.

A separable low-pass over rows and columns of (..., h, w). On each axis a wave whose period is `cutoff` cells or more
passes whole; shorter ones fade with a Gaussian of their frequency, so that no edge rings. Borders are mirrored.
"""

from __future__ import annotations

import math

import torch

_FADE = 0.5  # deviation of the fade, as a share of the cutoff's frequency


def lowpass(x: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Give the low frequencies of (..., h, w), in the dtype and on the device of x."""
    rows, columns = (axis_filter(side, cutoff).to(x) for side in x.shape[-2:])
    return rows @ (x @ columns)


def tie_low(clean: torch.Tensor, source: torch.Tensor, cutoff: float, strength: float) -> torch.Tensor:
    """Move the low frequencies of `clean` to those of `source` by a share; strength 0 gives `clean` itself.

    At strength 1 every wave with both periods of `cutoff` or more cells is that of `source`; above, the finer a wave
    the more of it stays that of `clean`.
    """
    if strength == 0:
        return clean
    return clean + strength * lowpass(source - clean, cutoff)


def axis_filter(length: int, cutoff: float) -> torch.Tensor:
    """Give the symmetric (length, length) float32 matrix that filters one axis."""
    if not 0 < cutoff < math.inf:
        raise ValueError(f"cutoff must be a positive number of cells; got {cutoff}. 8 is the default.")
    waves = cosines(length)
    frequency = torch.arange(length, dtype=torch.float64) / (2 * length)  # cycles a cell
    beyond = (frequency * cutoff - 1 - 1e-9).clamp_min(0) / _FADE
    return (waves.T * torch.exp(-beyond.square() / 2) @ waves).float()


def cosines(length: int) -> torch.Tensor:
    """Give the orthonormal cosine waves of an axis with mirrored borders (DCT-II), one a row, as doubles."""
    cells = torch.arange(length, dtype=torch.float64)
    waves = torch.cos(math.pi / length * (cells[None] + 0.5) * cells[:, None])
    return waves * torch.where(cells == 0, 1 / length, 2 / length).sqrt()[:, None]
