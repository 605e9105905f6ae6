"""`run.py bench looks`: the looks of Upscale Film on clips with known truth: what each gives, and takes."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from ..media.reader import read_frames
from ..runner.client import HostClient
from ..runner.errors import RunnerError
from ..runner.host import Host
from ..runner.paths import scratch_folder
from ..runner.progress import Display
from ..runner.server import HostServer
from ..runner.workflow import Workflow
from .graphs import runs_on_cpu
from .quality import score_of, true_flows

LOOKS = ("draft", "standard", "best")
_FILM = "VSRUpscaleFilm"
_FILE = {"format": "mkv", "codec": "ffv1", "lossless": True, "filename_prefix": "looks"}


def run(options: argparse.Namespace, host: Host) -> dict:
    """The looks of Upscale Film, built-in and with --image-model, on clips with truth (--clips, --lr; minutes).

    Means over clips, by model and look: PSNR-Y (dB) and what it gains over bicubic, warping error and sharpness (mean
    |Laplacian|) as ratios to the truth's, seconds a frame of the node.
    """
    if not options.clips or not options.lr:
        raise RunnerError("bench looks: needs --clips FOLDER (truth) and --lr FOLDER (NAME_MODE.mp4 each).")
    pairs = list(_pairs(options))
    if not pairs:
        raise RunnerError(f"bench looks: no clip of {options.clips} has its NAME_MODE.mp4 in {options.lr}.")
    rows: dict[str, list[dict]] = {}
    with scratch_folder("looks-") as base:
        server = HostServer(host, base, cpu=runs_on_cpu(options.device))
        for folder in (server.input_dir, server.models_dir / "upscale_models"):
            folder.mkdir(parents=True, exist_ok=True)
        for file in options.image_models:
            shutil.copyfile(file, server.models_dir / "upscale_models" / Path(file).name)
        with server:
            for clip, low in pairs:
                shutil.copyfile(low, server.input_dir / low.name)
                for model in (None, *options.image_models):
                    for look in LOOKS:
                        row = measure(server, clip, low, model and Path(model).name, look, options.settings)
                        name = f"{Path(model).stem if model else 'built-in'} {look}"
                        rows.setdefault(name, []).append(row)
                        print(f"  {low.stem} {name} " + " ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
    return {
        name: {key: round(float(np.mean([row[key] for row in found])), 3) for key in found[0]}
        for name, found in rows.items()
    }


def _pairs(options: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """Yield every clip of --clips that is wanted with its file of --lr, mode after mode."""
    for mode in options.modes:
        for clip in sorted(Path(options.clips).iterdir()):
            low = Path(options.lr) / f"{clip.stem}_{mode}.mp4"
            wanted = clip.stem not in options.exclude and (not options.only or clip.stem in options.only)
            if wanted and low.is_file():
                yield clip, low


def measure(
    server: HostServer, clip: Path, low: Path, model: str | None, look: str, settings: list[str]
) -> dict[str, float]:
    """Run the workflow on a LR clip in one look and compare with its truth."""
    workflow = Workflow.load("Upscale-a-Film")
    (film,) = workflow.of_type(_FILM)
    (source,) = workflow.of_type("VSRSampleClip")
    workflow.prompt[source] |= {"class_type": "LoadVideo", "inputs": {"file": low.name}}
    inputs = workflow.prompt[film]["inputs"]
    inputs |= {**_FILE, "look": look}
    if model:
        for name in ("model", "vae", "noise", "sampler", "sigmas", "references"):
            inputs.pop(name)
        inputs["upscale_model"] = [workflow.add("UpscaleModelLoader", "Model", model_name=model), 0]
    for setting in settings:
        workflow.set(setting)
    display, process = Display(), psutil.Process(server.process.pid)
    began = _cpu(process)
    try:
        HostClient(server.url, server).run(workflow.prompt, display)
    finally:
        display.close()
    used = _cpu(process) - began
    (made,) = server.output_dir.glob("looks*.mkv")
    ours = np.stack(list(read_frames(made)))
    made.unlink()
    truth = np.stack(list(read_frames(clip)))[: len(ours)]
    large = truth.shape[2], truth.shape[1]
    bicubic = np.stack(
        [np.asarray(Image.fromarray(x).resize(large, Image.Resampling.BICUBIC)) for x in read_frames(low)]
    )
    flows = true_flows(truth)
    score, own = score_of(ours, truth, flows), score_of(truth, truth, flows)
    return {
        "psnr": score["psnr"],
        "over_bicubic": score["psnr"] - score_of(bicubic, truth, None)["psnr"],
        "warp_ratio": score["warp"] / own["warp"],
        "sharpness": score["sharpness"],
        "cpu_seconds_per_frame": used / len(ours),
        "seconds_per_frame": display.seconds[workflow.title(film)] / len(ours),
    }


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
