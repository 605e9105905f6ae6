"""Faster Sampling: what a restorer of many steps can leave out. Everything is off until it is set.

1. The deep half of the network is computed every few steps and kept in between (nodes/host/deep.py); the outermost
   level, in space and in time, runs at every step.
2. Text guides in a part of the denoising only; elsewhere the negative is not predicted.

Temporal Windows has the third saving: windows that take turns instead of sharing frames.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from .host import services
from .host.deep import Saving
from .host.keys import SAVING_KEY
from .host.model import system_of
from .prediction import Wanted, percent_range

_TITLE = "Faster Sampling"


class FasterSampling(io.ComfyNode):
    """Leaves out work of a sampling run."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        percent = {"min": 0.0, "max": 1.0, "step": 0.01}
        return io.Schema(
            node_id="VSRFasterSampling",
            display_name=_TITLE,
            category=services.CATEGORY,
            description="Makes Upscale-A-Video and MGLD-VSR faster by leaving work out: the deep half of the network "
            "is kept over steps, and text guides in a part of the denoising only. The result is another one: compare "
            "a short piece with Compare Video first. As it comes, nothing is left out.",
            search_aliases=["speed", "deepcache", "deep cache", "guidance interval", "accelerate", "cascade vsr"],
            inputs=[
                io.Model.Input("model", tooltip="The restorer, with its tiles, windows and other patches."),
                io.Int.Input(
                    "deep_every",
                    default=1,
                    min=1,
                    max=10,
                    tooltip="The deep half of the network is computed every so many steps, and kept in between: 1 at "
                    "every step, 3 is a good first try. For Upscale-A-Video and MGLD-VSR.",
                ),
                io.Float.Input(
                    "guidance_start",
                    default=0.0,
                    tooltip="Where in the denoising guidance by text (cfg) begins: 0 is the start.",
                    **percent,
                ),
                io.Float.Input(
                    "guidance_end",
                    default=1.0,
                    tooltip="Where in the denoising guidance by text ends: 1 is the end. Outside, the negative is not "
                    "predicted, which halves the cost of a step.",
                    **percent,
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, sampled with less work.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, deep_every: int, guidance_start: float, guidance_end: float):
        """Clone the model, and set what is left out; a second node replaces the first."""
        patched, system = model.clone(), system_of(model)
        saving = Saving(deep_every, guidance_start, guidance_end)
        options = patched.model_options.setdefault("transformer_options", {})
        options.pop(SAVING_KEY, None)
        patched.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, SAVING_KEY)
        if saving == Saving():
            return io.NodeOutput(patched)
        services.refuse_published(_TITLE, model, "work to be left out")
        if deep_every > 1 and not (system is not None and system.keeps_deep):
            name = type(model.model).__name__ if system is None else system.name
            raise ValueError(
                f"{_TITLE}: deep_every above 1 needs Upscale-A-Video or MGLD-VSR; got {name}. Set it to 1, or use the "
                "host's EasyCache."
            )
        options[SAVING_KEY] = saving
        if (guidance_start, guidance_end) != (0.0, 1.0):
            if guidance_start >= guidance_end:
                raise ValueError(
                    f"{_TITLE}: guidance_start must be below guidance_end; got {guidance_start} and {guidance_end}. "
                    "Use 0 and 1 for all steps; for no guidance set cfg to 1."
                )
            wanted = percent_range(_TITLE, model, guidance_start, guidance_end)
            patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, SAVING_KEY, GuidanceRange(wanted))
        return io.NodeOutput(patched)


class GuidanceRange:
    """The wrapper around a whole prediction that sets the guider's cfg to 1 where text does not guide.

    The host then leaves the negative out. Guiders that do not go by one cfg, such as those of two, guide as ever.
    """

    def __init__(self, wanted: Wanted):
        self.wanted = wanted

    def __call__(
        self,
        executor: Callable[..., torch.Tensor],
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Predict with or without guidance."""
        guider, sigmas = executor.class_obj, model_options["transformer_options"]["sample_sigmas"]
        cfg = getattr(guider, "cfg", None)
        if cfg is None or self.wanted(float(timestep.flatten()[0]), sigmas):
            return executor(x, timestep, model_options, seed)
        try:
            guider.cfg = 1.0
            return executor(x, timestep, model_options, seed)
        finally:
            guider.cfg = cfg
