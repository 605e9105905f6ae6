"""References among the conditions of a model: in the network's own scale, each with a range of time of its own.

1. VSR Conditioning puts references into a conditioning, and beside them an error that only a model without a place for
   references meets (`Unanswered`).
2. When sampling starts, a model that takes references turns them into its own conditions (`reference_conds`).
"""

from __future__ import annotations

from collections.abc import Mapping

import comfy.conds
import comfy.model_base

from ...models.unimmvsr.references import References, StartRule
from .keys import REFERENCES_KEY
from .services import SAMPLER, titled


class Unanswered(comfy.conds.CONDConstant):
    """Condition that raises its text when it is used.

    It lies in a conditioning under the key of a condition that must not be lost in silence: the host lets what a
    model gives under the same key win, so it is used by models only that do not know the key.
    """

    def process_cond(self, batch_size, **kwargs):
        """Raise: the sampled model has put nothing in this place."""
        raise ValueError(self.cond)


def unanswered_references(count: int) -> Unanswered:
    """Make what VSR Conditioning puts where a model's references belong."""
    return Unanswered(
        f"{SAMPLER}: references need a model that takes them; got {count} with a model that would ignore them. "
        "Put Reference Tokens or Load VSR Adapter behind the model (plain Wan 2.1 and 2.2), use Load Video "
        "Restorer's built-in model, or unlink Reference Set from VSR Conditioning."
    )


def unanswered_level(level: float) -> Unanswered:
    """Make what VSR Conditioning puts where a model's noise level belongs."""
    return Unanswered(
        f"{SAMPLER}: noise in the low-resolution clip needs a model that knows of it; got noise_level {level:g} "
        "with one that does not. Put Load VSR Adapter or, behind a checkpoint with channels for the clip, "
        "Reference Tokens behind the model, or set noise_level to 0 in VSR Conditioning."
    )


def reference_cells(values: Mapping) -> int:
    """Count the latent cells of the references in a raw conditioning."""
    references = values.get(REFERENCES_KEY)
    return sum(latent[0, 0].numel() for latent in references.latents) if references else 0


def reference_conds(
    model: comfy.model_base.BaseModel, values: Mapping, frames: int, rule: StartRule
) -> dict:
    """Give a BaseModel's conditions "references" and "reference_starts"; none without references.

    `values` are those of extra_conds, `frames` latent frames are sampled. With temporal windows the target of every
    window has the indices 0 .. length-1, so the starts follow from the window's length and are the same in all of
    them; every window sees all references whole.
    """
    references: References | None = values.get(REFERENCES_KEY)
    if not references:
        return {}
    channels, latents = model.latent_format.latent_channels, []
    for number, latent in enumerate(references.latents, 1):
        if latent.shape[1] != channels:
            raise ValueError(
                f"{SAMPLER}: reference {number} must be a latent of {channels} channels for {type(model).__name__}; "
                f"got {latent.shape[1]}. Give Reference Set the VAE of the sampled model."
            )
        latents.append(model.process_latent_in(latent).to(values["device"]))
    with titled("Reference Set"):
        starts = references.starts(frames_at_once(model, frames), rule)
    return {
        "references": comfy.conds.CONDList(latents),
        "reference_starts": comfy.conds.CONDConstant(starts),
    }


def frames_at_once(model: comfy.model_base.BaseModel, frames: int) -> int:
    """Say how many of a clip's latent frames a model being sampled sees together: a temporal window's, or all."""
    options = getattr(model.current_patcher, "model_options", {})
    handler = options.get("context_handler")
    length = getattr(handler, "context_length", frames)
    if frames <= length:
        return frames
    return length + bool(getattr(handler, "causal_window_fix", False))  # the frame before each later window
