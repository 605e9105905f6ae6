"""Three-dimensional rotary position embedding with a time range of its own for every stream (paper section 3.2)."""

from __future__ import annotations

import torch

from .references import StartRule

THETA = 100.0  # grids here are tens of tokens a side, not thousands
# Empty time indices between the target and the first reference, and between references; the paper states none.
REFERENCE_GAP = 16
REFERENCE_RULE = StartRule(first=None, lead=REFERENCE_GAP, gap=REFERENCE_GAP)


def axis_widths(head_width: int) -> tuple[int, int, int]:
    """Split a head's channels over (time, row, column); each part even, time takes the remainder."""
    side = head_width // 3 // 2 * 2
    return head_width - 2 * side, side, side


def positions(frames: int, rows: int, cols: int, start: int, device: torch.device) -> torch.Tensor:
    """Positions (time, row, column) of a grid of tokens, time outermost: (frames*rows*cols, 3) float32."""
    axes = (torch.arange(n, device=device, dtype=torch.float32) for n in (frames, rows, cols))
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    grid[..., 0] += start
    return grid.view(-1, 3)


def rotation(position: torch.Tensor, head_width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, (tokens, head_width/2) each, of the rotation at each position."""
    angles = []
    for axis, width in enumerate(axis_widths(head_width)):
        steps = torch.arange(0, width, 2, device=position.device, dtype=torch.float32)
        angles.append(position[:, axis : axis + 1] * THETA ** (-steps / width))
    angle = torch.cat(angles, 1)
    return angle.cos(), angle.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate channel i with channel i + head_width/2 of x (..., tokens, head_width)."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)
