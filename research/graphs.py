"""Benchmarks of shipped graphs in a real ComfyUI: what a run costs, how memory grows, how long the import takes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..media.writer import write_video
from ..runner.binding import Target, bind_input, bind_target, parse_size
from ..runner.errors import RunnerError
from ..runner.host import Host
from ..runner.job import Outcome, open_job
from ..runner.paths import PACK_NAME, scratch_folder
from ..runner.server import HostServer, has_gpu
from ..runner.workflow import Workflow

SCALE = 4
MEMORY_FRAMES = (33, 264)
MEMORY_SIZE = (320, 192)  # small, so that the long clip takes minutes and not hours on a CPU
IMPORT_LIMIT = 0.5  # seconds the pack may add to the host's start
_LEAST_SECONDS = 0.05  # of a stage that is listed


def builtin(options: argparse.Namespace, host: Host) -> dict:
    """The graph Upscale-a-Video with the built-in model: seconds a frame and by stage, network calls, peak memory."""
    size = parse_size(options.size or "512x288")

    def prepare(workflow: Workflow, models: Path) -> None:
        for setting in options.settings:
            workflow.set(setting)

    outcome = run_graph(
        host, "Upscale-a-Video", options.frames or 17, size, cpu=runs_on_cpu(options.device), prepare=prepare
    )
    return {"device": outcome.device, **outcome.costs(), **stages(outcome)}


def runs_on_cpu(device: str) -> bool:
    """Return whether --device auto, cpu or cuda means the CPU here."""
    if device == "cuda" and not has_gpu():
        raise RunnerError("--device: cuda needs a GPU that PyTorch can use; found none. Use cpu or auto.")
    return device == "cpu" or not has_gpu()


def run_graph(
    host: Host,
    name: str,
    frames: int,
    size: tuple[int, int],
    *,
    cpu: bool | None = None,
    prepare: Callable[[Workflow, Path], None] = lambda workflow, models: None,
) -> Outcome:
    """Run a shipped workflow over a clip of noise, enlarged SCALE times to `size` (width, height) px.

    `prepare(workflow, models)` may write weights into the models folder of the scratch ComfyUI and set inputs. Noise
    costs what any other clip does. The outcome's frames are gone when this returns; its costs stay.
    """
    width, height = size
    rng = np.random.default_rng(0)
    low = rng.integers(0, 256, (8, max(2, height // SCALE), max(2, width // SCALE), 3), np.uint8)
    workflow = Workflow.load(name)
    with open_job(host, cpu=cpu) as job:
        write_video(job.input_dir / "input.mov", (low[i % 8] for i in range(frames)), Fraction(24), codec="png")
        bind_input(workflow, "input.mov")
        bind_target(workflow, Target(scale=SCALE))
        prepare(workflow, job.server.models_dir)
        return job.run(workflow)


def stages(outcome: Outcome) -> dict[str, float]:
    """List the seconds of every node that took a noticeable time, under its title in the graph."""
    return {
        f"{title}_seconds": round(seconds, 3) for title, seconds in outcome.stages.items() if seconds >= _LEAST_SECONDS
    }


def memory(options: argparse.Namespace, host: Host) -> dict:
    """The graph Upscale-a-Video: how the peak memory grows from 33 to 264 frames, clips not counted (minutes)."""
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
    outcome = run_graph(host, "Upscale-a-Video", frames, MEMORY_SIZE)
    if outcome.peak_memory is None:
        raise RunnerError("bench memory: this system does not tell a process's peak memory. Run it on Linux.")
    width, height = MEMORY_SIZE
    clips = frames * 3 * 4 * (width * height + (width // SCALE) * (height // SCALE))  # float32 IMAGE tensors
    return outcome.peak_memory, clips


def import_time(options: argparse.Namespace, host: Host) -> dict:
    """How long ComfyUI takes to import the pack (the bar is 0.5 s)."""
    with scratch_folder("bench-") as base, HostServer(host, base) as server:
        found = re.search(rf"([\d.]+) seconds(?: \(IMPORT FAILED\))?: .*{re.escape(PACK_NAME)}", server.log())
        if "IMPORT FAILED" in server.log() or not found:
            raise RunnerError(f"bench import: ComfyUI could not import the pack.\n{server.tail()}")
        return {"seconds": float(found.group(1)), "bar_seconds": IMPORT_LIMIT}
