"""Finds photographs in the frames of a clip: place, size and turn, without weights.

1. Once a picture (1, 3, R, C) of any size: SIFT features (Lowe 2004) of it and of its halves, quarters ...
2. Once for every few LR frames (1, 3, h, w): SIFT features of them. Two matches make a similarity from the frame to the
   picture; the one that most matches agree with is a place, and the next is looked for among the rest.
3. Places are carried along the motion to the frames after and before, and registered in each: Gauss-Newton steps (Lucas
   and Kanade 1981) on the four numbers of the similarity; per colour, mean and contrast are made alike. A place that
   does not fit is dropped.

A place is two complex numbers: px of the picture = turn * px of the LR frame + shift, pixels counted from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .layout.sizes import resize_clip
from .motion.flow import warp
from .original import resolution, trust_in
from .source import gauss

EVERY = 8  # frames between two that are searched
_LEAST_SEARCHED, _MOST_SEARCHED = 256 * 144, 512 * 288  # px of an LR frame in which features are looked for
_FEATURES = 800
_SMALLEST = 48  # px of the shorter side below which a picture is not halved
_LARGEST = 1024  # px of the longer side beyond which features of a picture are not looked for
_RATIO = 0.9  # of the distances to the best and the second best match
_MATCHES = 150  # best ones, of which every two make a similarity
_NEAR = 1.0  # LR px by which a match may miss its place
_LEAST = 5  # matches that must agree
_TURN, _SIZE = 0.5, 0.4  # radians and log size by which a match's own frame may differ from its place
_PLACES = 2  # of one picture in one frame
_VIEWS = 6  # places of all pictures in one frame
_COARSE = 0.35  # px of a picture to one of the upscaled frame, below which it has nothing to give
_AROUND = 6.0  # LR px around matches that a place is registered on
_STEPS = (1.5, 1.5, 1.5, 0.7, 0.7, 0.0, 0.0)  # LR px of blur, of each step of registration
_ROBUST = 0.08  # difference, frames in 0..1, where a pixel counts 1/e in registration
MARGIN = 2.5  # LR px at the rim of a picture that are not used
_GAIN = 2.0  # contrast of a picture may differ by this factor
_FITTED, _STRAY = 4, 0.5  # rounds in which a motion is fitted to a flow; LR px by which others may differ from it
_NEARBY = 2.0  # LR px, sigma, around pixels that are alike, in which a place is followed
_LONGEST = 0.2  # change of size or turn in one step beyond which registration has failed
_FITS = 0.2  # mean likeness around its matches, below which a place is dropped
_SIZES, _COPIES = 8, 8  # sizes to an octave that a picture is reduced to; copies that are held
_DENSE = 1.5  # px of the copy that is sampled to one of the picture: bicubic samples of fewer are soft


class Picture:
    """A photograph (1, 3, R, C) in 0..1, its features, and copies at the sizes and on the device that are asked for."""

    def __init__(self, pixels: torch.Tensor):
        self.pixels = pixels
        self.resolved = resolution(pixels)
        self._copies: dict[int, torch.Tensor] = {}
        self.features = []
        grey, size = pixels.mean(1, keepdim=True), max(pixels.shape[-2:])
        while min(grey.shape[-2:]) >= _SMALLEST:
            if max(grey.shape[-2:]) <= _LARGEST:
                self.features.append(_features(grey, size / max(grey.shape[-2:])))
            grey = F.interpolate(grey, scale_factor=0.5, mode="bicubic", antialias=True)

    def look(self, points: torch.Tensor, step: float) -> torch.Tensor:
        """Give colours (1, 3, h, w) at points (2, h, w), in px; `step`: px from one to the next."""
        level = math.floor(_SIZES * math.log2(step))
        height, width = self.pixels.shape[-2:]
        if level not in self._copies:
            while len(self._copies) >= _COPIES:
                del self._copies[next(iter(self._copies))]
            share = 2 ** (-level / _SIZES)
            copy = self.pixels[:, :, None]
            if share < 1:
                copy = resize_clip(copy, *(max(1, round(side * share)) for side in (height, width)))
            size = (max(1, round(side * share * _DENSE)) for side in (height, width))
            self._copies[level] = resize_clip(copy, *size, "lanczos")[:, :, 0].to(points.device)
        grid = torch.stack(((2 * points[0] + 1) / width - 1, (2 * points[1] + 1) / height - 1), -1)[None]
        return F.grid_sample(self._copies[level], grid, mode="bicubic", padding_mode="border", align_corners=False)

    def covers(self, points: torch.Tensor, margin: float) -> torch.Tensor:
        """Tell, (1, 1, h, w) in 0 or 1, where points are inside by `margin` px."""
        last = points.new_tensor(self.pixels.shape[:-3:-1]).view(2, 1, 1) - 1
        return ((points >= margin) & (points <= last - margin)).all(0).float()[None, None]


@dataclass(frozen=True)
class Place:
    """Where picture number `picture` lies in a frame: px of it = turn * LR px + shift; colours = gain * its + offset.

    `around` (1, 1, h, w) in 0..1 tells where matches or pixels speak for it, `fit` how many px of the frame look alike.
    """

    picture: int
    turn: complex
    shift: complex
    around: torch.Tensor
    gain: torch.Tensor
    offset: torch.Tensor
    fit: float = 0.0

    def points(self, frame: torch.Tensor) -> torch.Tensor:
        """Give what points (2, h, w) of the LR frame are in the picture."""
        return _moved(self.turn, self.shift, frame)


def _features(grey: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give (complex places (n,), complex sizes and turns (n,), descriptors (n, 128)) of a picture; px times `scale`.

    On the CPU, so that every device finds the same.
    """
    from kornia.feature import SIFTFeatureScaleSpace  # here: its import takes as long as the pack's

    frames, response, words = SIFTFeatureScaleSpace(_FEATURES)(grey.cpu())
    good = response[0] > 0
    frames, words = frames[0, good].double(), words[0, good]
    middle, first = frames[..., 2], frames[..., 0]
    at = (torch.complex(middle[:, 0], middle[:, 1]) + 0.5 * (1 + 1j)) * scale - 0.5 * (1 + 1j)
    return at, torch.complex(first[:, 0], first[:, 1]) * scale, words


def points_of(frame: torch.Tensor) -> torch.Tensor:
    """Give the pixels of a frame (..., h, w), (x, y), as (2, h, w)."""
    height, width = frame.shape[-2:]
    rows, columns = (torch.arange(side, device=frame.device, dtype=torch.float32) for side in (height, width))
    return torch.stack((columns.expand(height, -1), rows[:, None].expand(-1, width)))


def _moved(turn: complex, shift: complex, points: torch.Tensor) -> torch.Tensor:
    x, y = points
    return torch.stack((turn.real * x - turn.imag * y + shift.real, turn.imag * x + turn.real * y + shift.imag))


# Step 2: where is a picture?


@torch.no_grad()
def search(lr: torch.Tensor, pictures: Sequence[Picture], scale: float) -> list[Place]:
    """Find pictures in an LR frame (1, 3, h, w); `scale`: size of the upscaled frame over it."""
    height, width = lr.shape[-2:]
    ratio = (min(max(height * width, _LEAST_SEARCHED), _MOST_SEARCHED) / (height * width)) ** 0.5
    size = (max(16, round(height * ratio)), max(16, round(width * ratio)))
    grey = F.interpolate(lr.mean(1, keepdim=True), size, mode="bicubic", antialias=ratio < 1)
    features, points, places = _features(grey, width / size[1]), points_of(lr), []
    even = lr.new_ones(1, 3, 1, 1)
    for number, picture in enumerate(pictures):
        start, end, turns, names = _matched(features, picture)
        for _ in range(_PLACES):
            agree, turn, shift = _agreed(start, end, turns, names)
            if agree is None or abs(turn) / scale < _COARSE:
                break
            around = torch.zeros_like(points[0])
            for at in start[agree].tolist():
                distance = (points[0] - at.real) ** 2 + (points[1] - at.imag) ** 2
                around = torch.maximum(around, torch.exp(-distance / _AROUND**2))
            around = around[None, None]
            places.append(Place(number, turn, shift, around, even, 0 * even))
            start, end, turns, names = (each[~agree] for each in (start, end, turns, names))
    return places


def _matched(features: tuple, picture: Picture) -> tuple[torch.Tensor, ...]:
    """Match features: (m,) points of the frame, of the picture, turns, all complex, and numbers of the features."""
    from kornia.feature import match_smnn

    at, own, words = features
    parts = []
    for other_at, other_own, other_words in picture.features:
        if min(len(words), len(other_words)) < 2:
            continue
        distance, pair = match_smnn(words, other_words, _RATIO)
        pair = pair[distance.flatten().argsort()[:_MATCHES]]
        first, second = pair.unbind(1)
        parts.append((at[first], other_at[second], other_own[second] / own[first], first))
    if not parts:
        return tuple(at.new_zeros(0) for _ in range(4))
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _agreed(
    start: torch.Tensor, end: torch.Tensor, turns: torch.Tensor, names: torch.Tensor
) -> tuple[torch.Tensor | None, complex, complex]:
    """Find the similarity that most matches agree with: (which do, turn, shift); None where too few do."""
    if len(start) < _LEAST:
        return None, 0j, 0j
    first, second = torch.triu_indices(len(start), len(start), 1, device=start.device)
    way = start[second] - start[first]
    far = way.abs() > 2 * _NEAR
    first, second, way = first[far], second[far], way[far]
    turn = (end[second] - end[first]) / way
    likely = _alike(turn, turns[first]) & _alike(turn, turns[second])
    turn, first = turn[likely], first[likely]
    best, most = None, _LEAST - 1
    single = F.one_hot(names.unique(return_inverse=True)[1]).float()
    for part, origin in zip(turn.split(4096), first.split(4096), strict=True):
        agree = _agreement(start, end, turns, part, end[origin] - part * start[origin])
        count = ((agree.float() @ single) > 0).sum(1)  # a feature of the frame counts once
        if len(count) and int(count.max()) > most:
            best, most = agree[count.argmax()], int(count.max())
    if best is None:
        return None, 0j, 0j
    for _ in range(3):
        middle, goal = start[best].mean(), end[best].mean()
        way = start[best] - middle
        turn = (way.conj() * (end[best] - goal)).sum() / way.abs().square().sum()
        shift = goal - turn * middle
        agree = _agreement(start, end, turns, turn[None], shift[None])[0]
        if int(agree.sum()) < _LEAST:
            break
        best = agree
    return best, complex(turn), complex(shift)


def _alike(turn: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    ratio = turn / other
    return (ratio.angle().abs() < _TURN) & (ratio.abs().log().abs() < _SIZE)


def _agreement(
    start: torch.Tensor, end: torch.Tensor, turns: torch.Tensor, turn: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """Tell (n, m) which matches agree with which similarities."""
    miss = (turn[:, None] * start + shift[:, None] - end).abs() / turn.abs()[:, None]
    return (miss < _NEAR) & _alike(turn[:, None], turns)


# Step 3: every frame


@torch.no_grad()
def find_places(
    frames: Callable[[int], torch.Tensor],
    flows: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    count: int,
    pictures: Sequence[Picture],
    scale: float,
    cuts: Collection[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Place]]:
    """Give for each of `count` frames the places of pictures in it.

    `frames(i)` gives LR frame i (1, 3, h, w) in 0..1, `flows(i)` the motion to the next and back, (1, 2, h, w) px;
    `scale`: size of the upscaled frames over theirs. Scenes, which start at `cuts`, know nothing of each other.
    """
    show = progress or (lambda done, total: None)
    bounds, result = [0, *sorted(cuts), count], []
    for first, stop in zip(bounds[:-1], bounds[1:], strict=True):
        searched, forth = {*range(first, stop, EVERY), stop - 1}, []
        for number in range(first, stop):
            show(first + number, 2 * count)
            lr = frames(number)
            places = search(lr, pictures, scale) if number in searched else []
            if forth:
                places += [_carried(place, flows(number - 1)[1]) for place in forth[-1]]
            forth.append(_kept([_registered(place, lr, pictures[place.picture]) for place in places]))
        for number in range(stop - 2, first - 1, -1):  # what appears is followed back to where it came from
            show(first + stop + (stop - 1 - number), 2 * count)
            lr, later = frames(number), forth[number + 1 - first]
            places = [_carried(place, flows(number)[0]) for place in later]
            places = [_registered(place, lr, pictures[place.picture]) for place in places]
            forth[number - first] = _kept(forth[number - first] + places)
        result += forth
    return result


def _carried(place: Place, flow: torch.Tensor) -> Place:
    """Bring a place to the frame that `flow` (1, 2, h, w) leads from."""
    around, points = warp(place.around, flow), points_of(flow)
    goal, weight, turn, shift = points + flow[0], around[0, 0], 1 + 0j, 0j
    for _ in range(_FITTED):
        total = weight.sum() + 1e-6
        middle, other = ((weight * each).sum((1, 2)) / total for each in (points, goal))
        (x, y), (u, v) = (each - mean.view(2, 1, 1) for each, mean in ((points, middle), (goal, other)))
        size = (weight * (x**2 + y**2)).sum() + 1e-6
        turn = complex((weight * (x * u + y * v)).sum() / size, (weight * (x * v - y * u)).sum() / size)
        shift = complex(*other.tolist()) - turn * complex(*middle.tolist())
        miss = goal - _moved(turn, shift, points)
        weight = around[0, 0] / (1 + miss.square().sum(0) / _STRAY**2)  # what moves otherwise counts little
    return replace(place, turn=place.turn * turn, shift=place.turn * shift + place.shift, around=around)


def _registered(place: Place, lr: torch.Tensor, picture: Picture) -> Place:
    """Refine a place on the LR frame; its fit is 0 where the picture does not fit."""
    points = points_of(lr)
    middle = (place.around[0] * points).sum((1, 2)) / place.around.sum().clamp_min(1e-6)
    x, y = points - middle.view(2, 1, 1)
    sure = torch.ones_like(place.around)
    for sigma in (*_STEPS, None):
        laid = place.points(points)
        moved = picture.look(laid, abs(place.turn))
        inside = picture.covers(laid, MARGIN * abs(place.turn))
        weight = place.around * inside
        if float(weight.sum()) < 9:
            return replace(place, fit=0.0)
        place = replace(place, **_colours(lr, moved, weight * sure))
        moved = place.gain * moved + place.offset
        if sigma is None:
            break
        moved, frame = gauss(moved, sigma), gauss(lr, sigma)
        rest = frame - moved
        across, down = _slopes(moved)
        sure = torch.exp(-((rest.abs().mean(1, keepdim=True) / _ROBUST) ** 2))
        weight = weight * sure
        columns = torch.stack((across * x + down * y, down * x - across * y, across, down)).flatten(1)
        every = weight.expand_as(rest).flatten()
        normal = (columns * every) @ columns.T
        normal = normal + 1e-4 * torch.diag(normal.diagonal()) + 1e-9 * torch.eye(4).to(normal)
        grow, spin, right, low = torch.linalg.solve(normal, (columns * every) @ rest.flatten()).tolist()
        change, step = complex(grow, spin), complex(right, low)
        if abs(change) > _LONGEST:
            return replace(place, fit=0.0)
        shift = place.turn * (step - change * complex(*middle.tolist())) + place.shift
        place = replace(place, turn=place.turn * (1 + change), shift=shift)
    still = torch.zeros_like(lr[:, :2])
    alike = trust_in(lr, moved, still, still) * inside
    fits = float((alike * place.around).sum() / place.around.sum())
    if fits < _FITS:
        return replace(place, fit=0.0)
    return replace(place, fit=float(alike.sum()), around=gauss(alike, _NEARBY))


def _colours(lr: torch.Tensor, moved: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Match mean and contrast of coarse structure, per colour."""
    first, second = gauss(lr, 2.0), gauss(moved, 2.0)
    total = weight.sum() + 1e-6
    means = [(weight * each).sum((2, 3), keepdim=True) / total for each in (first, second)]
    spread = [
        ((weight * (each - mean).square()).sum((2, 3), keepdim=True) / total + 1e-4).sqrt()
        for each, mean in zip((first, second), means, strict=True)
    ]
    gain = (spread[0] / spread[1]).clamp(1 / _GAIN, _GAIN)
    return {"gain": gain, "offset": means[0] - gain * means[1]}


def _slopes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2
    return across, (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2


def _kept(places: list[Place]) -> list[Place]:
    """Keep the best places that fit: of one picture those that are not the same."""
    kept: list[Place] = []
    for place in sorted((place for place in places if place.fit > 0), key=lambda each: -each.fit):
        points = points_of(place.around)
        others = [other for other in kept if other.picture == place.picture]
        apart = [
            float(((place.points(points) - other.points(points)).norm(dim=0) * place.around[0, 0]).sum())
            / (abs(place.turn) * float(place.around.sum()))
            for other in others
        ]
        if len(others) < _PLACES and all(far > _NEAR for far in apart):
            kept.append(place)
    return kept[:_VIEWS]
