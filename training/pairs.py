"""Training samples in pixels: a good clip, its low-resolution copy, and references of its content.

1. A source draws a :class:`Take`: PhotoTakes sets photographs in motion, VideoTakes cuts segments from video files.
2. :func:`make_pair` degrades the take to the low-resolution clip: SDEdit in a share of the samples, then the synthetic
   degradation.
3. It makes the references of the task: augmented identity images from outside the clip, or the unedited video.

All random numbers come from the generator that is passed in, so a task, a length and a number identify a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..models.pixels.degradation import PRESETS
from .augment import NO_AUGMENTATION, Augmentation, augment_image, cut_out, shift_start
from .clips import lay_over, make_clip
from .curriculum import IMAGES, VIDEO
from .photos import Photo
from .sdedit import SDEditTransform, degrade_both

VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi"}
MOST_IMAGES = 3
START_SHIFT = 8  # frames by which a reference video may start late


class Take(NamedTuple):
    """A clip before degradation: ``frames`` (t, 3, H, W) in 0..1.

    ``plain``: the same without the edit, and START_SHIFT frames longer; ``elsewhere``: pictures (1, 3, H, W) of the
    same content from outside the clip; ``flow``, ``visible`` and ``layer`` as in :class:`.clips.Clip`, or None.
    """

    name: str
    frames: torch.Tensor
    plain: torch.Tensor
    elsewhere: list[torch.Tensor]
    flow: torch.Tensor | None = None
    visible: torch.Tensor | None = None
    layer: torch.Tensor | None = None


@dataclass(frozen=True)
class Pair:
    """``frames`` (t, 3, H, W), ``low`` (t, 3, h, w) and ``references`` (tr, 3, H, W) in 0..1; tr = 1 is an image."""

    name: str
    frames: torch.Tensor
    low: torch.Tensor
    references: list[torch.Tensor]
    flow: torch.Tensor | None = None
    visible: torch.Tensor | None = None
    layer: torch.Tensor | None = None


@dataclass(frozen=True)
class Recipe:
    """How a take becomes a pair; every part can be switched off for a comparison."""

    scale: int = 4
    presets: tuple[str, ...] = ("bicubic", "real", "generated", "second order")  # none: the plain reduction
    redraw: SDEditTransform | None = None
    redraw_share: float = 1.0
    redraw_scale: int | None = None  # how many times smaller the base draws; None: as `scale`
    augmentation: Augmentation = field(default_factory=Augmentation)
    start_shift: int = START_SHIFT
    cut_out_share: float = 0.5


def without_augmentation(recipe: Recipe) -> Recipe:
    """Return a recipe whose references show exactly what the clip shows."""
    return replace(recipe, augmentation=NO_AUGMENTATION, start_shift=0, cut_out_share=0.0)


def make_pair(take: Take, task: str, recipe: Recipe, rng: np.random.Generator) -> Pair:
    """Degrade a take and make the references of a task."""
    height, width = (max(8, side // recipe.scale) for side in take.frames.shape[-2:])
    parameters = PRESETS[str(rng.choice(recipe.presets))](rng) if recipe.presets else None
    redraw = recipe.redraw if rng.random() < recipe.redraw_share else None
    size = tuple(max(8, side // (recipe.redraw_scale or recipe.scale)) for side in take.frames.shape[-2:])
    low = degrade_both(take.frames, height, width, parameters, rng, redraw, size)
    references = _references(take, task, recipe, rng)
    return Pair(take.name, take.frames, low, references, take.flow, take.visible, take.layer)


def _references(take: Take, task: str, recipe: Recipe, rng: np.random.Generator) -> list[torch.Tensor]:
    if task == IMAGES:
        count = int(rng.integers(1, 1 + min(MOST_IMAGES, len(take.elsewhere))))
        chosen = rng.choice(len(take.elsewhere), count, replace=False)
        return [_identity(take, take.elsewhere[int(index)], recipe, rng) for index in chosen]
    if task == VIDEO:
        return [shift_start(take.plain, len(take.frames), recipe.start_shift, rng)]
    return []


def _identity(take: Take, picture: torch.Tensor, recipe: Recipe, rng: np.random.Generator) -> torch.Tensor:
    """Make an identity image: the object cut out where its mask is known, else the whole picture; then augment it."""
    cut = None
    if take.layer is not None and rng.random() < recipe.cut_out_share:
        frame = int(rng.integers(len(take.frames)))
        cut = cut_out(take.frames[frame : frame + 1], take.layer[frame : frame + 1], min(picture.shape[-2:]), rng)
    if cut is not None:
        picture = F.interpolate(cut, picture.shape[-2:], mode="bilinear")
    return augment_image(picture, rng, recipe.augmentation)


class PhotoTakes:
    """Photographs in motion: square clips with exact flow."""

    def __init__(self, photos: Sequence[Photo], side: int):
        self.photos, self.side = list(photos), side

    def make(self, task: str, count: int, rng: np.random.Generator) -> Take:
        """Draw a take of `count` frames; editing pairs and identities have at least one moving layer."""
        layers = int(rng.integers(0 if task not in (IMAGES, VIDEO) else 1, 3))
        both = [self.photos[int(rng.integers(len(self.photos)))] for _ in range(2)]
        clip = make_clip(rng, both, count + START_SHIFT, self.side, layers)
        elsewhere = [clip.frames[count + at : count + at + 1] for at in (0, START_SHIFT // 2, START_SHIFT - 1)]
        cut = slice(0, count)
        flow, visible = clip.flow[: count - 1], clip.visible[: count - 1]
        return Take(both[0].name, clip.frames[cut], clip.plain, elsewhere, flow, visible, clip.layer[cut])


class VideoTakes:
    """Segments of video files, scaled and cropped to width x height; edits are pieces of other files laid over."""

    def __init__(self, paths: Sequence[Path], height: int, width: int):
        self.paths, self.height, self.width = list(paths), height, width
        if not self.paths:
            raise ValueError("Training: no video clips found. Check --videos.")
        self._lengths: dict[Path, int] = {}

    def make(self, task: str, count: int, rng: np.random.Generator) -> Take:
        """Draw a take of `count` frames; identity images come from outside the segment where the file goes on."""
        path = self.paths[int(rng.integers(len(self.paths)))]
        length = self._length(path)
        start = int(rng.integers(0, max(1, length - count - START_SHIFT + 1)))
        inside = range(start, start + count + START_SHIFT)
        outside = [index for index in range(length) if index not in range(start, start + count)] or [start]
        others = rng.choice(outside, min(MOST_IMAGES, len(outside)), replace=False)
        crop = rng.random(2)
        frames = self._read(path, [*inside, *map(int, others)], crop)
        plain, elsewhere = frames[: len(inside)], list(frames[len(inside) :].split(1))
        clip, layer = plain[:count], None
        if task == VIDEO:
            other = self.paths[int(rng.integers(len(self.paths)))]
            picture = self._read(other, [int(rng.integers(self._length(other)))], rng.random(2))[0]
            clip, layer = lay_over(rng, clip, picture)
        return Take(path.stem, clip, plain, elsewhere, layer=layer)

    def _length(self, path: Path) -> int:
        if path not in self._lengths:
            self._lengths[path] = sum(1 for _ in _decoded(path))
        return self._lengths[path]

    def _read(self, path: Path, wanted: Sequence[int], crop: np.ndarray) -> torch.Tensor:
        """Read frames by number (past the end: the last one), cropped at a place given in shares of the slack."""
        last = self._length(path) - 1
        numbers = [min(number, last) for number in wanted]
        kept, most = {}, max(numbers)
        for number, image in enumerate(_decoded(path)):
            if number in numbers:
                kept[number] = self._fitted(image, crop)
            if number == most:
                break
        return torch.stack([kept[number] for number in numbers])

    def _fitted(self, image: np.ndarray, crop: np.ndarray) -> torch.Tensor:
        frame = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0).float() / 255
        factor = max(self.height / frame.shape[-2], self.width / frame.shape[-1])
        rows, columns = (
            max(side, round(now * factor))
            for side, now in zip((self.height, self.width), frame.shape[-2:], strict=True)
        )
        frame = F.interpolate(frame, (rows, columns), mode="bicubic", antialias=True).clamp(0, 1)[0]
        top, left = int(crop[0] * (rows - self.height + 0.999)), int(crop[1] * (columns - self.width + 0.999))
        return frame[:, top : top + self.height, left : left + self.width]


def find_videos(folders: Sequence[Path]) -> list[Path]:
    """List the video files in folders (recursively), sorted."""
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"Training: the video folder must exist; got {folder}. Check --videos.")
    return sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)


def _decoded(path: Path):
    import av

    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")
