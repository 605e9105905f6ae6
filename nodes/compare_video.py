"""Compare Video: two clips over each other in the editor, in motion, by wipe, side by side, difference or blink.

1. the node checks what it was given, and ends: a small film of both is made in the background (host/comparisons.py)
2. the editor shows it (js/compare_video.js), and asks for parts in full size where it is zoomed in
"""

from __future__ import annotations

import torch
from comfy_api.latest import Input, io

from .host import services
from .host.comparisons import MOST_FRAMES, TITLE, Comparison, begin, removed


class CompareVideo(io.ComfyNode):
    """Shows two clips before and after."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        kinds = [io.Image, io.Video]
        return io.Schema(
            node_id="VSRCompareVideo",
            display_name=TITLE,
            category=services.CATEGORY,
            description=(
                "Shows two clips before and after, in motion: wipe with the mouse, zoom into a face, step frame by "
                "frame, side by side, difference, blink. They may differ in size and frame rate; nothing is written "
                "to the output folder."
            ),
            search_aliases=[
                "before after",
                "compare videos",
                "video comparer",
                "wipe",
                "slider",
                "side by side",
                "cascade vsr",
            ],
            is_output_node=True,
            inputs=[
                io.MultiType.Input("before", types=kinds, tooltip="The clip on the left: frames or a film."),
                io.MultiType.Input("after", types=kinds, tooltip="The clip on the right: frames or a film."),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="Frames per second of linked frames. 0: that of the film on the other side, else 24.",
                ),
                io.Int.Input(
                    "start", default=0, min=0, max=10**7, tooltip="Frames that are left out at the beginning."
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=MOST_FRAMES,
                    tooltip=f"Frames that are shown; 0 is all of them, {MOST_FRAMES} at most.",
                ),
                io.Int.Input(
                    "size",
                    default=1280,
                    min=64,
                    max=1920,
                    step=16,
                    advanced=True,
                    tooltip="Longer side in motion, in px; where the picture stands still, zooming shows every pixel.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, **_):
        """Notice that what was shown is gone."""
        return removed(cls.hidden.unique_id)

    @classmethod
    def execute(
        cls,
        before: torch.Tensor | Input.Video,
        after: torch.Tensor | Input.Video,
        fps: float,
        start: int,
        frames: int,
        size: int,
    ):
        """Check the clips and hand them over."""
        clips = tuple(_checked(name, clip) for name, clip in (("before", before), ("after", after)))
        hidden = cls.hidden
        graph = ((hidden and hidden.extra_pnginfo) or {}).get("workflow") or {}
        comparison = Comparison(hidden and hidden.unique_id, clips, fps, start, frames, size)
        return io.NodeOutput(ui={"cascadevsr_comparison": [begin(comparison, graph.get("id"))]})


def _checked(name: str, clip: object) -> torch.Tensor | Input.Video:
    if isinstance(clip, torch.Tensor):
        services.check_frames(TITLE, name, clip)
        return clip  # itself, which lives as long as the host keeps it
    if not isinstance(clip, Input.Video):
        raise ValueError(f"{TITLE}: {name} must be frames (IMAGE) or a VIDEO; got {type(clip).__name__}. Link one.")
    return clip
