"""Weight-free optical flow for frames of any size: block matching for reach, a variational method for accuracy.

What happens to two frames (b, 3, h, w) in 0..1, on levels (b, 3, r, c) from about 12 px a side up to the frame:

1. Both frames are blurred and reduced to the level; the flow so far, (b, 2, r, c) px, is enlarged to it.
2. On levels of up to 16,384 px block matching proposes another flow, taken where it explains the frames clearly
   better. Small fast objects, which coarse levels lose, enter here.
3. Features are the three colours and the two slopes of grey, (b, 5, r, c). Four times (quick: twice, and once on the
   finest level) those of the second frame are warped by the flow, and what is left is linearised: slopes (b, 5, r, c)
   times a change of the flow (b, 2, r, c).
4. The change minimises a robust energy of colour and gradient constancy and of smoothness (Brox et al. 2004), its
   data term normalised by the gradient (Zimmer et al. 2011). Robust weights are set twice; each time 12 steps of
   conjugate gradients solve the linear system.
5. A 5x5 median filter follows every change (Sun et al. 2010).

Constants were chosen on clips with exact flow at 48 to 320 px a side.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F

from .flow import block_means, in_frame, match_blocks, resize_flow, warp

_LARGEST = 1 << 19  # px; larger frames are estimated on a reduced grid
_COARSEST = 12  # px of the shorter side below which no level goes
_MATCHED = 1 << 14  # px of the largest level that blocks are matched on: reaches 16 px at 320x180, 14 px if quick
_CACHED = 1 << 15  # px of components that a CPU filters at once: all planes of a window should lie in its cache
_CLEARLY = 0.8  # share of the error that a proposal must not exceed to be taken
_REMEMBERED = 32  # matrices, of up to two megabytes, that reduce frames: those of a pyramid or two
_OUTLIER = 0.3  # difference, frames in 0..1, beyond which a pixel counts as simply wrong

# side of a level over that of the next finer one; linearisations of the finest level; of each of the others
_EXACT, _QUICK = (0.65, 4, 4), (0.5, 1, 2)
_REWEIGHTS, _SOLVES = 2, 12  # robust weights of each, gradient steps of each
_SMOOTH = 2.0  # weight of smoothness
_GRADIENTS = 0.7  # weight of gradients beside colours
_FLAT = 0.03  # gradient below which a pixel says little about motion
_ROBUST_DATA, _ROBUST_FLOW = 0.03, 0.02  # where the penalties turn from squares to lengths
_EDGES = 4.0  # how much colour edges loosen smoothness
_STEP = 1.5  # px; the longest step between two linearisations
_COLOURS = 3  # channels of the features before the gradients

Pick = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # torch.minimum or torch.maximum


class BlockFlow:
    """Estimate flow without weights; works from 1x1 px up, on any device, both frames (b, 3, h, w) in 0..1."""

    def __init__(self, quick: bool = False):
        """Take a third of the time if `quick`, for where motion is not trusted blindly: small fast objects get lost."""
        self._shrink, self._warps, self._coarse_warps = _QUICK if quick else _EXACT

    @torch.no_grad()
    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Give the flow first -> second, (b, 2, h, w) in px."""
        flow = first.new_zeros(len(first), 2, 1, 1, dtype=torch.float32)
        sizes = _level_sizes(*first.shape[-2:], self._shrink)
        for number, (rows, columns) in enumerate(sizes, 1):
            pair = tuple(_reduced(frame.float(), rows, columns) for frame in (first, second))
            flow = resize_flow(flow, rows, columns)
            if rows * columns <= _MATCHED:
                flow = _propose(*pair, flow)
            flow = _refine(*pair, flow, self._warps if number == len(sizes) else self._coarse_warps)
        return resize_flow(flow, *first.shape[-2:])

    @torch.no_grad()
    def refine(self, first: torch.Tensor, second: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        """Make a flow first -> second, (b, 2, h, w) in px, more exact: what is done to it on the finest level."""
        size = _level_sizes(*first.shape[-2:], self._shrink)[-1]
        pair = (_reduced(frame.float(), *size) for frame in (first, second))
        return resize_flow(_refine(*pair, resize_flow(flow, *size), self._warps), *first.shape[-2:])


def _level_sizes(height: int, width: int, step: float) -> list[tuple[int, int]]:
    """List (rows, columns) of the levels, coarsest first, each `step` of the next."""
    sizes, shrink = [], min(1.0, (_LARGEST / (height * width)) ** 0.5)
    while not sizes or min(height, width) * shrink >= _COARSEST:
        sizes.append((max(1, round(height * shrink)), max(1, round(width * shrink))))
        shrink *= step
    return sizes[::-1]


def _reduced(frame: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Blur against aliasing and resize."""
    height, width = frame.shape[-2:]
    if (rows, columns) == (height, width):
        return frame
    sigma = 0.6 * max(0.0, height * width / (rows * columns) - 1) ** 0.5
    down, across = _reducing(height, rows, sigma).to(frame), _reducing(width, columns, sigma).to(frame)
    return down @ frame @ across.mT


@lru_cache(_REMEMBERED)
def _reducing(many: int, few: int, sigma: float) -> torch.Tensor:
    """Give the weights (few, many) of a Gaussian of `sigma` px and linear sampling; the border pixel repeats."""
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * max(sigma, 1e-3) ** 2))
    pixels = F.pad(torch.eye(many).unsqueeze(1), (reach, reach), mode="replicate")
    blurred = F.conv1d(pixels, (kernel / kernel.sum()).view(1, 1, -1))
    return F.interpolate(blurred, few, mode="linear", align_corners=False)[:, 0].mT.contiguous()


# Block matching


def _propose(first: torch.Tensor, second: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Take the flow of matched blocks where it explains `first` clearly better than `flow` does."""
    grey = (2 * frame.mean(1, keepdim=True) - 1 for frame in (first, second))
    proposal = _median(match_blocks(*grey).flow, 3)
    better = _block_error(first, second, proposal) < _CLEARLY * _block_error(first, second, flow)
    return _median(torch.where(better, proposal, flow), 3)


def _block_error(first: torch.Tensor, second: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    error = (_features(warp(second, flow)) - _features(first)).abs().mean(1, keepdim=True)
    return block_means(error.clamp_max(_OUTLIER))


def _median(flow: torch.Tensor, side: int) -> torch.Tensor:
    """Filter each component by the median of side x side neighbours.

    Minima and maxima of whole planes are exchanged, many times as fast as sorting each pixel's neighbours: columns are
    sorted, once for all windows that they lie in. Of what came r-th in them, the k-th of a window is at least as great
    as r * k values there: most are too great or, seen from the other end, too small to be the median, and drop out.
    """
    height, width = flow.shape[-2:]
    together = max(1, _CACHED // (height * width))
    if flow.device.type == "cpu" and flow.shape[:2].numel() > together:
        components = flow.flatten(0, 1).unsqueeze(1).split(together)
        return torch.cat([_median(part, side) for part in components]).view_as(flow)
    padded = F.pad(flow, (side // 2,) * 4, mode="replicate")
    columns = [padded[..., y : y + height, :] for y in range(side)]
    for k in range(side):
        for i in range(k + 1, side):
            columns[k], columns[i] = torch.minimum(columns[k], columns[i]), torch.maximum(columns[k], columns[i])
    rest, half = [], side * side // 2 + 1
    for r in range(1, side + 1):
        row = [columns[r - 1][..., x : x + width] for x in range(side)]
        rest += _without(row, max(0, side - half // (side + 1 - r)), max(0, side - half // r))
    pool, rest = rest[: len(rest) // 2 + 2], rest[len(rest) // 2 + 2 :]  # its least and greatest are not the median
    while len(pool) > 1:
        pool, rest = _without(pool, 1, 1) + rest[:1], rest[1:]
    return pool[0]


def _without(planes: list[torch.Tensor], least: int, greatest: int) -> list[torch.Tensor]:
    """Drop at every pixel so many of the least and of the greatest values."""
    while least and greatest:
        pairs = list(zip(planes[::2], planes[1::2], strict=False))
        lower, upper = ([pick(*pair) for pair in pairs] for pick in (torch.minimum, torch.maximum))
        lower = _dropped(lower + planes[2 * len(pairs) :], 1, torch.minimum, torch.maximum)
        alone = lower[len(pairs) - 1 :]  # without a partner it may be the least or the greatest
        planes = lower[: len(pairs) - 1] + _dropped(upper + alone, 1, torch.maximum, torch.minimum)
        least, greatest = least - 1, greatest - 1
    planes = _dropped(planes, least, torch.minimum, torch.maximum)
    return _dropped(planes, greatest, torch.maximum, torch.minimum)


def _dropped(planes: list[torch.Tensor], count: int, outer: Pick, inner: Pick) -> list[torch.Tensor]:
    """Drop at every pixel the `count` values that `outer` picks: the fewer are put in order, those dropped or kept."""
    kept = len(planes) - count
    if kept >= count:
        for _ in range(count):
            (out, *others), planes = planes, []
            for other in others[:-1]:
                planes.append(inner(out, other))
                out = outer(out, other)
            planes.append(inner(out, others[-1]))
        return planes
    best: list[torch.Tensor] = []
    for plane in planes:
        for k in range(min(len(best), kept - 1)):
            best[k], plane = inner(best[k], plane), outer(best[k], plane)
        best[kept - 1 :] = [inner(best[kept - 1], plane) if len(best) == kept else plane]
    return best


# Variational refinement


def _features(frame: torch.Tensor) -> torch.Tensor:
    """Join the colours and the gradient of their mean: (b, 5, h, w)."""
    grey = frame.mean(1, keepdim=True)
    return torch.cat((frame, *(_GRADIENTS * part for part in _gradient(grey))), 1)


def _gradient(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the slopes along x and y from four neighbours; the border pixel repeats outside."""
    wide = F.pad(x, (2, 2, 0, 0), mode="replicate")
    high = F.pad(x, (0, 0, 2, 2), mode="replicate")
    along = 8 * (wide[..., 3:-1] - wide[..., 1:-3]) - (wide[..., 4:] - wide[..., :-4])
    down = 8 * (high[..., 3:-1, :] - high[..., 1:-3, :]) - (high[..., 4:, :] - high[..., :-4, :])
    return along / 12, down / 12


def _refine(first: torch.Tensor, second: torch.Tensor, flow: torch.Tensor, warps: int) -> torch.Tensor:
    source, target = _features(first), _features(second)
    looseness = [torch.exp(-_EDGES * step.square().sum(1, keepdim=True).sqrt()) for step in _forward_steps(first)]
    slopes = _gradient(source)
    for _ in range(warps):
        moved = warp(target, flow, "bicubic")
        slope_x, slope_y = ((mine + other) / 2 for mine, other in zip(slopes, _gradient(moved), strict=True))
        change = _increment(slope_x, slope_y, moved - source, flow, looseness)
        flow = _median(flow + change.clamp(-_STEP, _STEP), 5)
    return flow


def _increment(
    slope_x: torch.Tensor,
    slope_y: torch.Tensor,
    difference: torch.Tensor,
    flow: torch.Tensor,
    looseness: list[torch.Tensor],
) -> torch.Tensor:
    """Minimise the energy linearised around `flow`, with weights that turn squares into robust penalties.

    A change (u, v) leaves an error of trust * (difference + slope_x * u + slope_y * v)^2 in each feature. Features of
    one kind share a weight, so what is multiplied out is added up over them once, and is all that is looked at again.
    """
    trust = in_frame(flow).float() / torch.addcmul(slope_x.square(), slope_y, slope_y).add_(_FLAT**2)
    held = [trust * part for part in (slope_x, slope_y, difference)]
    pairs = [(0, slope_x), (0, slope_y), (1, slope_y), (2, slope_x), (2, slope_y), (2, difference)]
    sums = torch.stack([_by_kind(held[k] * part) for k, part in pairs], 1)  # (b, 6, 2, h, w)
    xx, xy, yy, dx, dy, dd = sums.unbind(1)
    share = 1 / sums.new_tensor([_COLOURS, slope_x.shape[1] - _COLOURS]).view(1, 2, 1, 1)
    change = torch.zeros_like(flow)
    for _ in range(_REWEIGHTS):
        u, v = change[:, :1], change[:, 1:]
        error = dd + u * (2 * dx + u * xx + 2 * v * xy) + v * (2 * dy + v * yy)
        weight = (error * share).add_(_ROBUST_DATA**2).rsqrt_().mul_(share)  # half of the robust penalty's slope
        a11, a12, a22, *right = (weight.unsqueeze(1) * sums[:, :5]).sum(2).split(1, 1)
        system = _System(a11, a12, a22, _springs(flow + change, looseness))
        change = system.solve(-torch.cat(right, 1) - system.pull(flow), change)
    return change


def _by_kind(x: torch.Tensor) -> torch.Tensor:
    """Add up the colours, and the gradients, of (b, 5, h, w): (b, 2, h, w)."""
    return torch.cat([part.sum(1, keepdim=True) for part in (x[:, :_COLOURS], x[:, _COLOURS:])], 1)


def _forward_steps(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the differences to the right and the lower neighbour, zero at the border."""
    across, down = torch.zeros_like(x), torch.zeros_like(x)
    torch.sub(x[..., 1:], x[..., :-1], out=across[..., :-1])
    torch.sub(x[..., 1:, :], x[..., :-1, :], out=down[..., :-1, :])
    return across, down


def _springs(flow: torch.Tensor, looseness: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the stiffness between neighbours, (b, 1, h, w - 1) across and (b, 1, h - 1, w) down."""
    across, down = _forward_steps(flow)
    stretch = (across.square() + down.square()).sum(1, keepdim=True)
    stiffness = _SMOOTH * (stretch + _ROBUST_FLOW**2).rsqrt()
    return (stiffness * looseness[0])[..., :-1], (stiffness * looseness[1])[..., :-1, :]


class _System:
    """The linear system of one step: a symmetric 2x2 block of data at every pixel, and springs between neighbours.

    It is solved a few thousand times a second, mostly at small sizes, where the number of torch's calls counts: the
    sum of a pixel's springs is kept in its block, and neighbours are subtracted in place.
    """

    def __init__(self, a11: torch.Tensor, a12: torch.Tensor, a22: torch.Tensor, springs: tuple[torch.Tensor, ...]):
        self._across, self._down = springs
        self._held = held = torch.zeros_like(a11)
        for part, spring in (
            (held[..., :-1], self._across),
            (held[..., 1:], self._across),
            (held[..., :-1, :], self._down),
            (held[..., 1:, :], self._down),
        ):
            part += spring
        d11, d22 = a11 + held, a22 + held
        self._columns = torch.cat((d11, a12), 1), torch.cat((a12, d22), 1)
        d11, d22 = d11 + 1e-6, d22 + 1e-6
        determinant = d11 * d22 - a12.square()
        self._inverse = torch.cat((d22, -a12), 1) / determinant, torch.cat((-a12, d11), 1) / determinant

    def pull(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the smoothness operator: what the springs pull at every pixel."""
        return self._less_neighbours(self._held * x, x)

    def solve(self, right: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Solve from `x` by conjugate gradients, each pixel's block as preconditioner."""
        rest = right - self._apply(x)
        along = guess = _product(self._inverse, rest)
        size = _dot(rest, guess)
        for _ in range(_SOLVES):
            image = self._apply(along)
            length = size / _dot(along, image).clamp_min_(1e-12)
            x = torch.addcmul(x, length, along)
            rest.addcmul_(length, image, value=-1)
            guess = _product(self._inverse, rest)
            size, before = _dot(rest, guess), size
            along = torch.addcmul(guess, size / before.clamp_min(1e-12), along)
        return x

    def _apply(self, x: torch.Tensor) -> torch.Tensor:
        return self._less_neighbours(_product(self._columns, x), x)

    def _less_neighbours(self, image: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        image[..., :-1].addcmul_(self._across, x[..., 1:], value=-1)
        image[..., 1:].addcmul_(self._across, x[..., :-1], value=-1)
        image[..., :-1, :].addcmul_(self._down, x[..., 1:, :], value=-1)
        image[..., 1:, :].addcmul_(self._down, x[..., :-1, :], value=-1)
        return image


def _product(columns: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Multiply the block of each pixel, given as two columns (b, 2, h, w), with x (b, 2, h, w)."""
    return (columns[0] * x[:, :1]).addcmul_(columns[1], x[:, 1:])


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum((1, 2, 3), keepdim=True)
