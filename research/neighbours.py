"""`run.py bench neighbours`: what the built-in restorer gains from neighbours, motion and its steps, on photographs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..models.layout.sizes import ClipSize
from ..models.motion.blockflow import BlockFlow
from ..models.motion.estimation import DistantFlows
from ..models.motion.flow import Ways, chain_pairs, warp
from ..models.pixels.degradation import degrade, resize
from ..models.unimmvsr import checkpoint
from ..models.unimmvsr.restorer import NEIGHBOURS, Restorer, Restorers, int8_works
from ..models.unimmvsr.vae import CausalVideoVAE, RestoredFrames
from ..runner.errors import RunnerError
from ..runner.host import Host
from ..training.batches import draw_degradation
from ..training.clips import make_clip
from ..training.photos import find_photos, load_photo

SIDE, FARTHEST, CLIPS = 240, max(NEIGHBOURS), 24
_SMALL, _TIMED = (128, 224), 24
_INSIDE = (..., slice(8, -8), slice(8, -8))
_INVERTING = 8  # iterations that invert a smooth flow to a thousandth of a pixel
_WEIGHTS = Path(__file__).parent.parent / "models" / "weights" / "unimmvsr-tiny.safetensors"

Flows = dict[int, Ways]
Motions = Callable[[int, int], Ways]  # from one frame to another and back


@torch.no_grad()
def run(options: argparse.Namespace, host: Host) -> dict:
    """Restore frames of photographs seen by a moving camera, with more or fewer neighbours, motions and steps.

    --photos FOLDER holds photographs that nothing was trained on. Figures: gain over bicubic in dB (luma, mean of the
    middle frames of --frames clips, 24 by default), x4, by LR (bicubic, real): `alone`; `1`, `2`, `6`: with the
    neighbours up to so many frames away, with estimated motion; `chained`, `exact` and `none`: with all, their motion
    chained pair by pair, exact, and none; `steps 1`, `steps 2`: with all, stopped early. `seconds` a frame of 224x128
    to 896x512 take one thread, motion included, with convolutions in each format (mean of a clip of 24 frames).
    """
    if not options.photos:
        raise RunnerError("bench neighbours: needs --photos FOLDER, photographs that the weights were not trained on.")
    photos = [photo for path in find_photos([Path(options.photos)], ()) if (photo := load_photo(path))]
    release = checkpoint.open_release(_WEIGHTS)
    vae = CausalVideoVAE(checkpoint.vae_config(release.vae)).eval()
    vae.load_state_dict({key: value.float() for key, value in release.vae.items()})
    restore, estimate, rows = vae.decoder.restore, BlockFlow(quick=True), {}
    moving = make_clip(np.random.default_rng(7), photos[:1], _TIMED, 4 * _SMALL[1], 0).frames
    rows["seconds"] = _seconds(restore, resize(moving.clamp(0, 1), *_SMALL, "bicubic").clamp(0, 1).movedim(1, -1))
    for mode, network, wear in (("bicubic", restore.clean, 0.0), ("real", restore.worn, 1.0)):
        found: dict[str, list[float]] = {}
        for number in range(options.frames or CLIPS):
            rng = np.random.default_rng([7, number])
            clip = make_clip(rng, [photos[number % len(photos)]], 2 * FARTHEST + 1, SIDE, 0)
            truth, small = clip.frames.clamp(0, 1), SIDE // 4
            low = (degrade(truth, small, small, draw_degradation(rng, mode), rng) * 255).round() / 255
            exact = F.avg_pool2d(clip.flow.float(), 4) / 4
            pairs = {
                "chained": _pairs(estimate(low[:-1], low[1:]), estimate(low[1:], low[:-1])),
                "exact": _pairs(exact, _inverse(exact)),
                "none": _pairs(*(torch.zeros_like(exact),) * 2),
            }
            motions: dict[str, Motions] = {name: partial(chain_pairs, each) for name, each in pairs.items()}
            lr = low.split(1)
            motions[""] = DistantFlows(lr.__getitem__, pairs["chained"].__getitem__, estimate.refine, low.device)
            for name, gain in _gains(network, wear, truth[FARTHEST : FARTHEST + 1], low, motions).items():
                found.setdefault(name, []).append(gain)
        rows[mode] = {name: round(float(np.mean(gains)), 3) for name, gains in found.items()}
    return rows


def _seconds(restore: Restorers, lr: torch.Tensor) -> dict[str, float]:
    """Give what a frame of LR frames (t, h, w, 3) takes one thread, x4, by the format of the convolutions."""
    size, taken = ClipSize(len(lr), *(4 * side for side in _SMALL)), {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    formats = [torch.float32, torch.bfloat16, *([torch.int8] if int8_works() else [])]
    for dtype in formats:
        frames = RestoredFrames(lr, size, restore, torch.device("cpu"), torch.float32, convolutions=dtype)
        begun = time.process_time()
        for number in range(len(lr)):
            frames.frame(number)
        taken[str(dtype).removeprefix("torch.")] = round((time.process_time() - begun) / len(lr), 3)
    torch.set_num_threads(threads)
    return taken


def _gains(
    network: Restorer, wear: float, truth: torch.Tensor, low: torch.Tensor, motions: dict[str, Motions]
) -> dict[str, float]:
    """Give the gain over bicubic of the middle frame, by what the restorer is given."""
    base = _luma_error(resize(low[FARTHEST : FARTHEST + 1], SIDE, SIDE, "bicubic"), truth)

    def gain(reach: int, motion: str = "", steps: int | None = None) -> float:
        near = [FARTHEST + k for k in NEIGHBOURS if abs(k) <= reach]
        others = [(low[k : k + 1], *motions[motion](FARTHEST, k)) for k in near]
        whole = network.steps
        network.steps = whole[:steps]
        restored = network(low[FARTHEST : FARTHEST + 1], others, SIDE, SIDE, wear)[0]
        network.steps = whole
        return 10 * float(np.log10(base / _luma_error(restored, truth)))

    settings: dict[str, Sequence] = {
        "alone": (0,),
        **{str(reach): (reach,) for reach in NEIGHBOURS if reach > 0},
        **{motion: (FARTHEST, motion) for motion in ("chained", "exact", "none")},
        **{f"steps {count}": (FARTHEST, "", count) for count in range(1, len(network.steps))},
    }
    return {name: gain(*each) for name, each in settings.items()}


def _pairs(there: torch.Tensor, back: torch.Tensor) -> Flows:
    return {k: (there[k : k + 1], back[k : k + 1]) for k in range(len(there))}


def _inverse(flow: torch.Tensor) -> torch.Tensor:
    """Invert smooth flows (n, 2, h, w): where what lies here came from."""
    back = -flow
    for _ in range(_INVERTING):
        back = -warp(flow, back)
    return back


def _luma_error(picture: torch.Tensor, truth: torch.Tensor) -> float:
    weights = picture.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)
    rounded = (picture.clamp(0, 1) * 255).round() / 255
    return float(((rounded - truth) * weights).sum(1)[_INSIDE].square().mean())
