"""MGLD-VSR's published plan of a run: segments of frames, tiles of latents, the schedule, and sizes of its motion.

1. Frames are enlarged so that the shorter side has SHORTEST px or more.
2. A clip falls into segments of SEGMENT frames that share none; the last repeats the clip's last frame until it is
   full: `published_segments`.
3. Sampling is ancestral DDPM over SCHEDULE, on tiles of TILE latent cells with TILE_OVERLAP shared:
   `published_tiles`. Their predictions are averaged with a bell each: `tile_weights`, (h, w).
4. Motion for the guidance comes from RAFT after FLOW_ITERATIONS refinements.

The whole published program, an oracle for tests, is in tests/published/. Source: Yang et al., ECCV 2024.
"""

from __future__ import annotations

import math

import torch

from ..layout.pieces import Tile, plan_windows
from ..schedules import DiffusionSettings

SHORTEST = 512  # px; smaller results are made this large, and reduced again in the end
SEGMENT = 5  # frames the temporal layers were trained on
TILE = 64  # latent cells along a side of what the UNet was trained on
TILE_OVERLAP = 32  # latent cells
FLOW_ITERATIONS = 10
SCHEDULE = DiffusionSettings(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="epsilon", clip_sample=False
)
_SPREAD = 0.01  # variance of the tile weights' bell, in shares of the tile's squared side


def published_segments(frames: int, length: int = SEGMENT) -> list[list[int]]:
    """Give the frames of each segment; the last repeats the clip's last frame until it is full."""
    return [[min(frame, frames - 1) for frame in range(start, start + length)] for start in range(0, frames, length)]


def published_tiles(height: int, width: int, tile: int = TILE, overlap: int = TILE_OVERLAP) -> list[Tile]:
    """Give the tiles, column by column; the last of an axis is shifted back to be full."""
    rows, columns = (plan_windows(side, tile, min(overlap, tile - 1)) for side in (height, width))
    return [Tile(row.start, column.start, row.length, column.length) for column in columns for row in rows]


def tile_weights(height: int, width: int) -> torch.Tensor:
    """Give the (h, w) float64 bell of a tile; its middle is that of the columns, but half a row below the rows'."""

    def bell(side: int, middle: float) -> torch.Tensor:
        distance = (torch.arange(side, dtype=torch.float64) - middle) / side
        return torch.exp(-distance.square() / (2 * _SPREAD)) / math.sqrt(2 * math.pi * _SPREAD)

    return bell(height, height / 2)[:, None] * bell(width, (width - 1) / 2)
