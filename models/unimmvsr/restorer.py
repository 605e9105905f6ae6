"""Restores an LR frame from itself and its neighbours: unrolled multi-frame back-projection.

What happens to a frame y (b, 3, h, w) in 0..1, with neighbours and the motion to each of them and back, to become
x (b, 3, H, W). D is the resize from (H, W) to (h, w), U the one back; the sides of x are 1 to 8 times those of y.

1. x = U y. Features (b, width, H/4, W/4) are one convolution of y on the grid of 4x4 pixels: at x4 that is y's own.
2. Trust in each neighbour, (b, 1, h, w) in 0..1: does the motion there and back return to its start, and are the
   frames alike along it? A clean neighbour whose pixels lie where those of y lie does not count: it shows nothing new.
3. Three times:
   a. What is missing here: y - D x.
   b. What is missing there: x is reduced as by D, but to a sample every half LR pixel, which loses nothing of what D
      leaves, and is sampled where each neighbour's pixels lie, bicubically, and below an enlargement of 3.6 bilinearly,
      as these weights want it. What the neighbour shows beyond it is brought back along the motion to a grid twice as
      fine as y's, averaged by trust and by how near a pixel of the neighbour lies.
   c. A small network takes x, both residuals, trust and features on the 4x4 grid, and says what to add to x. Residuals
      are enlarged to the pixels of x, or to half as many a side where that holds them.

4. The mean colour becomes that of U y again: with weights for worn frames it drifted by a level of 255.

So every step asks how the estimate would look in each LR frame nearby: the physics of sampling is built in, and what
is learned is how far to believe a residual. Irani and Peleg (1991) did it by hand; unrolled into a network as in Haris
et al. (2018). Nothing is carried from frame to frame.

LR frames that are right to the pixel, and worn ones (blurred, noisy, compressed) ask for opposite answers to a
residual: there it is a command, here evidence. So there are two sets of weights, the second trained on from the first;
a judge looks at the LR frames and says how worn they are, 0..1, and the weights used lie that far on the straight line
between the two (as models fine-tuned from one start may be averaged: Wortsman et al. 2022).
"""

import math
from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call

from ..motion.flow import warp

GRID = 4  # the network works on a grid of 4x4 output pixels
NEIGHBOURS = (-6, -2, -1, 1, 2, 6)  # frames that help: near ones are alike, far ones were sampled elsewhere
JUDGE_WIDTH = 32
WARPS = 1  # of the built-in motion: with 2 the gain was the same within 0.005 dB

_RETURN = 0.15, 0.3  # LR px; where a motion misses its start by this, trust falls to 1/e: clean, worn frames
_ALIKE = 0.05  # mean difference along the motion, frames in 0..1, where trust falls to 1/e
_TRUSTED = 4.0  # trust in all neighbours that the network is told of at most: more says no more
_SAME = 0.1  # LR px; a clean neighbour whose pixels lie nearer to those of the frame shows nothing new
_NEAR = 0.1, 1.5  # what a neighbour's pixel counts far from it, and what makes the mean about 1
_SHARP = 3.6  # enlargement from which on the estimate is sampled bicubically
_BAND = 32  # samples of a side that are reduced at once
_CONTRAST, _MISSING, _ADDED = 4.0, 16.0, 0.1  # bring pixels, residuals and what is added to the size of features
_FINE = 16.0  # the same for the finest detail

Bands = list[tuple[slice, torch.Tensor]]  # pixels along a side, and what makes samples of them
Neighbour = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # frame (b, 3, h, w), flow there and back (b, 2, h, w)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around an activation, added to what came in."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.first = ops.Conv2d(width, width, 3, padding=1)
        self.second = ops.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.leaky_relu(self.first(x), 0.1, inplace=True)  # new memory would cost as much as the sums
        return self.second(inner).add_(x)


class Step(nn.Module):
    """Says what to add to the estimate: what is known on the 4x4 grid -> features, 4x4 blocks of pixels."""

    def __init__(self, width: int, blocks: int, ops: ModuleType):
        super().__init__()
        cell = 3 * GRID**2
        self.parts = [cell, cell, cell, 1, 1, width]  # estimate, missing here and there, trust, unlikeness, features
        self.into = ops.Conv2d(sum(self.parts), width, 3, padding=1)
        self.body = nn.Sequential()
        for _ in range(blocks):
            self.body.append(ResidualBlock(width, ops))
        self.out = ops.Conv2d(width, cell, 3, padding=1)

    def forward(self, parts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the parts (b, c, h, w) in that order. What is missing may come as 2x2 pixels, each for four of the 4x4.

        Their weights are added up: the same as repeating each pixel, in half of the time.
        """
        weights = zip(self.into.weight.to(parts[0]).split(self.parts, 1), parts, strict=True)
        weight = torch.cat([_added_up(weight, part.shape[1]) for weight, part in weights], 1)
        x = F.conv2d(torch.cat(parts, 1), weight, self.into.bias.to(weight), padding=1)
        features = self.body(F.leaky_relu(x, 0.1, inplace=True))
        return features, self.out(features)


def _added_up(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Add up weights (o, 3 * 16, h, w) for 4x4 blocks of pixels that repeat fewer ones, (o, channels, h, w)."""
    if channels == weight.shape[1]:
        return weight
    side = math.isqrt(channels // 3)
    return weight.unflatten(1, (3, side, GRID // side, side, GRID // side)).sum((3, 5)).flatten(1, 3)


class Restorer(nn.Module):
    """Give the restored frame and the features it was made from, with one set of weights."""

    def __init__(self, width: int = 48, blocks: int = 4, steps: int = 3, ops: ModuleType = nn):
        super().__init__()
        self.head = ops.Conv2d(3, width, 3, padding=1)
        self.steps = nn.ModuleList()
        for _ in range(steps):
            self.steps.append(Step(width, blocks, ops))

    def forward(
        self,
        frame: torch.Tensor,
        neighbours: Sequence[Neighbour],
        height: int,
        width: int,
        wear: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Restore LR `frame` (b, 3, h, w) in 0..1 to (b, 3, height, width).

        Each neighbour is an LR frame, the flow to it and the flow back, in LR px; there may be none. `wear` says how
        worn the frames are, 0..1: of worn ones those that do not move help, too, as noise is another. Pixels stay in
        float32; the convolutions run in the network's own dtype. Returns the frame, not clamped, and features
        (b, width, height/4, width/4), rounded up, in that dtype.
        """
        large, dtype = (height, width), self.head.weight.dtype
        grid = (-(-height // GRID), -(-width // GRID))
        padding = (0, GRID * grid[1] - width, 0, GRID * grid[0] - height)
        mean = _mean(frame)
        x = _resized(frame, large)
        colour = _mean(x)
        features = self.head((_CONTRAST * (_resized(frame, grid) - mean)).to(dtype))
        others = [_Other(frame, *neighbour, large, wear) for neighbour in neighbours]
        total = sum((other.trust for other in others), torch.zeros_like(frame[:, :1]))
        unlike = sum((other.trust * other.unlike for other in others), torch.zeros_like(total)) / (total + 0.05)
        weight = sum((other.weight for other in others), torch.ones_like(total[..., :1, :1]))
        rows = _bands(frame.shape[-2], height, frame.device)
        columns = _bands(frame.shape[-1], width, frame.device)
        planes = [F.interpolate(p, grid, mode="bilinear") for p in (total.clamp(max=_TRUSTED), _MISSING * unlike)]
        planes = [plane.contiguous(memory_format=torch.channels_last) for plane in planes]
        cells = _cells(_CONTRAST * (x - mean), GRID, padding)
        for step in self.steps:
            reduced = _halves(x, rows, columns)
            here = _missing_cells(frame - reduced[..., 1::2, 1::2], large, padding)
            there = torch.zeros_like(here)
            if others:
                missing = sum(other.weight * other.missing(reduced) for other in others) / weight
                there = _missing_cells(missing, large, padding)
            features, added = step([part.to(dtype) for part in (cells, here, there, *planes, features)])
            cells.add_(added, alpha=_CONTRAST * _ADDED)
            x = torch.add(mean, F.pixel_shuffle(cells, GRID)[..., :height, :width], alpha=1 / _CONTRAST)
        return x + (colour - _mean(x)), features


def _missing_cells(plane: torch.Tensor, large: tuple[int, int], padding: tuple[int, ...]) -> torch.Tensor:
    """Bring what is missing to the 4x4 grid: as 2x2 pixels where these hold all that is known, or as 4x4."""
    height, width = large[0] // 2, large[1] // 2
    if any(padding) or plane.shape[-2] > height or plane.shape[-1] > width:
        return _cells(_MISSING * _resized(plane, large), GRID, padding)
    return _cells(_MISSING * _resized(plane, (height, width)), GRID // 2, padding)


def _cells(plane: torch.Tensor, side: int, padding: tuple[int, ...]) -> torch.Tensor:
    """Make blocks of side x side pixels channels; one convolution over what is channels_last saves a quarter of it."""
    plane = F.pad(plane, padding, mode="replicate") if any(padding) else plane
    return F.pixel_unshuffle(plane, side).contiguous(memory_format=torch.channels_last)


class Judge(nn.Module):
    """Says how worn LR frames are: (b, 3, h, w) in 0..1 -> (b,), below 0 for clean, above 0 for worn ones."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.first = ops.Conv2d(3, width // 2, 3, padding=1)
        self.second = ops.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.third = ops.Conv2d(width, width, 3, padding=1)
        self.said = ops.Conv2d(width, 2, 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        coarse = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = (_FINE * (frames - coarse)).to(self.first.weight.dtype)  # what is there says nothing of how worn it is
        for layer in (self.first, self.second, self.third):
            x = F.leaky_relu(layer(x), 0.1)
        verdict, weight = self.said(x).float().unbind(1)
        weight = weight.flatten(1).softmax(-1).view_as(weight)  # sky and walls say little
        return (verdict * weight).sum(-1).sum(-1)


class Restorers(nn.Module):
    """Restore with weights between those for clean and those for worn LR frames."""

    def __init__(self, width: int = 48, blocks: int = 4, steps: int = 3, ops: ModuleType = nn):
        super().__init__()
        self.clean = Restorer(width, blocks, steps, ops)
        self.worn = Restorer(width, blocks, steps, ops)
        self.judge = Judge(JUDGE_WIDTH, ops)
        self.to(memory_format=torch.channels_last)  # convolutions in bf16 take three quarters of the time

    def forward(
        self,
        frame: torch.Tensor,
        neighbours: Sequence[Neighbour],
        height: int,
        width: int,
        wear: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Restore as :class:`Restorer` does LR frames that are worn by `wear`, 0..1; see :meth:`wear_of`.

        The convolutions run in `dtype`, None for that of the weights.
        """
        pairs = zip(self.clean.named_parameters(), self.worn.parameters(), strict=True)
        weights = {name: torch.lerp(clean, worn, wear).to(dtype) for (name, clean), worn in pairs}
        return functional_call(self.clean, weights, (frame, neighbours, height, width, wear))

    @staticmethod
    def wear_of(verdicts: Sequence[torch.Tensor]) -> float:
        """Give the wear 0..1 of a frame from what the judge says of it and its neighbours.

        In steps of 1/64: the last bits of a verdict depend on the number of threads, and a film must not.
        """
        return round(64 * float(torch.stack(list(verdicts)).mean().sigmoid())) / 64


def neighbours_in(number: int, scene: range) -> list[int]:
    """Give the frames of a scene that help frame `number`: NEIGHBOURS; at its ends the last frame is the farthest."""
    near = {min(max(number + offset, scene[0]), scene[-1]) for offset in (NEIGHBOURS[0], NEIGHBOURS[-1])}
    near |= {number + offset for offset in NEIGHBOURS[1:-1]}
    return sorted(frame for frame in near - {number} if frame in scene)


def _halves(x: torch.Tensor, rows: Bands, columns: Bands) -> torch.Tensor:
    """Reduce an estimate (b, 3, H, W) as LR frames are reduced, but to samples half an LR pixel apart.

    Of n LR pixels along a side it gives 2n + 1 samples, from edge to edge: every second one is a pixel of D x.
    """
    x = torch.cat([weights @ x[..., taken, :] for taken, weights in rows], 2)
    return torch.cat([x[..., taken] @ weights.mT for taken, weights in columns], 3)


def _bands(small: int, large: int, device: torch.device) -> Bands:
    """Give the pixels along a side that every few samples are made of, and a matrix of their weights."""
    scale, bands = large / small, []
    size = max(scale, 1.0)  # of an LR pixel, in pixels; the kernel is four wide
    for begun in range(0, 2 * small + 1, _BAND):
        numbers = torch.arange(begun, min(begun + _BAND, 2 * small + 1), device=device)
        ends = scale * begun / 2 - 2 * size, scale * (begun + _BAND - 1) / 2 + 2 * size
        taken = slice(max(0, math.floor(ends[0])), min(large, math.ceil(ends[1])))
        pixels = torch.arange(taken.start, taken.stop, device=device) + 0.5
        weights = _bicubic((pixels - scale / 2 * numbers[:, None]).abs() / size)
        bands.append((taken, weights / weights.sum(1, keepdim=True)))
    return bands


def _bicubic(distance: torch.Tensor) -> torch.Tensor:
    """Give the kernel of Pillow's bicubic."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


class _Other:
    """A neighbour: how far it can be trusted, and what it misses in an estimate."""

    def __init__(
        self,
        here: torch.Tensor,
        frame: torch.Tensor,
        there: torch.Tensor,
        back: torch.Tensor,
        large: tuple[int, int],
        wear: float,
    ):
        self.frame = frame
        limit = (1 - wear) * _RETURN[0] + wear * _RETURN[1]
        miss = (there + warp(back, there)).square().sum(1, keepdim=True) / limit**2
        self.unlike = F.avg_pool2d((here - warp(frame, there)).abs().mean(1, keepdim=True), 3, 1, 1)
        apart = (there - there.round()).square().sum(1, keepdim=True)  # of its pixels and those of this frame
        new = 1 - (1 - wear) * F.avg_pool2d(torch.exp(-apart / _SAME**2), 3, 1, 1)
        self.trust = torch.exp(-miss) * torch.exp(-((self.unlike / _ALIKE) ** 2)) * new
        small = tuple(frame.shape[-2:])
        twice = tuple(min(2 * few, many) for few, many in zip(small, large, strict=True))
        self.there, self.back = _grid(there, twice), _grid(back, small)
        self.mode = "bicubic" if large[0] * large[1] >= _SHARP**2 * small[0] * small[1] else "bilinear"
        self.weight = F.interpolate(self.trust, twice, mode="bilinear") * _nearness(self.there, small)

    def missing(self, halves: torch.Tensor) -> torch.Tensor:
        """Give what the neighbour shows beyond the estimate, reduced by :func:`_halves`, brought here."""
        seen = F.grid_sample(halves, self.back, self.mode, padding_mode="border", align_corners=True)
        return F.grid_sample(self.frame - seen, self.there, padding_mode="border", align_corners=False)


def _nearness(grid: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Give the weights (b, 1, H, W), about 1, of what was sampled at `grid` between pixels of a frame of `size`."""
    places = (grid + 1) / 2 * grid.new_tensor([size[1], size[0]])
    away = (places - places.floor() - 0.5).square().sum(-1).unsqueeze(1)  # squared, in its px
    return _NEAR[1] * (_NEAR[0] + torch.exp(-4 * away))


def _grid(flow: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Give where a flow (b, 2, h, w) in px leads from every pixel of `size`, (b, H, W, 2) in -1..1, edge to edge."""
    half = flow.new_tensor([flow.shape[-1] / 2, flow.shape[-2] / 2]).view(1, 2, 1, 1)
    ways = F.interpolate(flow / half, size, mode="bilinear")
    rows, columns = ((2 * torch.arange(side, device=flow.device) + 1) / side - 1 for side in size)
    ways[:, 0] += columns
    ways[:, 1] += rows[:, None]
    return ways.movedim(1, -1)


def _mean(x: torch.Tensor) -> torch.Tensor:
    """Give the mean colour (b, c, 1, 1), row by row: in one sum its last bits would depend on the number of threads."""
    return x.mean(3, keepdim=True).mean(2, keepdim=True)


def _resized(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize as models.layout.sizes.resize_clip does: Pillow's bicubic."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
