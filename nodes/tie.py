"""Low-Frequency Tie: holds the coarse structure of what is sampled to the low-resolution clip."""

import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..models.lowpass import axis_filter, tie_low
from .host import services
from .host.keys import SYSTEM_KEY
from .host.model import keep_unedited
from .motion import clip_shape, guide_frames, percent_range
from .systems import all_systems

_KEY = "vsr_low_frequency_tie"
_WHO = "Low-Frequency Tie"


class LowFrequencyTie(io.ComfyNode):
    """Ties the low frequencies of predictions to those of the LR latent."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        part = [
            io.Float.Input(
                name, default=default, min=0.0, max=1.0, step=0.01,
                tooltip=f"Where in the denoising the tie {what}: 0 is the start, 1 the end.",
            )
            for name, default, what in (("start_percent", 0.0, "begins"), ("end_percent", 1.0, "ends"))
        ]  # fmt: skip
        return io.Schema(
            node_id="VSRLowFrequencyTie",
            display_name=_WHO,
            category=services.CATEGORY,
            description="Keeps colours and coarse structure of the low-resolution clip while a text-to-video model "
            "makes the detail: the low frequencies of every prediction are moved to those of the clip. For any video "
            "model; no training needed.",
            search_aliases=["ilvr", "low frequency", "sdedit", "training-free", "structure", "colour drift"],
            inputs=[
                io.Model.Input("model", tooltip="The video model to sample with the tie."),
                io.Latent.Input(
                    "lr_latent", tooltip="The upscaled and encoded clip from Cascade Input, with the VAE of this model."
                ),
                io.Float.Input(
                    "strength", default=0.5, min=0.0, max=1.0, step=0.05,
                    tooltip="How far the low frequencies are moved: 0 changes nothing, 1 makes them those of the clip.",
                ),
                io.Float.Input(
                    "cutoff", default=8.0, min=1.0, max=512.0, step=0.5,
                    tooltip="Size of the structures that are tied, in latent cells: waves as long or longer are tied "
                    "whole, shorter ones less and less.",
                ),
                *part,
            ],
            outputs=[io.Model.Output(tooltip="The model, tied to the clip.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, lr_latent, strength, cutoff, start_percent, end_percent):
        """Bring the clip to the model's space once, and edit every prediction in the range."""
        if not 0 <= strength <= 1:
            raise ValueError(f"{_WHO}: strength must be between 0 and 1; got {strength}. 0.5 is the default.")
        axis_filter(1, cutoff)  # refuses a cutoff that is none, before the run
        wanted = percent_range(_WHO, model, start_percent, end_percent)
        source = _model_space(model, lr_latent)
        patched = model.clone()
        if strength > 0:
            # Around the whole prediction, not after CFG: guiders of several models show that a part of it only.
            tie = _Tie(source, strength, cutoff, wanted)
            patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, _KEY, tie)
        return io.NodeOutput(patched)


def _model_space(model, lr_latent) -> torch.Tensor:
    """Check the LR latent against the model's latent format and scale it as the host does a start latent."""
    system = all_systems().get(lr_latent.get(SYSTEM_KEY)) if isinstance(lr_latent, dict) else None
    if system is not None and not system.lr_is_latent:
        raise ValueError(
            f"{_WHO}: lr_latent must be a latent; got frames, which Upscale-A-Video takes. It follows the clip by "
            "itself: leave this node out."
        )
    latent_format = model.get_model_object("latent_format")
    clip = services.check_latent(_WHO, "lr_latent", lr_latent, latent_format.latent_channels)
    return latent_format.process_in(clip.float())


class _Tie:
    """The wrapper around a model's prediction; keeps the clip where the host keeps latents."""

    def __init__(self, source: torch.Tensor, strength: float, cutoff: float, wanted):
        self._source, self._strength, self._cutoff, self._wanted = source, strength, cutoff, wanted

    def __call__(self, executor, x, timestep, model_options, seed=None):
        if not self._wanted(
            float(timestep.flatten()[0]), model_options["transformer_options"]["sample_sigmas"]
        ):
            return executor(x, timestep, model_options, seed)
        (frames, *sides), own = clip_shape(_WHO, x), tuple(self._source.shape[2:])
        frames -= guide_frames(executor, x, own[0])
        grid = (frames, *sides)
        if x.ndim != 5 or grid != own or len(self._source) not in (1, len(x)):
            raise ValueError(
                f"{_WHO}: lr_latent must have the batch and the grid (frames, rows, columns) of what is sampled, "
                f"{len(x)} of {grid}; got {len(self._source)} of {own}. Sample the lr_latent of the same Cascade Input."
            )
        clean = executor(x, timestep, model_options, seed)
        keep_unedited(model_options["transformer_options"], clean)
        tied = tie_low(clean[:, :, :frames], self._source.to(clean), self._cutoff, self._strength)
        return torch.cat((tied, clean[:, :, frames:]), 2) if frames < clean.shape[2] else tied
