"""Synthetic degradation of clips: blur, resize, noise and compression, twice, in the manner of RealBasicVSR.

Every part that its chain has is here: Gaussian, generalised and plateau kernels, ringing (sinc), JPEG, and H.264 or
MPEG-4 between and after the two rounds; the preset "second order" draws them all.

A clip's parameters are drawn once, so that blur and quality are steady in time; noise is drawn per frame. This is
the "synthetic" half of UniMMVSR's degradation (section 3.3 of its paper); SDEdit is the other half.
Clips here are (t, 3, h, w) in 0..1. What degrade() does with one, in order:

1. Blur or ringing (sinc), a first resize, noise, JPEG, a video codec.
2. A second blur, a resize to about the size of the result, noise, JPEG, a video codec.
3. The exact size (t, 3, height, width), ringing, rounding to 8-bit levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from .compression import h264_round_trip, jpeg_round_trip, mpeg4_round_trip

KERNEL = 13  # px; enough for a sigma of 2 px, the most of the lighter presets
WIDE_KERNEL = 21  # px; that of the chain of Real-ESRGAN and RealBasicVSR, with sigmas up to 3 px
FILTERS = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Blur:
    """Blur with standard deviations along two axes (px) and the angle of the first (radians).

    `beta` is the power of the squared distance (1: Gaussian); a plateau falls as 1 / (1 + distance^(2 beta)).
    """

    sigma_x: float
    sigma_y: float
    angle: float = 0.0
    beta: float = 1.0
    plateau: bool = False
    size: int = KERNEL


@dataclass(frozen=True)
class Noise:
    """Noise of standard deviation `sigma` (0..255 scale), grey or per channel; Poisson grows with brightness."""

    sigma: float
    grey: bool = False
    poisson: bool = False


@dataclass(frozen=True)
class Video:
    """Video compression: "h264" with a crf of 0..51, or "mpeg4" with a quantiser of 1..31."""

    codec: str
    quality: int


@dataclass(frozen=True)
class Degradation:
    """One clip's degradation; a part that is None or 0 is left out.

    `second_scale` is a size on the way, as a multiple of the result's; sinc filters ring at a cutoff in radians.
    """

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
    first_sinc: float = 0.0
    first_video: Video | None = None
    second_scale: float = 0.0
    second_filter: str = "bicubic"
    last_video: Video | None = None
    last_sinc: float = 0.0


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


def _draw_kernel(rng: np.random.Generator, highest: float) -> Blur:
    """Draw a kernel of the published mix: 70 % Gaussian, 15 % generalised, 15 % plateau, half of them round."""
    kind = rng.choice(3, p=[0.7, 0.15, 0.15])
    beta = (1.0, float(rng.uniform(0.5, 4.0)), float(rng.uniform(1.0, 2.0)))[kind]
    return replace(_draw_blur(rng, 0.2, highest, 0.5), beta=beta, plateau=bool(kind == 2), size=WIDE_KERNEL)


def _draw_video(rng: np.random.Generator) -> Video:
    """Draw a codec; the published chain draws a bit rate, which means another quality for every size of clip."""
    if rng.random() < 2 / 3:
        return Video("h264", int(rng.integers(18, 36)))
    return Video("mpeg4", int(rng.integers(3, 16)))


def _draw_scale(rng: np.random.Generator, shares: tuple[float, float, float], low: float, high: float) -> float:
    """Draw an enlargement, a reduction or neither, in these shares."""
    kind = rng.choice(3, p=shares)
    return (float(rng.uniform(1, high)), float(rng.uniform(low, 1)), 1.0)[kind]


def draw_second_order(rng: np.random.Generator) -> Degradation:
    """Draw the whole chain of RealBasicVSR: two rounds of blur, resize, noise, JPEG and a video codec, and ringing."""
    ring = float(rng.uniform(math.pi / 3, math.pi)) if rng.random() < 0.1 else 0.0
    return Degradation(
        blur=None if ring else _draw_kernel(rng, 3.0),
        first_sinc=ring,
        first_scale=_draw_scale(rng, (0.2, 0.7, 0.1), 0.25, 1.5),
        first_filter=str(rng.choice(FILTERS)),
        first_noise=Noise(float(rng.uniform(1, 30)), bool(rng.random() < 0.4), bool(rng.random() < 0.5)),
        first_jpeg=int(rng.integers(30, 96)),
        first_video=_draw_video(rng),
        second_blur=_draw_kernel(rng, 1.5) if rng.random() < 0.8 else None,
        second_scale=_draw_scale(rng, (0.3, 0.4, 0.3), 0.5, 1.2),
        second_filter=str(rng.choice(FILTERS)),
        last_filter=str(rng.choice(FILTERS)),
        last_noise=Noise(float(rng.uniform(1, 25)), bool(rng.random() < 0.4), bool(rng.random() < 0.5)),
        last_jpeg=int(rng.integers(30, 96)),
        last_video=_draw_video(rng),
        last_sinc=float(rng.uniform(math.pi / 3, math.pi)) if rng.random() < 0.8 else 0.0,
    )


PRESETS: dict[str, Callable[[np.random.Generator], Degradation]] = {
    "bicubic": draw_bicubic,
    "real": draw_real,
    "generated": draw_soft,
    "old film": draw_old_film,
    "second order": draw_second_order,
}


def _kernel(blur: Blur, like: torch.Tensor) -> torch.Tensor:
    x, y = _plane(blur.size)
    cos, sin = math.cos(blur.angle), math.sin(blur.angle)
    u, v = cos * x + sin * y, -sin * x + cos * y
    distance = ((u / blur.sigma_x) ** 2 + (v / blur.sigma_y) ** 2) ** blur.beta
    kernel = 1 / (1 + distance) if blur.plateau else torch.exp(-0.5 * distance)
    return (kernel / kernel.sum()).to(like)


def _plane(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def apply_blur(frames: torch.Tensor, blur: Blur) -> torch.Tensor:
    """Blur every frame; the border is repeated outwards."""
    return _filter(frames, _kernel(blur, frames))


def _filter(frames: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    padded = F.pad(frames, (kernel.shape[-1] // 2,) * 4, mode="replicate")
    return F.conv2d(padded, kernel.expand(frames.shape[1], 1, -1, -1), groups=frames.shape[1])


def apply_sinc(frames: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Cut off frequencies above `cutoff` radians a pixel, all around alike: edges ring, as after sharpening."""
    x, y = _plane(WIDE_KERNEL)
    radius = (x.square() + y.square()).sqrt()
    kernel = torch.special.bessel_j1(cutoff * radius) / radius.clamp_min(1e-9)
    kernel[radius == 0] = cutoff / 2
    return _filter(frames, (kernel / kernel.sum()).to(frames))


def apply_video(frames: torch.Tensor, video: Video) -> torch.Tensor:
    """Compress the clip and read it back."""
    if video.codec == "h264":
        return h264_round_trip(frames, video.quality)
    if video.codec == "mpeg4":
        return mpeg4_round_trip(frames, video.quality)
    raise ValueError(f"codec must be h264 or mpeg4; got {video.codec!r}. Choose h264.")


def resize(frames: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """Resize with a low-pass of the reduction's width (antialiased; "area" averages)."""
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
    if p.blur:
        frames = apply_blur(frames, p.blur)
    if p.first_sinc:
        frames = apply_sinc(frames, p.first_sinc)
    if p.first_scale != 1.0:
        sides = (max(8, round(side * p.first_scale)) for side in frames.shape[-2:])
        frames = resize(frames, *sides, p.first_filter)
    if p.first_noise:
        frames = apply_noise(frames, p.first_noise, rng)
    if p.first_jpeg:
        frames = jpeg_round_trip(frames, p.first_jpeg)
    if p.first_video:
        frames = apply_video(frames, p.first_video)
    if p.second_blur:
        frames = apply_blur(frames, p.second_blur)
    if p.second_scale:
        sides = (max(8, round(side * p.second_scale)) for side in (height, width))
        frames = resize(frames, *sides, p.second_filter)
    else:
        frames = resize(frames, height, width, p.last_filter)
    return _compressed(frames, height, width, p, rng)


def _compressed(
    frames: torch.Tensor, height: int, width: int, p: Degradation, rng: np.random.Generator
) -> torch.Tensor:
    """Do the last part of :func:`degrade`: noise, codecs, the exact size, ringing."""
    if p.last_noise:
        frames = apply_noise(frames, p.last_noise, rng)
    if p.last_jpeg:
        frames = jpeg_round_trip(frames, p.last_jpeg)
    if p.crf:
        frames = h264_round_trip(frames, p.crf)
    if p.last_video:
        frames = apply_video(frames, p.last_video)
    frames = resize(frames, height, width, p.last_filter)
    if p.last_sinc:
        frames = apply_sinc(frames, p.last_sinc)
    return (frames.clamp(0, 1) * 255).round() / 255
