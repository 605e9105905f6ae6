"""Clips through a causal video VAE that offers no streaming: tiles in space, spans in time, fused to exact sizes.

Such a VAE makes one latent frame of the first frame and one of every `time` frames after it, so a span that
begins later begins with a frame that passes for a first one. Spans therefore overlap: what a span says about its
first latent frames and its last one is dropped where a neighbour knows better, and the rest fades.
A tile takes its whole time at once where that fits, and then nothing in time is approximate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .geometry import ClipSize, resize_matrix
from .pieces import in_pixels
from .tiles import Tile, tile_weight
from .windows import Window, plan_weights, plan_windows

WARM, AHEAD = 3, 1  # latent frames dropped at the start and at the end of a span, where it has a neighbour
_FADE = 2  # latent frames in which two spans fade into each other
OVERLAP = WARM + _FADE + AHEAD
SHORTEST = 2 * OVERLAP  # latent frames; shorter spans would mostly be overlap

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Span:
    """Hold one span in latent frames: what goes through the VAE, what is kept of it, and that part's weights."""

    window: Window
    kept: Window


def plan_spans(frames: int, length: int) -> tuple[Span, ...]:
    """Cut `frames` latent frames into spans of `length`, or of SHORTEST; one span where that covers all."""
    windows = plan_windows(frames, max(length, SHORTEST), OVERLAP)
    last = len(windows) - 1
    return tuple(
        Span(w, Window(w.start + (WARM if number else 0), w.stop - (AHEAD if number < last else 0)))
        for number, w in enumerate(windows)
    )


def first_frame(latent: int, time: int) -> int:
    """Give the first frame that a latent frame stands for."""
    return 0 if latent == 0 else time * (latent - 1) + 1


@torch.no_grad()
def decode_causal(
    decode: Callable[[torch.Tensor], torch.Tensor],
    latent: torch.Tensor,
    output: torch.Tensor,
    space: int,
    time: int,
    *,
    tiles: Sequence[Tile],
    spans: Sequence[Span],
    progress: Progress | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Fill `output` (t, H, W, 3), zeros at its exact size, with what `decode` makes of pieces of (1, c, T, h, w).

    `decode` gives fresh frames (n, H, W, 3) in 0..1 for a piece of n = 1 + time (T - 1).
    """
    kept = [Window(first_frame(s.kept.start, time), first_frame(s.kept.stop, time)) for s in spans]
    fades, plan = plan_weights(kept), [in_pixels(tile, space) for tile in tiles]
    for tile, number in _pieces(tiles, len(spans), progress, check_cancelled):
        window, place = spans[number].window, in_pixels(tile, space)
        frames = decode(latent[:, :, window.span][tile.region])
        skipped = kept[number].start - time * window.start
        view = output[
            kept[number].span, place.top : place.top + place.height, place.left : place.left + place.width
        ]
        frames = frames[skipped : skipped + view.shape[0], : view.shape[1], : view.shape[2]]
        if len(tiles) == len(spans) == 1:
            view.copy_(frames)
            continue
        weight = tile_weight(place, plan)[: view.shape[1], : view.shape[2], None].to(frames)
        for frame, into, fade in zip(frames, view, fades[number].tolist(), strict=False):
            into.addcmul_(frame.to(into), weight.to(into), value=fade)  # frame by frame: no second piece
    return output if len(tiles) == len(spans) == 1 else output.clamp_(0, 1)


@torch.no_grad()
def encode_causal(
    encode: Callable[[torch.Tensor], torch.Tensor],
    read: Callable[[int, int, Tile], torch.Tensor],
    grid: ClipSize,
    space: int,
    time: int,
    *,
    tiles: Sequence[Tile],
    spans: Sequence[Span],
    progress: Progress | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Fuse what `encode` makes of frames (n, H, W, 3) to (1, c, T, h, w) float32 on the CPU; grid is (T, h, w).

    `read(start, stop, place)` gives the frames of a rectangle in px of the padded clip.
    """
    fades, latent = plan_weights([span.kept for span in spans]), None
    for tile, number in _pieces(tiles, len(spans), progress, check_cancelled):
        window, kept = spans[number].window, spans[number].kept
        frames = read(time * window.start, time * (window.stop - 1) + 1, in_pixels(tile, space))
        part = encode(frames)[:, :, kept.start - window.start : kept.stop - window.start].float().cpu()
        if len(tiles) == len(spans) == 1:
            return part
        if latent is None:
            latent = part.new_zeros(*part.shape[:2], grid.frames, grid.height, grid.width)
        weight = fades[number].view(-1, 1, 1) * tile_weight(tile, tiles)
        latent[:, :, kept.span][tile.region] += part * weight
    return latent


def _pieces(tiles, count: int, progress, check_cancelled) -> Iterator[tuple[Tile, int]]:
    """Yield (tile, number of the span) of every piece of work; a way out before each, a tick after."""
    for number in range(len(tiles) * count):
        if check_cancelled is not None:
            check_cancelled()
        yield tiles[number // count], number % count
        if progress is not None:
            progress(number + 1, len(tiles) * count)


class RegionReader:
    """Reads rectangles of a resized and padded clip without ever making a whole frame of it.

    Resizing is linear along rows and along columns, so a rectangle needs those rows of two matrices only.
    """

    def __init__(self, frames: torch.Tensor, size: ClipSize, padded: ClipSize, mode: str):
        """Take LR frames (t, h, w, 3) in 0..1, the size to resize them to, and that with padding."""
        self._frames, self._last = frames, len(frames) - 1
        self._rows = _padded_matrix(frames.shape[1], size.height, padded.height, mode)
        self._columns = _padded_matrix(frames.shape[2], size.width, padded.width, mode)

    def __call__(self, start: int, stop: int, place: Tile) -> torch.Tensor:
        """Give frames start..stop (n, h, w, 3) in 0..1 of a rectangle in px; the last frame repeats past the end."""
        rows, above = _support(self._rows[place.top : place.top + place.height])
        columns, left = _support(self._columns[place.left : place.left + place.width])
        result = self._frames.new_empty((stop - start, place.height, place.width, 3), dtype=torch.float32)
        for number in range(start, stop):
            frame = self._frames[min(number, self._last), above, left, :3].float().movedim(-1, 0)
            result[number - start] = (rows @ frame @ columns.T).clamp_(0, 1).movedim(0, -1)
        return result


def _padded_matrix(source: int, target: int, padded: int, mode: str) -> torch.Tensor:
    """Build the (padded, source) matrix of a resize along one axis; padding repeats the last row."""
    matrix = resize_matrix(source, target, mode)
    return torch.cat((matrix, matrix[-1:].expand(padded - target, -1)))


def _support(rows: torch.Tensor) -> tuple[torch.Tensor, slice]:
    """Cut a part of such a matrix to the columns it uses, and say which."""
    used = rows.ne(0).any(0).nonzero().flatten()
    span = slice(int(used[0]), int(used[-1]) + 1)
    return rows[:, span], span
