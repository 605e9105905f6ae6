"""The sample clip: a camera moves over a photograph held out of training, so truth and motion are known.

assets/sample_photo.png is "Chelsea" by Stefan van der Walt (CC0), as distributed with scikit-image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .paths import ROOT

PHOTO = ROOT / "assets" / "sample_photo.png"
SCALE = 4
_FINER = 2  # frames are rendered this much larger and averaged, so that the truth has no aliasing


@dataclass(frozen=True)
class Sample:
    """Truth (n, h, w, 3) and LR (n, h/4, w/4, 3) uint8; flows (n-1, 2, h, w) float32 px, there and back."""

    truth: np.ndarray
    low: np.ndarray
    forward: np.ndarray
    backward: np.ndarray


def make_sample(frames: int = 17, width: int = 416, height: int = 240, photo: Path = PHOTO) -> Sample:
    """Render the clip over a photograph; the same numbers give the same bytes."""
    with Image.open(photo) as file:
        picture = file.convert("RGB")
    cameras = [_camera(index / max(frames - 1, 1), picture.size, (width, height)) for index in range(frames)]
    truth = np.stack([_render(picture, camera, width, height) for camera in cameras])
    small = (width // SCALE, height // SCALE)
    low = np.stack([np.asarray(Image.fromarray(f).resize(small, Image.Resampling.BICUBIC)) for f in truth])
    pairs = list(zip(cameras[:-1], cameras[1:], strict=True))
    forward = [_flow(a, b, width, height) for a, b in pairs]
    backward = [_flow(b, a, width, height) for a, b in pairs]
    empty = np.zeros((0, 2, height, width), np.float32)
    return Sample(truth, low, np.stack(forward) if pairs else empty, np.stack(backward) if pairs else empty)


def _camera(time: float, photo: tuple[int, int], frame: tuple[int, int]) -> np.ndarray:
    """Return the 3x3 map from output to photo coordinates at `time` 0..1: a slow pan, zoom and roll."""
    fit = min(photo[0] / frame[0], photo[1] / frame[1])
    zoom = fit * (0.86 - 0.06 * time)
    angle = math.radians(1.2) * math.sin(2 * math.pi * 0.4 * time)
    centre_x = photo[0] / 2 + 18 * (time - 0.5)
    centre_y = photo[1] / 2 + 26 * (0.5 - time) + 2 * math.sin(2 * math.pi * 1.5 * time)
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    x, y = frame[0] / 2, frame[1] / 2
    return np.array([[cos, -sin, centre_x - cos * x + sin * y], [sin, cos, centre_y - sin * x - cos * y], [0, 0, 1]])


def _render(photo: Image.Image, camera: np.ndarray, width: int, height: int) -> np.ndarray:
    finer = camera @ np.diag([1 / _FINER, 1 / _FINER, 1])
    size = (width * _FINER, height * _FINER)
    big = photo.transform(size, Image.Transform.AFFINE, tuple(finer[:2].ravel()), Image.Resampling.BICUBIC)
    return np.asarray(big.resize((width, height), Image.Resampling.BOX))


def _flow(start: np.ndarray, end: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return where each pixel of one frame goes in the other, as (2, h, w) px."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    points = np.stack([x, y, np.ones_like(x)])
    moved = np.einsum("ij,jhw->ihw", np.linalg.inv(end) @ start, points)
    return (moved[:2] - points[:2]).astype(np.float32)
