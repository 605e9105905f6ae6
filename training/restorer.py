"""The stages that train the decoder's restorer (models/unimmvsr/restorer.py), without a latent.

Three, in this order: *clean* trains the weights for LR frames that are right to the pixel; *worn* trains on from them,
with LR frames that are mostly blurred, noisy and compressed; *judge* learns to tell the two kinds of frames apart. It
learns from how they were made, not from which weights restore a window better: most windows restore about alike, and
trained on the difference it called worn clips clean that it had not seen.

A step of the first two, in order:

1. Take photographs cut out and reduced, alone or with neighbours cut out beside them (detail is plentiful and the
   motion known; many stand still, where neighbours must not harm), or moving clips made of photographs
   (training/clips.py), reduced and degraded, with the motion that the built-in estimator finds on these LR frames, as
   at run time.
2. Cut windows, turn and mirror them, leave some neighbours out, and spoil the motion smoothly: a network
   that has only seen good motion believes neighbours that are slightly misaligned.
3. Restore the middle frame; compare it with the truth, in colour and more so in brightness, which eyes see better.

Draws are kept and used several times (batches.Pool), each time cut and turned otherwise; everything depends on the
seed and the step's number alone, so that a killed run goes on to the numbers it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..models.motion.blockflow import BlockFlow
from ..models.motion.estimation import join_flows
from ..models.motion.flow import Ways
from ..models.pixels.degradation import Degradation, Noise, degrade, resize
from ..models.unimmvsr.restorer import NEIGHBOURS, Judge, Neighbour, Restorer
from .batches import Pool, draw_degradation
from .clips import in_other_light, make_clip, soften
from .curriculum import rng_at
from .photos import Photo, procedural_photo

REACH = max(NEIGHBOURS)
SCALES = (4.0, 2.0, 8.0, 3.2, 2.5, 1.6, 1.0)  # all of them fit windows of 160 px
SCALE_SHARES = (0.83, 0.07, 0.03, 0.02, 0.02, 0.02, 0.01)
MARGIN = 1.5  # side of the clips that windows are cut out of, over the windows'
CLIPS = 4  # of a draw; any frame with REACH neighbours to each side can be the middle one
STILLS = 24  # windows of a draw of photographs
STILL_SHARE = 0.5  # of steps
PANNED_SHARE = 0.5  # of these steps: with neighbours
STANDING_SHARE = 0.4  # of the pictures there: nothing moves
FASTEST = 6  # px a frame that the others move by at most
CLEAN_SHARES = {"clean": 1.0, "worn": 0.1, "judge": 0.5}  # of clips and stills; the others are degraded
DELIVERED_SHARE = 0.5  # of the judge's clean clips: their masters are lightly noisy and compressed, as most are
LOOKED_AT = 12, 72  # clips of the judge's draws, and the most px of a window
UNSURE = 0.02  # what the judge is to leave to doubt
DEGRADED = ("real", "light", "second order", "generated", "old film")
DEGRADED_SHARES = (0.6, 0.15, 0.1, 0.1, 0.05)
DRAWN_SHARE = 0.35  # of pictures that are glyphs, gratings or shapes: photographs teach few hard edges
SOFT_SHARE = 0.15  # of clips
REDUCED = (0.75, 0.6, 0.5, 0.4)  # sizes of photographs before they are looked at: as they are, they are too soft
SPOILED = 0.35  # LR px; the most that motion is spoiled by
BORDER = 8  # px that the loss leaves out at each side
CHOICES = ((), (-1, 1), (-2, -1, 1, 2), NEIGHBOURS[:3], NEIGHBOURS[3:], NEIGHBOURS)  # neighbours of a step with clips
CHOICE_SHARES = (0.1, 0.15, 0.15, 0.05, 0.05, 0.5)


@dataclass(frozen=True)
class Stills:
    """Pictures (n, 3, H, W) and LR clips (n, t, 3, h, w) around them, 8-bit levels; `pan` (n, 2), px a frame."""

    truth: torch.Tensor
    low: torch.Tensor
    pan: torch.Tensor


@dataclass(frozen=True)
class Moving:
    """Clips: truth (n, t, 3, H, W) and LR (n, t, 3, h, w), 8-bit levels.

    `flows` hold for 1, 2 and REACH frames the flows over them there and back, (n, t - 1, 2, h, w) and so on.
    """

    truth: torch.Tensor
    low: torch.Tensor
    flows: dict[int, Ways]


@dataclass(frozen=True)
class Looks:
    """LR frames for the judge (n, t, 3, h, w), 8-bit levels, and which clips are worn, (n,) 0 or 1."""

    low: torch.Tensor
    worn: torch.Tensor


@dataclass(frozen=True)
class Windows:
    """What a step trains on: truth (b, 3, H, W) and LR (b, 3, h, w) in 0..1, neighbours and motion."""

    truth: torch.Tensor
    low: torch.Tensor
    neighbours: list[Neighbour]


class Maker:
    """Draws stills and clips from photographs, for windows of `side` px; clips have `frames` frames."""

    def __init__(
        self,
        photos: Sequence[Photo],
        seed: int,
        side: int,
        frames: int,
        clean_share: float = 0.5,
        textures: int = 240,
    ):
        self.photos, self.seed, self.side, self.frames = photos, seed, side, frames
        self.clean_share = clean_share
        rng, least = np.random.default_rng(seed), math.ceil(1.3 * MARGIN * side)  # px that a moving camera needs
        self.reduced = [_reduced(photo, rng.choice(REDUCED), least) for photo in photos]
        device = photos[0].levels[0].device
        made = [procedural_photo(np.random.default_rng([seed, k])) for k in range(textures)]
        self.textures = [Photo(p.name, tuple(level.to(device) for level in p.levels)) for p in made]
        self.estimate = BlockFlow(quick=True)

    def _picture(self, rng: np.random.Generator, photos: Sequence[Photo]) -> Photo:
        source = self.textures if self.textures and rng.random() < DRAWN_SHARE else photos
        return source[int(rng.integers(len(source)))]

    def stills(self, number: int) -> Stills:
        """Cut windows out of pictures reduced by a random factor, in other light, and frames beside them."""
        rng = np.random.default_rng([self.seed, 0, number])
        small, margin, around = _small(rng, self.side), REACH * FASTEST, range(-REACH, REACH + 1)
        truth, low, pans = [], [], []
        for _ in range(STILLS):
            picture = self._still(rng, self.side + 2 * margin)
            pan = rng.integers(-FASTEST, FASTEST + 1, 2) * (rng.random() >= STANDING_SHARE)
            corners = [(margin + k * pan).tolist() for k in around]
            clip = torch.stack([picture[:, y : y + self.side, x : x + self.side] for x, y in corners])
            # as often degraded as clips are: else having no neighbours would mean a clean picture
            low.append(degrade(clip, small, small, draw_degradation(rng, self._preset(rng)), rng))
            truth.append(clip[REACH])
            pans.append(torch.from_numpy(pan))
        return Stills(_bytes(torch.stack(truth)), _bytes(torch.stack(low)), torch.stack(pans))

    def _preset(self, rng: np.random.Generator) -> str:
        return "bicubic" if rng.random() < self.clean_share else str(rng.choice(DEGRADED, p=DEGRADED_SHARES))

    def _still(self, rng: np.random.Generator, side: int) -> torch.Tensor:
        picture = self._picture(rng, self.photos).levels[0]
        factor = max(float(rng.choice(REDUCED)), side / min(picture.shape[-2:]))
        own = math.floor(side / factor)
        corners = [[int(rng.integers(0, size - own + 1)) for size in picture.shape[-2:]] for _ in range(2)]
        crops = [picture[None, :, y : y + own, x : x + own].float() for y, x in corners]
        crop = max(crops, key=lambda crop: float(crop.diff(dim=-1).abs().mean()))  # sky and walls teach little
        order = rng.permutation(3) if rng.random() < 0.25 else np.arange(3)
        return resize(crop[:, order], side, side, "bicubic")[0].clamp(0, 1) ** math.exp(rng.uniform(-0.25, 0.25))

    def _moving(self, rng: np.random.Generator, side: int, soft_share: float, photos: Sequence[Photo]) -> torch.Tensor:
        layers = int(rng.choice((0, 1, 2), p=(0.4, 0.4, 0.2)))
        pictures = [self._picture(rng, photos) for _ in range(3)]
        clip = in_other_light(rng, make_clip(rng, pictures, self.frames, side, layers))
        return (soften(rng, clip) if rng.random() < soft_share else clip).frames

    @torch.no_grad()
    def looks(self, number: int) -> Looks:
        """Make LR clips of which some are worn; many of the others come from masters as they are delivered."""
        rng, side = np.random.default_rng([self.seed, 2, number]), round(MARGIN * self.side)
        small, low, presets = _small(rng, side), [], []
        for _ in range(LOOKED_AT[0]):
            photos = self.reduced if rng.random() < 0.6 else self.photos  # soft is not worn
            frames, preset = self._moving(rng, side, 0.3, photos), self._preset(rng)
            if preset == "bicubic" and rng.random() < DELIVERED_SHARE:
                noise = Noise(float(rng.uniform(0, 3)), False) if rng.random() < 0.5 else None
                master = Degradation(last_filter="bicubic", last_noise=noise, crf=int(rng.integers(10, 24)))
                frames = degrade(frames, side, side, master, rng)
            low.append(degrade(frames, small, small, draw_degradation(rng, preset), rng))
            presets.append(preset)
        return Looks(_bytes(torch.stack(low)), torch.tensor([float(preset != "bicubic") for preset in presets]))

    @torch.no_grad()
    def clips(self, number: int, preset: str | None = None) -> Moving:
        """Make moving clips, reduce and degrade them, and estimate their motion; with a `preset` all alike at x4."""
        rng, side = np.random.default_rng([self.seed, 1, number]), round(MARGIN * self.side)
        small = _small(rng, side) if preset is None else side // 4
        truth, low = [], []
        for _ in range(CLIPS):
            truth.append(self._moving(rng, side, 0.0 if preset else SOFT_SHARE, self.reduced))
            low.append(degrade(truth[-1], small, small, draw_degradation(rng, preset or self._preset(rng)), rng))
        low = torch.stack(low)
        return Moving(_bytes(torch.stack(truth)), _bytes(low), self._flows(low))

    def _flows(self, low: torch.Tensor) -> dict[int, Ways]:
        """Estimate the motion of LR clips (n, t, 3, h, w) as at run time: near frames, then far ones over them."""
        flows: dict[int, Ways] = {}
        for far in (1, 2, REACH):
            frames = [part.flatten(0, 1) for part in (low[:, :-far], low[:, far:])]
            if far == 1:
                both = self.estimate(torch.cat(frames), torch.cat(frames[::-1]))
            else:
                step = 1 if far == 2 else 2
                starts = [slice(first, first + low.shape[1] - far) for first in range(0, far, step)]
                parts = [[way[:, start].float().flatten(0, 1) for way in flows[step]] for start in starts]
                both = join_flows(*frames, parts, self.estimate.refine)
            flows[far] = tuple(part.unflatten(0, (len(low), -1)) for part in both.half().chunk(2))
        return flows


def _reduced(photo: Photo, factor: float, least: int) -> Photo:
    """Reduce a photograph, but not below `least` px a side where it has more."""
    picture = photo.levels[0].float()[None]
    factor = min(1.0, max(factor, least / min(picture.shape[-2:])))
    sides = (round(factor * side) for side in picture.shape[-2:])
    return Photo(photo.name, (resize(picture, *sides, "bicubic")[0].clamp(0, 1).half(),))


def _small(rng: np.random.Generator, side: int) -> int:
    """Give the side of an LR picture at a random scale."""
    return round(side / float(rng.choice(SCALES, p=SCALE_SHARES)))


def still_windows(
    stills: Stills, count: int, rng: np.random.Generator, offsets: Sequence[int] = (), spoiled: float = SPOILED
) -> Windows:
    """Choose `count` windows of a draw of stills with these neighbours, and turn them."""
    chosen = rng.permutation(STILLS)[:count]
    parts = [_floats(stills.truth[chosen]), _floats(stills.low[chosen, REACH])]
    small = parts[1].shape[-2:]
    pan = (stills.pan[chosen] * (small[1] / parts[0].shape[-1])).to(parts[0])
    for offset in offsets:
        back = (offset * pan).view(-1, 2, 1, 1).expand(-1, -1, *small)  # the window moves, so what it shows goes back
        parts += [_floats(stills.low[chosen, REACH + offset]), -back, back]
    return _windows(rng, parts, spoiled)


def clip_windows(
    clips: Moving,
    count: int,
    side: int,
    rng: np.random.Generator,
    offsets: Sequence[int] | None = None,
    spoiled: float = SPOILED,
) -> Windows:
    """Cut `count` windows of `side` px out of a draw of clips, each with its own middle frame.

    Neighbours are the same ones for all, drawn where they are not given.
    """
    if offsets is None:
        offsets = CHOICES[int(rng.choice(len(CHOICES), p=CHOICE_SHARES))]
    forward = rng.random() < 0.5  # or played backwards
    parts: list[list[torch.Tensor]] = []
    chosen = [k % CLIPS for k in range(count)]
    small, whole = clips.low.shape[-1], clips.truth.shape[-1]
    step = small // math.gcd(small, whole)  # LR px after which LR and full pixels begin together
    for clip in chosen:
        middle = int(rng.integers(REACH, clips.low.shape[1] - REACH))
        corner = [step * int(v) for v in rng.integers(0, (small - small * side // whole) // step + 1, 2)]
        low = slice(None), *(slice(v, v + small * side // whole) for v in corner)
        full = slice(None), *(slice(v * whole // small, v * whole // small + side) for v in corner)
        part = [_floats(clips.truth[clip, middle][full]), _floats(clips.low[clip, middle][low])]
        for offset in offsets:
            other = middle + (offset if forward else -offset)
            ways = [way[clip, min(middle, other)].float()[low] for way in clips.flows[abs(offset)]]
            part += [_floats(clips.low[clip, other][low]), *(ways if middle < other else ways[::-1])]
        parts.append(part)
    return _windows(rng, [torch.stack(each) for each in zip(*parts, strict=True)], spoiled)


def _windows(rng: np.random.Generator, parts: list[torch.Tensor], spoiled: float) -> Windows:
    """Turn truth, LR, and for every neighbour its LR and the flows there and back, and spoil the motion."""
    truth, low, *rest = _turned(rng, parts)
    triples = [tuple(rest[k : k + 3]) for k in range(0, len(rest), 3)]
    return Windows(truth, low, [_spoiled(rng, spoiled, *triple) for triple in triples])


def _spoiled(
    rng: np.random.Generator, most: float, low: torch.Tensor, there: torch.Tensor, back: torch.Tensor
) -> Neighbour:
    """Make half of the motions wrong by a smooth amount, up to about `most` px, that the way back does not show."""
    amount = rng.uniform(0, most, (len(low), 1, 1, 1)) * (rng.random((len(low), 1, 1, 1)) < 0.5)
    wrong = torch.from_numpy(rng.standard_normal((len(low), 2, 5, 5)) * amount).to(low)
    wrong = F.interpolate(wrong, low.shape[-2:], mode="bicubic", align_corners=True)
    return low, there + wrong, back - wrong


def _turned(rng: np.random.Generator, parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Mirror and transpose pictures (b, 3, h, w) and flows (b, 2, h, w) alike."""
    left, up, swap = rng.random(3) < 0.5
    for axis, turn in ((-1, left), (-2, up)):
        if turn:
            sign = torch.tensor([-1.0, 1.0] if axis == -1 else [1.0, -1.0]).view(2, 1, 1).to(parts[0])
            parts = [part.flip(axis) * (sign if part.shape[1] == 2 else 1) for part in parts]
    if swap:
        parts = [part.transpose(-1, -2).flip(1) if part.shape[1] == 2 else part.transpose(-1, -2) for part in parts]
    return [part.contiguous() for part in parts]


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def _floats(x: torch.Tensor) -> torch.Tensor:
    return x.float() / 255


def window_loss(restorer: Restorer, windows: Windows, wear: float = 0.0) -> tuple[torch.Tensor, dict[str, float]]:
    """Compare the restored windows with the truth; `gain` is in dB over bicubic, in RGB."""
    height, width = windows.truth.shape[-2:]
    error = _error(restorer(windows.low, windows.neighbours, height, width, wear)[0], windows)
    with torch.no_grad():
        plain = _error(resize(windows.low, height, width, "bicubic"), windows)
        errors = [each.square().mean((1, 2, 3)).clamp_min(1e-8) for each in (plain, error)]
        gain = 10 * (errors[0] / errors[1]).log10().mean()
    name = f"gain_{len(windows.neighbours)}" if height == 4 * windows.low.shape[-2] else "gain_other"
    return _wrong(error).mean(), {name: float(gain)}


def judge_loss(judge: Judge, seen: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """Compare verdicts on LR windows (n, 3, h, w) in 0..1 with which are worn, (n,); `right` is the share of them."""
    frames, worn = seen
    verdict = judge(frames)
    loss = F.binary_cross_entropy_with_logits(verdict, worn * (1 - 2 * UNSURE) + UNSURE)
    return loss, {"right": float(((verdict > 0) == (worn > 0.5)).float().mean())}


def _error(restored: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Give the difference to the truth, without a border."""
    return (restored.float() - windows.truth)[..., BORDER:-BORDER, BORDER:-BORDER]


def _wrong(error: torch.Tensor) -> torch.Tensor:
    """Give the root mean square error (b,), what PSNR measures: 3 parts of it in colour, 7 in brightness."""
    grey = (error * error.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(1, keepdim=True)
    colour, light = ((part.square().mean((1, 2, 3)) + 1e-6).sqrt() for part in (error, grey))
    return 0.3 * colour + 0.7 * light


class Draws:
    """Gives the windows of a step."""

    def __init__(self, maker: Maker, batch: tuple[int, int, int], seed: int, pool: int, fresh: int):
        """Take (windows of a step, frames of a clip, px of a window), and how often and how long draws are used."""
        self.count, _, self.side = batch
        self.seed = seed
        self.stills = Pool(maker.stills, seed, pool, max(1, fresh // 2))  # cheaper than clips
        self.clips = Pool(maker.clips, seed, pool, fresh)

    def at(self, step: int) -> Windows:
        """Draw a step's windows."""
        rng = rng_at(self.seed, step, 1)
        if rng.random() < STILL_SHARE:
            offsets = NEIGHBOURS if rng.random() < PANNED_SHARE else ()
            return still_windows(self.stills.at(step), self.count, rng, offsets)
        return clip_windows(self.clips.at(step), self.count, self.side, rng)


class JudgeDraws:
    """Gives the frames of a step of the judge, and which are worn."""

    def __init__(self, maker: Maker, seed: int, pool: int, fresh: int):
        """Take how many draws are kept and after how many steps a new one is made."""
        self.seed, self.pool = seed, Pool(maker.looks, seed, pool, fresh)

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a step's windows, one of every clip of a draw."""
        rng, looks = rng_at(self.seed, step, 1), self.pool.at(step)
        side = min(LOOKED_AT[1], looks.low.shape[-1])
        windows = []
        for clip in looks.low:
            frame = clip[int(rng.integers(len(clip)))]
            y, x = (int(v) for v in rng.integers(0, looks.low.shape[-1] - side + 1, 2))
            windows += _turned(rng, [_floats(frame[None, :, y : y + side, x : x + side])])
        return torch.cat(windows), looks.worn.to(windows[0])


@torch.no_grad()
def judge_figures_of(judge: Judge, maker: Maker, draws: int = 4) -> dict[str, float]:
    """Give the share of photographs in motion whose frames are together called what they are."""
    looks = [maker.looks(number) for number in range(draws)]
    right = [
        (float(judge(_floats(clip)).mean()) > 0) == bool(worn)
        for look in looks
        for clip, worn in zip(look.low, look.worn, strict=True)
    ]
    return {"right": round(float(np.mean(right)), 3)}


@torch.no_grad()
def figures_of(restorer: Restorer, maker: Maker, wear: float = 0.0, draws: int = 4) -> dict[str, float]:
    """Give the gain over bicubic in dB on photographs in motion, with neighbours and alone."""
    figures: dict[str, list[float]] = {}
    for preset in ("bicubic", "real"):
        for number in range(draws):
            moving = maker.clips(number, preset)
            for name, offsets in (("gain", NEIGHBOURS), ("alone", ())):
                rng = np.random.default_rng([maker.seed, number])
                windows = clip_windows(moving, CLIPS, maker.side, rng, offsets, spoiled=0.0)
                figures.setdefault(f"{preset}_{name}", []).extend(window_loss(restorer, windows, wear)[1].values())
    return {name: round(float(np.mean(found)), 3) for name, found in figures.items()}
