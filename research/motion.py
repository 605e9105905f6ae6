"""`run.py bench motion`: the built-in motion and addressed noise, apart from any graph."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from ..models.layout.noise import addressed_noise
from ..models.layout.sizes import ClipSize
from ..models.motion import estimation
from ..models.motion.blockflow import BlockFlow
from ..runner.binding import parse_size
from ..runner.host import Host
from .graphs import SCALE, runs_on_cpu

_FRAMES, _SIZE = 9, "1280x720"
_ROUNDS = 3


def motion(options: argparse.Namespace, host: Host) -> dict:
    """Built-in motion of LR frames of a quarter of --size, pair by pair and in batches, and noise: seconds a frame."""
    width, height = parse_size(options.size or _SIZE)
    frames, device = options.frames or _FRAMES, torch.device("cpu" if runs_on_cpu(options.device) else "cuda")
    clip = moving_clip(frames, max(2, height // SCALE), max(2, width // SCALE))
    batch = estimation.together(clip, device)
    alone, by_pair = _best(lambda: _estimated(clip, device, 1), device)
    batched, by_batch = _best(lambda: _estimated(clip, device, batch), device)
    grid = ClipSize(frames, clip.shape[1], clip.shape[2])
    _, noise = _best(lambda: addressed_noise(1, (4, grid)), device)
    apart = max(
        float((getattr(alone, way).float() - getattr(batched, way).float()).abs().max())
        for way in ("forward", "backward")
    )
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "frames": f"{frames} of {clip.shape[2]}x{clip.shape[1]}",
        "seconds_a_pair_alone": round(by_pair / (frames - 1), 4),
        "pairs_at_once": batch,
        "seconds_a_pair": round(by_batch / (frames - 1), 4),
        "largest_difference_px": round(apart, 5),
        "noise_seconds_a_frame_4_channels": round(noise / frames, 5),
    }


def moving_clip(frames: int, height: int, width: int) -> torch.Tensor:
    """Make frames (t, h, w, 3) in 0..1 of smooth noise that moves by one px a frame."""
    drawn = torch.rand((1, 3, height // 4 + 4, width // 4 + frames + 4), generator=torch.Generator().manual_seed(0))
    wide = torch.nn.functional.interpolate(drawn, scale_factor=4.0, mode="bicubic").clamp(0, 1)
    return torch.stack([wide[0, :, :height, step : step + width].movedim(0, -1) for step in range(frames)])


def _estimated(clip: torch.Tensor, device: torch.device, pairs: int) -> estimation.Motion:
    return estimation.estimate_pairs(clip, BlockFlow(), device=device, pairs=pairs)


def _best(work: Callable, device: torch.device) -> tuple[object, float]:
    """Give the result and the least seconds of a few rounds."""
    taken = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return result, min(taken)
