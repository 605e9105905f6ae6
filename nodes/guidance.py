"""Guidance by references, in three branches: as a GUIDER, and as a patch for the host's KSampler.

At every step, in order: positive, negative and, in the first steps, the positive without references are predicted; text
is guided as the host does (CFG); the third branch's share is added (`guide_references`). The guider predicts all
branches in one call, the patch its own after CFG; both give the same numbers.
"""

from __future__ import annotations

import math
import uuid
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..models.schedules import step_index
from ..models.unimmvsr.references import ReferenceGuidance, guide_references
from .host import services
from .host.keys import REFERENCE_CONDS, REFERENCES_KEY
from .host.model import system_of
from .host.wan import attach, is_wan

_GUIDER = "Reference CFG Guider"
_PATCH = "Reference CFG (KSampler)"
_POST = "sampler_post_cfg_function"

_S_REF = io.Float.Input(
    "s_ref",
    default=1.0,
    min=0.0,
    max=20.0,
    step=0.05,
    tooltip=(
        "Strength of guidance by references: 0 uses them as a condition only, 1 is the published "
        "value, larger values over-sharpen."
    ),
)
_REF_STEPS = io.Int.Input(
    "ref_steps",
    default=15,
    min=0,
    max=1000,
    tooltip=(
        "Number of first steps of this sampler's run in which s_ref acts, 15 of 50 as published; "
        "later steps cost one prediction less."
    ),
)


class ReferenceCFGGuider(io.ComfyNode):
    """The guider for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRReferenceGuider",
            display_name=_GUIDER,
            category=services.CATEGORY,
            description=(
                "Guides sampling by text and by references, with separate strengths, as in the UniMMVSR paper. "
                "Guidance by references acts in the first steps only, where structure is decided."
            ),
            search_aliases=[
                "cfg",
                "guider",
                "three-way cfg",
                "dual cfg",
                "reference guidance",
                "s_ref",
                "unimmvsr",
                "cascade vsr",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample, with its tiles, windows and other patches."),
                io.Conditioning.Input("positive", tooltip="Prompt, clip and references, from VSR Conditioning."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The same with the negative prompt, from the same VSR Conditioning; needed "
                    "unless s_txt is 0.",
                ),
                io.Float.Input(
                    "s_txt",
                    default=3.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip=(
                        "Strength of guidance by text: the usual cfg minus 1, so 3 is cfg 4; 0 "
                        "omits the negative and its cost."
                    ),
                ),
                _S_REF,
                _REF_STEPS,
            ],
            outputs=[io.Guider.Output(tooltip="Guider for SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        s_txt: float,
        s_ref: float,
        ref_steps: int,
        negative: list | None = None,
    ):
        """Set the three branches up."""
        with services.titled(_GUIDER):
            guidance = ReferenceGuidance(s_txt, s_ref, ref_steps)
        if any(isinstance(function, ReferencePatch) for function in model.model_options.get(_POST, ())):
            raise ValueError(
                f"{_GUIDER}: the model must come without {_PATCH}, because references would be guided "
                "twice; got one with it. Link the model from before that node."
            )
        if negative is None and s_txt > 0:
            raise ValueError(
                f"{_GUIDER}: s_txt above 0 needs a negative; got s_txt {s_txt:g} without one. Link the negative of "
                "VSR Conditioning, or set s_txt to 0."
            )
        return io.NodeOutput(ReferenceGuider(take_references(model), positive, negative, guidance))


class ReferenceCFG(io.ComfyNode):
    """The same guidance for the host's KSampler and other guiders."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRReferenceCFG",
            display_name=_PATCH,
            category=services.CATEGORY,
            description=(
                "Adds guidance by references to a model, for KSampler and the host's guiders. The strength of the text "
                "is KSampler's cfg, which is 1 + s_txt: 4 for the published s_txt of 3."
            ),
            search_aliases=[
                "cfg",
                "three-way cfg",
                "reference guidance",
                "s_ref",
                "ksampler",
                "unimmvsr",
                "cascade vsr",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=("The model to sample. In KSampler cfg = 1 + s_txt: 4 for the published s_txt of 3."),
                ),
                _S_REF,
                _REF_STEPS,
            ],
            outputs=[io.Model.Output(tooltip="The model with guidance by references.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, s_ref: float, ref_steps: int):
        """Clone the model and put the third branch after its CFG; a second node replaces the first."""
        with services.titled(_PATCH):
            patch = ReferencePatch(ReferenceGuidance(0.0, s_ref, ref_steps))
        patched = take_references(model)
        others = [each for each in patched.model_options.get(_POST, ()) if not isinstance(each, ReferencePatch)]
        patched.model_options[_POST] = [*others, patch]
        return io.NodeOutput(patched)


def take_references(model: ModelPatcher) -> ModelPatcher:
    """Clone a MODEL for guidance by references: Wan learns to take them, the built-in one takes them by itself.

    Any other model stays as it is; references for it are an error when sampling starts.
    """
    patched, system = model.clone(), system_of(model)
    if not (system is not None and system.takes_references) and is_wan(patched):
        attach(patched, _GUIDER)
    return patched


class ReferenceGuider(comfy.samplers.CFGGuider):
    """The host's guider with a third branch, which sees no references, in the first steps."""

    def __init__(self, model: ModelPatcher, positive: list, negative: list | None, guidance: ReferenceGuidance):
        super().__init__(model)
        self.guidance = guidance
        conds = {"positive": positive, "negative": negative}
        self.inner_set_conds({name: cond for name, cond in conds.items() if cond is not None})
        self.set_cfg(guidance.cfg)

    def predict_noise(
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict | None = None, seed: int | None = None
    ):
        """Predict all branches in one call; text is guided as the host does, functions of other packs included."""
        options, positive = model_options or {}, self.conds["positive"]
        negative = self.conds.get("negative")
        if math.isclose(self.cfg, 1.0) and not options.get("disable_cfg1_optimization", False):
            negative = None
        third = null_reference(_GUIDER, self.guidance, positive, negative, timestep, options)
        groups = [positive, negative] + [third] * (third is not None)
        out = _predict(self.inner_model, groups, x, timestep, options)
        pair = out[:2]  # functions of other packs know two branches
        for function in options.get("sampler_pre_cfg_function", ()):
            args = {"conds": groups[:2], "conds_out": pair, "cond_scale": self.cfg, "timestep": timestep}
            args |= {"input": x, "sigma": timestep, "model": self.inner_model, "model_options": options}
            pair = function(args)
        guided = comfy.samplers.cfg_function(
            self.inner_model, *pair[:2], self.cfg, x, timestep, options, cond=positive, uncond=negative
        )
        if third is None:
            return guided
        return guide_references(guided, pair[0], out[2], self.guidance.references)


class ReferencePatch:
    """The function after CFG that predicts the third branch and adds its share."""

    def __init__(self, guidance: ReferenceGuidance):
        self.guidance = guidance

    def __call__(self, args: dict):
        """Give the guided prediction; `args` are those of the host's post-CFG functions."""
        sigma, options = args["sigma"], args["model_options"]
        third = null_reference(_PATCH, self.guidance, args["cond"], args["uncond"], sigma, options)
        if third is None:
            return args["denoised"]
        (clean,) = _predict(args["model"], [third], args["input"], sigma, options)
        return guide_references(args["denoised"], args["cond_denoised"], clean, self.guidance.references)


def _predict(model: Any, groups: list, x: torch.Tensor, sigma: torch.Tensor, options: dict) -> list:
    if "sampler_calc_cond_batch_function" in options:
        args = {"conds": groups, "input": x, "sigma": sigma, "model": model, "model_options": options}
        return options["sampler_calc_cond_batch_function"](args)
    return comfy.samplers.calc_cond_batch(model, groups, x, sigma, options)


def null_reference(
    who: str,
    guidance: ReferenceGuidance,
    positive: list[dict],
    negative: list[dict] | None,
    sigma: torch.Tensor,
    options: dict,
) -> list[dict] | None:
    """Give the positives without references, or None where this step needs no such branch.

    Raises ValueError where the model does not take references that are there, or the negative lacks them.
    """
    if guidance.references == 0 or not positive:
        return None
    ignored = any(cond.get(REFERENCES_KEY) for cond in positive)
    if not any(map(_holds_references, positive)):
        if ignored:
            raise ValueError(
                f"{who}: the model must take references; got a model that ignores them. Sample the "
                "built-in restorer or a Wan model, or unlink Reference Set."
            )
        return None
    if negative and not any(map(_holds_references, negative)):
        raise ValueError(
            f"{who}: the negative must see the references that the positive sees; got a negative without. Take both "
            "from one VSR Conditioning."
        )
    step = step_index(float(sigma.flatten()[0]), options["transformer_options"]["sample_sigmas"])
    return [_without_references(cond) for cond in positive] if guidance.acts(step) else None


def _holds_references(cond: dict) -> bool:
    return any(key in cond["model_conds"] for key in REFERENCE_CONDS)


def _without_references(cond: dict) -> dict:
    """Copy a processed conditioning without its references; the same one has the same identity at every step."""
    kept = {key: value for key, value in cond["model_conds"].items() if key not in REFERENCE_CONDS}
    return {**cond, "model_conds": kept, "uuid": uuid.uuid5(cond["uuid"], "no references")}
