"""SeedVR2 of the host: what its classes leave to its own nodes.

It restores in one step, without noise in the clip and without a prompt: two texts lie among its weights, and the LR
latent comes as the condition "condition" (b, 16 + 1, T, h, w), the last channel full of ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import comfy.model_base
import torch
from comfy.model_patcher import ModelPatcher

CLIP_KEY = "condition"  # the host's name, in a conditioning
_CHANNELS = 16


def clip_values(lr: torch.Tensor) -> dict[str, torch.Tensor]:
    """Give what an LR latent (b, c, T, h, w) adds to a conditioning for SeedVR2; no other model looks there."""
    if lr.ndim != 5 or lr.shape[1] != _CHANNELS:
        return {}
    return {CLIP_KEY: torch.cat((lr, torch.ones_like(lr[:, :1])), 1)}


def texts_of(patcher: ModelPatcher) -> Mapping[str, list]:
    """Give the texts that a MODEL has among its weights, as CONDITIONING under "positive" and "negative"; else none."""
    kind = getattr(comfy.model_base, "SeedVR2", None)  # hosts before it have none
    if kind is None or not isinstance(patcher.model, kind):
        return {}
    network = patcher.get_model_object("diffusion_model")
    return {name: [[getattr(network, f"{name}_conditioning")[None], {}]] for name in ("positive", "negative")}
