"""Parameters of the UniMMVSR networks, and their deduction from a checkpoint's keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

SPACE = 8  # output pixels per latent cell, each side
TIME = 4  # frames per latent frame; the first latent frame stands for one frame (4n+1 rule)
GRID = 4  # the decoder refines on a grid of 4x4 output pixels: at x4 that is the LR frame itself


@dataclass(frozen=True)
class VAEConfig:
    """Widths and depths of :class:`~.vae.CausalVideoVAE`."""

    latent_channels: int = 16
    encoder_width: int = 48
    latent_width: int = 64
    refine_width: int = 48
    refine_blocks: int = 6


@dataclass(frozen=True)
class DiTConfig:
    """Widths and depths of :class:`~.dit.UniMMVSRDiT`; ``text_width`` 0 means weights without text layers."""

    latent_channels: int = 16
    width: int = 192
    depth: int = 6
    heads: int = 6
    ffn_ratio: int = 3
    text_width: int = 0


def _block_count(state: Mapping[str, torch.Tensor], pattern: str) -> int:
    indices = [int(match.group(1)) for key in state if (match := re.match(pattern, key))]
    return max(indices, default=-1) + 1


def vae_config(state: Mapping[str, torch.Tensor]) -> VAEConfig:
    """Deduce the VAE's parameters from its state dict (keys without the ``vae.`` prefix).

    Raises KeyError when a key the architecture always has is absent.
    """
    refine = state["decoder.refine.lr_in.weight"]
    return VAEConfig(
        latent_channels=state["latent_mean"].numel(),
        encoder_width=state["encoder.conv_in.weight"].shape[0],
        latent_width=state["decoder.latent.conv_in.weight"].shape[0],
        refine_width=refine.shape[0],
        refine_blocks=_block_count(state, r"decoder\.refine\.blocks\.(\d+)\."),
    )


def dit_config(state: Mapping[str, torch.Tensor]) -> DiTConfig:
    """Deduce the DiT's parameters from its state dict (keys without the ``dit.`` prefix).

    Raises KeyError when a key the architecture always has is absent.
    """
    width = state["patch_out.weight"].shape[1]
    head_width = state["blocks.0.attn_frame.q_norm"].shape[0]
    text = state.get("text_in.weight")
    return DiTConfig(
        latent_channels=state["patch_out.weight"].shape[0] // 4,
        width=width,
        depth=_block_count(state, r"blocks\.(\d+)\."),
        heads=width // head_width,
        ffn_ratio=state["blocks.0.ffn_in.weight"].shape[0] // width,
        text_width=0 if text is None else text.shape[1],
    )


def is_unimmvsr(state: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether a state dict (with its ``vae.`` and ``dit.`` prefixes) holds this architecture."""
    return "vae.decoder.refine.lr_in.weight" in state and "dit.patch_out.weight" in state
