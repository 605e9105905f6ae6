"""Gives a clip that was edited at a low resolution the true detail of its original back, where the edit left it alone.

What happens to one frame, x (1, 3, H, W) upscaled from y (1, 3, h, w), with an original of any size and frame count:

1. Once for the clip, match_frames() finds which frame of the original belongs to which of the clip: rate and offset.
2. That frame is resized to (H, W), and reduced by the same resize D that leads from (H, W) to (h, w).
3. Motion leads from y, where it is worn from D x, to the reduced frame, (1, 2, h, w) px, and back. D x lost the noise
   that a worn y has: trust is higher and steadier by it.
4. Trust in it, (1, 1, h, w) in 0..1: the way there and back returns, colours are alike, and so is the structure around.
   Where the edit changed the picture none of this holds. Structure that a worn y has lost is no difference in colour.
   A frame of another moment, before the original begins or after its end, is trusted less.
5. By trust, the band that D takes away comes from the original instead of the upscaler; where the LR is compressed,
   all of the picture does, as the LR itself is wrong there.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .layout.bands import BandedResize, warp_band
from .layout.sizes import resize_clip
from .motion.estimation import FlowEstimator
from .motion.flow import in_frame, warp
from .source import box, gauss, round_trip

_RETURN = 0.3  # LR px; the round trip misses its start by this where trust falls to 1/e
_ALIKE = 0.05  # difference of the frames, in 0..1, where trust falls to 1/e
_WORN_ALIKE = 0.03  # the same of their colours alone, where the LR is worn and has lost structure
_STRUCTURE, _AROUND = 1.5, 3.0  # LR px: finer than the first is structure; compared over the second
_NOISE = (3 / 255) ** 2  # variance of structure that counts as none: plain places are alike
_AWAY = 4.0  # frames; a picture of another moment by this is trusted half: what is too fine for the LR has moved

_SHARES = (0.35, 0.5, 0.7)  # of its size, at which an original may have been before it was enlarged
_LOST = 0.02  # share of the finest structure that such a size may lose

_TINY = 64 * 36  # px of the copies that frames are found on
_SAME = 0.02  # difference of tiny copies, in 0..1, where their likeness falls to 1/e
_SAMPLES = 48  # frames of the clip that rate and offset are found on
_RATES = (1.0, 0.5, 2.0, 24 / 25, 25 / 24, 24 / 30, 30 / 24, 25 / 30, 30 / 25, 30 / 60, 60 / 30, 24 / 60, 60 / 24)
_EASIER = 0.98  # another rate than 1 must beat it by this


def match_frames(lr: torch.Tensor, frames: torch.Tensor) -> list[tuple[int, float]]:
    """Number the frame of an original (N, H, W, 3) for each of a clip (T, h, w, 3): rate and offset, then the nearest.

    Most of the picture may differ. Frames before its start or after its end get its first or last one; the second
    number says how many frames of the clip that is away, 0 for all others. Raises ValueError where the two have not
    the same shape, or the original is not larger.
    """
    (height, width), (high, wide) = lr.shape[1:3], frames.shape[1:3]
    if abs(wide * height - high * width) > 0.03 * wide * height or high * wide <= height * width:
        raise ValueError(
            f"the original must have the shape of the LR frames and be larger; got {wide}x{high} for "
            f"{width}x{height}. Crop it alike, and take the full size."
        )
    scale = min(1.0, (_TINY / (height * width)) ** 0.5)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    clip, other = (_tiny(each, size) for each in (lr, frames))
    count = len(clip)
    chosen = sorted({i * (count - 1) // max(1, min(_SAMPLES, count) - 1) for i in range(min(_SAMPLES, count))})
    alike = torch.stack([_likenesses(clip[i], other) for i in chosen])
    rates = {*_RATES, (len(other) - 1) / max(1, count - 1) or 1.0}
    found = [_best_offset(alike, chosen, rate) for rate in sorted(rates, key=lambda rate: rate != 1)]
    _, rate, offset = max(found, key=lambda each: each[0])
    numbers = []
    for number in range(count):
        middle = round(number * rate + offset)
        inside = min(len(other) - 1, max(0, middle))
        if inside != middle:
            numbers.append((inside, abs(middle - inside) / rate))
            continue
        near = range(max(0, middle - 1), min(len(other), middle + 2))
        scores = _likenesses(clip[number], other[near[0] : near[-1] + 1])
        numbers.append((near[int(scores.argmax())], 0.0))
    return numbers


def _tiny(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.cat(
        [F.interpolate(frame[None, ..., :3].movedim(-1, 1).float(), size, mode="area") for frame in frames]
    )


def _likenesses(frame: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Give the share of a tiny frame (3, h, w) that shows the same as others (n, 3, h, w)."""
    differences = box((others - frame).abs().mean(1, keepdim=True))
    return torch.exp(-((differences / _SAME) ** 2)).mean((1, 2, 3))


def _best_offset(alike: torch.Tensor, chosen: Sequence[int], rate: float) -> tuple[float, float, int]:
    """Find (score, rate, offset) for a rate, in frames of the original; at least half of the shorter one overlaps."""
    count = alike.shape[1]
    steps = torch.tensor([round(i * rate) for i in chosen])
    least = min(len(chosen), max(1, count * len(chosen) // max(1, int(steps[-1]) + 1))) / 2
    best = (0.0, rate, 0)
    for offset in range(-int(steps[-1]), count):
        at = steps + offset
        inside = (at >= 0) & (at < count)
        if int(inside.sum()) >= least:
            score = float(alike[inside.nonzero().flatten(), at[inside]].mean()) * (1 if rate == 1 else _EASIER)
            best = max(best, (score, rate, offset))
    return best


def resolution(picture: torch.Tensor) -> float:
    """Give the least share of its size, 0.35 to 1, at which a picture (1, 3, H, W) still holds what it shows.

    Less than 1 for a picture that was enlarged before.
    """
    fine = (picture - softened(picture, 0.25)).square().mean()
    for share in _SHARES:
        if (picture - softened(picture, share)).square().mean() < _LOST * fine:
            return share
    return 1.0


def softened(x: torch.Tensor, share: float) -> torch.Tensor:
    """Reduce a picture and enlarge it again."""
    height, width = x.shape[-2:]
    if share >= 1:
        return x
    small = resize_clip(x[:, :, None], max(1, round(share * height)), max(1, round(share * width)), "lanczos")
    return resize_clip(small, height, width, "lanczos")[:, :, 0]


def add_original(
    x: torch.Tensor,
    lr: torch.Tensor,
    picture: torch.Tensor,
    estimator: FlowEstimator,
    clean: bool,
    resolved: float = 1.0,
    away: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give (a frame (1, 3, H, W) with its original's detail, the trust (1, 1, h, w) in 0..1).

    lr (1, 3, h, w); picture (1, 3, ., .), any size of that shape, its resolution(), and how many frames `away` it was
    taken; all in 0..1. `clean`: the LR's own low band stays. What is finer than the original holds stays the
    upscaler's.
    """
    share = resolved * picture.shape[-2] / x.shape[-2]
    picture = resize_clip(picture[:, :, None], *x.shape[-2:])[:, :, 0]
    grid = BandedResize(lr, x)
    small, seen = grid.down(picture), compared(x, lr, grid, clean)
    there, back = estimator(torch.cat((seen, small)), torch.cat((small, seen))).chunk(2)
    trust = trust_in(seen, warp(small, there, "bicubic"), there, back, clean) / (1 + away / _AWAY)
    own = softened(x, share)
    if clean:
        picture, own = fine_band(picture, small, grid), fine_band(own, grid.down(own), grid)
    result = torch.empty_like(x)
    for band in grid.bands:
        moved = warp_band(picture, grid.up_flow(there, band), band.start)
        part = grid.up(trust, band, "bilinear") * (moved - own[..., band, :])
        result[..., band, :] = x[..., band, :] + part
    return result.clamp_(0, 1), trust


def compared(x: torch.Tensor, lr: torch.Tensor, grid: BandedResize, clean: bool) -> torch.Tensor:
    """Give what of a frame is compared with originals and pictures, (1, 3, h, w) in 0..1."""
    return lr if clean else grid.down(x).clamp(0, 1)


def trust_in(
    seen: torch.Tensor, moved: torch.Tensor, there: torch.Tensor, back: torch.Tensor, clean: bool = True
) -> torch.Tensor:
    """Give the trust (1, 1, h, w) in 0..1 that what was moved to a frame shows the same, both (1, 3, h, w)."""
    returns = torch.exp(-round_trip(there, back) / _RETURN**2) * in_frame(there)
    difference = seen - moved
    unlike = box(difference.abs()) / _ALIKE if clean else gauss(difference, _STRUCTURE).abs() / _WORN_ALIKE
    first, second = ((each - gauss(each, _STRUCTURE)).mean(1, keepdim=True) for each in (seen, moved))
    common, one, two = (gauss(a * b, _AROUND) + _NOISE for a, b in ((first, second), (first, first), (second, second)))
    structure = (common / (one * two).sqrt()).clamp(0, 1)
    return returns * torch.exp(-(unlike.mean(1, keepdim=True) ** 2)) * structure


def fine_band(x: torch.Tensor, small: torch.Tensor, grid: BandedResize) -> torch.Tensor:
    """Give what reducing takes away."""
    result = torch.empty_like(x)
    for band in grid.bands:
        result[..., band, :] = x[..., band, :] - grid.up(small, band)
    return result
