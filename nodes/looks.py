"""Looks of Upscale Film: how much work a frame is given, beside what the other inputs say.

draft      half of the sampling steps; of one step none, so that the VAE works alone. Of an upscale model its frames as
           they are, not made steady
standard   all as the inputs say
best       frames and their mirror image are made, and the two averaged: what a model invents differs between the two,
           what the source shows does not. An upscale model's frames are averaged before they are made steady.
           Self-ensemble, Timofte et al. 2016.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

DRAFT, STANDARD, BEST = LOOKS = ("draft", "standard", "best")
MIRRORED = ", mirrored"  # behind the names of the stages of the second turn


def draft_sigmas(sigmas: torch.Tensor, least: int) -> torch.Tensor:
    """Leave every second sampling step out of sigmas (steps + 1), down to `least`: 0, or 1 where a VAE cannot decode
    the LR clip as it is.
    """
    steps = max(least, (len(sigmas) - 1) // 2)
    return sigmas[torch.linspace(0, len(sigmas) - 1, steps + 1).round().long()] if steps else sigmas[-1:]


@dataclass(frozen=True)
class Mirrored:
    """The mean of what a maker of film_parts.py makes of frames, and of their mirror image."""

    maker: Callable

    @property
    def stages(self) -> tuple[str, ...]:
        """Name the stages of a segment, in order."""
        return (*self.maker.stages, *(name + MIRRORED for name in self.maker.stages))

    def __call__(self, frames: torch.Tensor, first: int, progress: object) -> torch.Tensor:
        """Upscale frames of which the first is number `first` of its film."""
        images = self.maker(frames, first, progress)
        mirrored = self.maker(frames.flip(2), first, _Second(progress))
        for image, other in zip(images, mirrored, strict=True):  # in place: a third clip may not fit
            image.add_(other.flip(1)).mul_(0.5)
        return images


@dataclass(frozen=True)
class _Second:
    """Name the stages of the second turn."""

    progress: object

    def stage(self, name: str) -> None:
        """Begin with a stage."""
        self.progress.stage(name + MIRRORED)


def mirrored_too(upscale: Callable[[torch.Tensor], torch.Tensor], frame: torch.Tensor) -> torch.Tensor:
    """Upscale a frame (1, h, w, 3) and its mirror image, and give the mean."""
    return (upscale(frame) + upscale(frame.flip(2)).flip(2)) / 2
