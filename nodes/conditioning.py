"""VSR Conditioning: joins the low-resolution clip, its noise level, text and references for the sampler.

1. The LATENT of Cascade Input says whose LR clip it is; that system checks it, noises it and says what sampling starts
   from (`System.condition`). Without a system it is a latent, mixed with noise at the noise level.
2. Copies of positive and negative get the LR clip, the level and the references.
3. What a model must not ignore (references, a noise level) gets an error beside it that only such a model meets.
"""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..models.layout.noise import LR_STREAM
from ..models.unimmvsr.references import References
from .host import services
from .host.keys import (
    ALPHAS_KEY,
    DEVIATION_KEY,
    LEVEL_KEY,
    LR_KEY,
    LR_NOISE_KEY,
    REFERENCES_KEY,
    SYSTEM_KEY,
)
from .host.references import unanswered_level, unanswered_references
from .references import ReferencesType
from .sampling import AddressedNoise
from .systems import all_systems
from .systems.base import LRClip

_TITLE = "VSR Conditioning"
_LR_ENTRIES = (SYSTEM_KEY, ALPHAS_KEY, DEVIATION_KEY)  # of a LATENT; what is sampled is no LR clip any more


class VSRConditioning(io.ComfyNode):
    """Joins the low-resolution clip and references to the prompts."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRConditioning",
            display_name=_TITLE,
            category=services.CATEGORY,
            description="Gives the sampler the low-resolution clip, how far to trust it, and references. Prompts are "
            "optional; the built-in restorer was trained without text and ignores them.",
            search_aliases=[
                "super resolution conditioning",
                "upscale conditioning",
                "lr conditioning",
                "unimmvsr",
            ],
            inputs=[
                io.Latent.Input("lr_latent", tooltip="The upscaled and encoded clip from Cascade Input."),
                io.Float.Input(
                    "noise_level",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Noise mixed into the low-resolution clip: 0 stays faithful, 0.2 to 0.6 invents more "
                    "detail. Upscale-A-Video: 0.12 is the published choice, 0 to 0.2 usual, 0.35 the most. "
                    "MGLD-VSR: 0.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of that noise; without effect at noise level 0, except for MGLD-VSR's reference "
                    "preset, which draws the latent from what the encoder finds.",
                ),
                io.Conditioning.Input("positive", optional=True, tooltip="Prompt; leave open for none."),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative prompt; used only when cfg is not 1."
                ),
                ReferencesType.Input(
                    "references",
                    optional=True,
                    tooltip="Pictures and videos from Reference Set to take detail from.",
                ),
                io.Noise.Input(
                    "noise",
                    optional=True,
                    tooltip="Noise for the low-resolution clip instead of that of the seed.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="For the sampler."),
                io.Latent.Output(
                    display_name="samples",
                    tooltip="Latent of the right size for the sampler: empty, or for MGLD-VSR the clip's, which it "
                    "starts from.",
                ),
            ],
        )

    @classmethod
    def execute(cls, lr_latent, noise_level, seed, positive=None, negative=None, references=None, noise=None):
        """Noise the LR clip by its address and attach everything to copies of the conditionings."""
        lr = services.check_latent(_TITLE, "lr_latent", lr_latent)
        source = AddressedNoise(seed ^ LR_STREAM) if noise is None else noise
        values: dict[str, Any] = {LEVEL_KEY: noise_level}
        unanswered: dict[str, Any] = {}
        system = all_systems()[lr_latent[SYSTEM_KEY]] if SYSTEM_KEY in lr_latent else None
        if system is not None:
            count = len(references) if references else 0
            with services.titled(_TITLE):
                clip = LRClip(lr_latent, noise_level, count, lambda like: _draw(source, like))
                conditioned = system.condition(clip)
            lr, start = conditioned.lr, conditioned.start
        else:
            start = torch.zeros_like(lr)
            if references:
                _check_references(references, lr)
                unanswered["references"] = unanswered_references(len(references))
            if noise_level > 0:
                unanswered["noise_level"] = unanswered_level(noise_level)
                values[LR_NOISE_KEY] = _draw(source, lr)
                lr = (1 - noise_level) * lr + noise_level * values[LR_NOISE_KEY]
        values.update({REFERENCES_KEY: references or References(), LR_KEY: lr})
        positive, negative = (_attach(given, values, unanswered) for given in (positive, negative))
        kept = {key: value for key, value in lr_latent.items() if key not in _LR_ENTRIES}
        return io.NodeOutput(positive, negative, {**kept, "samples": start})


def _attach(conditioning: list | None, values: dict, unanswered: dict) -> list:
    """Copy a conditioning (None: no prompt) with our values, and with conditions that a model has to answer."""
    attached = []
    for text, extra in conditioning or [[None, {}]]:
        model_conds = {**extra.get("model_conds", {}), **unanswered}
        attached.append([text, {**extra, **values, **({"model_conds": model_conds} if model_conds else {})}])
    return attached


def _draw(source: Any, like: torch.Tensor) -> torch.Tensor:
    """Draw noise from a NOISE for the LR clip."""
    drawn = source.generate_noise({"samples": like})
    if drawn.shape != like.shape:
        raise ValueError(
            f"{_TITLE}: noise must have the shape of the low-resolution clip {tuple(like.shape)}; got "
            f"{tuple(drawn.shape)}. Unlink it, or use Seeded Noise."
        )
    return drawn.to(like)


def _check_references(references: References, lr: torch.Tensor) -> None:
    for number, reference in enumerate(references.latents, 1):
        if reference.shape[1] != lr.shape[1]:
            raise ValueError(
                f"{_TITLE}: reference {number} must have the channels of lr_latent ({lr.shape[1]}); got "
                f"{reference.shape[1]}. Give Reference Set and Cascade Input the same VAE."
            )
