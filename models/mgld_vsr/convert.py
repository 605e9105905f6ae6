"""Writes the two published files as one safetensors file: what inference needs, the prompt already encoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from ..checkpoints import State, load_state, strip_prefix
from ..released import check_target, write_converted
from .config import text_config_from_state
from .release import (
    ARCHITECTURE,
    EMPTY_PROMPT,
    LICENCE,
    PARTS,
    SEQUENCE_VAE,
    TEXT,
    Release,
    is_release_folder,
    open_folder,
    open_state,
)
from .text import OpenCLIPText


def convert(
    source: Path, target: Path, half: bool = False, say: Callable[[str], None] = lambda text: None
) -> bool:
    """Read the folder of the two checkpoints, or the UNet's one, and write `target`; False for anything else.

    half stores UNet and structure encoder as float16; autoencoders stay as they are.
    """
    check_target(target)
    if source.is_dir():
        release = open_folder(source) if is_release_folder(source) else None
    else:
        release = open_state(*load_state(source), source)
    if release is None:
        return False
    write_converted(target, *collect(release, half, say), say)
    return True


def empty_prompt(state: State, heads: int = 16) -> torch.Tensor:
    """Give what the text encoder makes of no words (1, 77, d) float32: stored, or computed once."""
    if EMPTY_PROMPT in state:
        return state[EMPTY_PROMPT].float()
    text = strip_prefix(state, TEXT)
    with torch.device("meta"):
        network = OpenCLIPText(text_config_from_state(text, heads)).eval()
    names = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    unused = {name: torch.zeros(shape) for name, shape in names.items() if name == "logit_scale"}
    state = {name: value.float().view(names.get(name, value.shape)) for name, value in text.items()}
    kept = {**unused, **{name: value for name, value in state.items() if name in names}}
    network.load_state_dict(kept, strict=True, assign=True)
    with torch.no_grad():
        return network.empty_prompt()


def collect(release: Release, half: bool = False, say=lambda text: None) -> tuple[State, dict[str, str]]:
    """Gather (tensors with prefixes, metadata) of a release; half stores UNet and structure encoder as float16."""
    state = release.main()
    sequence = {} if release.sequence is None else release.sequence()
    tensors: State = {EMPTY_PROMPT: empty_prompt(state, **_heads(release))}
    for prefix, what in PARTS.items():
        part = {key: value for key, value in state.items() if key.startswith(prefix)}
        say(f"{what}: {len(part)} tensors")
        smaller = half and prefix != "first_stage."
        tensors |= {key: _own(value, smaller) for key, value in part.items()}
    say(f"sequence decoder: {len(sequence)} tensors" if sequence else "sequence decoder: there is none")
    tensors |= {SEQUENCE_VAE + key: _own(value, False) for key, value in sequence.items()}
    metadata = {"architecture": ARCHITECTURE, "source": release.name, "licence": LICENCE}
    return tensors, {**metadata, "options": json.dumps(dict(release.options))}


def _heads(release: Release) -> dict[str, int]:
    return {"heads": release.options["text_heads"]} if "text_heads" in release.options else {}


def _own(value: torch.Tensor, half: bool) -> torch.Tensor:
    """Copy out of shared storage, which safetensors would refuse."""
    return value.half() if half and value.dtype == torch.float32 else value.clone()
