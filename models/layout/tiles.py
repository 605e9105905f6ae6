"""Spatial tiles: equal rectangles, evenly spread over a frame, and the smooth weights that fuse them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .windows import Window, plan_weights, spread_windows


@dataclass(frozen=True)
class Tile:
    """Hold one rectangle of a frame, in the cells of whatever grid is tiled."""

    top: int
    left: int
    height: int
    width: int

    @property
    def region(self) -> tuple:
        """Give the rectangle as an index into (..., h, w)."""
        return ..., slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def plan_tiles(height: int, width: int, tile_height: int, tile_width: int, overlap: int) -> tuple[Tile, ...]:
    """Cover a frame with the fewest tiles of one size, row by row, meeting in `overlap` cells or more.

    A side not longer than the tile's is covered by one tile of exactly that side.
    """
    # An axis that one tile covers has no seam, so its overlap does not matter there.
    rows = spread_windows(height, tile_height, overlap if tile_height < height else 0)
    columns = spread_windows(width, tile_width, overlap if tile_width < width else 0)
    return tuple(Tile(row.start, col.start, row.length, col.length) for row in rows for col in columns)


def tile_weight(tile: Tile, plan: Sequence[Tile]) -> torch.Tensor:
    """Give the (h, w) float32 weights of one tile: smooth, positive, summing to one over the plan."""
    rows, columns = _axis_weights(plan)
    return rows[tile.top][:, None] * columns[tile.left][None, :]


class TileFuser:
    """Fuse per-tile results (..., h, w); a single tile that covers everything comes back bit for bit."""

    def __init__(self, plan: Sequence[Tile], weights: Sequence[torch.Tensor] | None = None):
        """Take the tiles, and their (h, w) weights where not the smooth ones: they sum to one over the plan."""
        self._plan = tuple(plan)
        if weights is None:
            rows, columns = _axis_weights(self._plan)
            weights = [rows[tile.top][:, None] * columns[tile.left][None, :] for tile in self._plan]
        self._weights = dict(zip(self._plan, weights, strict=True))
        self._height = max(tile.top + tile.height for tile in self._plan)
        self._width = max(tile.left + tile.width for tile in self._plan)
        self._missing = set(self._plan)
        self._sum: torch.Tensor | None = None
        self._dtype: torch.dtype | None = None

    def add(self, tile: Tile, value: torch.Tensor) -> None:
        """Take the result of one tile; accumulates in float32, in the order of the calls."""
        if tuple(value.shape[-2:]) != (tile.height, tile.width):
            raise ValueError(
                f"Spatial Tiles: this tile is {tile.width}x{tile.height}; got a result of "
                f"{value.shape[-1]}x{value.shape[-2]}. Return the size of the tile."
            )
        if tile not in self._missing:
            raise ValueError(f"Spatial Tiles: each tile of the plan is added once; got {tile} again.")
        self._missing.remove(tile)
        if len(self._plan) == 1:
            self._sum, self._dtype = value, value.dtype
            return
        if self._sum is None:
            shape = (*value.shape[:-2], self._height, self._width)
            self._sum = value.new_zeros(shape, dtype=torch.promote_types(value.dtype, torch.float32))
            self._dtype = value.dtype
        self._sum[tile.region].addcmul_(value.to(self._sum), self._weights[tile].to(self._sum))

    def result(self) -> torch.Tensor:
        """Give the fused tensor in the dtype of the parts; refuses to answer with a tile missing."""
        if self._missing:
            raise ValueError(
                f"Spatial Tiles: all tiles are needed; {len(self._missing)} of {len(self._plan)} missing. "
                "Add those first."
            )
        return self._sum.to(self._dtype)


def _axis_weights(plan: Sequence[Tile]) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    rows = sorted({(tile.top, tile.top + tile.height) for tile in plan})
    columns = sorted({(tile.left, tile.left + tile.width) for tile in plan})
    return _by_start(rows), _by_start(columns)


def _by_start(spans: list[tuple[int, int]]) -> dict[int, torch.Tensor]:
    windows = [Window(*span) for span in spans]
    return {window.start: weight for window, weight in zip(windows, plan_weights(windows), strict=True)}
