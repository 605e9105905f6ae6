"""Gives a result the colours of its source."""

import torch
from comfy_api.latest import io

from ..models.pixels.color import METHODS, SCRATCH, match_colour
from .host import services
from .host.progress import Progress

_TITLE = "Colour Match"


class ColourMatch(io.ComfyNode):
    """Matches colours frame by frame."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRColourMatch",
            display_name=_TITLE,
            category=services.CATEGORY,
            description="Gives an upscaled clip the colours of the clip it was made from, frame by frame; "
            "detail is kept.",
            search_aliases=["color match", "colour fix", "color correction", "wavelet", "adain", "lab", "cascade vsr"],
            inputs=[
                io.Image.Input("images", tooltip="The clip to correct."),
                io.Image.Input(
                    "reference",
                    tooltip=("The clip with the right colours, of any size; a single picture is used for all frames."),
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="wavelet",
                    tooltip="wavelet: coarse colours, place by place; adain: mean and deviation of every channel; "
                    "lab: the same in CIELAB.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="0 leaves the clip unchanged, 1 matches it fully.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The matched clip.")],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, reference: torch.Tensor, method: str, strength: float):
        """Match the clip a few frames at a time."""
        images = services.check_frames(_TITLE, "images", images)
        reference = services.check_frames(_TITLE, "reference", reference)
        device = services.roomy_device(SCRATCH)
        with services.titled(_TITLE):
            show = Progress(_TITLE, len(images))
            return io.NodeOutput(match_colour(images, reference, method, strength, show, device))
