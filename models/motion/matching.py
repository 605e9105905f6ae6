"""Weight-free motion: hierarchical block matching between two frames, good from about 8 px a side.

It is coarse (whole pixels plus a fitted fraction) but needs no weights, no minimum size, and costs a few
convolutions; the built-in decoder aligns its memory with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

_BLOCK = 5  # side of the compared block, px
_LEVELS = ((4, 3), (2, 2), (1, 2))  # (pooling, search radius): reaches 4*3 + 2*2 + 2 = 18 px
_STAY = 1e-4  # cost of one px of displacement: in flat areas, where every match is equal, motion stays put


@dataclass(frozen=True)
class Match:
    """Where each pixel of `current` is found in `previous`.

    ``shift`` (b,2,h,w) int64 (dx, dy) in px; ``fraction`` (b,2,h,w) in -0.5..0.5 px to be added to it;
    ``error`` (b,1,h,w) root mean squared difference of the matched blocks, in units of the input.
    """

    shift: torch.Tensor
    fraction: torch.Tensor
    error: torch.Tensor

    @property
    def flow(self) -> torch.Tensor:
        """Displacement current -> previous in px, (b,2,h,w), (dx, dy)."""
        return self.shift + self.fraction


def gather_shift(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Fetch ``x[..., y + dy, x + dx]`` for whole-pixel shifts (b,2,h,w); positions outside take the border pixel."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device).view(1, -1, 1)
    cols = torch.arange(width, device=x.device).view(1, 1, -1)
    index = (rows + shift[:, 1]).clamp(0, height - 1) * width + (cols + shift[:, 0]).clamp(0, width - 1)
    index = index.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, index).view_as(x)


def _parabola(below: torch.Tensor, at: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    curvature = below + above - 2 * at
    return (0.5 * (below - above) / curvature.clamp_min(1e-8)).clamp(-0.5, 0.5)


def _costs(current: torch.Tensor, previous: torch.Tensor, radius: int) -> torch.Tensor:
    """Mean squared block differences for every shift of +-radius: (b, (2r+1)^2, h, w), rows first."""
    side = 2 * radius + 1
    b, c, h, w = current.shape
    shifted = F.unfold(F.pad(previous, (radius,) * 4, mode="replicate"), side).view(b, c, side * side, h, w)
    cost = (shifted - current.unsqueeze(2)).square().mean(1)
    return F.avg_pool2d(cost, _BLOCK, stride=1, padding=_BLOCK // 2, count_include_pad=False)


def _refine(current: torch.Tensor, previous: torch.Tensor, shift: torch.Tensor, radius: int) -> Match:
    cost = _costs(current, gather_shift(previous, shift), radius)
    side = 2 * radius + 1
    offset = torch.arange(-radius, radius + 1, device=cost.device, dtype=cost.dtype)
    cost = cost + _STAY * (offset.abs().view(-1, 1) + offset.abs()).view(1, -1, 1, 1)
    best = cost.argmin(1, keepdim=True)
    row, col = best // side, best % side

    def pick(r: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return cost.gather(1, r.clamp(0, side - 1) * side + c.clamp(0, side - 1))

    at = pick(row, col)
    fx = _parabola(pick(row, col - 1), at, pick(row, col + 1)) * ((col > 0) & (col < side - 1))
    fy = _parabola(pick(row - 1, col), at, pick(row + 1, col)) * ((row > 0) & (row < side - 1))
    step = torch.cat((col, row), 1) - radius
    return Match(shift + step, torch.cat((fx, fy), 1), at.clamp_min(0).sqrt())


@torch.no_grad()
def match_blocks(current: torch.Tensor, previous: torch.Tensor) -> Match:
    """Find each pixel of `current` (b,c,h,w) in `previous` by coarse-to-fine block matching.

    Reaches 18 px. Works from 1x1 px up; both tensors must have the same shape.
    """
    if current.shape != previous.shape:
        raise ValueError(
            f"Block matching: both frames must have the same shape; got {tuple(current.shape)} and "
            f"{tuple(previous.shape)}. Resize one of them first."
        )
    current, previous = current.float(), previous.float()
    b, _, h, w = current.shape
    shift = torch.zeros(b, 2, 1, 1, dtype=torch.int64, device=current.device)
    scale = 0
    for pooling, radius in _LEVELS:
        if pooling > 1 and min(h, w) < 4 * pooling:
            continue
        small = [F.avg_pool2d(x, pooling, ceil_mode=True) for x in (current, previous)]
        size = small[0].shape[-2:]
        if scale:
            ratio = scale // pooling
            shift = shift.repeat_interleave(ratio, 2).repeat_interleave(ratio, 3)[..., : size[0], : size[1]] * ratio
        else:
            shift = shift.expand(b, 2, *size)
        match = _refine(*small, shift, radius)
        shift, scale = match.shift, pooling
    return match
