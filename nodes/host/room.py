"""Whether a result fits into memory, before anything is computed, and what it is, in words; what is sampled at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management as management
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher

from ...media.memory import free_memory
from ...models.layout.pieces import Cut, Tile, cuts_that_fit, plan_tiles
from ...models.layout.sizes import ClipSize
from ..systems.base import TileSizes
from . import services
from .keys import REFERENCE_CONDS, REFERENCES_KEY, TILES_KEY
from .model import reference_cells, system_of

_GIB = 2**30
_AT_ONCE = 4  # tiles predicted together on a GPU, where they fit
_SHORTER = 2, 4  # parts of its trained window that a model of ours gets where memory is short
_HEADROOM = 1.3  # what a pass is estimated to need, times this, must be free
_CHUNK = 17  # frames that are resized and worked on together at most ...
_COPIES = 2  # ... of which there are so many copies


def clip_bytes(size: ClipSize) -> int:
    """Count the bytes of a clip as the host keeps IMAGE."""
    return 3 * management.intermediate_dtype().itemsize * size.frames * size.height * size.width


def needed(size: ClipSize) -> int:
    """Count the bytes of a resulting clip and of what is worked on beside it."""
    return clip_bytes(replace(size, frames=size.frames + _COPIES * min(_CHUNK, size.frames)))


def clip_words(before: ClipSize, after: ClipSize) -> str:
    """Say what becomes of a clip: 25 frames, 128x72 -> 512x288, 0.04 GiB."""
    sizes = f"{before.width}x{before.height} -> {after.width}x{after.height}"
    return f"{after.frames:,} frame{'s' * (after.frames != 1)}, {sizes}, {clip_bytes(after) / _GIB:.2f} GiB"


def check_room(title: str, size: ClipSize, need: float | None = None, remedy: str = "") -> None:
    """Raise where a result does not fit into the free memory, and name the size that does.

    `need`: its bytes with all that is worked on, where that is another number. What the system may move to the disk
    counts as free: that is slow, but works.
    """
    device = management.intermediate_device()
    free = free_memory(swap=True) if device.type == "cpu" else services.free_bytes(device)
    need = needed(size) if need is None else need
    if need <= free:
        return
    share = (free / need) ** 0.5
    width, height = (max(2, int(side * share) // 2 * 2) for side in (size.width, size.height))
    frames = _frames_that_fit(size, free)
    fits = f"{width}x{height} for so many frames" + (f", or {frames:,} frames of this size" if frames else "")
    raise ValueError(
        f"{title}: the result must fit into memory; got {size.frames:,} frames of {size.width}x{size.height}, for "
        f"which {need / _GIB:,.1f} GiB are needed, and {free / _GIB:,.1f} GiB are free. What fits: {fits}."
        f"{remedy or ' Upscale Film makes films of any length, part by part.'}"
    )


def _frames_that_fit(size: ClipSize, free: float) -> int:
    frame = clip_bytes(replace(size, frames=1))
    count = int(free / frame)
    return count - _COPIES * _CHUNK if count > (1 + _COPIES) * _CHUNK else count // (1 + _COPIES)


# What is sampled at once


@dataclass
class TileChoice:
    """Hold the tile of one run, in latent cells; where it does not fit into memory, it is halved once."""

    height: int
    width: int
    overlap: int
    published: Callable | None = None  # gives (tiles, weights) where the published ones are wanted
    at_once: int = _AT_ONCE
    halved: bool = False

    def plan(self, shape: torch.Size) -> tuple[tuple[Tile, ...], tuple[torch.Tensor, ...] | None]:
        """Plan the tiles of a latent, and their weights where not the smooth ones."""
        rows, columns = min(self.height, shape[-2]), min(self.width, shape[-1])
        if self.published is not None and (rows, columns) != tuple(shape[-2:]):
            return self.published(*shape[-2:], self.height, self.width, self.overlap)
        return plan_tiles(*shape[-2:], self.height, self.width, self.overlap), None

    def halve(self, shape: torch.Size) -> None:
        """Take half the sides, from no more than the latent's, and keep the overlap as far as it fits."""
        self.height = max(1, -(-min(self.height, shape[-2]) // 2))
        self.width = max(1, -(-min(self.width, shape[-1]) // 2))
        self.overlap = min(self.overlap, min(self.height, self.width) // 2)
        self.halved = True


@dataclass(frozen=True)
class CutChoice:
    """The wrapper before a run that settles its tile and its window, and tells the host's estimate about them.

    A tile or window that the user named stays as it is. Tiles are tried first; a window gets shorter than the model
    was trained with only where the smallest tile does not fit; not beside references, whose place in time depends on
    it, and not on a CPU, where RAM may go to the disk.
    """

    who: str
    space: int = 1
    size: tuple[int, int, int] | None = None  # height, width, overlap in cells; None: of `sizes`
    sizes: TileSizes | None = None  # None: whole frames, where there is no size
    published: Callable | None = None

    def __call__(self, executor, model, noise_shape, conds, *args, model_options=None, **kwargs):
        """Choose, and go on with the shape of what is sampled at once."""
        services.check_clip(self.who, tuple(noise_shape))
        handler = model_options.get("context_handler")
        cut, overlap = self._cut(model, noise_shape, conds, handler)
        if handler is not None and cut.length < min(handler.context_length, noise_shape[2]):
            model_options["context_handler"] = handler.shortened(cut.length)
        if self.size is not None or self.sizes is not None:
            choice = TileChoice(cut.rows, cut.columns, overlap, self.published)
            model_options.setdefault("transformer_options", {})[TILES_KEY] = choice
        noise_shape = [*noise_shape[:3], min(noise_shape[3], cut.rows), min(noise_shape[4], cut.columns)]
        return executor(model, noise_shape, conds, *args, model_options=model_options, **kwargs)

    def _cut(self, model: ModelPatcher, noise_shape: list, conds: dict, handler: Any) -> tuple[Cut, int]:
        """Choose by the memory law of the model: (what is sampled at once, overlap of tiles in cells).

        Every tile sees one window of the clip, and beside it all references, whole.
        """
        batch, channels, frames, height, width = noise_shape
        frames = min(frames, getattr(handler, "context_length", frames))
        given = (cond for group in conds.values() for cond in group if cond.get(REFERENCES_KEY) is not None)
        cells = max(map(reference_cells, given), default=0)
        beside = model.memory_required([batch, channels, 1, 1, cells]) if cells else 0
        if self.size is not None:
            tiles = [self.size[:2]]
        elif self.sizes is None:
            tiles = [(height, width)]
        else:
            sides = [(short, long) if width >= height else (long, short) for long, short in self.sizes.sides]
            tiles = [(min(height, tall // self.space), min(width, wide // self.space)) for tall, wide in sides]
        lengths = [frames]
        if getattr(handler, "automatic", False) and not cells and not management.is_device_cpu(model.load_device):
            lengths += [math.ceil(frames / part) for part in _SHORTER]

        def need(cut: Cut) -> float:
            return model.memory_required([batch, channels, cut.length, cut.rows, cut.columns]) + beside

        cuts = [Cut(*tile, length) for length in lengths for tile in tiles]
        cut = cut_that_fits(model, cuts, need) if len(cuts) > 1 else cuts[0]
        if self.size is not None:
            return cut, self.size[2]
        overlap = 0 if self.sizes is None else self.sizes.overlap // self.space
        return cut, min(overlap, min(cut.rows, cut.columns) // 4)


def cut_that_fits(patcher: ModelPatcher, cuts: Sequence[Cut], need: Callable[[Cut], float]) -> Cut:
    """Choose what a MODEL samples at once: the first of the cuts whose pass fits into the device's free memory.

    `need` is the memory law, in bytes. The weights of our systems stay on the device beside it, as far as they are not
    there yet. Where no cut of the first one's length fits so, and with other models, which may be larger than any
    device, the host keeps a part of them in RAM. Of a CPU nothing is reserved: there weights lie in RAM already.
    """
    free, reserved = services.free_bytes(patcher.load_device), 0
    if system_of(patcher) is not None and not management.is_device_cpu(patcher.load_device):
        reserved = max(0, patcher.model_size() - patcher.loaded_size())

    def wanted(cut: Cut) -> float:
        return _HEADROOM * need(cut)

    cut = cuts_that_fit([each for each in cuts if each.length == cuts[0].length], wanted, free - reserved)[0]
    return cut if wanted(cut) < free - reserved else cuts_that_fit(cuts, wanted, free)[0]


def tiles_at_once(model: BaseModel, plan: tuple[Tile, ...], conds: list, x_in: torch.Tensor, most: int) -> int:
    """Say how many tiles to predict as one batch: on a GPU as many as fit, on a CPU one, which is as quick."""
    if management.is_device_cpu(x_in.device):
        return 1
    free = model.current_patcher.get_free_memory(x_in.device)
    tile, count = plan[0], x_in.shape[0] * len([group for group in conds if group])
    shape = [*x_in.shape[1:3], tile.height, tile.width]
    cells = 0  # of the latents that every tile sees whole
    for cond in (cond for group in conds for cond in group or ()):
        lists = (getattr(cond["model_conds"].get(key), "cond", None) for key in REFERENCE_CONDS)
        cells += sum(latent[0, 0].numel() for each in lists if isinstance(each, list) for latent in each)
    beside = model.memory_required([1, x_in.shape[1], 1, 1, cells]) if cells else 0  # again for every tile
    for together in range(min(most, len(plan)), 1, -1):
        need = model.memory_required([together * count, *shape]) + together * beside
        if need * _HEADROOM < free:
            return together
    return 1
