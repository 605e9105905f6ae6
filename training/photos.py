"""The training corpus: photographs from folders, and textures made by formula."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
SMALLEST_SIDE = 200  # px; smaller pictures hold too little for a moving crop
DRAWN_SHARES = (0.17, 0.1, 0.13, 0.13, 0.17, 0.3)  # of glyphs, gratings, noise, polygons, lines, ruled sheets


@dataclass(frozen=True)
class Photo:
    """A picture and its halvings: ``levels[k]`` is (3, h, w) float16 in 0..1, reduced 2^k times."""

    name: str
    levels: tuple[torch.Tensor, ...]


def _levels(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    levels = [image]
    while min(levels[-1].shape[-2:]) >= 2 * SMALLEST_SIDE:
        half = [side // 2 for side in levels[-1].shape[-2:]]
        levels.append(F.interpolate(levels[-1][None], half, mode="bicubic", antialias=True)[0].clamp(0, 1))
    return tuple(level.half() for level in levels)  # exact to an eighth of an 8-bit level; hundreds must fit


def find_photos(folders: Iterable[Path], exclude: Sequence[str] = ()) -> list[Path]:
    """List the pictures in `folders` (recursively), sorted; leave out names whose stem is in `exclude`.

    Raises FileNotFoundError for a folder that does not exist, ValueError when nothing is found.
    """
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"Training: the photo folder must exist; got {folder}. Check --photos.")
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        found += [p for p in files if p.stem not in exclude]
    if not found:
        raise ValueError(f"Training: no pictures ({', '.join(sorted(SUFFIXES))}) found. Check --photos.")
    return found


def load_photo(path: Path, device: torch.device | str = "cpu") -> Photo | None:
    """Read one picture as RGB; None when it is too small to crop from."""
    from PIL import Image

    with Image.open(path) as file:
        pixels = np.asarray(file.convert("RGB"))
    if min(pixels.shape[:2]) < SMALLEST_SIDE:
        return None
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).to(device, torch.float32) / 255
    return Photo(path.name, _levels(image))


def corpus_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents: the identity of a corpus in the model card."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def procedural_photo(rng: np.random.Generator, side: int = 400) -> Photo:
    """Make a texture by formula: glyph sheet, gratings, noise, polygons, lines or a ruled sheet, at twice the size."""
    makers = (_glyphs, _gratings, _noise, _polygons, _lines, _ruled)
    maker = makers[int(rng.choice(len(makers), p=DRAWN_SHARES))]
    image = torch.from_numpy(maker(rng, 2 * side).astype(np.float32))
    image = F.interpolate(image.permute(2, 0, 1)[None], (side, side), mode="area")[0]
    return Photo(maker.__name__.lstrip("_"), _levels(image.clamp(0, 1)))


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.random(3), rng.random(3)


def _glyphs(rng: np.random.Generator, side: int) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    paper, ink = (tuple(int(255 * v) for v in colour) for colour in _colours(rng))
    image = Image.new("RGB", (side, side), paper)
    draw, y = ImageDraw.Draw(image), 0
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:!?&%$@#()/")
    while y < side:
        size = int(rng.integers(14, 72))
        draw.text((rng.integers(-20, 20), y), "".join(rng.choice(letters, 90)), ink, ImageFont.load_default(size))
        y += int(size * 1.3)
    return np.asarray(image) / 255


def _gratings(rng: np.random.Generator, side: int) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side] / side
    wave = np.zeros((side, side))
    for _ in range(int(rng.integers(1, 4))):
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(6, side / 12)
        bend = rng.uniform(0, 0.3) * np.sin(2 * np.pi * (y + rng.random()))
        wave += np.sin(2 * np.pi * frequency * (np.cos(angle) * x + np.sin(angle) * y + bend))
    wave = 1 / (1 + np.exp(-wave * rng.uniform(1, 8)))
    a, b = _colours(rng)
    return a + (b - a) * wave[..., None]


def _noise(rng: np.random.Generator, side: int) -> np.ndarray:
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) + 1 / side
    spectrum = np.fft.rfft2(rng.standard_normal((3, side, side))) / frequency ** rng.uniform(0.7, 1.6)
    field = np.fft.irfft2(spectrum, (side, side))
    field = field / field.std((1, 2), keepdims=True) * rng.uniform(0.08, 0.25)
    mixed = np.tensordot(np.eye(3) * 0.4 + 0.6 / 3, field, 1)
    return (mixed + rng.random((3, 1, 1)) * 0.6 + 0.2).transpose(1, 2, 0)


def _polygons(rng: np.random.Generator, side: int) -> np.ndarray:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(20, 80))):
        centre, radius = rng.random(2) * side, rng.uniform(0.01, 0.2) * side
        points = [tuple(centre + radius * rng.uniform(-1, 1, 2)) for _ in range(int(rng.integers(3, 7)))]
        draw.polygon(points, tuple(rng.integers(0, 256, 3).tolist()))
    return np.asarray(image) / 255


def _lines(rng: np.random.Generator, side: int) -> np.ndarray:
    from PIL import Image, ImageDraw

    image = Image.fromarray((_polygons(rng, side) * 255).astype(np.uint8))
    draw, angle = ImageDraw.Draw(image), rng.uniform(0, np.pi)
    for turn in (0, np.pi / 2):
        way = np.array((np.cos(angle + turn), np.sin(angle + turn)))
        colour, thick, gap = tuple(rng.integers(0, 256, 3).tolist()), int(rng.integers(2, 14)), rng.uniform(16, 90)
        for offset in np.arange(-side, side, gap):
            middle = side / 2 + offset * np.array((-way[1], way[0]))
            draw.line([tuple(middle - 2 * side * way), tuple(middle + 2 * side * way)], colour, thick)
    return np.asarray(image) / 255


def _ruled(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw thin light lines on dark paper or dark ones on light: grids, diagonals and boxes with a letter."""
    from PIL import Image, ImageDraw, ImageFont

    dark, tint = rng.random() < 0.5, rng.uniform(-0.05, 0.05, 3)
    paper, ink = (rng.uniform(0.02, 0.3), rng.uniform(0.6, 1.0)) if dark else (rng.uniform(0.6, 1), rng.uniform(0, 0.4))
    paper, ink = (tuple((255 * np.clip(grey + tint, 0, 1)).astype(int).tolist()) for grey in (paper, ink))
    image = Image.new("RGB", (side, side), paper)
    draw, gap = ImageDraw.Draw(image), rng.uniform(18, 90)
    angle = rng.uniform(0, np.pi) if rng.random() < 0.5 else rng.normal(0, 0.06)  # as walls, windows and screens stand
    directions = [(0.0, gap), (np.pi / 2, gap * rng.choice((1.0, rng.uniform(0.6, 1.6))))]
    directions += [(rng.uniform(0, np.pi), rng.uniform(0.3, 1.0) * side) for _ in range(int(rng.integers(0, 3)))]
    thick = int(rng.integers(2, 7))
    for turn, apart in directions:
        way = np.array((np.cos(angle + turn), np.sin(angle + turn)))
        for offset in np.arange(-side, side, apart):
            middle = side / 2 + offset * np.array((-way[1], way[0]))
            draw.line([tuple(middle - 2 * side * way), tuple(middle + 2 * side * way)], ink, thick)
    for _ in range(int(rng.integers(0, 14))):
        box, colour = int(rng.integers(60, 160)), tuple(rng.integers(0, 256, 3).tolist())
        block = Image.new("RGBA", (box, box), (*colour, 255))
        letter = chr(int(rng.integers(ord("A"), ord("Z") + 1)))
        light = tuple(255 if sum(colour) < 380 else 0 for _ in range(3))
        pen = ImageDraw.Draw(block)
        pen.text((box * 0.2, 0), letter, light, ImageFont.load_default(int(box * 0.8)))
        pen.rectangle((4, 4, box - 5, box - 5), outline=light, width=3)
        block = block.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC, expand=True)
        image.paste(block, tuple(rng.integers(-box, side, 2).tolist()), block)
    return np.asarray(image) / 255
