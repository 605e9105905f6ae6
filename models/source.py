"""What LR frames are like: how clean a scene is, its noise, the width of its edges.

A restorer that holds every pixel for right makes noise and blocks sharp; one that does not gives away detail. Which of
the two an LR is cannot be seen in one frame; along the motion it can.
"""

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F

from .motion.flow import warp

_RETURN = 0.3  # px; the round trip of a motion misses its start by this where trust in it falls to 1/e
_ALIKE = 0.05  # change along the motion, frames in 0..1, beyond which a place says nothing about noise
_DARK, _LIGHT = 0.05, 0.95  # beyond these a pixel may be clipped and hides noise
_FLAT = 0.3  # share of pixels, the flattest, that noise is measured in
_DIRTY = 0.17 / 255**2  # px^3; noise and blur, see _dirt(), from which an LR counts as compressed
_EDGES = 0.05  # share of pixels, the steepest, in which a picture's edges are looked for
_SEEN = 1 << 20  # pixels that a median is taken of
_SAMPLES = 12  # pairs of frames that a scene is judged by
_SURE = 4.0  # power of the score that turns it into an answer: from 0.9 to 0.1 within a factor of 3

Flows = Callable[[int], tuple[torch.Tensor, torch.Tensor]]  # from frame i to i + 1, and back


def cleanness(
    frames: Callable[[int], torch.Tensor], flows: Flows, count: int, cuts: Collection[int] = ()
) -> list[float]:
    """Tell of every frame how clean it is, 0..1: one answer a scene, from up to 12 of its pairs of frames.

    1: right to the pixel; 0: blurred, noisy or compressed, so that only larger shapes and colours count; near 0.5 is
    in doubt, as is a scene of one frame. `frames(i)` gives LR frame i (1, 3, h, w), `flows(i)` the motion to the next
    and back, (1, 2, h, w) px each; any order.
    """
    edges = [0, *sorted(cuts), count]
    answers = []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        pairs = stop - start - 1
        chosen = sorted({start + i * pairs // _SAMPLES for i in range(_SAMPLES)}) if pairs else []
        scores = torch.tensor([_dirt(frames(i), frames(i + 1), *flows(i)) for i in chosen])
        answer = 1 / (1 + (float(scores.median()) / _DIRTY) ** _SURE) if chosen else 0.5
        answers += [answer] * (stop - start)
    return answers


def _dirt(first: torch.Tensor, second: torch.Tensor, there: torch.Tensor, back: torch.Tensor) -> float:
    """Give the noise of a pair, where it is coarse, over its share of fine texture, times the cubed width of edges.

    Noise alone does not tell: rounding and motion leave more in a sharp, lively clip than heavy compression leaves in
    a dull one. But what compresses, or was blurred before, takes the finest octave of the picture first; and what it
    leaves in flat places is coarse, while what motion leaves is as fine as the texture. Edges that are sharp to the
    pixel speak for the frames: a small file keeps them, and with them most of what it shows is right.
    """
    moved, miss = warp(second, there, "bicubic"), round_trip(there, back)
    grey, change = first.mean(1, keepdim=True), (first - moved).mean(1, keepdim=True)
    soft, slow = gauss(grey, 0.6), gauss(change, 1.2) - gauss(change, 2.4)
    fine, coarse = (grey - soft).square().mean(), (soft - gauss(grey, 1.2)).square().mean()
    noise = noise_of(first, moved, miss) * noise_of(first, moved, miss, slow)
    return float(noise.sqrt() * coarse / (fine + 1e-9)) * edge_width(first) ** 3


def edge_width(frame: torch.Tensor) -> float:
    """Give the median width of the steepest edges of a frame (1, 3, h, w), in px, as the sigma of a Gaussian.

    A blur of 1 px leaves s / sqrt(s^2 + 1) of the slope of an edge of width s (Zhuo and Sim 2011). Thin lines and
    texture count as narrow edges.
    """
    grey = frame.mean(1, keepdim=True)
    slope, softer = _slope(grey), _slope(gauss(grey, 1.0))
    steep = slope.flatten()[:: -(-slope.numel() // _SEEN)].quantile(1 - _EDGES)
    crest = (slope >= steep) & (slope >= F.max_pool2d(slope, 3, 1, 1))
    ratio = ((slope + 1e-6) / (softer + 1e-6))[crest].clamp_min(1.001)
    return float((ratio.square() - 1).rsqrt().median())


def _slope(x: torch.Tensor) -> torch.Tensor:
    wide = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across, down = wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2], wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]
    return (across.square() + down.square()).sqrt() / 2


def noise_of(
    frame: torch.Tensor, moved: torch.Tensor, miss: torch.Tensor, band: torch.Tensor | None = None
) -> torch.Tensor:
    """Give the variance of what changes along motion that returns, where the frame is flat and not clipped.

    `band` (1, 1, h, w) is a part of the change to be measured in its place.
    """
    texture = box((frame - box(frame)).square().mean(1, keepdim=True))
    change = (frame - moved).square().mean(1, keepdim=True)
    good = (miss < _RETURN**2) & ((frame > _DARK) & (frame < _LIGHT)).all(1, keepdim=True)
    good &= box(change) < _ALIKE**2
    if not good.any():
        return change.new_zeros(())
    texture, change = texture[good], (change if band is None else band.square())[good]
    step = -(-len(texture) // _SEEN)
    texture, change = texture[::step], change[::step]
    return change[texture <= texture.quantile(_FLAT)].median()


def round_trip(there: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """Give by how much, squared, going there and back misses the start, (1, 1, h, w) in px^2."""
    return (there + warp(back, there)).square().sum(1, keepdim=True)


def box(x: torch.Tensor) -> torch.Tensor:
    """Blur by 3x3 px, fewer at the border."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def gauss(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur by a Gaussian of `sigma` px; the border repeats."""
    if not sigma:
        return x
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device).square() / (2 * sigma**2)))
    kernel = (kernel / kernel.sum()).to(x)
    planes = F.pad(x.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return planes.view_as(x)
