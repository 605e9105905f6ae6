"""Editing what a model predicts while it samples: the part that propagation, motion guidance and the tie share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..models.layout.sizes import latent_frames
from ..models.motion.estimation import Motion
from ..models.schedules import SAME
from .host import services
from .host.keys import CLIP_KEY
from .host.model import keep_unedited

Wanted = Callable[[float, torch.Tensor], bool]  # (sigma, all sigmas of the run): is this step edited?


@dataclass(frozen=True)
class RunClip:
    """The part of a film that Upscale Film samples now, for patches that were made before it was known.

    `lr_latent`: the LATENT of Cascade Input. `motion` estimates the motion of its LR frames by a flow model, once.
    """

    lr_latent: Mapping
    motion: Callable[[ModelPatcher], Motion]

    @staticmethod
    def of(options: Mapping, name: str, source: str) -> RunClip:
        """Return that of the transformer options; an input `name` that comes from `source` is needed without."""
        clip = options.get(CLIP_KEY)
        if clip is None:
            raise ValueError(
                f"{name} must come from {source}; only in Upscale Film, which samples a film part by part, it is "
                f"found for each part; got a run of another sampler. Link {source}."
            )
        return clip


class PredictionEdit:
    """The wrapper around a model's whole prediction that edits the clip in it. At a step that is wanted it

    1. finds the clip in the noisy x, (b, c, t, h, w), without the guide frames that LTX appends to it;
    2. calls prepare(x) before the network runs, so that what does not match the clip is an error at once;
    3. runs the network, and keeps its prediction unedited for the sampler's noise estimate;
    4. calls edit(clip) and puts the guide frames back.

    Models of single pictures have x (t, c, h, w): their frames are the batch. They are edited as (1, c, t, h, w).
    """

    title = ""  # of the node, for errors

    def __init__(self, wanted: Wanted):
        self._wanted = wanted

    def attach(self, patcher: ModelPatcher, key: str) -> None:
        """Give a cloned MODEL the wrapper."""
        # Around the whole prediction, not after CFG: guiders of several models show only a part of it there.
        patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, self)

    def applies(self, sigma: float, options: dict) -> bool:
        """Say whether the step at `sigma` is edited; `options` are the transformer_options."""
        return self._wanted(sigma, options["sample_sigmas"])

    def frames(self, options: Mapping) -> int:
        """Give the latent frames of the clip at a video model."""
        raise NotImplementedError

    def prepare(self, x: torch.Tensor, options: Mapping) -> None:
        """Check the clip's x, in the layout of the network, and make what edit() needs."""

    def edit(self, clip: torch.Tensor) -> torch.Tensor:
        """Give the edited prediction (b, c, t, h, w)."""
        raise NotImplementedError

    def __call__(
        self,
        executor: Callable[..., torch.Tensor],
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Predict, and edit the prediction."""
        options = model_options["transformer_options"]
        if not self.applies(float(timestep.flatten()[0]), options):
            return executor(x, timestep, model_options, seed)
        with services.titled(self.title):
            frames = clip_shape(self.title, x)[0] - guide_frames(executor, x, self.frames(options))
            self.prepare(x[:, :, :frames] if x.ndim == 5 else x, options)
        clean = executor(x, timestep, model_options, seed)
        keep_unedited(options, clean)
        clip = to_clip(clean)
        with services.titled(self.title):
            edited = self.edit(clip[:, :, :frames])
        if frames < clip.shape[2]:
            edited = torch.cat((edited, clip[:, :, frames:]), 2)
        return from_clip(edited, clean)


class MotionEdit(PredictionEdit):
    """An edit along the motion of the clip, whose flows it keeps on the latent's grid between steps."""

    def __init__(self, source: Motion | ModelPatcher, time: int, wanted: Wanted):
        """`source`: the motion, or a flow model for that of the RunClip. `time`: frames that a latent frame holds."""
        super().__init__(wanted)
        self._source, self._time = source, time
        self._of: tuple = ()  # what the flows are of, and their grid
        self._flows: tuple[torch.Tensor, torch.Tensor] = ()
        self._cuts: tuple[int, ...] = ()

    def _motion(self, options: Mapping) -> Motion:
        if isinstance(self._source, Motion):
            return self._source
        return RunClip.of(options, "motion", "Estimate Motion").motion(self._source)

    def frames(self, options: Mapping) -> int:
        """Give the latent frames of the motion."""
        return latent_frames(self._motion(options).frames, self._time)

    def prepare(self, x: torch.Tensor, options: Mapping) -> None:
        """Bring the motion to the grid of x."""
        if len(options.get("sample_sigmas", ())) == 2:
            logging.getLogger(__name__).warning(
                "%s: it needs several steps, of which each takes up what the one before has moved; this run has one "
                "(SeedVR2 is made for one). Take the node out, or use Steady Upscaled Video behind it.",
                self.title,
            )
        motion, grid = self._motion(options), clip_shape(self.title, x)
        time = self._time if x.ndim == 5 else 1
        if not self._of or self._of[0] is not motion or self._of[1:] != (grid, x.device):
            self._flows, self._cuts = motion.on_grid(*grid, time, x.device), motion.latent_cuts(time)
            self._of = motion, grid, x.device


def to_clip(x: torch.Tensor) -> torch.Tensor:
    """Give (b, c, t, h, w); picture models have their frames in the batch."""
    return x if x.ndim == 5 else x.transpose(0, 1)[None]


def from_clip(clip: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Give a clip (b, c, t, h, w) in the layout of x."""
    return clip if x.ndim == 5 else clip[0].transpose(0, 1)


def clip_shape(title: str, x: torch.Tensor) -> tuple[int, int, int]:
    """Give (frames, height, width); picture models have their frames in the batch."""
    if x.ndim not in (4, 5):
        raise ValueError(
            f"{title}: the latent must be that of a video or picture model (5 or 4 dimensions); got "
            f"{tuple(x.shape)}, which packs sound or other data. Use a model without."
        )
    return (x.shape[2] if x.ndim == 5 else x.shape[0], *x.shape[-2:])


def guide_frames(executor: Callable[..., torch.Tensor], x: torch.Tensor, frames: int) -> int:
    """Count the guide frames that a latent has (LTX appends them) behind the `frames` latent frames of its clip."""
    surplus = x.shape[2] - frames if x.ndim == 5 else 0
    conds = getattr(getattr(executor, "class_obj", None), "conds", None) or {}
    return surplus if surplus > 0 and services.has_guides(conds.values()) else 0


def percent_inputs(what: str) -> list[io.Float.Input]:
    """Make the inputs start_percent and end_percent of a node that does `what` in a part of the denoising."""
    return [
        io.Float.Input(
            name,
            default=default,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=f"Where in the denoising {what} {verb}: 0 is the start, 1 the end.",
        )
        for name, default, verb in (("start_percent", 0.0, "begins"), ("end_percent", 1.0, "ends"))
    ]


def percent_range(title: str, model: ModelPatcher, start: float, end: float) -> Wanted:
    """Make the rule that chooses the steps in a part of the denoising."""
    if start >= end:
        raise ValueError(
            f"{title}: start_percent must be below end_percent; got {start} and {end}. Use 0 and 1 for all steps."
        )
    sampling = model.get_model_object("model_sampling")
    first, last = sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)
    return lambda sigma, sigmas: last / SAME <= sigma <= first * SAME
