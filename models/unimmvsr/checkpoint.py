"""The file of a UniMMVSR restorer: detected by its keys, its networks' parameters deduced from shapes.

1. One safetensors file holds both networks, under `vae.` and `dit.` (docs/systems/unimmvsr.md).
2. `open_state` tells it from other files by two keys that only this architecture has.
3. `vae_config` and `dit_config` read widths and depths from the shapes of a few entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoints import State, count_blocks, load_state, strip_prefix
from .dit import PATCH, DiTConfig
from .vae import VAEConfig

NAME = "UniMMVSR"
HOLDS = "entries vae.* and dit.*"


@dataclass(frozen=True)
class Release:
    """Hold the entries of a file, by network and without prefix."""

    name: str
    vae: State
    dit: State


def open_state(state: Mapping[str, torch.Tensor], path: Path) -> Release | None:
    """Understand the entries of one file; None where they are not of this system."""
    if "vae.decoder.refine.lr_in.weight" not in state or "dit.patch_out.weight" not in state:
        return None
    return Release(path.name, strip_prefix(state, "vae."), strip_prefix(state, "dit."))


def open_release(path: Path) -> Release:
    """Read the file that a MODEL or VAE was loaded from again."""
    return open_state(load_state(path)[0], path)


def vae_config(state: Mapping[str, torch.Tensor]) -> VAEConfig:
    """Deduce the VAE's parameters from its entries; KeyError where one is absent that the architecture always has."""
    return VAEConfig(
        latent_channels=state["latent_mean"].numel(),
        encoder_width=state["encoder.conv_in.weight"].shape[0],
        latent_width=state["decoder.latent.conv_in.weight"].shape[0],
        refine_width=state["decoder.refine.lr_in.weight"].shape[0],
        refine_blocks=count_blocks(state, "decoder.refine.blocks."),
    )


def dit_config(state: Mapping[str, torch.Tensor]) -> DiTConfig:
    """Deduce the DiT's parameters from its entries; KeyError where one is absent that the architecture always has."""
    cell, width = state["patch_out.weight"].shape
    text = state.get("text_in.weight")
    return DiTConfig(
        latent_channels=cell // PATCH**2,
        width=width,
        depth=count_blocks(state, "blocks."),
        heads=width // state["blocks.0.attn_frame.q_norm"].shape[0],
        ffn_ratio=state["blocks.0.ffn_in.weight"].shape[0] // width,
        text_width=0 if text is None else text.shape[1],
    )
