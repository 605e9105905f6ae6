"""Writes the published files as one safetensors file with everything the loader needs in its metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..checkpoints import CheckpointError, State, load_state, save_state
from .release import ARCHITECTURE, LICENCE, VAE_PREFIXES, Release, open_folder, open_state

_VOCABULARY = 49408  # tokens of CLIP's own vocabulary, which every host has: it is not stored again


def convert(
    source: Path, target: Path, half: bool = False, say: Callable[[str], None] = lambda text: None
) -> None:
    """Read a released folder or the UNet's file, pickles without executing anything, and write `target`.

    half stores UNet and text encoder as float16, in which the published program runs them; VAEs stay as they are.
    """
    if target.suffix != ".safetensors":
        raise CheckpointError(
            f"the result must be named *.safetensors; got {target.name}. Change the last argument."
        )
    if source.is_dir():
        release = open_folder(source)
    else:
        state, metadata = load_state(source)
        release = open_state(state, metadata, source)
    if release is None:
        raise CheckpointError(
            f"the source must be the released folder of Upscale-A-Video or its UNet; got {source.name}. "
            "Choose the folder that holds unet/, vae/ and text_encoder/."
        )
    tensors, metadata = collect(release, half, say)
    save_state(target, tensors, metadata)
    say(f"{target}: {len(tensors)} tensors, {target.stat().st_size / 1e9:.2f} GB. {LICENCE}")


def collect(release: Release, half: bool = False, say=lambda text: None) -> tuple[State, dict[str, str]]:
    """Gather (tensors with prefixes, metadata) of a release."""
    tensors: State = {}
    metadata = {"architecture": ARCHITECTURE, "source": release.name, "licence": LICENCE}
    parts = [("unet.", "unet_config", release.unet, half)]
    parts += [
        (prefix, prefix.replace(".", "_config"), release.vaes.get(kind), False)
        for kind, prefix in VAE_PREFIXES.items()
    ]
    parts.append(("text_encoder.", "text_config", release.text, half))
    for prefix, name, part, smaller in parts:
        if part is None:
            continue
        state = part.read()
        say(f"{prefix[:-1]}: {len(state)} tensors")
        tensors |= {prefix + key: _own(value, smaller) for key, value in state.items()}
        if part.config is not None:
            metadata[name] = json.dumps(part.config)
    metadata["scheduler"] = json.dumps(dict(release.scheduler))
    metadata["low_res_scheduler"] = json.dumps(dict(release.low_res))
    if release.tokenizer:
        metadata["tokenizer"] = json.dumps(_needed(release.tokenizer))
    return tensors, metadata


def _own(value: torch.Tensor, half: bool) -> torch.Tensor:
    """Copy out of shared storage (17 entries are one tensor), which safetensors would refuse."""
    return value.half() if half and value.dtype == torch.float32 else value.clone()


def _needed(tokenizer: Mapping[str, str]) -> dict[str, str]:
    try:
        standard = len(json.loads(tokenizer.get("vocab.json", "{}"))) == _VOCABULARY
    except ValueError:
        standard = True
    return {
        name: text
        for name, text in tokenizer.items()
        if not (standard and name in ("vocab.json", "merges.txt"))
    }
