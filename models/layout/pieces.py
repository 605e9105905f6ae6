"""Cutting a clip into pieces, and joining their results without a trace.

What is too large to be computed at once goes this way: sampling by windows and tiles, autoencoders by spans and tiles:

1. An axis is cut into *windows* of one length that overlap (`plan_windows`, `spread_windows`). Where two meet, one
   fades out while the other fades in, by weights that sum to one everywhere (`plan_weights`).
2. Two axes of a frame give *tiles*, whose weights are the products of both axes' (`plan_tiles`, `tile_weight`).
3. An autoencoder also cuts time into *spans*. A span says which latent frames go through the network and which of
   these are kept (`Span`). A *piece* is one span of one tile.
4. `list_cuts` names the ways to cut a clip, best first; `cuts_that_fit` asks a memory law which of them fit.
5. `encode_pieces` and `decode_pieces` walk through the pieces, spans outermost and tiles innermost, so that a network
   with a memory of the past sees every tile's spans in order, and fuse what comes back to its exact size.

Positions are those of the grid that is cut: latent frames and cells, or frames and px where it says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from .sizes import ClipSize, first_frame, zeros_like

Progress = Callable[[int, int], None]  # (pieces done, pieces in all)
# Spans of an autoencoder that begins anew with every span: its first latent frames know no past, its last no future.
WARM, AHEAD = 3, 1  # latent frames dropped at the start and at the end of a span, where it has a neighbour
_FADE = 2  # latent frames in which two such spans fade into each other
OVERLAP = WARM + _FADE + AHEAD
SHORTEST = 2 * OVERLAP  # latent frames; shorter spans would mostly be overlap


# Windows: one axis


@dataclass(frozen=True)
class Window:
    """Hold the half-open interval [start, stop) of one axis."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Count the positions."""
        return self.stop - self.start

    @property
    def span(self) -> slice:
        """Give the interval as an index."""
        return slice(self.start, self.stop)


def plan_windows(length: int, window: int, overlap: int) -> tuple[Window, ...]:
    """Cover `length` positions with windows of equal length; the last is shifted back to be full.

    A window at least as long as the axis gives one window, the whole axis. Raises ValueError for sizes below 1 and
    for an overlap that does not fit.
    """
    check_overlap(length, window, overlap)
    if window >= length:
        return (Window(0, length),)
    starts = [*range(0, length - window, window - overlap), length - window]
    return tuple(Window(start, start + window) for start in starts)


def spread_windows(length: int, window: int, overlap: int) -> tuple[Window, ...]:
    """Cover `length` with the fewest windows of equal length, evenly spread, meeting in `overlap` or more."""
    check_overlap(length, window, overlap)
    if window >= length:
        return (Window(0, length),)
    gaps = -(-(length - window) // (window - overlap))
    starts = ((2 * i * (length - window) + gaps) // (2 * gaps) for i in range(gaps + 1))  # rounded
    return tuple(Window(start, start + window) for start in starts)


def blend_weights(window: Window, previous: Window | None = None, next: Window | None = None) -> torch.Tensor:
    """Give float64 weights of a window: raised-cosine ramps where it meets its neighbours, one elsewhere.

    Every weight is positive, and the ramps of two neighbours sum to one.
    """
    weights = torch.ones(window.length, dtype=torch.float64)
    rise = 0 if previous is None else max(0, previous.stop - window.start)
    fall = 0 if next is None else max(0, window.stop - next.start)
    weights[:rise] *= _ramp(rise)
    weights[window.length - fall :] *= _ramp(fall).flip(0)
    return weights


def _ramp(length: int) -> torch.Tensor:
    steps = torch.arange(length, dtype=torch.float64) + 0.5
    return torch.sin(steps * (math.pi / 2 / max(length, 1))).square()


def plan_weights(plan: Sequence[Window]) -> tuple[torch.Tensor, ...]:
    """Give one float32 weight vector per window, normalised: over all windows they sum to one everywhere."""
    neighbours = zip((None, *plan[:-1]), plan, (*plan[1:], None), strict=True)
    weights = [blend_weights(window, before, after) for before, window, after in neighbours]
    total = torch.zeros(max(window.stop for window in plan), dtype=torch.float64)
    for window, weight in zip(plan, weights, strict=True):
        total[window.span] += weight
    return tuple((weight / total[window.span]).float() for window, weight in zip(plan, weights, strict=True))


def check_overlap(length: int, window: int, overlap: int) -> None:
    """Raise a ValueError where an axis of this length cannot be covered with such windows."""
    if length < 1 or window < 1:
        raise ValueError(f"length and window must be at least 1; got {length} and {window}. Choose larger ones.")
    if not 0 <= overlap < window:
        raise ValueError(
            f"the overlap must be at least 0 and smaller than the window ({window}); got {overlap}. Make the overlap "
            "smaller or the window larger."
        )


# Tiles: two axes


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

    def scaled(self, space: int) -> Tile:
        """Give the same rectangle on a grid `space` times as fine: px of a tile of latent cells."""
        return Tile(space * self.top, space * self.left, space * self.height, space * self.width)


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
    axes = []
    for start, length in (("top", "height"), ("left", "width")):
        edges = sorted({(getattr(each, start), getattr(each, start) + getattr(each, length)) for each in plan})
        windows = [Window(*each) for each in edges]
        weights = dict(zip((window.start for window in windows), plan_weights(windows), strict=True))
        axes.append(weights[getattr(tile, start)])
    return axes[0][:, None] * axes[1][None, :]


class TileFuser:
    """Fuse per-tile results (..., h, w); a single tile that covers everything comes back bit for bit."""

    def __init__(self, plan: Sequence[Tile], weights: Sequence[torch.Tensor] | None = None):
        """Take the tiles, and their (h, w) weights where not the smooth ones: they sum to one over the plan."""
        self._plan = tuple(plan)
        if weights is None:
            weights = [tile_weight(tile, self._plan) for tile in self._plan]
        self._weights = dict(zip(self._plan, weights, strict=True))
        self._height = max(tile.top + tile.height for tile in self._plan)
        self._width = max(tile.left + tile.width for tile in self._plan)
        self._missing = set(self._plan)
        self._sum: torch.Tensor | None = None
        self._dtype: torch.dtype | None = None

    def add(self, tile: Tile, value: torch.Tensor) -> None:
        """Take the result of one tile; accumulates in float32, in the order of the calls."""
        if tuple(value.shape[-2:]) != (tile.height, tile.width):
            sizes = f"{tile.width}x{tile.height}; got {value.shape[-1]}x{value.shape[-2]}"
            raise ValueError(f"the result of a tile must have its size, {sizes}. Crop it.")
        if tile not in self._missing:
            raise ValueError(f"each tile of the plan is added once; got {tile} again. Add it once.")
        self._missing.remove(tile)
        self._dtype = value.dtype
        if len(self._plan) == 1:
            self._sum = value
            return
        if self._sum is None:
            shape = (*value.shape[:-2], self._height, self._width)
            self._sum = value.new_zeros(shape, dtype=torch.promote_types(value.dtype, torch.float32))
        self._sum[tile.region].addcmul_(value.to(self._sum), self._weights[tile].to(self._sum))

    def result(self) -> torch.Tensor:
        """Give the fused tensor in the dtype of the parts; refuses to answer with a tile missing."""
        if self._missing:
            missing = f"{len(self._missing)} of {len(self._plan)}"
            raise ValueError(f"all tiles are needed; got a fusion with {missing} missing. Add those first.")
        return self._sum.to(self._dtype)


# Spans: time, as autoencoders take it


@dataclass(frozen=True)
class Span:
    """Hold one span in latent frames: what goes through the network, and what is kept of the result."""

    window: Window
    kept: Window


def stream_spans(frames: int, length: int) -> tuple[Span, ...]:
    """Cut `frames` latent frames for a network that remembers its past: nothing is computed twice.

    The first span has one latent frame more, which stands for the clip's first frame alone.
    """
    edges = [0, *range(1 + length, frames, length), frames]
    return tuple(Span(w, w) for w in map(Window, edges[:-1], edges[1:]))


def plain_spans(frames: int, length: int) -> tuple[Span, ...]:
    """Cut a clip into spans that share nothing; the last one is shorter."""
    edges = [*range(0, frames, length), frames]
    return tuple(Span(w, w) for w in map(Window, edges[:-1], edges[1:]))


def blended_spans(frames: int, length: int, overlap: int = 2) -> tuple[Span, ...]:
    """Cut a clip into spans of one length that share `overlap` frames, kept whole and faded into each other."""
    return tuple(Span(w, w) for w in plan_windows(frames, length, min(overlap, length - 1)))


def restarting_spans(frames: int, length: int) -> tuple[Span, ...]:
    """Cut a clip for a causal network without streaming, which takes the first frame of any span for a clip's first.

    Spans have `length` latent frames, or SHORTEST; what a span says about its first WARM latent frames and its last
    one is dropped where a neighbour knows better, and the rest fades.
    """
    windows = plan_windows(frames, max(length, SHORTEST), OVERLAP)
    last = len(windows) - 1
    return tuple(
        Span(w, Window(w.start + (WARM if number else 0), w.stop - (AHEAD if number < last else 0)))
        for number, w in enumerate(windows)
    )


# Memory: which cut fits


@dataclass(frozen=True)
class Cut:
    """Hold one way to cut a clip: tiles of rows x columns cells, spans of `length` latent frames."""

    rows: int
    columns: int
    length: int


def list_cuts(grid: ClipSize, sides: Sequence[int], lengths: Sequence[int], good: int | None = None) -> tuple[Cut, ...]:
    """List the ways to cut a clip of (T, h, w), best first: tiles of `sides` cells, spans of `lengths`.

    Both are given in falling order. Down to a side of `good` cells (None: whole frames only) smaller tiles are better
    than shorter spans; below, shorter spans are better than smaller tiles, which would see too little of the picture.
    """
    full = max(grid.height, grid.width)
    fair = [side for side in sides if side >= min(full if good is None else good, sides[0])]
    pairs = [(side, length) for length in lengths for side in fair]
    pairs += [(side, length) for side in sides[len(fair) :] for length in lengths]
    return tuple(Cut(min(side, grid.height), min(side, grid.width), length) for side, length in pairs)


def cuts_that_fit(cuts: Sequence[Cut], need: Callable[[Cut], float], free: float) -> tuple[Cut, ...]:
    """Give the cuts from the first whose piece `need`s less than `free` bytes on; at least the last.

    The rest is what to try when memory runs out all the same.
    """
    first = next((number for number, cut in enumerate(cuts) if need(cut) < free), len(cuts) - 1)
    return tuple(cuts[first:])


# The engine


@dataclass(frozen=True)
class Pieces:
    """Hold how a clip is cut: every piece is one span of one tile.

    `streamed` says that the network remembers the spans before: then a span's first latent frame stands for as many
    frames as any other.
    """

    spans: tuple[Span, ...]
    tiles: tuple[Tile, ...]
    streamed: bool = False

    @property
    def whole(self) -> bool:
        """Tell whether one piece covers everything, so that nothing is fused."""
        return len(self.spans) == len(self.tiles) == 1

    @cached_property
    def weights(self) -> dict[Tile, torch.Tensor]:
        """Give the weights (h, w) of every tile, in cells."""
        return {tile: tile_weight(tile, self.tiles) for tile in self.tiles}

    def walk(self, progress: Progress | None, check_cancelled: Callable[[], None] | None) -> Iterator[tuple[int, Tile]]:
        """Yield (number of the span, tile) of every piece; a way out before each, a tick before all and after each."""
        places = [(number, tile) for number in range(len(self.spans)) for tile in self.tiles]
        for done, place in enumerate((*places, None)):
            if progress is not None:
                progress(done, len(places))
            if place is not None:
                if check_cancelled is not None:
                    check_cancelled()
                yield place

    def starts(self, time: int) -> list[int]:
        """Give the frame of the clip that the first frame of every span's piece is."""
        return [first_frame(s.window.start, time) if self.streamed else time * s.window.start for s in self.spans]


class NotFinite(ValueError):
    """Say that a network gave NaN or infinity, which half precision can cause."""


def frames_of(clip: torch.Tensor) -> torch.Tensor:
    """Turn a finite clip (1, 3, n, H, W) in about -1..1, used up, into frames (n, H, W, 3) in 0..1; or NotFinite."""
    if not math.isfinite(clip.sum(dtype=torch.float32)):  # in one pass, without a mask as large as the clip
        raise NotFinite(f"frames must be finite numbers; got NaN or infinity in {clip.dtype}.")
    return clip[0].float().clamp_(-1, 1).add_(1).div_(2).permute(1, 2, 3, 0)


@torch.no_grad()
def decode_pieces(
    decode: Callable[[Window, Tile], torch.Tensor],
    output: torch.Tensor,
    pieces: Pieces,
    space: int,
    time: int,
    progress: Progress | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Fill `output` (t, H, W, 3), zeros at its exact size, with the frames that `decode` gives of every piece.

    `decode(window, tile)` gives (n, H, W, 3) in 0..1 for the latent frames of a span's window and the cells of a tile,
    with all that its padding holds, to be used up; what lies beyond `output` is cut off. A latent cell is `space` px, a
    latent frame after the first `time` frames. Of several pieces every pixel is a mean whose weights sum to one.
    """
    kept = [Window(first_frame(span.kept.start, time), first_frame(span.kept.stop, time)) for span in pieces.spans]
    fades, starts = [fade.tolist() for fade in plan_weights(kept)], pieces.starts(time)
    plan = [tile.scaled(space) for tile in pieces.tiles]
    waiting: dict[int, torch.Tensor] = {}  # frames of whole pieces that a later span shares: they fade on the device
    for number, tile in pieces.walk(progress, check_cancelled):
        frames, place = decode(pieces.spans[number].window, tile), tile.scaled(space)
        first, shared = kept[number].start, kept[number + 1].start if number + 1 < len(kept) else len(output)
        view = output[kept[number].span, place.region[1], place.region[2]]
        frames = frames[first - starts[number] :][: view.shape[0], : view.shape[1], : view.shape[2]]
        cut = tile_weight(place, plan)[: view.shape[1], : view.shape[2], None].to(frames) if len(plan) > 1 else None
        carrier = None if cut is None or frames.device == view.device else zeros_like(view[0])
        for index, (frame, into, fade) in enumerate(zip(frames, view, fades[number], strict=False), first):
            if cut is not None or fade != 1:  # frame by frame: no second piece
                frame.mul_(fade if cut is None else cut * fade)
            if index in waiting:
                frame.add_(waiting.pop(index)).clamp_(0, 1)
            if cut is not None:
                into.add_(frame if carrier is None else carrier.copy_(frame)).clamp_(0, 1)
            elif index < shared:
                into.copy_(frame)
            else:
                waiting[index] = frame.clone()
    return output


@torch.no_grad()
def encode_pieces(
    encode: Callable[[Window, Tile], torch.Tensor],
    grid: ClipSize,
    pieces: Pieces,
    time: int,
    progress: Progress | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Fuse what `encode` gives of every piece to a latent (1, c, T, h, w) float32 on the CPU; `grid` is (T, h, w).

    `encode(frames, tile)` gives (1, c, n, h, w) for a range of frames of the padded clip and the cells of a tile.
    """
    fades, starts = plan_weights([span.kept for span in pieces.spans]), pieces.starts(time)
    latent = None
    for number, tile in pieces.walk(progress, check_cancelled):
        window, kept = pieces.spans[number].window, pieces.spans[number].kept
        frames = Window(starts[number], first_frame(window.stop, time))
        part = encode(frames, tile)[:, :, kept.start - window.start : kept.stop - window.start].float().cpu()
        if pieces.whole:
            latent = part
            continue
        if latent is None:
            latent = part.new_zeros(*part.shape[:2], grid.frames, grid.height, grid.width)
        latent[:, :, kept.span][tile.region] += part * (fades[number].view(-1, 1, 1) * pieces.weights[tile])
    return latent
