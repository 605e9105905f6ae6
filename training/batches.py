"""Batches for the built-in model: moving clips from photographs, their degraded LR, references of the same content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..models.pixels.degradation import FILTERS, PRESETS, Degradation, Noise, degrade, resize
from .clips import Clip, make_clip, make_reference
from .photos import Photo, procedural_photo

PRESET_SHARES = {"bicubic": 0.3, "light": 0.25, "real": 0.3, "generated": 0.1, "old film": 0.05}
PROCEDURAL_SHARE = 0.15
X4_SHARE = 0.8  # the rest is drawn between x1.5 and x4
TASKS = {"none": 0.6, "images": 0.25, "video": 0.15}  # share of clips with each kind of reference


@dataclass(frozen=True)
class Batch:
    """``clip`` and ``base`` (bicubic LR at full size) and ``smooth`` (bilinear LR): (b,3,t,h,w) in -1..1;
    ``flow`` (b,t-1,2,h,w) px; ``visible`` (b,t-1,1,h,w); ``references``: list of (b,3,Tr,h,w) in -1..1."""

    clip: torch.Tensor
    base: torch.Tensor
    smooth: torch.Tensor
    flow: torch.Tensor
    visible: torch.Tensor
    references: list[torch.Tensor]


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
    """A sharp clip with faint noise, well compressed: what a network trained on clean LR alone would amplify."""
    noise = Noise(float(rng.uniform(0, 2.5)), bool(rng.random() < 0.4)) if rng.random() < 0.5 else None
    return Degradation(last_filter=str(rng.choice(FILTERS)), last_noise=noise, crf=int(rng.integers(3, 24)))


class BatchMaker:
    """Draws batches from photographs (and formula textures), reproducibly from one seed."""

    def __init__(self, photos: Sequence[Photo], seed: int, textures: int = 24):
        self.rng = np.random.default_rng(seed)
        self.photos = list(photos)
        device = self.photos[0].levels[0].device
        made = [procedural_photo(self.rng) for _ in range(textures)]
        self.textures = [Photo(p.name, tuple(level.to(device) for level in p.levels)) for p in made]

    def _clip(self, count: int, side: int) -> Clip:
        source = self.textures if self.textures and self.rng.random() < PROCEDURAL_SHARE else self.photos
        pair = [
            source[int(self.rng.integers(len(source)))],
            self.photos[int(self.rng.integers(len(self.photos)))],
        ]
        clip = make_clip(self.rng, pair, count, side, int(self.rng.choice([0, 1, 2], p=[0.45, 0.4, 0.15])))
        return self._turned(clip)

    def _turned(self, clip: Clip) -> Clip:
        """Mirror half of the clips; the flow mirrors with them."""
        if self.rng.random() < 0.5:
            return clip
        flow = clip.flow.flip(-1) * torch.tensor([-1.0, 1.0], device=clip.flow.device).view(1, 2, 1, 1)
        return Clip(clip.frames.flip(-1), flow, clip.visible.flip(-1), clip.plain.flip(-1))

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
        )

    def _degraded(self, clip: Clip, side: int, preset: str | None) -> torch.Tensor:
        scale = 4.0 if preset or self.rng.random() < X4_SHARE else self.rng.uniform(1.5, 4.0)
        small = max(8, round(side / scale))
        return degrade(clip.frames, small, small, draw_degradation(self.rng, preset), self.rng)

    def _references(self, clips: Sequence[Clip], side: int, task: str) -> list[torch.Tensor]:
        if task == "images":
            count = int(self.rng.integers(1, 3))
            pictures = [[make_reference(self.rng, clip.frames, side) for clip in clips] for _ in range(count)]
            return [torch.stack([to_clip(picture) for picture in row]) for row in pictures]
        if task == "video":  # the unedited take, its start shifted by up to a latent frame
            shift = int(self.rng.integers(0, 5))
            takes = [
                torch.cat((clip.plain[shift:], clip.plain[-1:].expand(shift, -1, -1, -1))) for clip in clips
            ]
            return [torch.stack([to_clip(take) for take in takes])]
        return []
