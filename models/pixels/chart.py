"""Charts drawn with Pillow: curves over a common axis, for training runs and for Compare & Measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

INK, GRID, PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (255, 127, 14), (148, 103, 189), (140, 86, 75))
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 20, 34, 58  # px around the plot

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


def draw_curves(
    series: Mapping[str, Points],
    title: str = "",
    *,
    label: str = "",
    colours: Mapping[str, Colour] | None = None,
    size: tuple[int, int] = (960, 540),
    lowest: float | None = None,
) -> Image.Image:
    """Draw named curves of (x, y) points over a common x; points that are not finite are left out.

    `label` names the x axis, `colours` those of some series, `size` is (width, height) px. The y axis begins at
    `lowest`; without it, it is logarithmic where all values are positive and span more than a factor of 4. A curve of
    one point is drawn as a level line.
    """
    kept = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    values = [y for points in kept.values() for _, y in points] or [0.0, 1.0]
    across = [x for points in kept.values() for x, _ in points] or [0.0, 1.0]
    log = lowest is None and min(values) > 0 and max(values) > 4 * min(values)
    scale = math.log10 if log else float
    low, high = _range(scale(min(values)), scale(max(values)))
    if lowest is not None:
        low, high = lowest, lowest + 1.05 * (max(values) - lowest or 1.0)
    first, last = _range(min(across), max(across), 0.0)
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = _LEFT, _TOP, size[0] - _RIGHT, size[1] - _BOTTOM
    write(draw, (size[0] // 2, 8), title, "ma")
    write(draw, ((left + right) // 2, bottom + 30), label, "ma")
    for tick in _ticks(low, high):
        y = place(tick, low, high, bottom, top)
        draw.line((left, y, right, y), GRID)
        write(draw, (left - 8, y), f"{10**tick if log else tick:.4g}", "rm")
    for tick in _ticks(first, last):
        x = place(tick, first, last, left, right)
        draw.line((x, top, x, bottom), GRID)
        write(draw, (x, bottom + 8), f"{tick:g}", "ma")
    for number, (name, points) in enumerate(kept.items()):
        colour = (colours or {}).get(name, COLOURS[number % len(COLOURS)])
        path = [(place(x, first, last, left, right), place(scale(y), low, high, bottom, top)) for x, y in points]
        if len(path) == 1:
            path = [(left, path[0][1]), (right, path[0][1])]
        if path:
            draw.line(path, colour, 2, "curve")
        write(draw, (right - 6, top + 6 + 16 * number), name, "ra", colour)
    return image


def place(value: float, low: float, high: float, start: float, end: float) -> float:
    """Map a value of low..high to a pixel of start..end."""
    return start + (value - low) / (high - low) * (end - start)


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, anchor: str, colour: Colour = INK) -> None:
    """Write a line of text; `anchor` as Pillow has it ("ma": centred below the point)."""
    draw.text(at, text, colour, ImageFont.load_default(13), anchor=anchor)


def _range(low: float, high: float, margin: float = 0.05) -> tuple[float, float]:
    reach = (high - low) or max(abs(high), 1.0)
    return low - margin * reach, high + (margin if high > low else 1.0) * reach


def _ticks(low: float, high: float) -> list[float]:
    """Choose 2 to 6 round numbers between two."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 6)
    return [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
