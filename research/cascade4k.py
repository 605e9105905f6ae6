"""`run.py bench cascade4k`: the cascade behind a base model at 3840x2160, in a process whose memory is watched."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..runner.binding import parse_size
from ..runner.host import Host
from ..runner.pack import load
from ..runner.server import peak_memory
from . import tiny_ltx
from .apart import load_host, run_apart

T = TypeVar("T")
FRAMES, SIZE = 21, "3840x2160"
CHUNK = 16  # frames of one chunk, the bar beside the result
_BASE_ROWS, _BASE_COLUMNS = 5, 8  # latent cells of the base clip


def cascade4k(options: argparse.Namespace, host: Host) -> dict:
    """A tiny model of the host's LTX classes at 3840x2160, 21 frames, on the CPU: peak memory (minutes)."""
    width, height = parse_size(options.size or SIZE)
    job = {"host": str(host.path), "frames": options.frames or FRAMES, "width": width, "height": height}
    return run_apart("cascade4k", job)


class Watch:
    """The memory of this process, stage by stage."""

    def __init__(self):
        self.peaks, self.seconds, self.start = {}, {}, resident()

    def run(self, name: str, work: Callable[[], T]) -> T:
        """Do the work of one stage and note its time and its peak above the start."""
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        began, result = time.perf_counter(), work()
        self.seconds[name] = round(time.perf_counter() - began, 1)
        self.peaks[name] = peak_memory(os.getpid()) - self.start
        print(f"  {name}: {self.seconds[name]} s", file=sys.stderr, flush=True)
        return result


def resident() -> int:
    """Give the resident memory of this process now, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


def measured(job: dict) -> dict:
    """Run the graph of the template Cascade-to-4K on random weights and say what it cost."""
    import torch

    custom = load_host(job["host"])
    frame_nodes, tiling, sampling = (load(f"nodes.{name}") for name in ("frames", "tiling", "sampling"))
    motion, low_frequency = (load(f"nodes.{name}") for name in ("motion", "low_frequency"))
    model, vae, prompt = tiny_ltx.make_model(), tiny_ltx.make_vae(), tiny_ltx.make_prompt()
    count = job["frames"]
    latents = 1 + -(-(count - 1) // tiny_ltx.TIME)
    generator = torch.Generator().manual_seed(0)
    low = torch.randn((1, tiny_ltx.CHANNELS, latents, _BASE_ROWS, _BASE_COLUMNS), generator=generator)
    size = {"frames": count, "height": _BASE_ROWS * tiny_ltx.SPACE, "width": _BASE_COLUMNS * tiny_ltx.SPACE}
    target = {"target": "exact size", "height": job["height"], "width": job["width"]}
    watch = Watch()

    def enter():
        samples = {"samples": low, "vsr_size": size}
        return frame_nodes.CascadeInput.execute(vae, target, "bilinear", samples=samples, base_vae=vae).args[:2]

    def refine():
        flow = motion.EstimateMotion.execute(frames, motion.LoadFlowModel.execute("built-in").args[0]).args[0]
        steps = {"steps": "percent range", "start_percent": 0.0, "end_percent": 1.0}
        patched = motion.LatentPropagation.execute(model, flow, steps, "both", 0.3, "nearest", 0.001, 0.05)
        patched = low_frequency.LowFrequencyTie.execute(patched.args[0], 0.5, 8.0, 0.0, 1.0, lr).args[0]
        patched = tiling.TemporalWindows.execute(patched, {"windows": "auto"}).args[0]
        patched = tiling.SpatialTiles.execute(patched, {"tiling": "auto"}).args[0]
        guider = custom.CFGGuider.execute(patched, prompt, prompt, 1.0).args[0]
        sigmas = sampling.RefineSigmas.execute(patched, 0.4, 2, 1.0).args[0]
        sampler = custom.KSamplerSelect.execute("euler").args[0]
        noise = sampling.AddressedNoise(1)
        return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, lr).args[0]

    with torch.inference_mode():
        lr, frames = watch.run("cascade_input", enter)
        sampled = watch.run("refine", refine)
        result = watch.run("decode", lambda: frame_nodes.TemporalDecode.execute(sampled, vae, 1.0, CHUNK, 0).args[0])
    if tuple(result.shape) != (count, job["height"], job["width"], 3) or not torch.isfinite(result).all():
        raise ValueError(f"bench cascade4k: got frames of {tuple(result.shape)}, or such as are not finite.")
    beside = {**watch.peaks, "decode": watch.peaks["decode"] - result.nbytes}
    return {
        "device": f"cpu, {torch.get_num_threads()} threads",
        "family": f"ltxv, random weights, {sum(p.numel() for p in model.model.parameters()) / 1e6:.1f} M",
        "frames": count,
        "size": f"{job['width']}x{job['height']}",
        **{f"{name}_seconds": seconds for name, seconds in watch.seconds.items()},
        "seconds_per_frame": round(sum(watch.seconds.values()) / count, 2),
        "result_mb": round(result.nbytes / 2**20),
        **{f"{name}_peak_mb_without_result": round(peak / 2**20) for name, peak in beside.items()},
        "bar_mb_one_chunk": round(CHUNK * 12 * job["width"] * job["height"] / 2**20),
    }
