"""Synthetic degradation of clips: blur, resize, noise and compression, twice, in the manner of RealBasicVSR.

A clip's parameters are drawn once, so that blur and quality are steady in time; noise is drawn per frame. This is
the "synthetic" half of UniMMVSR's degradation (paper section 3.3); SDEdit is the other half.
Clips here are (t, 3, h, w) in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from .codec import h264_round_trip, jpeg_round_trip

KERNEL = 13  # px; the widest blur drawn has a sigma of 2 px
FILTERS = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with standard deviations along two axes (px) and the angle of the first (radians)."""

    sigma_x: float
    sigma_y: float
    angle: float = 0.0


@dataclass(frozen=True)
class Noise:
    """Noise of standard deviation `sigma` (0..255 scale), grey or per channel; Poisson grows with brightness."""

    sigma: float
    grey: bool = False
    poisson: bool = False


@dataclass(frozen=True)
class Degradation:
    """One clip's degradation; a part that is None or 0 is left out."""

    blur: Blur | None = None
    first_scale: float = 1.0
    first_filter: str = "bicubic"
    first_noise: Noise | None = None
    first_jpeg: int = 0
    second_blur: Blur | None = None
    last_filter: str = "bicubic"
    last_noise: Noise | None = None
    last_jpeg: int = 0
    crf: int = 0


def _draw_blur(rng: np.random.Generator, low: float, high: float, isotropic: float) -> Blur:
    sigma = rng.uniform(low, high)
    other = sigma if rng.random() < isotropic else rng.uniform(low, high)
    return Blur(float(sigma), float(other), float(rng.uniform(0, math.pi)))


def draw_real(rng: np.random.Generator) -> Degradation:
    """Draw a second-order degradation like that of real footage: blur, resize, noise, JPEG, blur, noise, H.264."""
    return Degradation(
        blur=_draw_blur(rng, 0.2, 2.0, 0.5),
        first_scale=float(rng.uniform(0.5, 1.1)),
        first_filter=str(rng.choice(FILTERS)),
        first_noise=Noise(float(rng.uniform(1, 12)), bool(rng.random() < 0.4), bool(rng.random() < 0.5)),
        first_jpeg=int(rng.integers(50, 96)),
        second_blur=_draw_blur(rng, 0.2, 1.0, 1.0),
        last_filter=str(rng.choice(FILTERS)),
        last_noise=Noise(float(rng.uniform(1, 6)), bool(rng.random() < 0.4)),
        last_jpeg=int(rng.integers(60, 96)),
        crf=int(rng.integers(18, 31)),
    )


def draw_soft(rng: np.random.Generator) -> Degradation:
    """Draw the look of a generated clip: soft, little noise, light compression."""
    return replace(
        Degradation(last_filter=str(rng.choice(FILTERS))),
        blur=_draw_blur(rng, 0.4, 1.6, 1.0),
        last_noise=Noise(float(rng.uniform(0, 1.5))),
        crf=int(rng.integers(15, 24)),
    )


def draw_old_film(rng: np.random.Generator) -> Degradation:
    """Draw the look of old film: blur and strong grey grain."""
    return replace(
        Degradation(last_filter="area"),
        blur=_draw_blur(rng, 1.0, 2.0, 1.0),
        first_noise=Noise(float(rng.uniform(8, 16)), grey=True),
        last_noise=Noise(float(rng.uniform(2, 6)), grey=True),
        crf=int(rng.integers(22, 29)),
    )


def draw_bicubic(rng: np.random.Generator) -> Degradation:
    """The plain antialiased bicubic reduction most papers test on."""
    return Degradation()


PRESETS: dict[str, Callable[[np.random.Generator], Degradation]] = {
    "bicubic": draw_bicubic,
    "real": draw_real,
    "generated": draw_soft,
    "old film": draw_old_film,
}


def _kernel(blur: Blur, like: torch.Tensor) -> torch.Tensor:
    axis = torch.arange(KERNEL, dtype=torch.float64) - (KERNEL - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cos, sin = math.cos(blur.angle), math.sin(blur.angle)
    u, v = cos * x + sin * y, -sin * x + cos * y
    kernel = torch.exp(-0.5 * ((u / blur.sigma_x) ** 2 + (v / blur.sigma_y) ** 2))
    return (kernel / kernel.sum()).to(like)


def apply_blur(frames: torch.Tensor, blur: Blur) -> torch.Tensor:
    """Blur every frame; the border is repeated outwards."""
    kernel = _kernel(blur, frames).expand(frames.shape[1], 1, -1, -1)
    padded = F.pad(frames, (KERNEL // 2,) * 4, mode="replicate")
    return F.conv2d(padded, kernel, groups=frames.shape[1])


def resize(frames: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """Resize with a low-pass that fits the reduction (antialiased; "area" averages)."""
    if tuple(frames.shape[-2:]) == (height, width):
        return frames
    if mode == "area":
        return F.interpolate(frames, (height, width), mode="area")
    return F.interpolate(frames, (height, width), mode=mode, antialias=True, align_corners=False)


def apply_noise(frames: torch.Tensor, noise: Noise, rng: np.random.Generator) -> torch.Tensor:
    """Add fresh noise to every frame."""
    shape = list(frames.shape)
    if noise.grey:
        shape[1] = 1
    drawn = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(frames)
    level = noise.sigma / 255
    if noise.poisson:  # a normal of the photon count's variance; equal to `sigma` at middle grey
        light = frames.mean(1, keepdim=True) if noise.grey else frames
        return frames + drawn * level * (2 * light.clamp(0, 1)).sqrt()
    return frames + drawn * level


def degrade(
    frames: torch.Tensor, height: int, width: int, parameters: Degradation, rng: np.random.Generator
) -> torch.Tensor:
    """Reduce a clip (t, 3, H, W) in 0..1 to height x width with the given degradation; 8-bit levels, 0..1."""
    p = parameters
    full_height, full_width = frames.shape[-2:]
    if p.blur:
        frames = apply_blur(frames, p.blur)
    if p.first_scale != 1.0:
        sides = (max(8, round(side * p.first_scale)) for side in (full_height, full_width))
        frames = resize(frames, *sides, p.first_filter)
    if p.first_noise:
        frames = apply_noise(frames, p.first_noise, rng)
    if p.first_jpeg:
        frames = jpeg_round_trip(frames, p.first_jpeg)
    if p.second_blur:
        frames = apply_blur(frames, p.second_blur)
    frames = resize(frames, height, width, p.last_filter)
    if p.last_noise:
        frames = apply_noise(frames, p.last_noise, rng)
    if p.last_jpeg:
        frames = jpeg_round_trip(frames, p.last_jpeg)
    if p.crf:
        frames = h264_round_trip(frames, p.crf)
    return (frames.clamp(0, 1) * 255).round() / 255
