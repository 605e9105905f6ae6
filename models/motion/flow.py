"""Flow at work: warping, what a flow sees again, pictures, latent propagation, block matching, and scene cuts.

A flow is (b, 2, h, w) in pixels of its own grid, (dx, dy): out(p) = in(p + flow(p)). Two flows of one pair of
frames are `flow` (first to second) and `opposite` (second to first).

Block matching compares every block with every shift up to 7 px. It is coarse (whole pixels plus a fitted fraction)
but works at any size; the built-in estimator finds with it what its coarse levels lose. A coarse-to-fine search was
three times faster, but left 1.0 to 1.7 times the residual on real clips: half-pixel errors of the coarse level broke
the fine one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Ways = tuple[torch.Tensor, torch.Tensor]  # flows there and back, (b, 2, h, w) each
DIRECTIONS = ("both", "backward", "forward")  # of propagation and guidance along a clip
RADIUS = 7  # px of displacement searched to each side
_BLOCK = 5  # side of the compared block, px
_STAY = 1e-3  # squared-error cost of one px of displacement: where every match is equal, motion stays put
_BAND = 1 << 24  # costs held at once; larger frames are searched in horizontal bands
_STILL = 1e-3  # px; slower motion is noise of the estimate and counts as none in pictures

# Of scene_cuts(), which works on copies of about _SMALL px. Chosen on twelve clips, 36 photographs and generated
# textures. Frames one, two and four apart in the clips agree by at least 0.72, 0.68 and 0.57 where they are unlike;
# at 128 joins of them by at most 0.26, with a likeness of at most 0.51. Noise by px (0.36) and two grey pictures of
# little contrast (0.37) come closest from one side, clipped flashes (0.395) and pans by a fifth of the width (0.35 to
# 0.5) from the other. docs/motion.md has the count of errors on material that had no part in the choice.
_SMALL = 64 * 36
_NOISE = 0.02  # deviation, frames in 0..1, that counts as none: noise and rounding
_ALIKE = 0.7  # likeness of frames as they are from which no motion is asked: two frames of a clip mostly have 0.95
_AGREE = 0.38  # likeness along the motion times the share of pixels seen again, below which a scene starts
_PLAIN, _LEAP = 0.04, 0.25  # contrast of a plain frame; change of the mean that is a cut to or from one


def warp(x: torch.Tensor, flow: torch.Tensor, mode: str = "bilinear", padding: str = "border") -> torch.Tensor:
    """Sample (b, c, h, w) at p + flow(p); mode bilinear, nearest or bicubic, padding border or zeros.

    Coordinates are float32 whatever the dtype of x: half precision would place columns past 2048 a pixel off.
    """
    if x.ndim != 4 or flow.shape != (x.shape[0], 2, *x.shape[2:]):
        raise ValueError(
            f"warp: an image (b, c, h, w) needs a flow (b, 2, h, w) of the same size; got {tuple(x.shape)} and "
            f"{tuple(flow.shape)}. Resize the flow with resize_flow()."
        )
    return sample(x, sampling_grid(flow), mode, padding)


def sampling_grid(flow: torch.Tensor) -> torch.Tensor:
    """Give where a flow leads, (b, h, w, 2) in -1..1, for sample(): to warp many pictures along one flow."""
    height, width = flow.shape[-2:]
    columns, rows = _targets(flow)
    # Corner-aligned coordinates, as published, but for a side of one pixel, which has no two corners.
    if min(height, width) > 1:
        return torch.stack((2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1), dim=-1)
    return torch.stack(((2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1), dim=-1)


def sample(x: torch.Tensor, grid: torch.Tensor, mode: str = "bilinear", padding: str = "border") -> torch.Tensor:
    """Sample (b, c, h, w) where a sampling_grid() of a flow of the same size leads."""
    corners = min(x.shape[-2:]) > 1
    return F.grid_sample(x.float(), grid, mode=mode, padding_mode=padding, align_corners=corners).to(x.dtype)


def in_frame(flow: torch.Tensor) -> torch.Tensor:
    """Tell, (b, 1, h, w) bool, where p + flow(p) is inside the frame."""
    columns, rows = _targets(flow)
    inside = (columns >= 0) & (rows >= 0) & (columns <= flow.shape[-1] - 1) & (rows <= flow.shape[-2] - 1)
    return inside[:, None]


def consistency(
    flow: torch.Tensor, opposite: torch.Tensor, a: float = 0.01, b: float = 0.5, padding: str = "zeros"
) -> torch.Tensor:
    """Tell, (b, 1, h, w) bool, where going there and back returns: |f + g~|^2 < a (|f|^2 + |g~|^2) + b.

    g~ is the opposite flow warped by the flow (Sundaram et al. 2010); NaN flow is never consistent.
    """
    flow, back = flow.float(), sample(opposite.float(), sampling_grid(flow), padding=padding)
    return _square(flow + back) < a * (_square(flow) + _square(back)) + b


def visible(flow: torch.Tensor, opposite: torch.Tensor, a: float = 0.01, b: float = 0.5) -> torch.Tensor:
    """Tell, (b, 1, h, w) bool, which pixels stay inside the frame and are seen again (Ruder et al. 2016)."""
    return in_frame(flow) & consistency(flow, opposite, a, b, padding="border")


def occlusion(flow: torch.Tensor, opposite: torch.Tensor, a: float = 0.01, b: float = 0.5) -> torch.Tensor:
    """Mark, (b, 1, h, w) float, occluded pixels with 1: |f + g~| > a (|f| + |g|) + b.

    MGLD-VSR's form: lengths instead of squares, a zero border, and the limit from g as it is, not warped.
    """
    flow, opposite = flow.float(), opposite.float()
    back = warp(opposite, flow, padding="zeros")
    limit = a * (_square(flow).sqrt() + _square(opposite).sqrt()) + b
    return (_square(flow + back).sqrt() > limit).float()


def resize_flow(flow: torch.Tensor, height: int, width: int, mode: str = "bilinear") -> torch.Tensor:
    """Resize a flow (mode bilinear or area) and scale dx by the width's ratio, dy by the height's."""
    old_height, old_width = flow.shape[-2:]
    if (old_height, old_width) == (height, width):
        return flow
    options = {} if mode == "area" else {"align_corners": False}
    resized = F.interpolate(flow, (height, width), mode=mode, **options)
    ratio = flow.new_tensor([width / old_width, height / old_height])
    return resized * ratio.view(1, 2, 1, 1)


def compose(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Chain two flows (b, 2, h, w): go by `first`, then by `second` from there."""
    return first + warp(second, first)


def chain_flows(parts: Sequence[Ways]) -> Ways:
    """Give the flow over all parts of a way, one after the other, and the flow back; each part leads there and back."""
    there, back = parts[0]
    for onward, homeward in parts[1:]:
        there, back = compose(there, onward), compose(homeward, back)
    return there, back


def chain_pairs(pairs: Mapping[int, Ways], start: int, stop: int) -> Ways:
    """Give the flow from one frame to another and the flow back; `pairs[i]` leads from frame i to i + 1 and back."""
    ways = chain_flows([pairs[i] for i in range(min(start, stop), max(start, stop))])
    return ways if start < stop else ways[::-1]


def flow_picture(flow: torch.Tensor) -> torch.Tensor:
    """Paint (n, 2, h, w) as (n, h, w, 3) in 0..1 with torchvision's colour wheel (Baker et al. 2011).

    The hue is the direction: red moves right, yellow down, light blue left, violet up. The depth of the colour is
    the speed, full from the 99th percentile of the whole batch on; what stands still is white.
    """
    from torchvision.utils import flow_to_image  # here: its import takes longer than the pack's

    speed = flow.float().square().sum(1, keepdim=True).sqrt()
    flat = speed.flatten()
    flat = flat[:: max(1, flat.numel() >> 20)]  # about a million values tell as much as all
    # flow_to_image takes the fastest pixel for the full colour: one outlier would leave the rest pale.
    fastest = float(torch.quantile(flat, 0.99).clamp_min(_STILL))
    slowed = flow.float() * (fastest / speed.clamp_min(fastest)) * (speed > _STILL)
    return flow_to_image(slowed).movedim(1, -1) / 255


def _targets(flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(flow.shape[-2], device=flow.device, dtype=torch.float32)
    columns = torch.arange(flow.shape[-1], device=flow.device, dtype=torch.float32)
    return columns + flow[:, 0].float(), rows[:, None] + flow[:, 1].float()


def _square(flow: torch.Tensor) -> torch.Tensor:
    return flow.square().sum(1, keepdim=True)


# Block matching


@dataclass(frozen=True)
class Match:
    """Where each pixel of `current` is found in `previous`.

    ``shift`` (b, 2, h, w) int64 (dx, dy) in px; ``fraction`` (b, 2, h, w) in -0.5..0.5 px to be added to it;
    ``error`` (b, 1, h, w) root mean squared difference of the matched blocks, in units of the input.
    """

    shift: torch.Tensor
    fraction: torch.Tensor
    error: torch.Tensor

    @property
    def flow(self) -> torch.Tensor:
        """Displacement current -> previous in px, (b, 2, h, w), (dx, dy)."""
        return self.shift + self.fraction


@torch.no_grad()
def match_blocks(current: torch.Tensor, previous: torch.Tensor) -> Match:
    """Find each pixel of `current` (b, c, h, w) in `previous` by comparing blocks at every shift up to 7 px.

    Works from 1x1 px up. Raises ValueError when the shapes differ.
    """
    if current.shape != previous.shape:
        raise ValueError(
            f"match_blocks: both frames must have the same shape; got {tuple(current.shape)} and "
            f"{tuple(previous.shape)}. Resize one of them first."
        )
    current, previous = current.float(), previous.float()
    batch, _, height, width = current.shape
    padded = F.pad(previous, (RADIUS,) * 4, mode="replicate")
    band = max(_BLOCK, _BAND // (batch * width * (2 * RADIUS + 1) ** 2))
    shifts, fractions, errors = [], [], []
    for top in range(0, height, band):
        bottom = min(height, top + band)
        # the blocks of a band reach two rows into its neighbours
        first, last = max(0, top - _BLOCK // 2), min(height, bottom + _BLOCK // 2)
        cost = _costs(current[..., first:last, :], padded[..., first : last + 2 * RADIUS, :])
        shift, fraction, error = _best(cost[..., top - first : bottom - first, :])
        shifts.append(shift)
        fractions.append(fraction)
        errors.append(error)
    return Match(torch.cat(shifts, 2), torch.cat(fractions, 2), torch.cat(errors, 2))


def _costs(current: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
    """Mean squared block differences of every shift, (b, (2r+1)^2, h, w), rows of shifts outermost.

    `padded` is the previous frame (b, c, h+2r, w+2r).
    """
    batch, channels, height, width = current.shape
    side = 2 * RADIUS + 1
    offset = torch.arange(-RADIUS, RADIUS + 1, device=current.device, dtype=current.dtype).abs() * _STAY
    share = _shares(current) / channels
    bordered = F.pad(current.new_empty(batch, side, height, width), (_BLOCK // 2,) * 4)
    squares = bordered[..., _BLOCK // 2 : -(_BLOCK // 2), _BLOCK // 2 : -(_BLOCK // 2)]
    costs = current.new_empty(batch, side, side, height, width)
    for dy in range(side):
        shifted = padded[..., dy : dy + height, :].unfold(-1, width, 1).movedim(3, 1)  # (b, 2r+1, c, h, w), no copy
        for channel in range(channels):
            difference = shifted[:, :, channel] - current[:, None, channel]
            torch.square(difference, out=squares) if channel == 0 else squares.addcmul_(difference, difference)
        torch.addcmul((offset + offset[dy]).view(-1, 1, 1), _block_sums(bordered), share, out=costs[:, dy])
    return costs.flatten(1, 2)


def block_means(x: torch.Tensor) -> torch.Tensor:
    """Average each pixel of (b, c, h, w) with those of the 5x5 block around it that lie inside.

    It takes a third of the time of torch's pooling.
    """
    return _block_sums(F.pad(x, (_BLOCK // 2,) * 4)) * _shares(x)


def _shares(like: torch.Tensor) -> torch.Tensor:
    """Give what one pixel counts in the block around each pixel of a frame, (1, 1, h, w)."""
    return 1 / _block_sums(F.pad(torch.ones_like(like[:1, :1]), (_BLOCK // 2,) * 4))


def _block_sums(x: torch.Tensor) -> torch.Tensor:
    """Add up each 5x5 block of (..., h + 4, w + 4): two, four and five values along each side."""
    for axis in (-1, -2):
        length = x.shape[axis]
        two = x.narrow(axis, 1, length - 1) + x.narrow(axis, 0, length - 1)
        four = two.narrow(axis, 2, length - 3) + two.narrow(axis, 0, length - 3)
        x = four.narrow(axis, 0, length - 4).add_(x.narrow(axis, 4, length - 4))
    return x


def _best(cost: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give (shift, fraction, error) of the cheapest shift; a parabola through it and its neighbours on each axis."""
    side = 2 * RADIUS + 1
    rows = cost.unflatten(1, (side, side))
    at, row = rows.amin(2).min(1, keepdim=True)  # by rows first: a third of the time of argmin
    col = rows.gather(1, row.unsqueeze(2).expand(-1, -1, side, -1, -1))[:, 0].min(1, keepdim=True)[1]
    below = torch.cat((row * side + (col - 1).clamp_min(0), (row - 1).clamp_min(0) * side + col), 1)
    above = torch.cat((row * side + (col + 1).clamp_max(side - 1), (row + 1).clamp_max(side - 1) * side + col), 1)
    below, above = cost.gather(1, below), cost.gather(1, above)
    fraction = (0.5 * (below - above) / (below + above - 2 * at).clamp_min(1e-8)).clamp(-0.5, 0.5)
    cell = torch.cat((col, row), 1)
    fraction = fraction * ((cell > 0) & (cell < side - 1))  # at the edge of the search one neighbour is missing
    return cell - RADIUS, fraction, at.clamp_min(0).sqrt()


# Scene cuts


@torch.no_grad()
def scene_cuts(frames: torch.Tensor, check_cancelled: Callable[[], None] | None = None) -> tuple[int, ...]:
    """List the frames of a clip (T, h, w, 3), in 0..1, that start a new scene; any size, the first is never listed.

    Neighbours are compared in colour, on small copies: as they are, and where they differ, along the motion of blocks.
    Flashes, fades, pans up to an eighth of the width and noise are no cuts; a change of hue at equal brightness is one.
    """
    cuts, before = [], None
    for number, frame in enumerate(frames):
        if check_cancelled is not None:
            check_cancelled()
        picture = frame[..., :3].movedim(-1, 0)[None].float()
        shrink = min(1.0, (_SMALL / (picture.shape[-2] * picture.shape[-1])) ** 0.5)
        after = _shrunk(picture, shrink)
        if before is not None and _is_cut(before, after):
            cuts.append(number)
        before = after
    return tuple(cuts)


def _is_cut(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Compare two small copies (1, 3, h, w)."""
    spread = min(float(frame.std(correction=0)) for frame in (before, after))
    if spread < _PLAIN and (before.mean() - after.mean()).abs() > _LEAP:
        return True
    if _likeness(before, after) >= _ALIKE:
        return False
    # Blocks are matched at two sizes, for reach, and at the light of the first frame: a flash moves nothing.
    if _agreement(_shrunk(before, 1.0), _shrunk(after, 1.0)) >= _AGREE:
        return False
    return _agreement(_shrunk(before, 0.5), _shrunk(after, 0.5)) < _AGREE


def _agreement(before: torch.Tensor, after: torch.Tensor) -> float:
    """Multiply the likeness along matched blocks, the worse way, by the share of pixels that are seen again.

    Blocks of any two textures can be matched, but such matches contradict each other; in plain areas and between two
    hues they do not, but there the likeness is low. Either alone misses cuts.
    """
    gain = ((before.var(correction=0) + _NOISE**2) / (after.var(correction=0) + _NOISE**2)).sqrt()
    lit = (after - after.mean()) * gain + before.mean()
    flow = match_blocks(torch.cat((before, lit)), torch.cat((lit, before))).flow
    there, back = flow.chunk(2)
    alike = min(_likeness(before, warp(after, there)), _likeness(after, warp(before, back)))
    return alike * float(visible(there, back).float().mean())


def _likeness(first: torch.Tensor, second: torch.Tensor) -> float:
    """Correlate two frames, without noise: over all colours at once, where hue counts, and about each colour's mean."""
    first, second = (F.avg_pool2d(frame, 3, 1, 1, count_include_pad=False) for frame in (first, second))
    worst = 1.0
    for axes in ((1, 2, 3), (2, 3)):
        a, b = (frame - frame.mean(axes, keepdim=True) for frame in (first, second))
        common = (a * b).mean() + _NOISE**2
        scale = (a.square().mean() + _NOISE**2) * (b.square().mean() + _NOISE**2)
        worst = min(worst, float(common / scale.sqrt()))
    return worst


def _shrunk(frame: torch.Tensor, scale: float) -> torch.Tensor:
    size = tuple(max(1, round(side * scale)) for side in frame.shape[-2:])
    return F.interpolate(frame, size, mode="area")


# Latent propagation


@torch.no_grad()
def propagate(
    x: torch.Tensor,
    forward: torch.Tensor,
    backward: torch.Tensor,
    *,
    mode: str = "nearest",
    weight: float = 0.5,
    alpha1: float = 0.001,
    alpha2: float = 0.05,
    direction: str = "both",
    cuts: Sequence[int] = (),
) -> torch.Tensor:
    """Mix `weight` of each frame's warped neighbour in where the flow is consistent; defaults as published.

    Latent propagation of Upscale-A-Video, without training, for any video latent x (b, c, t, h, w). Forward flow i
    leads from frame i to i + 1, backward flow i from i + 1 to i, both (b or 1, 2, t - 1, H, W) px of their own grid.
    In order:

    1. Backward: from the last frame but one to the first, each frame takes from the next one.
    2. Forward: from the second frame to the last, each takes from the one before, on the result of the first pass.
    3. One step brings the two flows of the pair to the grid of x, warps the neighbour, and mixes it in where going
       there and back returns; everywhere else the frame keeps its own values. No step crosses a scene cut.

    `mode` samples the neighbour, nearest or bilinear. `alpha1` and `alpha2` are consistency()'s a and b, in cells.
    `cuts` are the frames that start a new scene: nothing crosses into or out of them. Memory beyond input and output
    is that of single frames; flows may be on another device.
    """
    _check_clip(x, forward, backward, mode, direction)
    out = x.clone()

    def pull(target: int, source: int, there: torch.Tensor, back: torch.Tensor) -> None:
        flow, opposite = (
            resize_flow(each.to(x.device, torch.float32), *x.shape[-2:], "area").expand(len(x), -1, -1, -1)
            for each in (there, back)
        )
        warped = warp(out[:, :, source], flow, mode, "zeros")
        kept = out[:, :, target]
        trusted = consistency(flow, opposite, alpha1, alpha2)
        kept.copy_(torch.where(trusted, torch.lerp(kept, warped, weight), kept))

    starts = set(cuts)
    pairs = [i for i in range(x.shape[2] - 1) if i + 1 not in starts]  # pair i is frames i and i + 1
    if direction != "forward":
        for i in reversed(pairs):
            pull(i, i + 1, forward[:, :, i], backward[:, :, i])
    if direction != "backward":
        for i in pairs:
            pull(i + 1, i, backward[:, :, i], forward[:, :, i])
    return out


def _check_clip(x: torch.Tensor, forward: torch.Tensor, backward: torch.Tensor, mode: str, direction: str) -> None:
    for name, choice, options in (("sampling", mode, ("nearest", "bilinear")), ("direction", direction, DIRECTIONS)):
        if choice not in options:
            raise ValueError(f"{name} must be one of {', '.join(options)}; got {choice!r}. Use {options[0]}.")
    matching = x.ndim == 5 and forward.ndim == 5 and forward.shape == backward.shape
    if not (matching and forward.shape[0] in (1, x.shape[0]) and forward.shape[1:3] == (2, x.shape[2] - 1)):
        raise ValueError(
            "a clip (b, c, t, h, w) needs forward and backward flows (b, 2, t - 1, H, W); got "
            f"{tuple(x.shape)}, {tuple(forward.shape)} and {tuple(backward.shape)}. Estimate the motion of this "
            "clip, with all its frames."
        )
