"""The file of a UniMMVSR restorer: detected by its keys, its networks' parameters deduced from shapes.

1. One safetensors file holds both networks, under `vae.` and `dit.` (docs/systems/unimmvsr.md).
2. `open_state` tells it from other files by keys that only this architecture has.
3. The restorer's weights for worn LR frames are stored as their small difference to those for clean ones, in 8 bits:
   `packed` and `open_state` change between the two forms.
4. `vae_config` and `dit_config` read widths and depths from the shapes of a few entries.
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
_CLEAN, _WORN, _CHANGE = (f"vae.decoder.restore.{name}." for name in ("clean", "worn", "change"))
_SCALE = 64.0  # brings differences of a few thousandths into the range of 8-bit floats


@dataclass(frozen=True)
class Release:
    """Hold the entries of a file, by network and without prefix."""

    name: str
    vae: State
    dit: State


def open_state(state: Mapping[str, torch.Tensor], path: Path) -> Release | None:
    """Understand the entries of one file; None where they are not of this system.

    Raises ValueError for weights of version 0.1.0, whose decoder was another one.
    """
    if "vae.decoder.latent.guess.weight" not in state or "dit.patch_out.weight" not in state:
        return None
    if _CLEAN + "head.weight" not in state:
        raise ValueError(
            f"{path.name}: weights of {NAME} must have a restorer (entries vae.decoder.restore.*); got those of "
            "version 0.1.0. Choose the weights that come with the pack, or continue yours: run.py train --start."
        )
    state = unpacked(state)
    return Release(path.name, strip_prefix(state, "vae."), strip_prefix(state, "dit."))


def packed(state: Mapping[str, torch.Tensor]) -> State:
    """Give entries as a file stores them: in half precision, those for worn LR frames as 8-bit differences."""
    half = {key: value.half() for key, value in state.items() if not key.startswith(_WORN)}
    for key in state.keys() - half.keys():
        name = key.removeprefix(_WORN)
        change = (state[key].float() - half[_CLEAN + name].float()) * _SCALE
        half[_CHANGE + name] = change.to(torch.float8_e4m3fn)
    return half


def unpacked(state: Mapping[str, torch.Tensor]) -> State:
    """Give a file's entries as the networks have them."""
    whole = {key: value for key, value in state.items() if not key.startswith(_CHANGE)}
    for key in state.keys() - whole.keys():
        name = key.removeprefix(_CHANGE)
        whole[_WORN + name] = whole[_CLEAN + name].float() + state[key].float() / _SCALE  # exact, as half is not
    return whole


def open_release(path: Path) -> Release:
    """Read the file that a MODEL or VAE was loaded from again."""
    return open_state(load_state(path)[0], path)


def vae_config(state: Mapping[str, torch.Tensor]) -> VAEConfig:
    """Deduce the VAE's parameters from its entries; KeyError where one is absent that the architecture always has."""
    return VAEConfig(
        latent_channels=state["latent_mean"].numel(),
        encoder_width=state["encoder.conv_in.weight"].shape[0],
        latent_width=state["decoder.latent.conv_in.weight"].shape[0],
        feature_width=state["decoder.complete.conv_in.weight"].shape[0],
        restore_width=state["decoder.restore.clean.head.weight"].shape[0],
        restore_blocks=count_blocks(state, "decoder.restore.clean.steps.0.body."),
        restore_steps=count_blocks(state, "decoder.restore.clean.steps."),
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
