"""Writes the published files as one safetensors file with everything the loader needs in its metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..checkpoints import CheckpointError, State, load_state
from ..motion.raft import is_raft, raft_state
from ..released import check_target, write_converted
from .release import ARCHITECTURE, LICENCE, VAE_PREFIXES, Release, open_folder, open_state

_RAFT_LICENCE = "RAFT: BSD 3-Clause License."
_VOCABULARY = 49408  # tokens of CLIP's own vocabulary, which every host has: it is not stored again


def convert(
    source: Path, target: Path, half: bool = False, say: Callable[[str], None] = lambda text: None
) -> None:
    """Read a released folder, the UNet's file or RAFT, pickles without executing anything, and write `target`.

    half stores UNet and text encoder as float16, in which the published program runs them; VAEs stay as they are.
    """
    check_target(target)
    tensors, metadata = _read(source, half, say)
    write_converted(target, tensors, metadata, say)


def _read(source: Path, half: bool, say: Callable[[str], None]) -> tuple[State, dict[str, str]]:
    if source.is_dir():
        if (source / "propagator").is_dir():
            say(
                "propagator: left out; Load Flow Model reads it from the folder, or convert its file by itself"
            )
        return collect(open_folder(source), half, say)
    state, metadata = load_state(source)
    flow = raft_state(state)
    if is_raft(flow):
        names = {"architecture": "raft", "source": source.name, "licence": _RAFT_LICENCE}
        return {key: value.clone() for key, value in flow.items()}, names
    release = open_state(state, metadata, source)
    if release is None:
        raise CheckpointError(
            "the source must be the released folder of Upscale-A-Video, its UNet, the folder of MGLD-VSR's two "
            f"checkpoints, or RAFT; got {source.name}. Choose the folder that holds unet/, vae/ and text_encoder/, "
            "or mgldvsr_unet.ckpt."
        )
    return collect(release, half, say)


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
