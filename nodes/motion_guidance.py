"""Motion guidance for the network: samples are moved so that frames agree along the motion, on the latent alone."""

import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..models.layout.sizes import latent_frames
from ..models.motion.field import Motion
from ..models.motion.guidance import (
    DEFAULT,
    FORMS,
    PUBLISHED,
    PUBLISHED_STRENGTH,
    SEGMENT,
    Flows,
    guide_clean,
    motion_gradient,
    published_update,
    with_seen,
)
from ..models.motion.propagation import DIRECTIONS
from .host import services
from .host.keys import AFTER_STEP_KEY, STEPPING_KEY
from .host.model import keep_unedited
from .motion import MotionType, clip_shape, guide_frames, percent_range

_KEY = "vsr_motion_guidance"
_WHO = "Motion Guidance"


class MotionGuidance(io.ComfyNode):
    """Pulls frames together along the motion while the model samples."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        part = [
            io.Float.Input(
                name, default=default, min=0.0, max=1.0, step=0.01,
                tooltip=f"Where in the denoising guidance {what}: 0 is the start, 1 the end.",
            )
            for name, default, what in (("start_percent", 0.0, "begins"), ("end_percent", 1.0, "ends"))
        ]  # fmt: skip
        return io.Schema(
            node_id="VSRMotionGuidance",
            display_name=_WHO,
            category=services.CATEGORY,
            description="Moves what the network predicts down the gradient of its disagreement along the motion, "
            "where things are seen in both frames, so that frames hold together without a hard copy. For any video "
            "model; it restarts at scene cuts.",
            search_aliases=["temporal consistency", "flicker", "optical flow", "warping loss", "mgld-vsr"],
            inputs=[
                io.Model.Input("model", tooltip="The video model to sample with guidance."),
                MotionType.Input("motion", tooltip="The motion of this clip, from Estimate Motion."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=10.0, step=0.05,
                    tooltip="How large a difference between frames may be to vanish: 0 changes nothing, 1 takes "
                    "flicker, 10 content too; with form published and sampler ddpm, 1 is the published strength.",
                ),
                *part,
                io.Combo.Input(
                    "direction", options=list(DIRECTIONS), default="both",
                    tooltip="Which neighbour a frame is compared with. both; backward: the next frame; forward: the "
                    "one before.",
                ),
                io.Combo.Input(
                    "form", options=list(FORMS), default=DEFAULT, advanced=True,
                    tooltip="default: every frame with its own neighbour; published: the pairs of the published "
                    "program, which are one off, in segments of five frames.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, with guidance.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, motion, strength, start_percent, end_percent, direction, form):
        """Clone the model and guide its prediction, or with the published form and sampler, the sample itself."""
        if not isinstance(motion, Motion):
            raise ValueError(
                f"{_WHO}: motion must come from Estimate Motion; got {type(motion).__name__}. Link that node."
            )
        if form not in FORMS or direction not in DIRECTIONS:
            raise ValueError(
                f"{_WHO}: form must be one of {', '.join(FORMS)} and direction one of {', '.join(DIRECTIONS)}; got "
                f"{form!r} and {direction!r}. Correct it."
            )
        wanted = percent_range(_WHO, model, start_percent, end_percent)
        patched = model.clone()
        if strength == 0:
            return io.NodeOutput(patched)
        time = getattr(model.get_model_object("latent_format"), "temporal_downscale_ratio", 1)
        guidance = _Guidance(motion, time, wanted, strength, direction, form)
        # Around the whole prediction, not after CFG: guiders of several models show that a part of it only.
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, _KEY, guidance)
        if form == PUBLISHED:
            options = patched.model_options["transformer_options"]
            options[AFTER_STEP_KEY] = [*options.get(AFTER_STEP_KEY, ()), guidance.after_step]
        return io.NodeOutput(patched)


class _Guidance:
    """The wrapper around a model's prediction; keeps the flows on the latent's grid, on the CPU, between steps."""

    def __init__(self, motion: Motion, time: int, wanted, strength: float, direction: str, form: str):
        self._motion, self._time, self._wanted, self._strength = motion, time, wanted, strength
        self._form, self._direction = form, direction
        self._grid: tuple | None = None
        self._flows: Flows | None = None

    def __call__(self, executor, x, timestep, model_options, seed=None):
        """Predict, and guide the prediction unless the sampler lets after_step() guide the sample."""
        options = model_options["transformer_options"]
        later = self._form == PUBLISHED and options.get(STEPPING_KEY, False)
        if later or not self._wanted(float(timestep.flatten()[0]), options["sample_sigmas"]):
            return executor(x, timestep, model_options, seed)
        guides = guide_frames(executor, x, latent_frames(self._motion.frames, self._time))
        frames = x.shape[2] - guides if guides else None  # those of the clip
        part = x[:, :, :frames] if guides else x
        flows = self._prepare(part)  # before the network runs: motion of another clip is an error at once
        clean = executor(x, timestep, model_options, seed)
        keep_unedited(model_options["transformer_options"], clean)
        clip = _to_clip(clean)
        guided = guide_clean(clip[:, :, :frames], flows, self._strength, **self._chosen(part))
        return _like(torch.cat((guided, clip[:, :, frames:]), 2) if guides else guided, clean)

    def after_step(self, x: torch.Tensor, log_variance: float, sigma: float, sigmas: torch.Tensor):
        """Move a freshly sampled latent as published; `sigma` is the one the step began at."""
        if not self._wanted(sigma, sigmas):
            return x
        clip = _to_clip(x)
        gradient = motion_gradient(clip, self._prepare(x), **self._chosen(x))[1]
        strength = self._strength * PUBLISHED_STRENGTH
        return _like(published_update(clip, gradient, log_variance, strength), x)

    def _chosen(self, x: torch.Tensor) -> dict:
        segment = SEGMENT if self._form == PUBLISHED else None
        cuts = self._motion.latent_cuts(self._frames_each(x))
        return {"form": self._form, "direction": self._direction, "segment": segment, "cuts": cuts}

    def _frames_each(self, x: torch.Tensor) -> int:
        return self._time if x.ndim == 5 else 1

    def _prepare(self, x: torch.Tensor) -> Flows:
        grid = clip_shape(_WHO, x)
        if self._grid != grid:
            self._flows = with_seen(Flows(*self._motion.on_grid(*grid, self._frames_each(x), who=_WHO)))
            self._grid = grid
        return self._flows


def _to_clip(x: torch.Tensor) -> torch.Tensor:
    """Give (b, c, t, h, w); picture models have their frames in the batch."""
    return x if x.ndim == 5 else x.transpose(0, 1)[None]


def _like(clip: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return clip if x.ndim == 5 else clip[0].transpose(0, 1)
