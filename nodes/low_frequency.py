"""Low-Frequency Tie: holds the coarse structure of what is sampled to the low-resolution clip."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..models.lowpass import axis_filter, tie_low
from .host import services
from .host.keys import SYSTEM_KEY
from .prediction import PredictionEdit, RunClip, Wanted, clip_shape, percent_inputs, percent_range

_KEY = "vsr_low_frequency_tie"
_TITLE = "Low-Frequency Tie"


class LowFrequencyTie(io.ComfyNode):
    """Ties the low frequencies of predictions to those of the LR latent."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRLowFrequencyTie",
            display_name=_TITLE,
            category=services.CATEGORY,
            description=(
                "Keeps the colours and coarse structure of the low-resolution clip while a "
                "text-to-video model makes the detail: moves the low frequencies of every "
                "prediction to those of the clip. For any video model; no training needed."
            ),
            search_aliases=[
                "ilvr",
                "low frequency",
                "sdedit",
                "training-free",
                "structure",
                "colour drift",
                "cascade vsr",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The video model to sample with the tie."),
                io.Latent.Input(
                    "lr_latent",
                    optional=True,
                    tooltip="The upscaled and encoded clip from Cascade Input, with the VAE of this model. In Upscale "
                    "Film leave it empty: each part of the film is tied to its own.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Strength of the tie: 0 changes nothing, 1 replaces the low frequencies by "
                    "those of the clip.",
                ),
                io.Float.Input(
                    "cutoff",
                    default=8.0,
                    min=1.0,
                    max=512.0,
                    step=0.5,
                    tooltip="Structures of this size, in latent cells, and larger follow the clip; finer ones "
                    "progressively less.",
                ),
                *percent_inputs("the tie"),
            ],
            outputs=[io.Model.Output(tooltip="The model with the tie to the clip.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        strength: float,
        cutoff: float,
        start_percent: float,
        end_percent: float,
        lr_latent: dict | None = None,
    ):
        """Bring the clip to the model's space once, and edit every prediction in the range."""
        if not 0 <= strength <= 1:
            raise ValueError(f"{_TITLE}: strength must be between 0 and 1; got {strength}. 0.5 is the default.")
        with services.titled(_TITLE):
            axis_filter(1, cutoff)  # refuses a wrong cutoff before the run
        wanted = percent_range(_TITLE, model, start_percent, end_percent)
        source = None if lr_latent is None else _model_space(model, lr_latent)
        patched = model.clone()
        if strength > 0:
            _Tie(model, source, strength, cutoff, wanted).attach(patched, _KEY)
        return io.NodeOutput(patched)


def _model_space(model: ModelPatcher, lr_latent: dict) -> torch.Tensor:
    """Check the LR latent against the model's latent format and scale it as the host does a start latent."""
    system = lr_latent.get(SYSTEM_KEY) if isinstance(lr_latent, dict) else None
    if system is not None and not system.lr_is_latent:
        raise ValueError(
            f"{_TITLE}: lr_latent must be a latent; got frames, which {system.name} takes. It follows the clip by "
            "itself: leave this node out."
        )
    latent_format = model.get_model_object("latent_format")
    clip = services.check_latent(_TITLE, "lr_latent", lr_latent, latent_format.latent_channels)
    return latent_format.process_in(clip.float())


class _Tie(PredictionEdit):
    """Ties the prediction to the clip; keeps the clip where the host keeps latents."""

    title = _TITLE

    def __init__(
        self, model: ModelPatcher, source: torch.Tensor | None, strength: float, cutoff: float, wanted: Wanted
    ):
        """`source`: the clip in the model's space, None: that of the RunClip."""
        super().__init__(wanted)
        self._model, self._given, self._strength, self._cutoff = model, source, strength, cutoff
        self._of: RunClip | None = None
        self._source = source

    def frames(self, options: Mapping) -> int:
        """Give the latent frames of the clip."""
        if self._given is None:
            clip = RunClip.of(options, "lr_latent", "Cascade Input")
            if self._of is not clip:
                self._source, self._of = _model_space(self._model, clip.lr_latent), clip
        return self._source.shape[2]

    def prepare(self, x: torch.Tensor, options: Mapping) -> None:
        """Raise where what is sampled is not the clip's size."""
        grid, own = clip_shape(self.title, x), tuple(self._source.shape[2:])
        if x.ndim != 5 or grid != own or len(self._source) not in (1, len(x)):
            raise ValueError(
                "lr_latent must have the batch and the grid (frames, rows, columns) of what is sampled, "
                f"{len(x)} of {grid}; got {len(self._source)} of {own}. Sample the lr_latent of the same Cascade Input."
            )

    def edit(self, clip: torch.Tensor) -> torch.Tensor:
        """Move the low frequencies."""
        return tie_low(clip, self._source.to(clip), self._cutoff, self._strength)
