"""Motion guidance for the network: samples are moved so that frames agree along the motion, on the latent alone."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..models.motion.estimation import Motion
from ..models.motion.flow import DIRECTIONS
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
from .host import services
from .host.keys import AFTER_STEP_KEY, STEPPING_KEY
from .motion import motion_input
from .prediction import (
    MotionEdit,
    Wanted,
    from_clip,
    percent_inputs,
    percent_range,
    to_clip,
)

_KEY = "vsr_motion_guidance"
_TITLE = "Motion Guidance"


class MotionGuidance(io.ComfyNode):
    """Pulls frames together along the motion while the model samples."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRMotionGuidance",
            display_name=_TITLE,
            category=services.CATEGORY,
            description=(
                "Reduces flicker: moves the predictions of neighbouring frames towards each other along the motion, "
                "where both frames show the same point. For any video model; it restarts at scene cuts."
            ),
            search_aliases=[
                "temporal consistency",
                "flicker",
                "optical flow",
                "warping loss",
                "mgld-vsr",
                "cascade vsr",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The video model to sample with guidance."),
                motion_input(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How strongly differences between frames are smoothed: 0 changes nothing, 1 removes "
                    "flicker, 10 also detail; with form published and sampler ddpm, 1 is the published strength.",
                ),
                *percent_inputs("guidance"),
                io.Combo.Input(
                    "direction",
                    options=list(DIRECTIONS),
                    default="both",
                    tooltip=(
                        "The neighbour that a frame is compared with. backward: the next frame; "
                        "forward: the previous one; both: each of them."
                    ),
                ),
                io.Combo.Input(
                    "form",
                    options=list(FORMS),
                    default=DEFAULT,
                    advanced=True,
                    tooltip="default: every frame is compared with its own neighbour; published: the pairs of the "
                    "published program, which are one off, in segments of five frames.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with guidance.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        motion: Motion | ModelPatcher,
        strength: float,
        start_percent: float,
        end_percent: float,
        direction: str,
        form: str,
    ):
        """Clone the model and guide its prediction, or with the published form and sampler, the sample itself."""
        services.check_motion(_TITLE, motion, ModelPatcher)
        if form not in FORMS or direction not in DIRECTIONS:
            raise ValueError(
                f"{_TITLE}: form must be one of {', '.join(FORMS)} and direction one of {', '.join(DIRECTIONS)}; got "
                f"{form!r} and {direction!r}. Use {DEFAULT} and both."
            )
        wanted = percent_range(_TITLE, model, start_percent, end_percent)
        patched = model.clone()
        if strength == 0:
            return io.NodeOutput(patched)
        guidance = _Guidance(motion, services.frames_a_latent(model), wanted, strength, direction, form)
        guidance.attach(patched, _KEY)
        if form == PUBLISHED:
            options = patched.model_options["transformer_options"]
            options[AFTER_STEP_KEY] = [*options.get(AFTER_STEP_KEY, ()), guidance.after_step]
        return io.NodeOutput(patched)


class _Guidance(MotionEdit):
    """Guides the prediction, or the sample after a step."""

    title = _TITLE

    def __init__(
        self, source: Motion | ModelPatcher, time: int, wanted: Wanted, strength: float, direction: str, form: str
    ):
        super().__init__(source, time, wanted)
        self._strength, self._form, self._direction = strength, form, direction
        self._seen: tuple = ()  # the flows and the clips of a batch, then what _along() gives for them

    def applies(self, sigma: float, options: dict) -> bool:
        """Leave the prediction alone where the sampler lets after_step() guide the sample."""
        later = self._form == PUBLISHED and options.get(STEPPING_KEY, False)
        return not later and super().applies(sigma, options)

    def edit(self, clip: torch.Tensor) -> torch.Tensor:
        """Guide a prediction."""
        flows, kept = self._along(len(clip))
        return guide_clean(clip, flows, self._strength, **self._pairs(), kept=kept)

    def after_step(self, x: torch.Tensor, log_variance: float, sigma: float, options: dict) -> torch.Tensor:
        """Move a freshly sampled latent as published; `sigma` is the one the step began at."""
        if not self._wanted(sigma, options["sample_sigmas"]):
            return x
        with services.titled(self.title):
            self.prepare(x, options)
            clip = to_clip(x)
            gradient = motion_gradient(clip, self._along(len(clip))[0], **self._pairs())[1]
        strength = self._strength * PUBLISHED_STRENGTH
        return from_clip(published_update(clip, gradient, log_variance, strength), x)

    def _along(self, batch: int) -> tuple[Flows, list]:
        """Give the flows with what both frames of each see, and the list that guide_clean() keeps for the next step."""
        if not self._seen or self._seen[0] is not self._flows or self._seen[1] != batch:
            self._seen = self._flows, batch, (with_seen(Flows(*self._flows)), [])
        return self._seen[2]

    def _pairs(self) -> dict:
        """Give the settings of guide_clean() and motion_gradient() that say which frames are compared."""
        segment = SEGMENT if self._form == PUBLISHED else None
        return {"form": self._form, "direction": self._direction, "segment": segment, "cuts": self._cuts}
