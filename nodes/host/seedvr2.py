"""SeedVR2 of the host: what its classes leave to its own nodes.

It restores in one step, without noise in the clip and without a prompt: two texts lie among its weights, and the LR
latent comes as the condition "condition" (b, 16 + 1, T, h, w), the last channel full of ones. Its network takes
patches of 2x2 cells and pads nothing, so latents must have even sides: what its VAE encodes is padded to 16 px, as by
the host's own nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import comfy.model_base
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ...models.layout.sizes import ClipSize

CLIP_KEY = "condition"  # the host's name, in a conditioning
_CHANNELS = 16
PATCH = 2  # latent cells


def clip_values(lr: torch.Tensor) -> dict[str, torch.Tensor]:
    """Give what an LR latent (b, c, T, h, w) adds to a conditioning for SeedVR2; no other model looks there."""
    if lr.ndim != 5 or lr.shape[1] != _CHANNELS:
        return {}
    return {CLIP_KEY: torch.cat((lr, torch.ones_like(lr[:, :1])), 1)}


def is_model(patcher: ModelPatcher) -> bool:
    """Tell whether a MODEL is SeedVR2."""
    kind = getattr(comfy.model_base, "SeedVR2", None)  # hosts before it have none
    return kind is not None and isinstance(patcher.model, kind)


def is_vae(vae: comfy.sd.VAE) -> bool:
    """Tell whether a VAE is SeedVR2's."""
    return type(getattr(vae, "first_stage_model", None)).__module__.startswith("comfy.ldm.seedvr.")


def whole_patches(cells: ClipSize) -> ClipSize:
    """Give the smallest latent grid of whole patches that holds a grid (T, h, w)."""
    return ClipSize(cells.frames, *(-(-side // PATCH) * PATCH for side in (cells.height, cells.width)))


def texts_of(patcher: ModelPatcher) -> Mapping[str, list]:
    """Give the texts that a MODEL has among its weights, as CONDITIONING under "positive" and "negative"; else none."""
    if not is_model(patcher):
        return {}
    network = patcher.get_model_object("diffusion_model")
    return {name: [[getattr(network, f"{name}_conditioning")[None], {}]] for name in ("positive", "negative")}
