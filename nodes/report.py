"""Numbers and pictures of Compare & Measure, drawn with Pillow."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..models.motion.matching import match_blocks
from ..models.pixels import metrics

_PLOT = (960, 420)
_MARGIN = 56
_COLOURS = {"result": (214, 69, 65), "other": (46, 134, 193), "bicubic": (125, 125, 125)}
_LABEL = 22  # px of the strip above each picture


def warping_error(clips: dict[str, torch.Tensor], truth: str, tick: Callable[[], None]) -> dict[str, float]:
    """Give the mean warping error of each clip (B, H, W, 3) along the motion of the clip named `truth`."""
    totals = dict.fromkeys(clips, 0.0)
    pairs = len(clips[truth]) - 1
    for index in range(pairs):
        tick()
        first, second = (clips[truth][i].float().movedim(-1, 0)[None] for i in (index, index + 1))
        flows = match_blocks(first, second).flow, match_blocks(second, first).flow
        for name, frames in clips.items():
            totals[name] += metrics.warping_errors(frames[index : index + 2], flows)[0] / pairs
    return totals if pairs else dict.fromkeys(clips, float("nan"))


def measure(clips: dict[str, torch.Tensor], tick: Callable[[], None]) -> dict[str, dict[str, float]]:
    """Measure every clip against the one named "other"; rows by clip, columns by measure."""
    other = clips["other"]
    warping = warping_error(clips, "other", tick)
    rows: dict[str, dict[str, float]] = {}
    for name, frames in clips.items():
        against = {}
        if name != "other":
            for title, function in _AGAINST.items():
                tick()
                against[title] = function(frames, other)
        rows[name] = {
            **against,
            "warping error x1000": warping[name],
            "colour drift": metrics.color_drift(frames, other),
        }
    return rows


_AGAINST = {
    "PSNR-Y dB": metrics.psnr_y,
    "PSNR-RGB dB": metrics.psnr_rgb,
    "SSIM-Y": metrics.ssim_y,
    "detail ratio": metrics.detail_ratio,
}


def count_ticks(clips: dict[str, torch.Tensor]) -> int:
    """Count the ticks that `measure` gives."""
    return max(0, len(clips["other"]) - 1) + len(_AGAINST) * (len(clips) - 1)


def table(rows: dict[str, dict[str, float]], frames: torch.Tensor) -> str:
    """Write the measures as a plain table, one clip a line."""
    columns = [*_AGAINST, "warping error x1000", "colour drift"]
    lines = [f"{frames.shape[0]} frames of {frames.shape[2]}x{frames.shape[1]}, measured against 'other'", ""]
    lines.append("clip".ljust(10) + "".join(column.rjust(len(column) + 3) for column in columns))
    for name, row in rows.items():
        cells = ("-" if column not in row else f"{row[column]:.4f}" for column in columns)
        lines.append(
            name.ljust(10) + "".join(cell.rjust(len(c) + 3) for cell, c in zip(cells, columns, strict=True))
        )
    lines += ["", "A warping error below that of the truth means blur, not better consistency."]
    return "\n".join(lines)


def flicker_plot(clips: dict[str, torch.Tensor]) -> torch.Tensor:
    """Draw the mean luma change from frame to frame of every clip: (1, H, W, 3) in 0..1."""
    curves = {name: metrics.flicker(frames) for name, frames in clips.items()}
    width, height = _PLOT
    image = Image.new("RGB", _PLOT, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    top = max((max(curve, default=0.0) for curve in curves.values()), default=0.0) or 1.0
    draw.rectangle((_MARGIN, _MARGIN / 2, width - 12, height - _MARGIN), outline=(160, 160, 160))
    draw.text((4, _MARGIN / 2), f"{top:.2f}", "black", font)
    draw.text((4, height - _MARGIN - 10), "0", "black", font)
    draw.text(
        (_MARGIN, height - _MARGIN + 8),
        "mean luma change to the next frame (0..255), by frame",
        "black",
        font,
    )
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[name]
        draw.text((_MARGIN + 120 * number, height - 24), f"- {name}", colour, font)
        if curve:
            draw.line(_points(curve, top), fill=colour, width=2)
    return _to_frames(image)


def _points(curve: list[float], top: float) -> list[tuple[float, float]]:
    (width, height), steps = _PLOT, max(1, len(curve) - 1)
    across, down = width - 12 - _MARGIN, height - _MARGIN * 1.5
    points = [
        (_MARGIN + across * i / steps, height - _MARGIN - down * value / top) for i, value in enumerate(curve)
    ]
    return points if len(points) > 1 else [points[0], (points[0][0] + across, points[0][1])]


def side_by_side(pictures: dict[str, torch.Tensor]) -> torch.Tensor:
    """Put labelled pictures (H, W, 3) of one size in a row: (1, H + label, n W, 3) in 0..1."""
    height, width = next(iter(pictures.values())).shape[:2]
    image = Image.new("RGB", (width * len(pictures), height + _LABEL), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    for number, (name, picture) in enumerate(pictures.items()):
        levels = (picture.float().clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()
        image.paste(Image.fromarray(np.ascontiguousarray(levels)), (number * width, _LABEL))
        draw.text((number * width + 4, 5), name, "black", font)
    return _to_frames(image)


def _to_frames(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None]
