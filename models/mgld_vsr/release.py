"""The published weights as they come: two Lightning checkpoints in one folder, or a file converted from them.

`mgldvsr_unet.ckpt` holds the UNet, the structure encoder, the first stage, the text encoder and RAFT under prefixes,
`video_vae_cfw.ckpt` the sequence decoder and what its training left over (specification, section 1).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoints import CheckpointError, State, load_state, strip_prefix
from ..released import find_weights

ARCHITECTURE = "mgld_vsr"
LICENCE = (
    "MGLD-VSR weights: S-Lab License 1.0, non-commercial use only; commercial use needs the authors' consent."
)
MAIN, SEQUENCE = "mgldvsr_unet", "video_vae_cfw"  # names of the two files
EMPTY_PROMPT = "empty_prompt"  # in a converted file: what the text encoder makes of no words
PARTS = {"unet.": "UNet", "structure.": "structure encoder", "first_stage.": "first stage"}
TEXT, SEQUENCE_VAE = "text.", "sequence."
_PUBLISHED = {
    "model.diffusion_model.": "unet.",
    "structcond_stage_model.": "structure.",
    "first_stage_model.": "first_stage.",
    "cond_stage_model.model.": TEXT,
}
_LEFT_OVER = "loss."  # of the decoder's training
_OPTIONS = "options"


@dataclass(frozen=True)
class Release:
    """What a folder or file holds.

    `main` reads entries under PARTS, and the text encoder under TEXT or EMPTY_PROMPT; `sequence` reads the sequence
    decoder without prefix. `options` are numbers of heads, which are in no weight, where they are not the published.
    """

    name: str
    main: Callable[[], State]
    sequence: Callable[[], State] | None = None
    options: Mapping[str, int] = field(default_factory=dict)


def is_release_folder(path: Path) -> bool:
    """Tell whether a folder holds the published file that everything but the decoder is in."""
    return path.is_dir() and find_weights(path, MAIN) is not None


def open_folder(path: Path) -> Release:
    """Open a folder with the published files; without the first one it is a CheckpointError."""
    main = find_weights(path, MAIN)
    if main is None:
        raise CheckpointError(
            f"a folder of MGLD-VSR must hold {MAIN}.ckpt and {SEQUENCE}.ckpt; got {path.name} without {MAIN}. "
            "Copy both files into it."
        )
    return _published(path.name, lambda: load_state(main)[0], path)


def open_state(state: State, metadata: Mapping[str, str], path: Path) -> Release | None:
    """Understand the entries of one file; None where they are not of this model.

    The published UNet file brings the decoder that lies beside it.
    """
    if any(key.startswith("structure.fea_tran.") for key in state):
        sequence = strip_prefix(state, SEQUENCE_VAE)
        options = _parsed(metadata, path.name)
        return Release(
            path.name, lambda: _whole(state, path.name), (lambda: sequence) if sequence else None, options
        )
    if any(key.startswith("structcond_stage_model.") for key in state):
        return _published(path.name, lambda: state, path.parent)
    if is_sequence_vae(state):
        raise CheckpointError(
            f"the file must hold the UNet; got {path.name}, which is the sequence decoder of MGLD-VSR. Choose the "
            f"folder that holds it and {MAIN}.ckpt, or a file converted from both."
        )
    return None


def is_sequence_vae(state: Mapping) -> bool:
    """Tell whether entries are those of the sequence decoder."""
    return "decoder.temporal_mixing.temporal_alpha" in state and "encoder.conv_in.weight" in state


def _published(name: str, read: Callable[[], State], folder: Path) -> Release:
    sequence = find_weights(folder, SEQUENCE)
    return Release(
        name,
        lambda: _whole(_renamed(read()), name),
        None if sequence is None else lambda: _sequence_state(load_state(sequence)[0], sequence.name),
    )


def _renamed(state: State) -> State:
    """Bring entries to our prefixes; schedule buffers and RAFT, which Load Flow Model reads, are left out."""
    return {
        ours + key.removeprefix(published): value
        for published, ours in _PUBLISHED.items()
        for key, value in state.items()
        if key.startswith(published)
    }


def _whole(state: State, name: str) -> State:
    """Refuse a file with a part missing."""
    missing = [what for prefix, what in PARTS.items() if not any(key.startswith(prefix) for key in state)]
    if EMPTY_PROMPT not in state and not any(key.startswith(TEXT) for key in state):
        missing.append("text encoder")
    if missing:
        raise CheckpointError(
            f"a file of MGLD-VSR must hold the {', the '.join(PARTS.values())} and the text encoder; got {name} "
            f"without the {' and the '.join(missing)}. It is incomplete: download {MAIN}.ckpt again."
        )
    return state


def _sequence_state(state: State, name: str) -> State:
    if not is_sequence_vae(state):
        raise CheckpointError(
            f"the file {name} must hold the sequence decoder of MGLD-VSR; got {len(state)} entries such as "
            f"{', '.join(sorted(state)[:2])}. Download it again, or take it away to decode without."
        )
    return {key: value for key, value in state.items() if not key.startswith(_LEFT_OVER)}


def _parsed(metadata: Mapping[str, str], name: str) -> dict[str, int]:
    try:
        return {key: int(value) for key, value in json.loads(metadata.get(_OPTIONS, "{}")).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"the options in the metadata of {name} must be numbers by name; got {metadata[_OPTIONS]!r}. Convert "
            "the published files again."
        ) from error
