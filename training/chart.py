"""Charts as PNG pictures through Pillow: curves of a training run, bars of a comparison."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

_INK, _GRID, _PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (255, 127, 14), (148, 103, 189), (140, 86, 75))
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 20, 34, 40  # px around the plot

Points = Sequence[tuple[float, float]]


def smooth(points: Points, window: int) -> list[tuple[float, float]]:
    """Average each value with up to `window` - 1 before it."""
    out, total = [], 0.0
    for index, (x, y) in enumerate(points):
        total += y - (points[index - window][1] if index >= window else 0.0)
        out.append((x, total / min(index + 1, window)))
    return out


def draw_curves(
    path: Path, series: Mapping[str, Points], title: str, size: tuple[int, int] = (960, 540)
) -> None:
    """Draw curves over a common x; the y axis is logarithmic where all values are positive and span a factor of 4."""
    from PIL import Image, ImageDraw

    kept = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    values = [y for points in kept.values() for _, y in points] or [0.0, 1.0]
    across = [x for points in kept.values() for x, _ in points] or [0.0, 1.0]
    log = min(values) > 0 and max(values) > 4 * min(values)
    scale = math.log10 if log else float
    low, high = _range(scale(min(values)), scale(max(values)))
    left, right = _range(min(across), max(across), 0.0)
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    plot = (_LEFT, _TOP, size[0] - _RIGHT, size[1] - _BOTTOM)
    _text(draw, (size[0] // 2, 8), title, "ma")
    for tick in _ticks(low, high):
        y = _place(tick, low, high, plot[3], plot[1])
        draw.line((plot[0], y, plot[2], y), _GRID)
        _text(draw, (plot[0] - 8, y), f"{10**tick if log else tick:.4g}", "rm")
    for tick in _ticks(left, right):
        x = _place(tick, left, right, plot[0], plot[2])
        draw.line((x, plot[1], x, plot[3]), _GRID)
        _text(draw, (x, plot[3] + 8), f"{tick:g}", "ma")
    for number, (name, points) in enumerate(kept.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [
            (_place(x, left, right, plot[0], plot[2]), _place(scale(y), low, high, plot[3], plot[1]))
            for x, y in points
        ]
        if len(places) > 1:
            draw.line(places, colour, 2, "curve")
        _text(draw, (plot[2] - 6, plot[1] + 6 + 16 * number), name, "ra", colour)
    _save(image, path)


def draw_bars(path: Path, bars: Mapping[str, float], title: str, width: int = 960) -> None:
    """Draw one horizontal bar for each named value, from the least of them (or 0) on."""
    from PIL import Image, ImageDraw

    finite = {name: value for name, value in bars.items() if math.isfinite(value)}
    names, row = max((len(name) for name in bars), default=0), 30
    image = Image.new("RGB", (width, 48 + row * len(bars)), _PAPER)
    draw = ImageDraw.Draw(image)
    _text(draw, (width // 2, 10), title, "ma")
    low, high = min(finite.values(), default=0.0), max(finite.values(), default=1.0)
    start = min(0.0, low) if low <= 0 or low < 0.5 * high else low - 0.5 * max(high - low, 1e-6)
    first, last = 24 + 8 * names, width - 90
    for number, (name, value) in enumerate(bars.items()):
        y = 40 + row * number
        _text(draw, (first - 8, y + 10), name, "rm")
        if name in finite:
            end = _place(value, start, max(high, start + 1e-9), first, last)
            draw.rectangle((first, y, max(first + 1, end), y + 20), COLOURS[number % len(COLOURS)])
            _text(draw, (max(first, end) + 6, y + 10), f"{value:.4g}", "lm")
        else:
            _text(draw, (first, y + 10), "no value", "lm")
    _save(image, path)


def _range(low: float, high: float, margin: float = 0.05) -> tuple[float, float]:
    reach = (high - low) or max(abs(high), 1.0)
    return low - margin * reach, high + (margin if high > low else 1.0) * reach


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 6)
    first = math.ceil(low / step)
    return [step * index for index in range(first, math.floor(high / step) + 1)]


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (value - low) / (high - low) * (end - start)


def _text(draw, place, text: str, anchor: str, colour=_INK) -> None:
    from PIL import ImageFont

    draw.text(place, text, colour, ImageFont.load_default(13), anchor=anchor)


def _save(image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    image.save(partial, "PNG", optimize=True)
    os.replace(partial, path)
