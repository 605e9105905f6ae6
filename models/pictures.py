"""Gives the frames of a clip the true detail of photographs that show the same, of another size and turned, no weights.

What happens to one frame, x (1, 3, H, W) upscaled from y (1, 3, h, w), in which places.py has found pictures:

1. Each picture is laid there by its similarity and reduced to (1, 3, h, w), as an original is (original.py): motion
   there and back (1, 2, h, w) takes what no similarity follows, trust (1, 1, h, w) in 0..1 tells where both show the
   same. It fades towards the rim of the picture.
2. The picture is sampled once more, through place and motion, at the size of the frame. By trust, the band that
   reducing takes away comes from it; where the LR is compressed, all of it does. What is finer than the picture holds
   stays the upscaler's. Of several pictures the most trusted and finest counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .layout.bands import BandedResize
from .motion.estimation import FlowEstimator
from .motion.flow import warp
from .original import compared, fine_band, softened, trust_in
from .places import MARGIN, Picture, Place, points_of
from .source import gauss

_BEST = 4  # power of trust by which pictures are weighed against each other
_FADE = 1.0  # LR px, sigma, over which a picture fades towards its rim
_RIM = 8  # LR px around a picture that its motion is estimated with


@torch.no_grad()
def add_pictures(
    x: torch.Tensor,
    lr: torch.Tensor,
    places: Sequence[Place],
    pictures: Sequence[Picture],
    estimator: FlowEstimator,
    clean: bool,
    room: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Give (a frame (1, 3, H, W) with the detail of pictures, trust (1, 1, h, w), share of the frame of each picture).

    lr (1, 3, h, w); all in 0..1. `clean`: the LR's own low band stays. `room` (1, 1, h, w): how much of every place
    they may take. Where nothing is taken the frame itself comes back.
    """
    shares = [0.0] * len(pictures)
    grid = BandedResize(lr, x)
    seen = compared(x, lr, grid, clean)
    views = [
        view for place in places if (view := _View.of(place, seen, pictures[place.picture], grid, estimator, clean))
    ]
    total = lr.new_zeros(1, 1, *lr.shape[-2:])
    if not views:
        return x, total, shares
    ranks = [(view.trust * view.share**0.5) ** _BEST for view in views]
    weights = [rank / sum(ranks).clamp_min(1e-12) for rank in ranks]
    result = x.clone()
    own = fine_band(x, grid.down(x), grid) if clean else x
    for view, weight in zip(views, weights, strict=True):
        taken = weight * view.trust * (1 if room is None else room)
        total += taken
        shares[view.place.picture] += float(taken.mean())
        moved = view.laid(grid)
        if clean:
            moved = fine_band(moved, grid.down(moved), grid)
        missing = moved - softened(own, view.share)
        if view.share < 1:
            missing += missing - softened(missing, view.share)
        for band in grid.bands:
            result[..., band, :] += grid.up(taken, band, "bilinear") * missing[..., band, :]
    return result.clamp_(0, 1), total, shares


@dataclass(frozen=True)
class _View:
    """A place, the motion (1, 2, h, w) that refines it, trust in it, and how fine the picture is there, 0..1."""

    place: Place
    picture: Picture
    flow: torch.Tensor
    trust: torch.Tensor
    share: float

    @staticmethod
    def of(
        place: Place, lr: torch.Tensor, picture: Picture, grid: BandedResize, estimator: FlowEstimator, clean: bool
    ) -> _View | None:
        """Compare a picture with the frame, at the size of the LR."""
        points = place.points(points_of(lr))
        inside = picture.covers(points, MARGIN * abs(place.turn))
        share = min(1.0, abs(place.turn) * grid.width / grid.wide * picture.resolved)
        view = _View(place, picture, torch.zeros_like(lr[:, :2]), inside, share)
        small = grid.down(view.laid(grid)).clamp(0, 1)
        small = torch.where(inside > 0, small, lr)
        there, back = _motion(lr, small, inside, estimator)
        trust = trust_in(lr, warp(small, there, "bicubic"), there, back, clean) * _rim(warp(inside, there))
        return replace(view, flow=there, trust=trust) if float(trust.max()) > 0.1 else None

    def laid(self, grid: BandedResize) -> torch.Tensor:
        """Lay the picture over the frame, (1, 3, H, W)."""
        ratio = self.flow.new_tensor([grid.width / grid.wide, grid.height / grid.high]).view(2, 1, 1)
        parts = []
        for band in grid.bands:
            flow = grid.up(self.flow, band, "bilinear")[0]
            points = points_of(flow)
            points[1] += band.start
            points = self.place.points((points + 0.5) * ratio - 0.5 + flow)
            parts.append(self.picture.look(points, abs(self.place.turn) * grid.width / grid.wide))
        return self.place.gain * torch.cat(parts, -2) + self.place.offset


def _rim(inside: torch.Tensor) -> torch.Tensor:
    """Fade towards the rim of what is inside, (1, 1, h, w) in 0..1: 0 from the rim outwards."""
    return (2 * gauss((inside > 0.99).float(), _FADE) - 1).clamp(0, 1)


def _motion(
    lr: torch.Tensor, small: torch.Tensor, inside: torch.Tensor, estimator: FlowEstimator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimate the motion from a frame to a picture that is laid there, and back, around where the picture is."""
    rows, columns = (inside[0, 0].amax(side).nonzero().flatten() for side in (1, 0))
    top, left = (slice(max(0, int(each[0]) - _RIM), int(each[-1]) + 1 + _RIM) for each in (rows, columns))
    first, second = (each[:, :, top, left] for each in (lr, small))
    both = torch.zeros(2, 2, *lr.shape[-2:], device=lr.device)
    both[:, :, top, left] = estimator(torch.cat((first, second)), torch.cat((second, first)))
    return both[:1], both[1:]
