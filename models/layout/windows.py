"""Temporal windows: full-length spans that cover a clip, and the weights that fuse them again.

The one-dimensional spans and weights here serve the spatial tiles too, one axis at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Window:
    """Hold the half-open span [start, stop) of one axis."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Count the positions in the span."""
        return self.stop - self.start

    @property
    def span(self) -> slice:
        """Give the span as an index."""
        return slice(self.start, self.stop)


def plan_windows(length: int, window: int, overlap: int) -> tuple[Window, ...]:
    """Cover `length` frames with windows of equal length; the last is shifted back to be full.

    A window at least as long as the clip gives one window, the whole clip.
    """
    check_span("Temporal Windows", length, window, overlap)
    if window >= length:
        return (Window(0, length),)
    starts = [*range(0, length - window, window - overlap), length - window]
    return tuple(Window(start, start + window) for start in starts)


def spread_windows(length: int, window: int, overlap: int) -> tuple[Window, ...]:
    """Cover `length` with the fewest windows of equal length, evenly spread, meeting in `overlap` or more."""
    check_span("Spatial Tiles", length, window, overlap)
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
    if rise:
        weights[:rise] *= _ramp(rise)
    if fall:
        weights[window.length - fall :] *= _ramp(fall).flip(0)
    return weights


def plan_weights(plan: Sequence[Window]) -> tuple[torch.Tensor, ...]:
    """Give one float32 weight vector per window, normalised: over all windows they sum to one everywhere."""
    neighbours = zip((None, *plan[:-1]), plan, (*plan[1:], None), strict=True)
    weights = [blend_weights(window, before, after) for before, window, after in neighbours]
    total = torch.zeros(max(window.stop for window in plan), dtype=torch.float64)
    for window, weight in zip(plan, weights, strict=True):
        total[window.span] += weight
    return tuple((weight / total[window.span]).float() for window, weight in zip(plan, weights, strict=True))


class WindowFuser:
    """Fuse per-window results along one dimension; a single window comes back bit for bit."""

    def __init__(self, plan: Sequence[Window], dim: int):
        self._plan, self._dim = tuple(plan), dim
        self._weights = plan_weights(self._plan)
        self._missing = set(range(len(self._plan)))
        self._sum: torch.Tensor | None = None
        self._dtype: torch.dtype | None = None

    def add(self, index: int, value: torch.Tensor) -> None:
        """Take the result of window `index`; accumulates in float32, in the order of the calls."""
        window = self._plan[index]
        if value.shape[self._dim] != window.length:
            raise ValueError(
                f"Temporal Windows: window {index} has {window.length} frames; got {value.shape[self._dim]}. "
                "Return as many frames as the window holds."
            )
        if index not in self._missing:
            raise ValueError(f"Temporal Windows: each window is added once; got window {index} again.")
        self._missing.remove(index)
        if len(self._plan) == 1:
            self._sum, self._dtype = value, value.dtype
            return
        if self._sum is None:
            shape = list(value.shape)
            shape[self._dim] = max(window.stop for window in self._plan)
            self._sum = value.new_zeros(shape, dtype=torch.promote_types(value.dtype, torch.float32))
            self._dtype = value.dtype
        along = [1] * value.ndim
        along[self._dim] = window.length
        weight = self._weights[index].to(self._sum).view(along)
        self._sum.narrow(self._dim, window.start, window.length).addcmul_(value.to(self._sum), weight)

    def result(self) -> torch.Tensor:
        """Give the fused tensor in the dtype of the parts; refuses to answer with a part missing."""
        if self._missing:
            raise ValueError(
                f"Temporal Windows: all windows are needed; none for {sorted(self._missing)}. Add it first."
            )
        return self._sum.to(self._dtype)


def check_span(title: str, length: int, window: int, overlap: int) -> None:
    """Raise a ValueError where a span of this length cannot be covered with such windows."""
    if length < 1 or window < 1:
        raise ValueError(
            f"{title}: length and window must be at least 1; got length {length}, window {window}. "
            "Check the input and the window size."
        )
    if not 0 <= overlap < window:
        raise ValueError(
            f"{title}: the overlap must be at least 0 and smaller than the window ({window}); got {overlap}. "
            "Make the overlap smaller or the window larger."
        )


def _ramp(length: int) -> torch.Tensor:
    return torch.sin((torch.arange(length, dtype=torch.float64) + 0.5) * (math.pi / 2 / length)).square()
