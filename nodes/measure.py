"""Measures a result against the truth or against another result, in numbers and pictures drawn with Pillow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw, ImageFont

from ..models.layout.sizes import resize_clip
from ..models.motion.flow import match_blocks, resize_flow
from ..models.pixels import metrics
from ..models.pixels.chart import draw_curves
from .host import services
from .host.progress import Progress

_TITLE = "Compare & Measure"
_PLOT = (960, 420)  # px
_COLOURS = {"result": (214, 69, 65), "other": (46, 134, 193), "bicubic": (125, 125, 125)}
_LABEL = 22  # px of the strip above each picture
_FINE = 48  # px; the smallest side motion is estimated on
_MOST_PAIRS = 64  # pairs of frames whose motion is estimated in a long clip
_AGAINST = {
    "PSNR-Y dB": metrics.psnr_y,
    "PSNR-RGB dB": metrics.psnr_rgb,
    "SSIM-Y": metrics.ssim_y,
    "detail ratio": metrics.detail_ratio,
}
_WARPING, _DRIFT = "warping error x1000", "colour drift"
_ALONE = {"detail ratio": metrics.detail_ratio}  # of what is measured where the truth is not known
_AS_LR, _FLICKER = "PSNR-Y as LR dB", "flicker"


class CompareMeasure(io.ComfyNode):
    """Compares two clips in numbers and pictures."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRCompareMeasure",
            display_name=_TITLE,
            category=services.CATEGORY,
            description=(
                "Compares two clips of the same size: PSNR, SSIM, sharpness, warping error, flicker, colour drift, and "
                "a picture of both. With the low-resolution frames a plain bicubic upscale is measured too; they alone "
                "tell flicker, sharpness, drift and faithfulness where there is no truth."
            ),
            search_aliases=["psnr", "ssim", "compare", "metrics", "quality", "flicker", "warping error", "cascade vsr"],
            is_output_node=True,
            inputs=[
                io.Image.Input("result", tooltip="The clip to judge."),
                io.Image.Input(
                    "other",
                    optional=True,
                    tooltip="The truth, or a second result, of the same size and length. Without it, link lr_frames.",
                ),
                io.Image.Input(
                    "lr_frames",
                    optional=True,
                    tooltip="The low-resolution frames; a bicubic upscale of them is measured too.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="The measures as text."),
                io.Image.Output(
                    display_name="flicker_plot", tooltip=("Plot of the change of brightness from frame to frame.")
                ),
                io.Image.Output(display_name="side_by_side", tooltip="The middle frame of every clip."),
            ],
        )

    @classmethod
    def execute(cls, result: torch.Tensor, other: torch.Tensor | None = None, lr_frames: torch.Tensor | None = None):
        """Check the clips, then measure and draw."""
        if other is None and lr_frames is None:
            raise ValueError(
                f"{_TITLE}: other or lr_frames must be linked; got neither. Link the truth or a second result, or the "
                "low-resolution frames."
            )
        clips = {"result": services.check_frames(_TITLE, "result", result)}
        if other is not None:
            clips["other"] = services.check_frames(_TITLE, "other", other)
            if clips["result"].shape != clips["other"].shape:
                raise ValueError(
                    f"{_TITLE}: both clips must have the same frames and size; got {tuple(result.shape)} and "
                    f"{tuple(other.shape)}. Cut or resize one of them first."
                )
        count, height, width = result.shape[:3]
        middle, pictures = count // 2, {}
        if lr_frames is not None:
            low = services.check_frames(_TITLE, "lr_frames", lr_frames)
            services.check_count(_TITLE, "lr_frames", low.shape[0], count)
            pictures["LR"] = _nearest(low[middle], height, width)
            clips["bicubic"] = _bicubic(low, height, width)
        pictures |= {name: clips[name][middle] for name in ("bicubic", "result", "other") if name in clips}
        if other is not None:
            rows = measure(clips, Progress(_TITLE, len(result)))
        else:
            rows = measure(clips, Progress(_TITLE, len(result)), "bicubic", _ALONE)
            for name, frames in clips.items():
                rows[name][_AS_LR] = metrics.psnr_y(_bicubic(frames, *low.shape[1:3]), low, border=0)
                changes = metrics.flicker(frames)
                rows[name][_FLICKER] = sum(changes) / len(changes) if changes else float("nan")
        text = table(rows, result)
        return io.NodeOutput(text, flicker_plot(clips), side_by_side(pictures), ui=ui.PreviewText(text))


def _bicubic(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    clip = frames.movedim(-1, 0)[None].float()
    return resize_clip(clip, height, width, "bicubic")[0].movedim(0, -1).clamp(0, 1)


def _nearest(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    rows = torch.arange(height) * picture.shape[0] // height
    columns = torch.arange(width) * picture.shape[1] // width
    return picture[rows][:, columns]


# Numbers


def measure(
    clips: dict[str, torch.Tensor],
    progress: Callable[[int, int], None],
    base: str = "other",
    against: dict[str, Callable] = _AGAINST,
) -> dict[str, dict[str, float]]:
    """Measure every clip (B, H, W, 3) against the one named `base`; rows by clip, columns by measure.

    `against`: measures of a clip and of the base, by title; the motion is that of the base.

    `progress(done, total)` is called before every piece of work: a frame compared, or a pair's motion estimated.
    """
    other = clips[base]
    count = min(_MOST_PAIRS, len(other) - 1)
    pairs = [i * (len(other) - 1) // count for i in range(count)]  # all, or evenly spread ones in long clips
    rows: dict[str, dict[str, float]] = {name: {} for name in clips}
    for index in range(len(other)):
        progress(index + 1, len(other) + len(pairs))
        for name in clips.keys() - {base}:
            pair = clips[name][index : index + 1], other[index : index + 1]
            for title, function in against.items():
                rows[name][title] = rows[name].get(title, 0.0) + function(*pair) / len(other)
    for done, index in enumerate(pairs, len(other) + 1):
        progress(done, len(other) + len(pairs))
        flows = _flows(other[index], other[index + 1])
        for name, frames in clips.items():
            error = metrics.warping_errors(frames[index : index + 2], flows)[0]
            rows[name][_WARPING] = rows[name].get(_WARPING, 0.0) + error / len(pairs)
    for name, frames in clips.items():
        rows[name].setdefault(_WARPING, float("nan"))
        rows[name][_DRIFT] = metrics.color_drift(frames, other)
    return rows


def _flows(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimate the motion between two frames (H, W, 3) both ways, on a reduced grid that widens its reach."""
    height, width = first.shape[:2]
    reduction = next((r for r in (4, 2) if min(height, width) >= _FINE * r), 1)
    size = height // reduction, width // reduction
    grey = (metrics.luma(frame).float()[None, None] / 255 for frame in (first, second))
    small = [F.interpolate(plane, size, mode="area") for plane in grey]
    there, back = match_blocks(*small).flow, match_blocks(*reversed(small)).flow
    return resize_flow(there, height, width), resize_flow(back, height, width)


def table(rows: dict[str, dict[str, float]], frames: torch.Tensor) -> str:
    """Write the measures as a plain table, one clip a line."""
    alone = "other" not in rows
    columns = [*([*_ALONE, _AS_LR, _FLICKER] if alone else _AGAINST), _WARPING, _DRIFT]
    how = "without a truth: beside a bicubic upscale" if alone else "measured against 'other'"
    lines = [f"{frames.shape[0]} frames of {frames.shape[2]}x{frames.shape[1]}, {how}", ""]
    lines.append("clip".ljust(10) + "".join(column.rjust(len(column) + 3) for column in columns))
    for name, row in rows.items():
        cells = [f"{row[c]:.4f}" if c in row else "-" for c in columns]
        line = "".join(cell.rjust(len(c) + 3) for cell, c in zip(cells, columns, strict=True))
        lines.append(name.ljust(10) + line)
    hint = "A warping error below that of the truth means blur, not better consistency."
    if alone:
        hint = (
            "Detail costs warping error and flicker. PSNR-Y as LR: how near the result, reduced, is to the LR frames."
        )
    lines += ["", hint]
    return "\n".join(lines)


# Pictures


def flicker_plot(clips: dict[str, torch.Tensor]) -> torch.Tensor:
    """Draw the mean luma change from frame to frame of every clip: (1, H, W, 3) in 0..1."""
    curves = {name: list(enumerate(metrics.flicker(frames))) for name, frames in clips.items()}
    legend = "mean luma change to the next frame (0..255), by frame"
    return _to_frames(draw_curves(curves, label=legend, colours=_COLOURS, size=_PLOT, lowest=0.0))


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
