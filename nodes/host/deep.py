"""The deep half of a UNet kept over the steps of a run, for every condition, tile and window by itself.

1. Faster Sampling puts a `Saving` into a MODEL; when a run starts, it gets a `DeepMemory`, which ends with it.
2. At a call, `recall` looks for what every condition of the batch left behind at this tile and window, of this size,
   less than `interval` steps ago. If all have something, the network is given it and leaves its deep half out.
3. Else the network computes everything, and `keep` stores what it handed to its outermost level.

What is kept lies on the device while it is little, else in RAM; where RAM is short, nothing is kept, which costs time
only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...models.schedules import step_index
from ...models.transformer import Deep
from . import services
from .keys import DEEP_KEY, PART_KEY

_SHARE = 0.1  # of the device's free memory that kept features may take
_RAM = 0.5  # of the free RAM


@dataclass(frozen=True)
class Saving:
    """Hold what a run leaves out: the deep half is computed every `interval` steps, text guides within a range."""

    interval: int = 1
    start: float = 0.0  # share of the denoising from which guidance acts, and up to which
    end: float = 1.0


class DeepMemory:
    """Keeps what the calls of one run left behind."""

    def __init__(self, interval: int):
        self.interval = interval
        self._held: dict[tuple, tuple[int, torch.Tensor]] = {}
        self._room: dict[str, float] = {}  # bytes that may still be kept, by the kind of device
        self.reused = self.computed = 0  # calls

    def recall(self, options: Mapping, x: torch.Tensor) -> Deep | None:
        """Give what the deep half of a call of the network on x (b, c, t, h, w) is; None where nothing can be kept."""
        if "uuids" not in options or "sample_sigmas" not in options:  # a call of another than a sampler
            return None
        step, names = _step(options), _names(options, x)
        held = [self._held.get(name) for name in names]
        if all(each is not None and 0 <= step - each[0] < self.interval for each in held):
            self.reused += 1
            return Deep(torch.cat([value.to(x.device, non_blocking=True) for _, value in held]))
        self.computed += 1
        return Deep()

    def keep(self, options: Mapping, x: torch.Tensor, deep: Deep | None) -> None:
        """Keep what a call has computed, for the steps to come."""
        if deep is None or deep.given is not None or deep.kept is None:
            return
        step, names = _step(options), _names(options, x)
        for name, value in zip(names, deep.kept.chunk(len(names)), strict=True):
            old = self._held.pop(name, None)
            if old is not None:
                self._room[old[1].device.type] += old[1].nbytes
            place = self._place(value)
            if place is not None:
                self._room[place.type] -= value.nbytes
                self._held[name] = step, value.to(place, copy=True)  # a chunk alone would hold the whole batch

    def _place(self, value: torch.Tensor) -> torch.device | None:
        """Say where to keep a tensor: on its device, in RAM, or nowhere."""
        for device, share in ((value.device, _SHARE), (torch.device("cpu"), _RAM)):
            if device.type == "cpu":
                share = _RAM
            if device.type not in self._room:
                self._room[device.type] = share * services.free_bytes(device)
            if value.nbytes <= self._room[device.type]:
                return device
        logging.getLogger(__name__).warning(
            "Faster Sampling: RAM is short; the deep half of some windows is computed at every step."
        )
        return None


def recalled(options: Mapping, x: torch.Tensor) -> Deep | None:
    """Give the deep half of a call of a network on x; None in runs that keep none."""
    memory = options.get(DEEP_KEY)
    return None if memory is None else memory.recall(options, x)


def remember(options: Mapping, x: torch.Tensor, deep: Deep | None) -> None:
    """Keep what the call has computed."""
    if deep is not None:
        options[DEEP_KEY].keep(options, x, deep)


def _step(options: Mapping) -> int:
    return step_index(float(options["sigmas"].flatten()[0]), options["sample_sigmas"])


def _names(options: Mapping, x: torch.Tensor) -> list[tuple]:
    """Name what every condition of a batch sees: itself, the window, the tile's place in the step, the size."""
    window = getattr(options.get("context_window"), "index_list", None)
    frames = (window[0], window[-1]) if window else ()
    place = (frames, options.get(PART_KEY), len(x) // len(options["uuids"]), *x.shape[2:])
    return [(uuid, *place) for uuid in options["uuids"]]
