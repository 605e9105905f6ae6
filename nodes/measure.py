"""Measures a result against the truth or against another result."""

import torch
from comfy_api.latest import io, ui

from ..models.layout.sizes import resize_clip
from . import report
from .host import services


class CompareMeasure(io.ComfyNode):
    """Compares two clips in numbers and pictures."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRCompareMeasure",
            display_name="Compare & Measure",
            category=services.CATEGORY,
            description="Compares two clips of one size: PSNR, SSIM, sharpness, warping error, flicker "
            "and colour drift, "
            "and a picture of both. With the low-resolution frames a plain bicubic upscale is measured too.",
            search_aliases=["psnr", "ssim", "compare", "metrics", "quality", "flicker", "warping error"],
            is_output_node=True,
            inputs=[
                io.Image.Input("result", tooltip="The clip to judge."),
                io.Image.Input(
                    "other", tooltip="The truth, or a second result, of the same size and length."
                ),
                io.Image.Input(
                    "lr_frames",
                    optional=True,
                    tooltip="The low-resolution frames, to measure a bicubic upscale beside.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="The measures as text."),
                io.Image.Output(display_name="flicker_plot", tooltip="Change from frame to frame."),
                io.Image.Output(display_name="side_by_side", tooltip="The middle frame of every clip."),
            ],
        )

    @classmethod
    def execute(cls, result, other, lr_frames=None):
        """Check the clips, then measure and draw."""
        title = "Compare & Measure"
        clips = {
            "result": services.check_frames(title, "result", result),
            "other": services.check_frames(title, "other", other),
        }
        if clips["result"].shape != clips["other"].shape:
            raise ValueError(
                f"{title}: both clips must have the same frames and size; got {tuple(result.shape)} and "
                f"{tuple(other.shape)}. Cut or resize one of them first."
            )
        count, height, width = result.shape[:3]
        middle, pictures = count // 2, {}
        if lr_frames is not None:
            low = services.check_frames(title, "lr_frames", lr_frames)
            services.check_count(title, "lr_frames", low.shape[0], count)
            pictures["LR"] = _nearest(low[middle], height, width)
            clips["bicubic"] = _bicubic(low, height, width)
        pictures |= {name: clips[name][middle] for name in ("bicubic", "result", "other") if name in clips}
        rows = report.measure(clips, _ticker(report.count_ticks(clips)))
        table = report.table(rows, result)
        outputs = table, report.flicker_plot(clips), report.side_by_side(pictures)
        return io.NodeOutput(*outputs, ui=ui.PreviewText(table))


def _ticker(total: int):
    show, done = services.Progress(), 0

    def tick() -> None:
        nonlocal done
        done += 1
        show(done, total)

    return tick


def _bicubic(frames, height: int, width: int):
    clip = frames.movedim(-1, 0)[None].float()
    return resize_clip(clip, height, width, "bicubic")[0].movedim(0, -1).clamp(0, 1)


def _nearest(picture, height: int, width: int):
    rows = torch.arange(height) * picture.shape[0] // height
    columns = torch.arange(width) * picture.shape[1] // width
    return picture[rows][:, columns]
