"""Batches for the built-in model: moving clips from photographs, their degraded LR, references of the same content.

:meth:`BatchMaker.draw`, in order:

1. make each clip from two photographs or formula textures, relight it, blur a share of them;
2. reduce and degrade it: LR frames, enlarged again as the bicubic ``base`` and the bilinear ``smooth``;
3. make the references of the task; a share of them shows something else and must not change the result.

Every draw has a number and depends on the seed and that number alone, so that a resumed run sees the same data as an
unbroken one. Drawing costs more than a step of a small network: a :class:`Pool` uses each draw several times.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..models.pixels.degradation import FILTERS, PRESETS, Degradation, Noise, degrade, resize
from .clips import CELL, Clip, in_other_light, keep_part, make_clip, make_reference, soften
from .photos import Photo, procedural_photo

PRESET_SHARES = {"bicubic": 0.3, "light": 0.25, "real": 0.3, "generated": 0.1, "old film": 0.05}
PROCEDURAL_SHARE = 0.15
WRONG_SHARE = 0.2  # of references
SOFT_SHARE = 0.5  # of clips
X4_SHARE = 0.8  # the rest is drawn between x1.5 and x4


@dataclass(frozen=True)
class Batch:
    """``clip``, ``base`` (bicubic LR at full size) and ``smooth`` (bilinear LR): (b, 3, t, h, w) in -1..1.

    ``flow`` (b, t-1, 2, h, w) px; ``visible`` (b, t-1, 1, h, w); ``references``: list of (b, 3, tr, h, w) in -1..1;
    ``low``: the LR frames of every clip, (t, 3, h, w) in 0..1.
    """

    clip: torch.Tensor
    base: torch.Tensor
    smooth: torch.Tensor
    flow: torch.Tensor
    visible: torch.Tensor
    references: list[torch.Tensor]
    low: list[torch.Tensor]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Apply `change` to every tensor."""
        clips = (change(x) for x in (self.clip, self.base, self.smooth, self.flow, self.visible))
        return Batch(*clips, *([change(x) for x in part] for part in (self.references, self.low)))

    def turned(self, rng: np.random.Generator) -> Batch:
        """Mirror and transpose everything alike, as drawn."""
        batch = self
        for axis in (-1, -2):
            if rng.random() < 0.5:
                batch = batch._mirrored(axis)
        if rng.random() < 0.5:
            batch = batch.map(lambda x: x.transpose(-1, -2))
            batch = Batch(**{**batch.__dict__, "flow": batch.flow.flip(2)})
        return batch

    def _mirrored(self, axis: int) -> Batch:
        batch = self.map(lambda x: x.flip(axis))
        sign = torch.tensor([-1.0, 1.0] if axis == -1 else [1.0, -1.0]).view(2, 1, 1).to(self.flow)
        return Batch(**{**batch.__dict__, "flow": batch.flow * sign})


def to_clip(frames: torch.Tensor) -> torch.Tensor:
    """(t,3,h,w) in 0..1 -> (3,t,h,w) in -1..1."""
    return frames.transpose(0, 1) * 2 - 1


def draw_degradation(rng: np.random.Generator, preset: str | None = None) -> Degradation:
    """Draw one clip's degradation; without a preset the training mix."""
    if preset is None:
        names, shares = zip(*PRESET_SHARES.items(), strict=True)
        preset = str(rng.choice(names, p=shares))
        if preset == "bicubic" and rng.random() < 0.2:
            return Degradation(last_filter=str(rng.choice(FILTERS)))
    return draw_light(rng) if preset == "light" else PRESETS[preset](rng)


def draw_light(rng: np.random.Generator) -> Degradation:
    """Draw a mild degradation: faint noise, light compression. A network trained on clean LR alone amplifies these."""
    noise = Noise(float(rng.uniform(0, 2.5)), bool(rng.random() < 0.4)) if rng.random() < 0.5 else None
    return Degradation(last_filter=str(rng.choice(FILTERS)), last_noise=noise, crf=int(rng.integers(3, 24)))


class BatchMaker:
    """Draws batches from photographs (and formula textures), reproducibly from one seed."""

    def __init__(
        self,
        photos: Sequence[Photo],
        seed: int,
        textures: int = 24,
        wrong: float = WRONG_SHARE,
        soft: float = SOFT_SHARE,
    ):
        self.seed, self.rng = seed, np.random.default_rng(seed)
        self.wrong, self.soft = wrong, soft
        self.photos = list(photos)
        device = self.photos[0].levels[0].device
        made = [procedural_photo(self.rng) for _ in range(textures)]
        self.textures = [Photo(p.name, tuple(level.to(device) for level in p.levels)) for p in made]

    def seek(self, *number: int) -> BatchMaker:
        """Make the next draws depend on the seed and `number` alone."""
        self.rng = np.random.default_rng([self.seed, *number])
        return self

    def _clip(self, count: int, side: int) -> Clip:
        source = self.textures if self.textures and self.rng.random() < PROCEDURAL_SHARE else self.photos
        pair = [source[int(self.rng.integers(len(source)))], self.photos[int(self.rng.integers(len(self.photos)))]]
        layers = int(self.rng.choice([0, 1, 2], p=[0.45, 0.4, 0.15]))
        clip = in_other_light(self.rng, make_clip(self.rng, pair, count, side, layers))
        return soften(self.rng, clip) if self.rng.random() < self.soft else clip

    def draw(self, size: int, count: int, side: int, task: str = "none", preset: str | None = None) -> Batch:
        """Make a batch of `size` clips of `count` frames of side x side px (side a multiple of 8)."""
        clips = [self._clip(count, side) for _ in range(size)]
        low = [self._degraded(clip, side, preset) for clip in clips]
        return Batch(
            clip=torch.stack([to_clip(clip.frames) for clip in clips]),
            base=torch.stack([to_clip(resize(frames, side, side, "bicubic")) for frames in low]),
            smooth=torch.stack([to_clip(resize(frames, side, side, "bilinear")) for frames in low]),
            flow=torch.stack([clip.flow for clip in clips]),
            visible=torch.stack([clip.visible for clip in clips]),
            references=self._references(clips, side, task),
            low=low,
        )

    def unrelated(self, size: int, count: int, side: int, task: str) -> list[torch.Tensor]:
        """Draw references (size,3,Tr,h,w) of newly drawn clips; none for a task without references."""
        return self._references([self._clip(count, side) for _ in range(size)], side, task)

    def _degraded(self, clip: Clip, side: int, preset: str | None) -> torch.Tensor:
        scale = 4.0 if preset or self.rng.random() < X4_SHARE else self.rng.uniform(1.5, 4.0)
        small = max(8, round(side / scale))
        return degrade(clip.frames, small, small, draw_degradation(self.rng, preset), self.rng)

    def _references(self, clips: Sequence[Clip], side: int, task: str) -> list[torch.Tensor]:
        """Draw references; a share `wrong` of them shows something else, which the network must ignore."""
        if task == "images":
            count = int(self.rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
            rows = [self._pictures(clips, side) for _ in range(count)]
        elif task == "video":
            rows = [[self._take(clip, side) for clip in clips]]
        else:
            return []
        return [torch.stack([to_clip(reference) for reference in row]) for row in rows]

    def _pictures(self, clips: Sequence[Clip], side: int) -> list[torch.Tensor]:
        size = side + CELL * int(self.rng.integers(0, side // (2 * CELL) + 1))
        return [make_reference(self.rng, self._shown(clip, side).frames, size) for clip in clips]

    def _shown(self, clip: Clip, side: int) -> Clip:
        return self._clip(len(clip.frames), side) if self.rng.random() < self.wrong else clip

    def _take(self, clip: Clip, side: int) -> torch.Tensor:
        """Make the unedited take of a clip; half of them start up to a latent frame late."""
        shown = self._shown(clip, side)
        if self.rng.random() < 0.5:
            take = shown.plain
        else:
            take = keep_part(self.rng, shown.frames, self._clip(len(clip.frames), side).frames)
        shift = int(self.rng.integers(0, min(5, len(take)))) if self.rng.random() < 0.5 else 0
        return torch.cat((take[shift:], take[-1:].expand(shift, -1, -1, -1)))


class Pool:
    """Gives the batch of a step: every `fresh`-th step a new draw, else one of the last `size` draws again.

    `draw(number)` must depend on the number alone. What the pool has forgotten, or lost with a killed run, is drawn
    anew, so the batch of a step never depends on the steps before it.
    """

    def __init__(self, draw: Callable[[int], object], seed: int, size: int, fresh: int):
        self._draw, self._seed, self._size, self._fresh = draw, seed, size, fresh
        self._kept: OrderedDict[int, object] = OrderedDict()

    def number(self, step: int) -> int:
        """Say which draw a step uses."""
        newest = step // self._fresh
        if step % self._fresh == 0:
            return newest
        oldest = max(0, newest - self._size + 1)
        return int(np.random.default_rng([self._seed, step]).integers(oldest, newest + 1))

    def at(self, step: int):
        """Return the batch of a step."""
        number = self.number(step)
        if number not in self._kept:
            self._kept[number] = self._draw(number)
            while len(self._kept) > self._size:
                self._kept.pop(min(self._kept))
        return self._kept[number]
