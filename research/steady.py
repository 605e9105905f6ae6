"""`run.py bench steady`: image upscalers alone and made steady, on clips with known truth."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from ..media.reader import read_frames
from ..models.motion.blockflow import BlockFlow
from ..models.motion.estimation import estimate_pairs
from ..models.motion.flow import visible, warp
from ..models.source import cleanness
from ..models.steady import steady
from ..runner.errors import RunnerError
from ..runner.host import Host
from .quality import Upscaler, load_upscaler, score_of, true_flows


def run(options: argparse.Namespace, host: Host) -> dict:
    """Any image upscaler (--image-model) alone and made steady, on clips with truth (--clips, --lr; minutes).

    Means over clips of: PSNR-Y alone (dB) and what steady gains, the least gain; warping error as a ratio to the
    truth's own, `change` (squared error, times 1000, of the change along the motion against the truth's) and sharpness
    (mean |Laplacian| as a ratio to the truth's), alone and steady; clips judged clean; seconds a frame of steady, its
    motion included.
    """
    if not options.clips or not options.lr or not options.image_models:
        raise RunnerError(
            "bench steady: needs --clips FOLDER (truth), --lr FOLDER (NAME_MODE.mp4 each) and --image-model FILE."
        )
    rows: dict[str, dict[str, dict]] = {}
    for file in options.image_models:
        upscaler = load_upscaler(Path(file))
        for mode in options.modes:
            for clip in sorted(Path(options.clips).iterdir()):
                low = Path(options.lr) / f"{clip.stem}_{mode}.mp4"
                left_out = clip.stem in options.exclude or (options.only and clip.stem not in options.only)
                if left_out or clip.is_dir() or not low.is_file():
                    continue
                row = measure(clip, low, upscaler, options.frames)
                rows.setdefault(f"{Path(file).stem} {mode}", {})[clip.stem] = row
                print(f"  {Path(file).stem} {mode} {clip.stem} " + " ".join(f"{k} {v:.3f}" for k, v in row.items()))
    if not rows:
        raise RunnerError(f"bench steady: no clip of {options.clips} has its NAME_MODE.mp4 in {options.lr}.")
    means = {
        name: {
            key: round(float(np.mean([row[key] for row in clips.values()])), 3) for key in next(iter(clips.values()))
        }
        | {"least_gain": round(min(row["gain"] for row in clips.values()), 3)}
        for name, clips in rows.items()
    }
    return {"means": means, "clips": rows}


@torch.no_grad()
def measure(clip: Path, low: Path, upscaler: Upscaler, most: int | None) -> dict:
    """Upscale one LR clip frame by frame, make it steady, and compare both with the truth."""
    truth, small = (np.stack(list(read_frames(file))[:most]) for file in (clip, low))
    lr = torch.from_numpy(small).movedim(-1, 1).float() / 255
    alone = [upscaler(frame[None]).clamp(0, 1) for frame in lr]
    if alone[0].shape[-2:] != truth.shape[1:3]:
        raise RunnerError(
            f"bench steady: {low.name}, upscaled, must have the size of {clip.name}, {truth.shape[2]}x{truth.shape[1]};"
            f" got {alone[0].shape[-1]}x{alone[0].shape[-2]}. Reduce the LR clips by the upscaler's factor."
        )
    began = time.process_time()
    motion = estimate_pairs(lr.movedim(1, -1), BlockFlow())

    def flows(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return motion.forward[number : number + 1].float(), motion.backward[number : number + 1].float()

    def frames(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return lr[number : number + 1], alone[number]

    shares = cleanness(lambda number: lr[number : number + 1], flows, len(lr), motion.cuts)
    clean = [share > 0.5 for share in shares]
    result = list(steady(frames, flows, len(lr), clean=clean, cuts=motion.cuts))
    seconds = (time.process_time() - began) / len(lr)
    along, row = true_flows(truth), {}
    own = score_of(truth, truth, along)["warp"]
    for name, pictures in (("alone", alone), ("steady", result)):
        seen = (torch.cat(pictures) * 255).round().byte().movedim(1, -1).numpy()
        score = score_of(seen, truth, along)
        row |= {f"{name}_psnr": score["psnr"], f"{name}_warp_ratio": score["warp"] / own}
        row |= {f"{name}_change": change_error(seen, truth, along), f"{name}_sharpness": score["sharpness"]}
    row["gain"] = row.pop("steady_psnr") - row["alone_psnr"]
    return row | {"clean": float(np.mean(clean)), "cpu_seconds_per_frame": seconds}


def change_error(result: np.ndarray, truth: np.ndarray, flows: tuple) -> float:
    """Give 1000 times the mean squared error of the change along visible motion; blur does not make it less."""
    errors = []
    for i, (there, back) in enumerate(zip(*(part.split(1) for part in flows), strict=True)):
        pairs = [torch.from_numpy(x[i : i + 2]).movedim(-1, 1).float() / 255 for x in (result, truth)]
        own, true = (pair[:1] - warp(pair[1:], there) for pair in pairs)
        seen = visible(there, back).expand_as(own)
        errors.append(3e3 * float((own - true).square()[seen].mean()) if seen.any() else 0.0)
    return float(np.mean(errors))
