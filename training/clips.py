"""Clips with exact optical flow, made from photographs: a moving camera and moving layers.

:func:`make_clip`, in order:

1. place the output square on a photograph: a level of its pyramid, zoom, position, one of eight orientations;
2. draw the camera's path: one similarity map per frame, from a steady drift and a slow swing;
3. sample the photograph through these maps: the background (t, 3, side, side) and its flow;
4. lay up to two moving pieces of other photographs over it, each with maps and flow of its own.

A layer maps output pixels to source pixels by an invertible affine map per frame, so the flow between two frames is
known to float precision. Clips are in 0..1 on the photographs' device.

The references of the built-in model are made here, too (:func:`make_reference`, :func:`keep_part`): they come from the
recipe that the shipped weights were trained by. Adapters use the paper's augmentation (training/augment.py), which
draws other numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from ..models.pixels.degradation import Blur, apply_blur
from .augment import Augmentation, relight
from .photos import Photo

CELL = 16  # px of a token, each side


@dataclass(frozen=True)
class Clip:
    """``frames`` (t, 3, h, w); ``flow`` (t-1, 2, h, w) px from t to t+1; ``visible`` (t-1, 1, h, w) 0 or 1.

    ``plain``: the same clip without its moving layers (the unedited take of an editing pair); ``layer`` (t, 1, h, w): 1
    where a moving layer covers it (what an edit changed, and the mask of an identity).
    """

    frames: torch.Tensor
    flow: torch.Tensor
    visible: torch.Tensor
    plain: torch.Tensor
    layer: torch.Tensor | None = None


def _path(rng: np.random.Generator, count: int, amplitude: float) -> np.ndarray:
    """A smooth path through 0 at the middle frame: steady drift plus a slow swing."""
    t = np.arange(count)
    swing = rng.uniform(0, 1.5) * np.sin(2 * math.pi * (t / rng.uniform(8, 24) + rng.random()))
    path = amplitude * (rng.uniform(-1, 1) * t + swing)
    return path - path[count // 2]


def _similarity(centre: tuple[float, float], zoom: float, angle: float, dx: float, dy: float) -> np.ndarray:
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    cx, cy = centre
    return np.array(
        [[cos, -sin, cx + dx - cos * cx + sin * cy], [sin, cos, cy + dy - sin * cx - cos * cy], [0, 0, 1.0]]
    )


def _tracks(rng: np.random.Generator, count: int, side: int, speed: float, spin: float) -> list[np.ndarray]:
    """Per-frame similarity maps of the output plane onto itself."""
    centre = ((side - 1) / 2, (side - 1) / 2)
    zoom = np.exp(_path(rng, count, 0.003 * speed))
    angle = _path(rng, count, spin * 0.004 * speed)
    dx, dy = _path(rng, count, speed), _path(rng, count, speed)
    return [_similarity(centre, *values) for values in zip(zoom, angle, dx, dy, strict=True)]


def _placement(rng: np.random.Generator, photo: Photo, side: int) -> tuple[torch.Tensor, np.ndarray]:
    """Draw two places, take the more detailed one (sky and walls teach little), and turn and mirror it at random."""
    candidates = [_random_place(rng, photo, side) for _ in range(2)]
    level, place = max(candidates, key=lambda place: _detail(*place, side))
    return level, place @ _any_turn(rng, side)


def _any_turn(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw one of the eight maps of a square of side x side px onto itself."""
    left_right = np.array([[-1, 0, side - 1], [0, 1, 0], [0, 0, 1.0]])
    up_down = np.array([[1, 0, 0], [0, -1, side - 1], [0, 0, 1.0]])
    swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]])
    turn = np.eye(3)
    for step in (left_right, up_down, swap):
        turn = step @ turn if rng.random() < 0.5 else turn
    return turn


def _detail(level: torch.Tensor, place: np.ndarray, side: int) -> float:
    zoom, left, top = place[0, 0], int(place[0, 2]), int(place[1, 2])
    crop = level.float()[:, top : top + int(zoom * side), left : left + int(zoom * side)].mean(0)
    return float((crop[1:, 1:] - crop[:-1, :-1]).abs().mean())


def _random_place(rng: np.random.Generator, photo: Photo, side: int) -> tuple[torch.Tensor, np.ndarray]:
    """Choose a level of the photo and the map of output pixels onto it (0.8 to 1.25 source px per px)."""
    fitting = [level for level in photo.levels if min(level.shape[-2:]) >= 1.3 * side] or [photo.levels[0]]
    level = fitting[int(rng.integers(len(fitting)))]
    height, width = level.shape[-2:]
    zoom = min(rng.uniform(0.8, 1.25), min(height, width) / side)
    slack_x, slack_y = (max(0.0, size - zoom * side) for size in (width, height))
    left, top = rng.random() * slack_x, rng.random() * slack_y
    return level, np.array([[zoom, 0, left], [0, zoom, top], [0, 0, 1.0]])


def _source(maps: Sequence[np.ndarray], side: int, device: torch.device) -> torch.Tensor:
    """Source position of every output pixel: (t, side, side, 2)."""
    axis = torch.arange(side, device=device, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    plane = torch.stack((x, y, torch.ones_like(x)), -1)
    matrices = torch.from_numpy(np.stack(maps)).to(device)
    return torch.einsum("tij,hwj->thwi", matrices, plane)[..., :2]


def _sample(image: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    height, width = image.shape[-2:]
    scale = torch.tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)], device=image.device, dtype=torch.float64)
    grid = (source * scale - 1).float()
    batch = image.float().expand(grid.shape[0], -1, -1, -1)
    return F.grid_sample(batch, grid, mode="bicubic", padding_mode="reflection", align_corners=True).clamp(0, 1)


def _blob(rng: np.random.Generator, source: torch.Tensor, centre: tuple[float, float], radius: float) -> torch.Tensor:
    """Soft alpha (t,1,h,w) of a rounded shape fixed to the layer's own plane."""
    offset = source - torch.tensor(centre, device=source.device, dtype=source.dtype)
    angle = torch.atan2(offset[..., 1], offset[..., 0])
    edge = radius * (
        1 + 0.25 * torch.cos(3 * angle + rng.uniform(0, 6)) + 0.12 * torch.cos(5 * angle + rng.uniform(0, 6))
    )
    return ((edge - offset.norm(dim=-1)) / 1.5 + 0.5).clamp(0, 1).float().unsqueeze(1)


def _flow(maps: Sequence[np.ndarray], side: int, device: torch.device) -> torch.Tensor:
    steps = [np.linalg.inv(after) @ before for before, after in zip(maps[:-1], maps[1:], strict=True)]
    axis = torch.arange(side, device=device, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return (_source(steps, side, device) - torch.stack((x, y), -1)).permute(0, 3, 1, 2).float()


def make_clip(rng: np.random.Generator, photos: Sequence[Photo], count: int, side: int, layers: int) -> Clip:
    """Draw a clip of `count` frames of side x side px with up to `layers` moving layers.

    Speeds are log-uniform from 0.05 to 6 px a frame; one clip in ten stands still.
    """
    device = photos[0].levels[0].device

    def speed() -> float:
        return 0.0 if rng.random() < 0.1 else float(np.exp(rng.uniform(math.log(0.05), math.log(6.0))))

    image, place = _placement(rng, photos[int(rng.integers(len(photos)))], side)
    camera = _tracks(rng, count, side, speed(), 1.0)
    plain = _sample(image, _source([place @ m for m in camera], side, device))
    frames, flow = plain, _flow(camera, side, device)
    cover = torch.zeros(count, 1, side, side, device=device, dtype=torch.int64)
    for number in range(1, layers + 1):
        image, place = _placement(rng, photos[int(rng.integers(len(photos)))], side)
        maps = _tracks(rng, count, side, speed(), 3.0)
        inside = _source(maps, side, device)
        centre = tuple(rng.uniform(0.2, 0.8, 2) * side)
        alpha = _blob(rng, inside, centre, rng.uniform(0.12, 0.28) * side)
        frames = frames * (1 - alpha) + _sample(image, _source([place @ m for m in maps], side, device)) * alpha
        on_top = alpha > 0.5
        cover = torch.where(on_top, number, cover)
        if count > 1:
            flow = torch.where(on_top[:-1], _flow(maps, side, device), flow)
    return Clip(frames, flow, _visible(flow, cover), plain, (cover > 0).float())


def soften(rng: np.random.Generator, clip: Clip) -> Clip:
    """Blur a clip a little, as lenses, motion and codecs have blurred most footage.

    Photographs reduced in size are sharper than the frames of most videos: a network trained on nothing else added too
    much detail on the evaluation clips.
    """
    blur = Blur(*rng.uniform(0.3, 1.2, 2), rng.uniform(0, math.pi), size=7)
    return replace(clip, frames=apply_blur(clip.frames, blur), plain=apply_blur(clip.plain, blur))


def in_other_light(rng: np.random.Generator, clip: Clip) -> Clip:
    """Relight a clip and permute the colours of a quarter of the clips: this makes more of few photographs."""
    order = rng.permutation(3) if rng.random() < 0.25 else np.arange(3)
    lit = relight(torch.cat((clip.frames, clip.plain))[:, order], rng, Augmentation())
    frames, plain = lit.split(len(clip.frames))
    return replace(clip, frames=frames, plain=plain)


def lay_over(
    rng: np.random.Generator, frames: torch.Tensor, picture: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay a moving piece of a picture (3, h, w) over frames (t, 3, H, W): (edited frames, soft mask (t, 1, H, W)).

    What is under the mask is edited; the rest keeps its own detail, as local editing does.
    """
    count, (height, width) = len(frames), frames.shape[-2:]
    side = max(height, width)
    maps = _tracks(rng, count, side, float(np.exp(rng.uniform(math.log(0.05), math.log(4.0)))), 2.0)
    inside = _source(maps, side, frames.device)[:, :height, :width]
    centre = (rng.uniform(0.25, 0.75) * width, rng.uniform(0.25, 0.75) * height)
    alpha = _blob(rng, inside, centre, rng.uniform(0.15, 0.3) * min(height, width))
    scale = inside.new_tensor([(picture.shape[-1] - 1) / side, (picture.shape[-2] - 1) / side])
    layer = _sample(picture, inside * scale)
    return frames * (1 - alpha) + layer * alpha, alpha


def _visible(flow: torch.Tensor, cover: torch.Tensor) -> torch.Tensor:
    """Pixels whose target is inside the frame, on the same layer, and not on a layer's soft edge."""
    if not len(flow):
        return flow[:, :1]
    side = flow.shape[-1]
    axis = torch.arange(side, device=flow.device, dtype=flow.dtype)
    x, y = axis + flow[:, 0], axis.view(-1, 1) + flow[:, 1]
    inside = (x >= 0) & (y >= 0) & (x <= side - 1) & (y <= side - 1)
    index = (y.round().long().clamp(0, side - 1) * side + x.round().long().clamp(0, side - 1)).flatten(1)
    there = cover[1:].flatten(1).gather(1, index).view(len(flow), side, side)
    label = cover[:-1].float()
    edge = F.max_pool2d(label, 5, 1, 2) != -F.max_pool2d(-label, 5, 1, 2)
    return (inside & (there == cover[:-1, 0])).unsqueeze(1).float() * (~edge).float()


def make_reference(rng: np.random.Generator, frames: torch.Tensor, side: int, whole_cells: float = 0.5) -> torch.Tensor:
    """An identity image of a clip's content: one of its frames, moved, turned, rescaled and re-lit (1,3,side,side).

    A share `whole_cells` is only moved, by multiples of CELL px (often not at all): a network that sees cells learns to
    find content there first. How much the others are changed is drawn evenly from nothing to the most.
    """
    frame, own = frames[int(rng.integers(len(frames)))], frames.shape[-1]
    if rng.random() < whole_cells:
        half = own // (2 * CELL)  # cells of which at least so many stay in the picture
        shift = CELL * rng.integers(half - side // CELL, half + 1, 2) * (rng.random() < 0.8)
        matrix = _similarity((0.0, 0.0), 1.0, 0.0, *shift.astype(float))
        light, gamma = rng.uniform(0.95, 1.05), 1.0
    else:
        most = rng.random()
        zoom, angle = float(np.exp(most * rng.uniform(-0.35, 0.35))), most * rng.uniform(-0.35, 0.35)
        centre = ((side - 1) / 2, (side - 1) / 2)
        shift = most * rng.uniform(-0.3, 0.3, 2) * side + (own - side) / 2
        matrix = _similarity(centre, zoom, angle, *shift)
        if rng.random() < 0.3 * most:
            matrix = np.array([[-1, 0, own - 1], [0, 1, 0], [0, 0, 1.0]]) @ matrix
        light, gamma = rng.uniform(0.85, 1.15), rng.uniform(0.85, 1.15)
    picture = _sample(frame, _source([matrix], side, frame.device))
    return (picture.clamp_min(1e-4) ** gamma * light).clamp(0, 1)


def keep_part(rng: np.random.Generator, frames: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Imitate the unedited take of an edit: frames (t, 3, h, w) with a moving part, or all but it, of something else.

    Something else is a flat colour, as behind a studio's subject, or the `other` frames.
    """
    if rng.random() < 0.6:
        other = torch.from_numpy(rng.random((1, 3, 1, 1))).to(frames).expand_as(frames)
    mask = lay_over(rng, frames, frames[0])[1]
    mask = mask if rng.random() < 0.5 else 1 - mask
    return frames * mask + other * (1 - mask)
