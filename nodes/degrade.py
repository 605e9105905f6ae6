"""Makes low-resolution test inputs."""

import numpy as np
import torch
from comfy_api.latest import io

from ..models.layout.sizes import target_size
from ..models.pixels.degradation import PRESETS, degrade
from .frames import multiple_input
from .host import services
from .host.progress import Progress

_TITLE = "Degrade Video"
_CHUNK = 48  # frames degraded together: one run of the H.264 coder, and a place to stop


class DegradeVideo(io.ComfyNode):
    """Reduces and damages a clip."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRDegradeVideo",
            display_name=_TITLE,
            category=services.CATEGORY,
            description="Makes a low-resolution, damaged copy of a good clip, to test a restorer against the truth.",
            search_aliases=[
                "degradation",
                "downscale",
                "low resolution",
                "compress",
                "real-esrgan degradation",
                "cascade vsr",
            ],
            inputs=[
                io.Image.Input("images", tooltip="The good clip."),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="bicubic",
                    tooltip=(
                        "bicubic: reduction only; real: blur, noise, JPEG and H.264; generated: soft; old film: grain; "
                        "second order: the complete, stronger chain of RealBasicVSR."
                    ),
                ),
                io.Int.Input(
                    "scale",
                    default=4,
                    min=1,
                    max=16,
                    tooltip=("Reduction factor: the result is this many times smaller."),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip=("Seed of blur, noise and quality; the same values are used for the whole clip."),
                ),
                multiple_input(),
            ],
            outputs=[io.Image.Output(tooltip="The degraded clip.")],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, preset: str, scale: int, seed: int, multiple: int = 1):
        """Draw the parameters once and degrade the clip in chunks; graphs of 0.1.0 have no `multiple`."""
        images = services.check_frames(_TITLE, "images", images)
        if preset not in PRESETS:
            raise ValueError(f"{_TITLE}: preset must be one of {', '.join(PRESETS)}; got {preset!r}. Choose bicubic.")
        with services.titled(_TITLE):
            height, width = target_size(*images.shape[1:3], scale=1 / scale, multiple=multiple)
        count = len(images)
        rng = np.random.default_rng(seed)
        parameters = PRESETS[preset](rng)
        result, show = services.output_tensor((count, height, width, 3)), Progress(_TITLE, count)
        for start in range(0, count, _CHUNK):
            part = images[start : start + _CHUNK].movedim(-1, 1).float()
            result[start : start + _CHUNK] = degrade(part, height, width, parameters, rng).movedim(1, -1)
            show(min(start + _CHUNK, count), count)
        return io.NodeOutput(result)
