"""`run.py bench gpu`: both published systems on this machine's GPU in twelve minutes, as one table for docs/speed.md.

1. Write random weights of the published sizes (restorers.py); on a CPU tiny ones, to try the script.
2. For every row of the table run the graph that users run, in one real ComfyUI for each system: a short run to warm up
   (and to compile), then one that counts. Rows of few steps are scaled to the published number: only sampling grows.
3. Measure motion, noise and the largest matrix products apart, in this process.
4. Print the table, keep it as output/speed.md, and put it into docs/speed.md between its marks where a GPU was there.

A row that would begin after the time is up is left out, and says so.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from ..media.writer import write_video
from ..runner.binding import Target, bind_input, bind_target, parse_size
from ..runner.errors import RunnerError
from ..runner.host import Host
from ..runner.job import Job, Outcome, open_job
from ..runner.pack import load
from ..runner.paths import ROOT, write_atomic
from ..runner.workflow import Workflow
from . import restorers
from .graphs import SCALE, runs_on_cpu

LIMIT = 12 * 60  # seconds of a whole run
PAGE, MARKS = ROOT / "docs" / "speed.md", ("<!-- gpu table -->", "<!-- end of gpu table -->")
NOT_MEASURED = "not measured"
_FULL, _SMALL = ("1280x720", 33, 8), ("64x64", 5, 4)  # size, frames of a clip, frames of one window
_STEPS = 4  # of rows that are scaled
_PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.2}  # TFLOP/s, dense bf16
_FASTER = ROOT / "nodes" / "faster.py"


@dataclass(frozen=True)
class Published:
    """A published system: its graph, its writer of weights, its steps, and TFLOP a frame of 1280x720 as published."""

    graph: str
    write: Callable[[Path, bool], int]
    steps: int
    tflop: float
    fastest: tuple[tuple[str, float], ...]  # inputs of Faster Sampling


SYSTEMS = {
    "upscale_a_video": Published(
        "Restore-with-Upscale-A-Video",
        restorers.write_upscale_a_video,
        30,
        538.0,
        (("deep_every", 3), ("guidance_start", 0.0), ("guidance_end", 0.5)),
    ),
    "mgld_vsr": Published(
        "Restore-with-MGLD-VSR",
        restorers.write_mgld_vsr,
        50,
        300.0,
        (("deep_every", 6), ("guidance_start", 0.0), ("guidance_end", 1.0)),
    ),
}


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    setting: str  # reference or fastest
    precision: str
    compiled: bool
    window: bool  # one window of the clip, in whole frames; else the clip, in tiles and windows
    steps: int | None = None  # None: all of the published ones


SETTINGS = (
    Setting("reference", "bf16", False, False),
    Setting("reference", "bf16", False, True, _STEPS),
    Setting("reference", "fp16", False, False, _STEPS),
    Setting("reference", "bf16", True, False, _STEPS),
    Setting("fastest", "bf16", False, False),
    Setting("fastest", "bf16", True, True, 12),  # the interval of kept features is seen in several steps only
)


def gpu(options: argparse.Namespace, host: Host) -> dict:
    """Both published systems, random weights of their size: seconds a frame, share of peak, memory (12 minutes)."""
    cpu, began = runs_on_cpu(options.device), time.monotonic()
    size, frames, window = _SMALL if cpu else _FULL
    size, frames = parse_size(options.size or size), options.frames or frames
    apart = measure_apart(cpu, size)
    rows = []
    for key, system in SYSTEMS.items():
        with open_job(host, cpu=cpu) as job:
            _write_clips(job, size, {frames, min(window, frames)})
            folder = Workflow.load(system.graph)
            restorer = folder.prompt[folder.of_type("VSRLoadVideoRestorer")[0]]["inputs"]["restorer"]
            system.write(job.server.models_dir / "video_restorers" / restorer, not cpu)
            for setting in SETTINGS[:2] if cpu else SETTINGS:
                count = min(window, frames) if setting.window else frames
                row = {"system": key, **describe(setting), "frames": count}
                rows.append({**row, **_timed(job, system, setting, count, cpu, began, apart)})
                print("  " + json.dumps(rows[-1]), flush=True)
    text = table(rows, apart, size, cpu)
    write_atomic(Path("output") / "speed.md", text + "\n")
    if not cpu:
        write_page(text)
    print(text, flush=True)
    return {"rows": rows, **apart, "seconds": round(time.monotonic() - began)}


def describe(setting: Setting) -> dict:
    """Give a row's setting in words."""
    return {
        "setting": setting.setting,
        "precision": setting.precision,
        "compiled": "yes" if setting.compiled else "no",
        "cut": "one window" if setting.window else "tiles and windows",
    }


def _write_clips(job: Job, size: tuple[int, int], counts: set[int]) -> None:
    """Write clips of noise: they cost what any other clip does."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, 256, (8, max(2, size[1] // SCALE), max(2, size[0] // SCALE), 3), np.uint8)
    for count in counts:
        write_video(job.input_dir / f"{count}.mov", (low[i % 8] for i in range(count)), Fraction(24), codec="png")


def _timed(
    job: Job, system: Published, setting: Setting, frames: int, cpu: bool, began: float, apart: dict
) -> dict[str, float | str]:
    """Run a row twice, and say what the second run costs."""
    if time.monotonic() - began > LIMIT * 0.9:
        return {"seconds_per_frame": "left out: the time was up"}
    steps = _STEPS if cpu else setting.steps or system.steps
    try:
        if not cpu:
            job.run(prepared(system, setting, frames, min(2, steps)))
        outcome = job.run(prepared(system, setting, frames, steps))
    except RunnerError as error:
        return {"seconds_per_frame": f"failed: {str(error).splitlines()[0]}"}
    return costs(outcome, system, setting, steps, frames, apart)


def prepared(system: Published, setting: Setting, frames: int, steps: int) -> Workflow:
    """Fill a shipped graph in for a row."""
    workflow = Workflow.load(system.graph)
    bind_input(workflow, f"{frames}.mov")
    bind_target(workflow, Target(scale=SCALE))
    reference = setting.setting == "reference"
    workflow.set(f"Load Video Restorer.preset={'reference' if reference else 'default'}")
    workflow.set(f"Load Video Restorer.precision={setting.precision}")
    workflow.set(f"Refine Sigmas.steps={steps}")
    if workflow.of_type("VSRLatentPropagation"):
        workflow.set(f"Latent Propagation.steps.step_list={max(0, steps - 2)}")
    if setting.window:
        workflow.set("Spatial Tiles.tiling=off")
        workflow.set("Temporal Windows.windows=off")
    (loader,) = workflow.of_type("VSRLoadVideoRestorer")
    if setting.compiled:
        _behind(workflow, loader, "TorchCompileModel", "Compile", backend="inductor")
    if not reference and _FASTER.is_file():
        (windows,) = workflow.of_type("VSRTemporalWindows")
        workflow.prompt[windows]["inputs"]["joints"] = "alternating"
        workflow.set("Temporal Decode.joints=carried over")
        _behind(workflow, windows, "VSRFasterSampling", "Faster Sampling", **dict(system.fastest))
    return workflow


def _behind(workflow: Workflow, node: str, kind: str, title: str, **inputs) -> None:
    """Put a node that takes and gives a MODEL behind the first output of another."""
    takers = [
        (taker, name) for taker, name in workflow.consumers(node) if workflow.prompt[taker]["inputs"][name][1] == 0
    ]
    added = workflow.add(kind, title, model=[node, 0], **inputs)
    for taker, name in takers:
        workflow.prompt[taker]["inputs"][name] = [added, 0]


def costs(
    outcome: Outcome, system: Published, setting: Setting, steps: int, frames: int, apart: dict
) -> dict[str, float | str]:
    """Give seconds and memory of a run, with sampling scaled to the published steps."""
    sampling = outcome.stages.get("Sample", 0.0)
    motion = outcome.stages.get("Estimate Motion", 0.0)
    rest = outcome.seconds - sampling - motion
    seconds = (sampling * system.steps / steps + rest) / frames
    found = {
        "steps_run": steps,
        "seconds_per_frame": round(seconds, 3),
        "motion_seconds_per_frame": round(motion / frames, 3),
        "decoding_seconds_per_frame": round(outcome.stages.get("Temporal Decode", 0.0) / frames, 3),
    }
    if outcome.peak_device_memory is not None:
        found["memory_gb"] = round(outcome.peak_device_memory / 2**30, 1)
    if setting.setting == "reference" and not setting.window and apart.get("peak_tflops"):
        found["share_of_peak"] = round(system.tflop / seconds / apart["peak_tflops"], 2)
    return found


# Motion, noise and matrix products apart


def measure_apart(cpu: bool, size: tuple[int, int]) -> dict[str, float | str]:
    """Time motion and noise by themselves, and name the device and its peak (data sheet) and matrix products."""
    device = torch.device("cpu" if cpu else "cuda")
    name = "CPU" if cpu else torch.cuda.get_device_name(device)
    height, width = max(32, size[1] // SCALE), max(32, size[0] // SCALE)
    estimate = load("models.motion.estimation").estimate_pairs
    network = load("models.motion.blockflow").BlockFlow()
    frames = torch.rand((3, height, width, 3), generator=torch.Generator().manual_seed(0))
    draw, sizes = load("models.layout.noise").addressed_noise, load("models.layout.sizes")
    shape = sizes.ClipSize(8, size[1] // 4, size[0] // 4)
    side = 512 if cpu else 8192
    matrix = torch.ones((side, side), device=device, dtype=torch.float32 if cpu else torch.bfloat16)
    product = _seconds(lambda: matrix @ matrix, device, 3 if cpu else 50)
    return {
        "device": name,
        "peak_tflops": next((peak for key, peak in _PEAKS.items() if key in name), 0.0),
        "matrix_tflops": round(2 * side**3 / product / 1e12, 2),
        "motion_seconds_a_pair": round(_seconds(lambda: estimate(frames, network, device=device), device, 2) / 2, 4),
        "noise_seconds_a_frame_and_step": round(_seconds(lambda: draw(0, (4, shape)), device, 2) / 8, 5),
    }


def _seconds(work: Callable[[], object], device: torch.device, times: int) -> float:
    """Time work on a device, once warm."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / times


# The table

_COLUMNS = {
    "system": "system",
    "setting": "setting",
    "precision": "precision",
    "compiled": "compiled",
    "cut": "cut into",
    "frames": "frames",
    "seconds_per_frame": "seconds a frame",
    "motion_seconds_per_frame": "of it motion",
    "decoding_seconds_per_frame": "of it decoding",
    "share_of_peak": "share of peak",
    "memory_gb": "GPU memory, GB",
}


def table(rows: list[dict], apart: dict, size: tuple[int, int], cpu: bool) -> str:
    """Write rows as Markdown; what a CPU took says nothing about a GPU, so there it reads "not measured"."""
    own = ("system", "setting", "precision", "compiled", "cut", "frames")
    lines = [f"| {' | '.join(_COLUMNS.values())} |", "|---" * len(_COLUMNS) + "|"]
    for row in rows:
        cells = [str(row.get(key, "")) if key in own or not cpu else NOT_MEASURED for key in _COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    if cpu:
        return "\n".join([*lines, "", "No GPU was at hand: `python3 run.py bench gpu` fills this table in."])
    facts = [
        f"{apart['device']}, {size[0]}x{size[1]}, random weights of the published size, the published steps;",
        f"motion {apart['motion_seconds_a_pair']} s a pair, noise {apart['noise_seconds_a_frame_and_step']} s a frame",
        f"and step, bf16 products of 8192x8192 {apart['matrix_tflops']} TFLOP/s.",
    ]
    return "\n".join([*lines, "", *facts])


def write_page(text: str, page: Path = PAGE) -> None:
    """Put the table between the marks of the page."""
    whole = page.read_text(encoding="utf-8")
    before, _, rest = whole.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    if not rest or not after:
        raise RunnerError(f"bench gpu: {page.name} must have the marks {MARKS[0]} and {MARKS[1]}; got it without.")
    write_atomic(page, f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")
