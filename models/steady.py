"""Makes a video upscaler of any image upscaler: frames that agree with their neighbours and with the LR; no weights.

What happens to one frame, x (1, 3, H, W) upscaled by anything from y (1, 3, h, w), with up to two frames of its scene
before and after it. H/h and W/w may be any factors of 1 to 8; D is the resize from (H, W) to (h, w), U the one back.

1. Every frame is prepared once: its error e = D x - y (1, 3, h, w), its local contrast (1, 1, h, w) and, where the LR
   is clean, x less U e, which then shows in every LR pixel what was seen there.
2. Motion leads from y to each neighbour, (1, 2, h, w) in LR px. Two steps are chained.
3. Trust in it, (1, 1, h, w) in 0..1: does the way there and back return, and are the LR frames alike along it? How
   alike is enough follows from the noise of the LR and from how much e changes along the motion, which is how much the
   upscaler disagrees with itself: a steady one gains little from its neighbours and must not lose, a wild one gains.
4. The mean of x and its neighbours along the motion, by trust.
5. The residual of the mean against the LR, r (1, 3, h, w): against y itself where the LR is clean; else against the
   mean of the LR frames, with D blurred as much as this LR was, and smoothed. Of the blur of a compressed LR, which its
   edges show, r also takes out what the upscaler left in, where neighbours agree. U r is added.
6. Averaging takes contrast. It is given back, at most doubled, up to what the upscaler's own frames have here.

Nothing is carried from frame to frame, so a clip may be cut into chunks that overlap by REACH. Full-size pictures are
worked on in bands of rows; all that mixes pixels over a distance happens at the size of the LR or adds up over bands.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .layout.bands import BandedResize, warp_band
from .motion.flow import chain_pairs, in_frame, warp
from .source import Flows, box, edge_width, gauss, noise_of, round_trip

REACH = 2  # frames to each side that take part
SMALLEST, LARGEST = 1.0, 8.0  # size of an upscaled frame over that of its LR frame, along each side
SOURCES = ("automatic", "clean", "compressed")

_RETURN = 0.3  # LR px; the round trip of a motion misses its start by this where trust falls to 1/e
_ALIKE = 0.05  # change along the motion, frames in 0..1, beyond which a place says nothing about the upscaler
_TOLERANCE = 6.0  # likeness asked for, in deviations of noise and of the upscaler's disagreement with itself
_STEPS = {True: 1, False: 2}  # of the residual, by whether the LR is clean: clean frames were corrected before
_BLURS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2)  # LR px; what the LR's own blur is looked for among
_SMOOTH = 1.2  # LR px; smooths the residual of a compressed LR: with 0.6 smooth faces and walls turned blotchy
_SHARP = 0.53  # LR px; the width of edges of sharp pictures that were made smaller, as a Gaussian
_SOFT = 0.15  # LR px^2; the most that is taken for blur of the LR: a soft subject looks alike
_INVERSE = 2.0  # per LR px^2: detail finer than 1 px, so much stronger, inverts that blur at waves of 4 px
_CONTRAST = 1e-7  # of variance; less is none

Frames = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Controls:
    """Hold what the user sets, each in 0..1: 0 leaves the upscaler's frame as it is."""

    steadiness: float = 1.0
    fidelity: float = 1.0
    sharpness: float = 1.0

    def __post_init__(self):
        for name in ("steadiness", "fidelity", "sharpness"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1; got {getattr(self, name)}. Set it to 1.")


def steady(
    frames: Frames,
    flows: Flows,
    count: int,
    *,
    clean: Sequence[bool],
    cuts: Collection[int] = (),
    controls: Controls = Controls(),
    numbers: range | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> Iterator[torch.Tensor]:
    """Yield frames (1, 3, H, W) in 0..1 of a clip of `count` frames: all, or those of the range `numbers`.

    `frames(i)` gives LR frame i (1, 3, h, w) and the upscaled one (1, 3, H, W), in 0..1; `flows(i)` the motion from
    LR frame i to i + 1 and back, (1, 2, h, w) px each. Both are asked once for every i, in rising order, no more than
    REACH ahead, and all on one device. `clean` says it of every LR frame, see source.cleanness(); `cuts` are the frames
    that start a scene. Raises ValueError where the sizes of a pair do not belong together.
    """
    held: dict[int, _Frame] = {}
    motion: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    bounds = [0, *sorted(cuts), count]
    for number in range(count) if numbers is None else numbers:
        start = max(edge for edge in bounds if edge <= number)
        stop = min(edge for edge in bounds if edge > number)
        near = range(max(start, number - REACH), min(stop, number + REACH + 1))
        for each in near:
            if each not in held:
                held[each] = _prepared(*frames(each), clean[each], controls.fidelity)
            if each + 1 in near and each not in motion:
                motion[each] = flows(each)
        held = {each: frame for each, frame in held.items() if each >= near.start}
        motion = {each: pair for each, pair in motion.items() if each >= near.start}
        if check_cancelled is not None:
            check_cancelled()
        if controls.steadiness == controls.fidelity == 0:
            yield held[number].upscaled
            continue
        others = [_Other(held[each], *chain_pairs(motion, number, each)) for each in near if each != number]
        yield _steadied(held[number], others, clean[number], controls, check_cancelled)


def check_pair(lr: tuple[int, int], upscaled: tuple[int, int]) -> None:
    """Raise ValueError where an upscaled frame (height, width) cannot come from an LR frame of a size."""
    ratios = [large / small for large, small in zip(upscaled, lr, strict=True)]
    if min(ratios) < SMALLEST or max(ratios) > LARGEST:
        raise ValueError(
            f"the upscaled frames must be {SMALLEST:.0f} to {LARGEST:.0f} times as large as the LR frames; got "
            f"{upscaled[1]}x{upscaled[0]} for {lr[1]}x{lr[0]}. Give the frames that went into the upscaler."
        )
    if max(ratios) > 1.03 * min(ratios):  # sides rounded to multiples of 8 or 16 px stay below
        raise ValueError(
            f"upscaled and LR frames must have the same shape; got {upscaled[1]}x{upscaled[0]} and {lr[1]}x{lr[0]}, "
            f"{ratios[1]:.2f} times as wide and {ratios[0]:.2f} times as high. Crop both alike."
        )


def likeness(lr: torch.Tensor, upscaled: torch.Tensor) -> float:
    """Correlate the brightness of an LR frame and of its upscaled frame, reduced: 1 for the same picture."""
    grid = BandedResize(lr, upscaled)
    first, second = (x.mean(1) - x.mean() for x in (lr, grid.down(upscaled)))
    noise = (2 / 255) ** 2  # plain frames are alike
    scale = (first.square().mean() + noise) * (second.square().mean() + noise)
    return float(((first * second).mean() + noise) / scale.sqrt())


# One frame


@dataclass
class _Frame:
    """Hold a prepared frame: LR, upscaled, error D x - y, local contrast of the upscaler's own frame, and sizes."""

    lr: torch.Tensor
    upscaled: torch.Tensor
    error: torch.Tensor
    contrast: torch.Tensor
    grid: BandedResize


class _Other:
    """A neighbour, brought to the frame at the size of the LR."""

    def __init__(self, frame: _Frame, there: torch.Tensor, back: torch.Tensor):
        self.frame, self.there = frame, there
        self.miss = round_trip(there, back)
        self.seen = in_frame(there)
        planes = torch.cat((frame.lr, frame.error, frame.contrast), 1)
        self.lr, self.error, contrast = warp(planes, there, "bicubic").split((3, 3, 1), 1)
        self.contrast = contrast.clamp_min(0)

    def trust(self, now: _Frame) -> torch.Tensor:
        """Weigh the neighbour against the frame's own 1, (1, 1, h, w)."""
        returns = torch.exp(-self.miss / _RETURN**2) * self.seen
        unlike = box((now.lr - self.lr).abs().mean(1, keepdim=True)).square()
        sure = returns * torch.exp(-unlike / _ALIKE**2)
        disagreement = (sure * (now.error - self.error).square().mean(1, keepdim=True)).sum() / (sure.sum() + 1e-6)
        allowed = disagreement + noise_of(now.lr, self.lr, self.miss)
        tolerance = (_TOLERANCE**2 * allowed).clamp(1e-8, (2 * _ALIKE) ** 2)
        return returns * torch.exp(-unlike / tolerance)


def _prepared(lr: torch.Tensor, upscaled: torch.Tensor, clean: bool, fidelity: float) -> _Frame:
    check_pair(lr.shape[-2:], upscaled.shape[-2:])
    grid = BandedResize(lr, upscaled)
    error = grid.down(upscaled) - lr
    frame = _Frame(lr, upscaled, error, _contrast(upscaled, grid), grid)
    if clean and fidelity:
        frame.upscaled = _added(upscaled, -fidelity * error, grid)
    return frame


def _steadied(
    now: _Frame, others: list[_Other], clean: bool, controls: Controls, check_cancelled: Callable[[], None] | None
) -> torch.Tensor:
    """Carry out steps 3 to 6."""
    grid = now.grid
    trusts = [controls.steadiness * other.trust(now) for other in others]
    total = 1 + sum(trusts)
    lr, contrast = (
        (own + sum(trust * moved for trust, moved in zip(trusts, theirs, strict=True))) / total
        for own, theirs in ((now.lr, [o.lr for o in others]), (now.contrast, [o.contrast for o in others]))
    )
    mean = torch.empty_like(now.upscaled)
    for band in grid.bands:
        if check_cancelled is not None:
            check_cancelled()
        part, weight = now.upscaled[..., band, :].clone(), 1
        for other, trust in zip(others, trusts, strict=True):
            fine = grid.up(trust, band, "bilinear")
            part += fine * warp_band(other.frame.upscaled, grid.up_flow(other.there, band), band.start)
            weight = weight + fine
        mean[..., band, :] = part / weight
    residual = _residual(grid.down(mean), now.lr if clean else lr, clean, 1 - 1 / total, grid)
    result = _added(mean, controls.fidelity * residual, grid)
    return _sharpened(result, contrast, controls.sharpness, grid).clamp_(0, 1)


def _residual(
    reduced: torch.Tensor, seen: torch.Tensor, clean: bool, agreed: torch.Tensor | float, grid: BandedResize
) -> torch.Tensor:
    """Give r so that D (x + U r) shows what was seen; `reduced` is D x. All at the size of the LR.

    `agreed` (1, 1, h, w): the share of neighbours in what was seen.
    """
    sigma = 0.0 if clean else _blur_of(reduced, seen)
    residual = torch.zeros_like(reduced)
    for _ in range(_STEPS[clean]):
        missing = seen - gauss(reduced + grid.there_and_back(residual), sigma)
        residual = residual + (missing if clean else gauss(missing, _SMOOTH))
    if clean or (grid.high, grid.wide) == (grid.height, grid.width):
        return residual
    left = min(_SOFT, edge_width(seen) ** 2 - _SHARP**2) - sigma**2  # the blur that the upscaler did not take out
    if left > 0:
        shown = reduced + grid.there_and_back(residual)
        residual = residual + _INVERSE * left * agreed * (shown - gauss(shown, 1.0))
    return residual


def _blur_of(reduced: torch.Tensor, seen: torch.Tensor) -> float:
    """Find the Gaussian, in LR px, by which the LR is softer than a reduced frame."""
    errors = [float((seen - gauss(reduced, sigma)).square().mean()) for sigma in _BLURS]
    best = min(range(len(_BLURS)), key=errors.__getitem__)
    if best in (0, len(_BLURS) - 1):
        return _BLURS[best]
    # a parabola in sigma^2 through the best and its neighbours, so that no frame jumps to the next value
    x0, x1, x2 = (_BLURS[best + i] ** 2 for i in (-1, 0, 1))
    y0, y1, y2 = (errors[best + i] for i in (-1, 0, 1))
    slopes = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curve = (slopes[1] - slopes[0]) / (x2 - x0)
    return max(0.0, (x0 + x1) / 2 - slopes[0] / (2 * curve)) ** 0.5 if curve > 0 else _BLURS[best]


def _added(x: torch.Tensor, low: torch.Tensor, grid: BandedResize) -> torch.Tensor:
    """Add U low to a frame."""
    result = torch.empty_like(x)
    for band in grid.bands:
        result[..., band, :] = x[..., band, :] + grid.up(low, band)
    return result


def _sharpened(x: torch.Tensor, contrast: torch.Tensor, sharpness: float, grid: BandedResize) -> torch.Tensor:
    """Raise the local contrast of a frame, at most twice, to `contrast` (1, 1, h, w)."""
    if not sharpness:
        return x
    gain = (contrast / (_contrast(x, grid) + _CONTRAST)).sqrt().clamp(1, 2) - 1
    result = torch.empty_like(x)
    for band in grid.bands:
        result[..., band, :] = x[..., band, :] + sharpness * grid.up(gain, band, "bilinear") * _fine(x, band)
    return result


def _contrast(x: torch.Tensor, grid: BandedResize) -> torch.Tensor:
    """Give the mean square of the finest structure around every LR px, (1, 1, h, w)."""
    total = sum(grid.down_part(_fine(x, band).square().mean(1, keepdim=True), band) for band in grid.bands)
    return box(box(total.clamp_min(0)))


def _fine(x: torch.Tensor, band: slice) -> torch.Tensor:
    """Give rows of a frame less their blur by a tent of 5 px."""
    top, bottom = max(0, band.start - 2), min(x.shape[-2], band.stop + 2)
    padding = (2, 2, 2 - (band.start - top), 2 - (bottom - band.stop))
    wide = F.pad(x[..., top:bottom, :], padding, mode="replicate")
    return x[..., band, :] - F.avg_pool2d(F.avg_pool2d(wide, 3, 1), 3, 1)


# Small parts
