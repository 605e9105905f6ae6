"""Restore Frames: every frame of a clip is restored from itself and its neighbours, without a latent and sampling.

In: frames of one clip. Motion between neighbours is estimated or taken, cuts end the reach of neighbours, and the
decoder's restorer (models/unimmvsr/restorer.py) gives every frame at the asked size. Out: frames.
"""

from __future__ import annotations

import comfy.sd
import torch
from comfy_api.latest import io

from ..models.layout.sizes import ClipSize
from ..models.motion.estimation import Motion
from .frames import asked_size, multiple_input, target_input
from .host import services
from .host.vae import RestorerVAE
from .motion import MotionType

RESTORE = "Restore Frames"


class RestoreFrames(io.ComfyNode):
    """The built-in restorer by itself: fast, and true to the frames."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRRestoreFrames",
            display_name=RESTORE,
            category=services.CATEGORY,
            description=(
                "Enlarges a clip with the built-in restorer alone: every frame is restored from itself and its "
                "neighbours. Faster than sampling and true to the frames; for references and added detail take the "
                "sampler and Temporal Decode."
            ),
            search_aliases=["upscale video", "fast upscale", "multi-frame super resolution", "cascade vsr"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of Load Video Restorer, set to built-in."),
                io.Image.Input("frames", tooltip="The clip to enlarge."),
                target_input(),
                MotionType.Input(
                    "motion",
                    optional=True,
                    tooltip="The motion of frames, from Estimate Motion; empty, it is estimated here.",
                ),
                multiple_input(),
            ],
            outputs=[io.Image.Output(tooltip="The clip at the asked size.")],
        )

    @classmethod
    def execute(
        cls,
        vae: comfy.sd.VAE | None,
        frames: torch.Tensor,
        target: dict,
        motion: Motion | None = None,
        multiple: int = 2,
    ):
        """Restore every frame."""
        check_restorer(RESTORE, vae)
        frames = services.check_frames(RESTORE, "frames", frames)
        size = ClipSize(frames.shape[0], *asked_size(RESTORE, "target", target, *frames.shape[1:3], multiple))
        if motion is not None:
            services.check_motion_of(RESTORE, motion, "frames", frames)
        return io.NodeOutput(vae.restore(frames, size, motion))


def check_restorer(title: str, vae: object) -> None:
    """Raise where a VAE has no restorer that works without a latent."""
    if not isinstance(vae, RestorerVAE) or not vae.restores:
        raise ValueError(
            f"{title}: vae must be the built-in restorer's; got {type(vae).__name__}. Choose built-in in Load Video "
            "Restorer, or sample with a model."
        )
