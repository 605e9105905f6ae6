"""Augmentation of references and conditions as in the UniMMVSR paper (its sections 3.1, 3.3 and A.4).

Identity images are moved, tilted and relit, as if taken elsewhere; a reference video starts some frames late; the LR
latent is noised to a level that the network gets as an input; text and references are dropped in a share of samples,
for guidance. Frames are (t, 3, h, w) in 0..1, latents (b, c, T, h, w). All random numbers come from the generator that
is passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

LEVELS = (0.2, 0.6)  # of the LR latent's noise: steps 200 to 600 of 1000 in the paper
TEXT_DROPPED = 0.1  # share of samples, as in the paper
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """The most of each change of an identity image; 0 leaves it out.

    Angles in radians, shifts and tilts in shares of the side, zoom as a natural logarithm, colours as shares.
    """

    turn: float = 0.35
    zoom: float = 0.35
    shift: float = 0.15
    tilt: float = 0.15
    mirror: float = 0.3  # probability
    light: float = 0.2
    contrast: float = 0.2
    gamma: float = 0.2
    saturation: float = 0.3
    warmth: float = 0.08


NO_AUGMENTATION = Augmentation(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def augment_image(picture: torch.Tensor, rng: np.random.Generator, most: Augmentation | None = None) -> torch.Tensor:
    """Imitate another pose, place and light of what a picture (t, 3, h, w) shows; all frames change alike."""
    most = most or Augmentation()
    return relight(move(picture, _homography(rng, most)), rng, most)


def _homography(rng: np.random.Generator, most: Augmentation) -> np.ndarray:
    """Draw a homography of the square -1..1: turn, zoom, shift, tilt and mirror."""
    angle, zoom = rng.uniform(-most.turn, most.turn), math.exp(rng.uniform(-most.zoom, most.zoom))
    shift = rng.uniform(-2 * most.shift, 2 * most.shift, 2)
    tilt = rng.uniform(-most.tilt, most.tilt, 2)
    flip = -1.0 if rng.random() < most.mirror else 1.0
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    return np.array([[flip * cos, -sin, shift[0]], [flip * sin, cos, shift[1]], [*tilt, 1.0]])


def move(picture: torch.Tensor, homography: np.ndarray) -> torch.Tensor:
    """Warp frames by a homography from output to input positions, both -1..1; positions outside are reflected."""
    height, width = picture.shape[-2:]
    rows, columns = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    places = torch.stack((x, y, torch.ones_like(x)), -1) @ torch.from_numpy(homography).T
    grid = (places[..., :2] / places[..., 2:].clamp_min(0.1)).to(picture)
    moved = F.grid_sample(picture, grid.expand(len(picture), -1, -1, -1), "bicubic", "reflection", align_corners=True)
    return moved.clamp(0, 1)


def relight(picture: torch.Tensor, rng: np.random.Generator, most: Augmentation) -> torch.Tensor:
    """Change light, contrast, gamma, saturation and warmth, by one draw for all frames."""
    light, contrast, gamma, saturation, warmth = (
        float(rng.uniform(-amount, amount))
        for amount in (most.light, most.contrast, most.gamma, most.saturation, most.warmth)
    )
    grey = (picture * picture.new_tensor(_GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    picture = grey + (1 + saturation) * (picture - grey)
    middle = grey.mean()  # of all frames: one of each would flicker
    picture = (middle + (1 + contrast) * (picture - middle)) * (1 + light)
    picture = picture * picture.new_tensor((1 + warmth, 1.0, 1 - warmth)).view(1, 3, 1, 1)
    return picture.clamp(0, 1) ** math.exp(gamma)


def cut_out(
    picture: torch.Tensor, mask: torch.Tensor, side: int, rng: np.random.Generator, margin: float = 0.1
) -> torch.Tensor | None:
    """Cut what `mask` (1, 1, h, w) covers out of a picture (1, 3, h, w), onto one plain colour: (1, 3, side, side).

    None where the mask covers less than 1 % of the picture. The shape is kept; the longer side fills the square.
    """
    rows, columns = (mask[0, 0] > 0.5).nonzero(as_tuple=True)
    if len(rows) < 0.01 * mask.numel():
        return None
    low, high = (torch.stack((f(rows), f(columns))).tolist() for f in (torch.min, torch.max))
    reach = (1 + 2 * margin) * max(high[0] - low[0], high[1] - low[1], 1)
    size = picture.new_tensor(picture.shape[-2:])
    centre = picture.new_tensor([(a + b) / 2 for a, b in zip(low, high, strict=True)])
    steps = (torch.arange(side, device=picture.device) + 0.5) / side - 0.5
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    places = (centre + reach * torch.stack((y, x), -1)) / (size - 1) * 2 - 1
    grid = places.flip(-1).unsqueeze(0)
    colour = float(rng.choice([1.0, 0.5, 0.0])) if rng.random() < 0.75 else rng.random(3)
    ground = picture.new_tensor(np.broadcast_to(colour, 3).copy()).view(1, 3, 1, 1)
    cut = F.grid_sample(picture, grid, "bilinear", "zeros", align_corners=True)
    alpha = F.grid_sample(mask.to(picture), grid, "bilinear", "zeros", align_corners=True)
    return ground * (1 - alpha) + cut * alpha


def shift_start(frames: torch.Tensor, count: int, most: int, rng: np.random.Generator) -> torch.Tensor:
    """Take `count` frames of a video from a start drawn from 0 .. `most`; past its end the last frame stays."""
    start = int(rng.integers(0, most + 1))
    index = torch.arange(start, start + count, device=frames.device).clamp_max(len(frames) - 1)
    return frames[index]


def noise_latent(
    lr: torch.Tensor, rng: np.random.Generator, levels: tuple[float, float] = LEVELS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise each LR latent by the forward process to a level drawn evenly: (noised, level (b,))."""
    level = torch.tensor(rng.uniform(*levels, len(lr)), dtype=torch.float32, device=lr.device)
    share = level.view(-1, *[1] * (lr.ndim - 1)).to(lr.dtype)
    return (1 - share) * lr + share * normal(lr, rng), level


def normal(like: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Draw unit noise shaped like a tensor; the device does not matter."""
    return torch.from_numpy(rng.standard_normal(tuple(like.shape), dtype=np.float32)).to(like)


@dataclass(frozen=True)
class Dropout:
    """Shares of samples whose text, whose references, are the null condition."""

    text: float = TEXT_DROPPED
    references: float = 0.1

    def draw(self, rng: np.random.Generator) -> tuple[bool, bool]:
        """Draw (text is dropped, references are dropped), independently: guidance needs each without the other."""
        text, references = rng.random(2)
        return bool(text < self.text), bool(references < self.references)
