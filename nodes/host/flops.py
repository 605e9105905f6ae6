"""What a call of one of our networks costs: counted on the meta device, where tensors have shapes and no numbers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import comfy.ops
import torch
from torch.utils.flop_counter import FlopCounterMode

from ...models.transformer import Deep
from .keys import DEEP_KEY
from .model import RestorerNetwork

_WORDS = 77  # tokens of a text


class _Given:
    """Stands in for a DeepMemory: gives the deep half, or takes it."""

    def __init__(self, given: torch.Tensor | None):
        self.deep = Deep(given)

    def recall(self, options: dict, x: torch.Tensor) -> Deep:
        return self.deep

    def keep(self, options: dict, x: torch.Tensor, deep: Deep) -> None:
        """The deep half stays in `deep`."""


@lru_cache(maxsize=4)
def _twin(kind: type[RestorerNetwork], config: Any) -> RestorerNetwork:
    """Build a network without memory."""
    return kind(config, dtype=torch.float32, device=torch.device("meta"), operations=comfy.ops.disable_weight_init)


@lru_cache(maxsize=256)
def _count(
    kind: type[RestorerNetwork], config: Any, channels: int, words: int, shape: tuple[int, ...], given: bool
) -> int:
    network, (batch, frames, rows, columns) = _twin(kind, config), shape
    x = torch.empty(batch, channels, frames, rows, columns, device="meta")
    time = torch.empty(batch, device="meta")
    text = torch.empty(batch, _WORDS, words, device="meta") if words else None
    level = torch.empty(batch, dtype=torch.int64, device="meta") if words else None
    memory = _Given(None)

    def run() -> None:
        network.predict(x, time, text, {DEEP_KEY: memory}, noise_level=level)

    with torch.no_grad():
        if given:
            run()
            memory = _Given(memory.deep.kept)
        with FlopCounterMode(display=False) as counter:
            run()
    return counter.get_total_flops()


def call_flops(network: RestorerNetwork, channels: int, shape: tuple[int, int, int, int], given: bool = False) -> int:
    """Count the operations (two a multiplication) of a call on x of `channels`, without references.

    `shape`: batch, latent frames, rows and columns; both halves of an even batch are a guided pair. `given`: the deep
    half of a network that keeps it is.
    """
    words = getattr(network.config, "cross_attention_dim", 0)
    return _count(type(network), network.config, channels, words, tuple(shape), given)
