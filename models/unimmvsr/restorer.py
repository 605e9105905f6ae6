"""Restores an LR frame from itself and its neighbours: unrolled multi-frame back-projection.

What happens to a frame y (b, 3, h, w) in 0..1, with neighbours and the motion to each of them and back, to become
x (b, 3, H, W). D is the resize from (H, W) to (h, w), U the one back; the sides of x are 1 to 8 times those of y.

1. x = U y. Features (b, width, H/4, W/4) are one convolution of y on the grid of 4x4 pixels: at x4 that is y's own.
2. Trust in each neighbour, (b, 1, h, w) in 0..1: does the motion there and back return to its start, and are the
   frames alike along it? A clean neighbour whose pixels lie where those of y lie does not count: it shows nothing new.
   Where all together are trusted little, clean ones count less still.
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
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..layout.sizes import Bands, bands, resized, sampled
from ..motion.flow import warp

GRID = 4  # the network works on a grid of 4x4 output pixels
NEIGHBOURS = (-6, -2, -1, 1, 2, 6)  # frames that help: near ones are alike, far ones were sampled elsewhere
JUDGE_WIDTH = 32

_RETURN = 0.15, 0.3  # LR px; where a motion misses its start by this, trust falls to 1/e: clean, worn frames
_ALIKE = 0.05  # mean difference along the motion, frames in 0..1, where trust falls to 1/e
_TRUSTED = 4.0  # trust in all neighbours that the network is told of at most: more says no more
_HEARD = 1.4  # trust in all clean neighbours below which they count less: faint hints did more harm than good
_SAME = 0.1  # LR px; a clean neighbour whose pixels lie nearer to those of the frame shows nothing new
_NEAR = 0.1, 1.5  # what a neighbour's pixel counts far from it, and what makes the mean about 1
_SHARP = 3.6  # enlargement from which on the estimate is sampled bicubically
_CONTRAST, _MISSING, _ADDED = 4.0, 16.0, 0.1  # bring pixels, residuals and what is added to the size of features
_FINE = 16.0  # the same for the finest detail

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

    def forward(self, parts: list[torch.Tensor], int8: "Int8Step | None" = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the parts (b, c, h, w) in that order. What is missing may come as 2x2 pixels, each for four of the 4x4.

        Their weights are added up: the same as repeating each pixel, in half of the time. `int8` computes in its place.
        """
        weights = self.into.weight.to(parts[0]).split(self.parts, 1)
        weights = [_added_up(each, part.shape[1]) for each, part in zip(weights, parts, strict=True)]
        if int8 is not None:
            return int8(parts, weights, self.into.bias)
        x = F.conv2d(torch.cat(parts, 1), torch.cat(weights, 1), self.into.bias.to(parts[0]), padding=1)
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
        int8: Sequence["Int8Step"] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Restore LR `frame` (b, 3, h, w) in 0..1 to (b, 3, height, width).

        Each neighbour is an LR frame, the flow to it and the flow back, in LR px; there may be none. `wear` says how
        worn the frames are, 0..1: of worn ones those that do not move help, too, as noise is another. Pixels stay in
        float32; the convolutions run in the network's own dtype, those of steps that `int8` has in 8-bit integers.
        Returns the frame, not clamped, and features (b, width, height/4, width/4), rounded up.
        """
        large, dtype = (height, width), self.head.weight.dtype
        grid = (-(-height // GRID), -(-width // GRID))
        padding = (0, GRID * grid[1] - width, 0, GRID * grid[0] - height)
        mean = _mean(frame)
        x = resized(frame, large)
        colour = _mean(x)
        features = self.head((_CONTRAST * (resized(frame, grid) - mean)).to(dtype))
        others = [_Other(frame, *neighbour, large, wear) for neighbour in neighbours]
        said = sum((other.trust for other in others), torch.zeros_like(frame[:, :1]))
        heard = 1 - (1 - wear) * (1 - said / _HEARD).clamp(min=0)
        total = heard * said
        unlike = heard * sum((other.trust * other.unlike for other in others), torch.zeros_like(total)) / (total + 0.05)
        weights = [other.weight * F.interpolate(heard, other.weight.shape[-2:], mode="bilinear") for other in others]
        weight = sum(weights, torch.ones_like(total[..., :1, :1]))
        shares = [each / weight for each in weights]
        halves = [_halving(*pair, frame.device) for pair in zip(frame.shape[-2:], large, strict=True)]
        planes = [F.interpolate(p, grid, mode="bilinear") for p in (total.clamp(max=_TRUSTED), _MISSING * unlike)]
        planes = [plane.contiguous(memory_format=torch.channels_last) for plane in planes]
        cells = _cells(x, GRID, padding).sub_(mean.repeat_interleave(GRID**2, 1)).mul_(_CONTRAST)
        for step, instead in zip(self.steps, int8 or [None] * len(self.steps), strict=True):
            reduced = sampled(x, *halves)
            here = _missing_cells(frame - reduced[..., 1::2, 1::2], large, padding)
            there = torch.zeros_like(here)
            if others:
                missing = shares[0] * others[0].missing(reduced)
                for share, other in zip(shares[1:], others[1:], strict=True):
                    missing.addcmul_(share, other.missing(reduced))
                there = _missing_cells(missing, large, padding)
            features, added = step([part.to(dtype) for part in (cells, here, there, *planes, features)], instead)
            cells.add_(added, alpha=_CONTRAST * _ADDED)
            x = F.pixel_shuffle(cells, GRID)[..., :height, :width].mul_(1 / _CONTRAST).add_(mean)
        return x.add_(colour - _mean(x)), features


def _missing_cells(plane: torch.Tensor, large: tuple[int, int], padding: tuple[int, ...]) -> torch.Tensor:
    """Bring what is missing to the 4x4 grid: as 2x2 pixels where these hold all that is known, or as 4x4."""
    height, width = large[0] // 2, large[1] // 2
    if any(padding) or plane.shape[-2] > height or plane.shape[-1] > width:
        return _cells(_MISSING * resized(plane, large), GRID, padding)
    return _cells(_MISSING * resized(plane, (height, width)), GRID // 2, padding)


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

    def between(
        self, wear: float, dtype: torch.dtype | None = None
    ) -> tuple[dict[str, torch.Tensor], list["Int8Step"] | None]:
        """Give weights of `clean` for LR frames that are worn by `wear`, 0..1, see :meth:`wear_of`, in `dtype`.

        For torch.int8 they stay as they are, and the second value is what Restorer.forward takes as `int8`.
        """
        pairs = zip(self.clean.named_parameters(), self.worn.parameters(), strict=True)
        weights = {name: torch.lerp(clean, worn, wear) for (name, clean), worn in pairs}
        if dtype is torch.int8:
            return weights, [Int8Step(step, f"steps.{k}.", weights) for k, step in enumerate(self.clean.steps)]
        return {name: weight.to(dtype) for name, weight in weights.items()}, None

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


def _halving(small: int, large: int, device: torch.device) -> Bands:
    """Reduce a side as LR frames are reduced, but to samples half an LR pixel apart.

    Of n LR pixels it gives 2n + 1 samples, from edge to edge: every second one is a pixel of D x.
    """
    scale = large / small
    return bands(large, 2 * small + 1, 0.0, scale / 2, scale, device)


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
        returned, seen = warp(torch.cat((back, frame), 1), there).split((2, 3), 1)
        miss = (there + returned).square().sum(1, keepdim=True) / limit**2
        apart = (there - there.round()).square().sum(1, keepdim=True)  # of its pixels and those of this frame
        same = torch.exp(-apart / _SAME**2)
        self.unlike, same = _means(torch.cat(((here - seen).abs().mean(1, keepdim=True), same), 1)).split(1, 1)
        self.trust = torch.exp(-miss - (self.unlike / _ALIKE) ** 2) * (1 - (1 - wear) * same)
        small = tuple(frame.shape[-2:])
        twice = tuple(min(2 * few, many) for few, many in zip(small, large, strict=True))
        self.there, self.back = _grid(there, twice), _grid(back, small)
        self.mode = "bicubic" if large[0] * large[1] >= _SHARP**2 * small[0] * small[1] else "bilinear"
        self.weight = F.interpolate(self.trust, twice, mode="bilinear") * _nearness(self.there, small)

    def missing(self, halves: torch.Tensor) -> torch.Tensor:
        """Give what the neighbour shows beyond the estimate, reduced by :func:`_halving`, brought here."""
        seen = F.grid_sample(halves, self.back, self.mode, padding_mode="border", align_corners=True)
        return F.grid_sample(self.frame - seen, self.there, padding_mode="border", align_corners=False)


def _means(x: torch.Tensor) -> torch.Tensor:
    """Average 3x3 pixels of (b, c, h, w), zeros outside: in a quarter of the time of torch's pooling."""
    x = F.pad(x, (1, 1, 1, 1))
    x = (x[..., :-2] + x[..., 1:-1]).add_(x[..., 2:])
    return (x[..., :-2, :] + x[..., 1:-1, :]).add_(x[..., 2:, :]).div_(9)


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


Bytes = tuple[
    torch.Tensor, float, int
]  # (b, c, h, w) 0..255, scale, zero: (bytes - zero) * scale is what they stand for


class Int8Step:
    """A step in 8-bit integers, for CPUs that are faster at these: 0.38 of the time, 0.004 dB less on clips."""

    def __init__(self, step: Step, start: str, weights: Mapping[str, torch.Tensor]):
        """Round the weights of the step, whose names start so."""
        names = [f"body.{number}.{part}" for number in range(len(step.body)) for part in ("first", "second")]
        convolutions = [Int8Conv(*(weights[f"{start}{name}.{of}"] for of in ("weight", "bias"))) for name in names]
        self._body = list(zip(convolutions[::2], convolutions[1::2], strict=True))
        self._out = Int8Conv(weights[f"{start}out.weight"], weights[f"{start}out.bias"])

    def __call__(
        self, parts: list[torch.Tensor], weights: list[torch.Tensor], bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the parts, and the weights of the first convolution for each; give what the step gives."""
        features, inner, added = (
            torch.zeros_like(part, memory_format=torch.channels_last) for part in (parts[-1], parts[-1], parts[0])
        )
        rounded = [in_bytes(part, True) for part in parts]  # the scale of each goes into its weights
        widths, (batch, _, *sides) = [part.shape[1] for part in parts], parts[0].shape
        joined = torch.empty(batch, *sides, sum(widths), dtype=torch.uint8).movedim(-1, 1)
        for place, (part, _, _) in zip(joined.split(widths, 1), rounded, strict=True):
            place.copy_(part)
        weights = [weight * scale for weight, (_, scale, _) in zip(weights, rounded, strict=True)]
        F.leaky_relu_(Int8Conv(torch.cat(weights, 1), bias).add((joined, 1.0, rounded[0][2]), features), 0.1)
        for first, second in self._body:
            second.add(in_bytes(F.leaky_relu_(first.add(in_bytes(features), inner.zero_()), 0.1)), features)
        return features, self._out.add(in_bytes(features), added)


class Int8Conv:
    """A 3x3 convolution, padded by zeros: weights (o, c, 3, 3), each channel out with a scale, and bias (o,).

    PyTorch has these products for compiled networks, as operators that Python can call. Scales: Jacob et al. (2018).
    """

    _PLACE = ([1, 1], [1, 1], [1, 1], 1)  # stride, padding, dilation, groups
    _SUM = (1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "")  # float32 comes out, and is added

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor):
        scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        whole = (weight / scale.view(-1, 1, 1, 1)).round().to(torch.int8)
        packed = torch.ops.onednn.qconv_prepack(whole, scale, 1.0, 0, *self._PLACE)
        self._weight, self._bias = (packed, scale, torch.zeros(len(scale), dtype=torch.long)), bias

    def add(self, x: Bytes, onto: torch.Tensor) -> torch.Tensor:
        """Add to `onto` (b, o, h, w), channels_last, in place: new memory would cost as much as the products."""
        more = self._bias, *self._PLACE, *self._SUM
        return torch.ops.onednn.qconv2d_pointwise.binary(*x, *self._weight, onto, *more)


def in_bytes(x: torch.Tensor, even: bool = False) -> Bytes:
    """Round x to 256 levels from its least to its greatest value, or as far on both sides of 0 if `even`.

    Nothing is cut off. It has to be whole frames: the levels of a tile would be others.
    """
    least, greatest = min(float(x.amin()), 0.0), max(float(x.amax()), 0.0)  # zeros are what x is padded by
    if even:
        least, greatest = min(least, -greatest), max(greatest, -least)
    scale = max(greatest - least, 1e-12) / 255
    zero = round(-least / scale)
    q = torch.quantize_per_tensor(x, scale, zero, torch.quint8)
    return torch.empty(0, dtype=torch.uint8).set_(q.untyped_storage(), 0, q.shape, q.stride()), scale, zero  # no copy


@lru_cache(1)
def int8_works() -> bool:
    """Tell whether this CPU has instructions for it (VNNI) and this PyTorch the operators: tried on a small example."""
    if not getattr(torch.cpu, "_is_vnni_supported", bool)():
        return False
    x = torch.linspace(-1, 2, 8 * 6 * 6).sin().view(1, 6, 6, 8).movedim(-1, 1)
    weight, bias = torch.linspace(-3, 3, 8 * 8 * 9).cos().view(8, 8, 3, 3), torch.linspace(-1, 1, 8)
    right = F.conv2d(x, weight, bias, padding=1)
    try:
        found = Int8Conv(weight, bias).add(in_bytes(x), torch.zeros_like(x))
    except (AttributeError, RuntimeError, TypeError):  # operators that are missing, or want other arguments
        return False
    return bool((found - right).abs().max() < 0.05 * right.abs().max())


def cpu_convolutions() -> torch.dtype | None:
    """Give the format in which this CPU convolves in less time than in float32: bf16 with AMX, int8 with VNNI."""
    # measured of the restorer's: bf16 a half to two thirds with AMX, without it up to 1.8 times; int8 0.38
    if getattr(torch.cpu, "_is_amx_tile_supported", bool)():  # older versions of torch say less
        return torch.bfloat16
    return torch.int8 if int8_works() else None
