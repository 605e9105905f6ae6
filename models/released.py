"""What published releases have in common: where their weights lie, and the two kinds of decoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from .checkpoints import CheckpointError, State, save_state

PLAIN, CONDITIONED = "plain", "lr-conditioned"
DECODERS = ("auto", PLAIN, CONDITIONED)
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")  # the first that is there is taken


def find_weights(folder: Path, *stems: str) -> Path | None:
    """Find a weight file in a folder by its published names, in any format."""
    files = (folder / f"{stem}{suffix}" for suffix in WEIGHT_SUFFIXES for stem in stems)
    return next((file for file in files if file.is_file()), None)


def no_such_decoder(name: str, has: list[str], wanted: str, remedy: str) -> CheckpointError:
    """Make the error for a decoder that a release does not have."""
    return CheckpointError(
        f"the decoder must be one that {name} has ({', '.join(has) or 'none'}); got {wanted}. Choose auto, or "
        f"{remedy}."
    )


def check_target(target: Path) -> None:
    """Refuse a name for a converted file before the work begins."""
    if target.suffix != ".safetensors":
        raise CheckpointError(
            f"the result must be named *.safetensors; got {target.name}. Change the last argument."
        )


def write_converted(
    target: Path, tensors: State, metadata: Mapping[str, str], say: Callable[[str], None]
) -> None:
    """Write a converted release as safetensors, and say how large it is and under which licence."""
    save_state(target, tensors, metadata)
    say(f"{target}: {len(tensors)} tensors, {target.stat().st_size / 1e9:.2f} GB. {metadata['licence']}")
