"""`run.py bench`: speed, memory and start-up, each by one function; results also as json in output/."""

from __future__ import annotations

import json
import os
import re
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from . import bench_cascade, bench_references, bench_restorers, quality
from .binding import Target, bind_input, bind_target, parse_size
from .encode import write_video
from .errors import RunnerError
from .host import Host
from .job import open_job
from .pack import load
from .paths import PACK_NAME, ROOT, scratch_folder, write_atomic
from .server import HostServer, peak_memory
from .workflow import Workflow

WEIGHTS = ROOT / "models" / "weights" / "unimmvsr-tiny.safetensors"
MEMORY_FRAMES = (33, 264)
MEMORY_SIZE = (320, 192)  # small, so that the long clip takes minutes and not hours on a CPU
IMPORT_LIMIT = 0.5  # seconds the pack may add to the host's start


def main(options, host: Host) -> int:
    """Run one benchmark, or list all and run the short ones."""
    if options.name and options.name not in BENCHMARKS:
        raise RunnerError(f"bench: must be one of {', '.join(BENCHMARKS)}; got {options.name!r}.")
    if not options.name:
        for name, (function, _) in BENCHMARKS.items():
            print(f"{name:15} {function.__doc__}")
    names = [options.name] if options.name else [name for name, (_, short) in BENCHMARKS.items() if short]
    for name in names:
        print(f"\n{name} ...", flush=True)
        result = BENCHMARKS[name][0](options, host)
        print("\n".join(f"  {key.replace('_', ' ')}: {value}" for key, value in result.items()), flush=True)
        write_atomic(Path("output") / f"bench_{name}.json", json.dumps(result, indent=1) + "\n")
    return 0


def bench_builtin(options, host: Host) -> dict:
    """The built-in model alone, in this process: seconds a frame, peak memory, network calls."""
    return _builtin(options.frames or 17, parse_size(options.size or "512x288"), options.device)


def _builtin(frames: int, size: tuple[int, int], device: str) -> dict:
    """Encode, take one DiT step from pure noise, decode; a clip of noise costs what any other does."""
    import torch

    geometry, codec = load("models.layout.sizes"), load("models.unimmvsr.codec")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    vae, dit = (network.to(device) for network in _networks())
    width, height = size
    low = torch.rand(
        frames, max(1, height // 4), max(1, width // 4), 3, generator=torch.Generator().manual_seed(0)
    )
    whole = geometry.ClipSize(frames, height, width)
    stages, started = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        if device == "cuda":
            torch.cuda.synchronize()
        stages[name], started = time.perf_counter() - started, time.perf_counter()

    with torch.inference_mode():
        latent = codec.encode_clip(vae, low, whole, device=device)
        lap("encode")
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1)).to(device)
        one = torch.ones(1, device=device)
        velocity = dit(noise, one, latent.to(device), 0 * one)
        clean = (noise + velocity).cpu()  # v = z_HR - noise at t = 1
        lap("sample")
        result = codec.decode_clip(vae, clean, low, whole, device=device)
        lap("decode")
    total = sum(stages.values())
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory(os.getpid())
    return {
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "frames": len(result),
        "size": f"{result.shape[2]}x{result.shape[1]}",
        **{f"{name}_seconds": round(seconds, 3) for name, seconds in stages.items()},
        "seconds_per_frame": round(total / frames, 4),
        "peak_memory_mb": round(peak / 2**20) if peak else None,
        "network_calls": 1,
    }


def _networks():
    """Return the built-in VAE and DiT; random weights of the same shape while no trained file is there."""
    checkpoints, config = load("models.checkpoints"), load("models.unimmvsr.config")
    vae_class, dit_class = load("models.unimmvsr.vae").CausalVideoVAE, load("models.unimmvsr.dit").UniMMVSRDiT
    if not WEIGHTS.exists():
        print("  (no trained weights: random ones, same cost)")
        return vae_class(config.VAEConfig()).eval(), dit_class(config.DiTConfig()).eval()
    state, _ = checkpoints.load_state(WEIGHTS)
    parts = [checkpoints.strip_prefix(state, prefix) for prefix in ("vae.", "dit.")]
    parts = [{key: value.float() for key, value in part.items()} for part in parts]
    vae, dit = vae_class(config.vae_config(parts[0])), dit_class(config.dit_config(parts[1]))
    vae.load_state_dict(parts[0])
    dit.load_state_dict(parts[1])
    return vae.eval(), dit.eval()


def bench_memory(options, host: Host) -> dict:
    """The shipped workflow in ComfyUI: how the peak grows from 33 to 264 frames, clips apart (minutes)."""
    peaks = {frames: _peak_of(frames, host) for frames in MEMORY_FRAMES}
    short, long = MEMORY_FRAMES
    own = {frames: peak - clips for frames, (peak, clips) in peaks.items()}
    return {
        "size": "x".join(map(str, MEMORY_SIZE)),
        **{f"peak_mb_{frames}_frames": round(peak / 2**20) for frames, (peak, _) in peaks.items()},
        **{f"clips_mb_{frames}_frames": round(clips / 2**20) for frames, (_, clips) in peaks.items()},
        "growth_beyond_clips_mb": round((own[long] - own[short]) / 2**20),
        "growth_beyond_clips_percent": round(100 * (own[long] / own[short] - 1), 1),
        "bar_percent": 10,
    }


def _peak_of(frames: int, host: Host) -> tuple[int, int]:
    """Return the host's peak memory for a clip, and the bytes of the input and output tensors themselves."""
    width, height = MEMORY_SIZE
    low = np.random.default_rng(0).integers(0, 256, (8, height // 4, width // 4, 3), np.uint8)
    workflow = Workflow.load("Upscale-a-Video")
    with open_job(host) as job:
        write_video(
            job.input_dir / "input.mov", (low[i % 8] for i in range(frames)), Fraction(24), codec="png"
        )
        bind_input(workflow, "input.mov")
        bind_target(workflow, Target(scale=4))
        outcome = job.run(workflow)
    if outcome.peak_memory is None:
        raise RunnerError("bench memory: this system does not tell a process's peak memory. Run it on Linux.")
    clips = frames * 3 * 4 * (width * height + (width // 4) * (height // 4))  # float32 IMAGE tensors
    return outcome.peak_memory, clips


def bench_import(options, host: Host) -> dict:
    """How long ComfyUI takes to import the pack (the bar is 0.5 s)."""
    with scratch_folder("bench-") as base, HostServer(host, base) as server:
        found = re.search(rf"([\d.]+) seconds(?: \(IMPORT FAILED\))?: .*{re.escape(PACK_NAME)}", server.log())
        if "IMPORT FAILED" in server.log() or not found:
            raise RunnerError(f"bench import: ComfyUI could not import the pack.\n{server.tail()}")
        return {"seconds": float(found.group(1)), "bar_seconds": IMPORT_LIMIT}


def bench_quality(options, host: Host) -> dict:
    """run.py upscale on clips with known truth (--clips, --lr): PSNR-Y, SSIM-Y, warping error (minutes)."""
    return quality.run(options, host)


def bench_references_on_clips(options, host: Host) -> dict:
    """run.py upscale with right, wrong and no references on clips whose manifest names some (minutes)."""
    return bench_references.run(options, host)


BENCHMARKS = {
    "builtin": (bench_builtin, True),
    "import": (bench_import, True),
    "memory": (bench_memory, False),
    "quality": (bench_quality, False),
    "references": (bench_references_on_clips, False),
    "upscale_a_video": (bench_restorers.upscale_a_video, False),
    "mgld_vsr": (bench_restorers.mgld_vsr, False),
    "cascade4k": (bench_cascade.cascade4k, False),
}
