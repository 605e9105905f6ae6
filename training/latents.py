"""Training samples in latent space: made once from pixels, kept on disk where wanted, drawn by number.

A VAE is slow and frozen; a transformer that trains on latents sees each sample many times, with fresh noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from ..models.checkpoints import load_state, save_state
from .pairs import Pair

Encode = Callable[[torch.Tensor], torch.Tensor]  # frames (t, 3, h, w) in 0..1 -> latent (1, c, T, h', w')
_LIST = "references."


@dataclass(frozen=True)
class LatentSample:
    """Latents (1, c, T, h, w): the truth's, the LR clip's (enlarged in pixels first), the references'.

    ``extra`` holds what else a trainer wants to keep with a sample (text, flow, frames), by name.
    """

    z: torch.Tensor
    lr: torch.Tensor
    references: tuple[torch.Tensor, ...] = ()
    name: str = ""
    extra: dict[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> LatentSample:
        """Move all tensors."""
        return replace(
            self,
            z=self.z.to(device),
            lr=self.lr.to(device),
            references=tuple(reference.to(device) for reference in self.references),
            extra={name: value.to(device) for name, value in self.extra.items()},
        )


@torch.no_grad()
def encode_pair(pair: Pair, encode: Encode) -> LatentSample:
    """Encode a pair; the low-resolution clip is enlarged bilinearly in pixel space, as at inference."""
    height, width = pair.frames.shape[-2:]
    enlarged = F.interpolate(pair.low, (height, width), mode="bilinear", antialias=True)
    references = tuple(encode(reference) for reference in pair.references)
    return LatentSample(encode(pair.frames), encode(enlarged), references, pair.name)


class LatentStore:
    """Gives the sample of a (task, frames, number); with a folder it is made once and read from there after that.

    `make(task, frames, number)` must depend on nothing else. `identity` names all that the samples depend on: a folder
    filled for another is refused by using a sub-folder of its own.
    """

    def __init__(self, make: Callable[[str, int, int], LatentSample], folder: Path | None = None, identity: str = ""):
        self.make = make
        key = hashlib.sha256(identity.encode()).hexdigest()[:12]
        self.folder = None if folder is None else Path(folder) / key

    def get(self, task: str, frames: int, number: int) -> LatentSample:
        """Make or read a sample."""
        if self.folder is None:
            return self.make(task, frames, number)
        path = self.folder / f"{task}-{frames}-{number:06d}.safetensors"
        if not path.exists():
            sample = self.make(task, frames, number)
            save_state(path, _packed(sample), {"name": sample.name})
        return _unpacked(*load_state(path))


def _packed(sample: LatentSample) -> dict[str, torch.Tensor]:
    references = {f"{_LIST}{index:03d}": value for index, value in enumerate(sample.references)}
    extra = {f"extra.{name}": value for name, value in sample.extra.items()}
    state = {"z": sample.z, "lr": sample.lr, **references, **extra}
    return {key: value.clone() for key, value in state.items()}  # a file takes no views of one tensor


def _unpacked(state: dict[str, torch.Tensor], metadata: dict[str, str]) -> LatentSample:
    references = tuple(state[key] for key in sorted(state) if key.startswith(_LIST))
    extra = {key.removeprefix("extra."): value for key, value in state.items() if key.startswith("extra.")}
    return LatentSample(state["z"], state["lr"], references, metadata.get("name", ""), extra)
