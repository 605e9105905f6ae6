"""`run.py bench references`: what right, wrong and no references change where they show something, frame by frame."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from ..media.reader import probe, read_frames
from ..runner.binding import STEADY
from ..runner.errors import RunnerError
from ..runner.host import Host
from ..runner.pack import load
from ..runner.paths import scratch_folder
from ..runner.workflow import Workflow
from .quality import upscaled

KEPT = 12  # levels of 255 (largest of the colours) by which what an edit kept may differ from the reference video
_WORKFLOW = "Upscale-with-Identity-Images"
_VIDEO = ("--set", "Reference Set.long_edge=1024", "--set", "Reference CFG Guider.s_ref=0")
_BORDER = 4  # px shaved off before measuring, as in bench quality


def run(options: argparse.Namespace, host: Host) -> dict:
    """run.py upscale with right, wrong and no references on clips whose manifest names some (minutes).

    Figures: PSNR-Y in dB of the referenced region without references, and what right and wrong ones gain there;
    `t`: the paired t values of these gains over frames. Wrong ones are every other entry's in turn; `wrong`
    is the most that any of them gains. The region is what an edit kept of its reference video, or for identity images
    the rectangle given with --region, else the whole frame.
    """
    if not options.clips or not options.lr:
        raise RunnerError("bench references: needs --clips FOLDER (truth) and --lr FOLDER (NAME_MODE.mp4 each).")
    folder, rows = Path(options.clips), {}
    entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["clips"]
    entries = [entry for entry in entries if references_of(entry, folder)[0]]
    regions = dict(parse_region(text) for text in options.regions)
    with scratch_folder("references-") as scratch:
        alone = model_alone(scratch)
        for mode in options.modes:
            for entry in (entry for entry in entries if entry["role"] == "GT"):
                low = Path(options.lr) / f"{entry['name']}_{mode}.mp4"
                if not low.is_file() or (options.only and entry["name"] not in options.only):
                    continue
                others = [other for other in entries if other is not entry]
                row = measure(entry, low, others, regions.get(entry["name"]), folder, options, host, alone)
                rows.setdefault(mode, {})[entry["name"]] = row
                print(f"  {mode:8} {entry['name']:16} " + " ".join(f"{k} {v:.4f}" for k, v in row.items()), flush=True)
    if not rows:
        raise RunnerError(f"bench references: no clip with references in {folder} has its LR file in {options.lr}.")
    return rows


def model_alone(folder: Path) -> Path:
    """Write the workflow with what the model takes from references, and without what pictures give beside it."""
    workflow = Workflow.load(_WORKFLOW)
    (steady,) = workflow.of_type(STEADY)
    for node_id, name in workflow.consumers(steady):
        workflow.prompt[node_id]["inputs"][name] = workflow.prompt[steady]["inputs"]["images"]
    del workflow.prompt[steady]
    file = folder / f"{_WORKFLOW}.json"
    file.write_text(json.dumps(workflow.prompt), encoding="utf-8")
    return file


def references_of(entry: dict, folder: Path) -> tuple[list[Path], str]:
    """Give the reference files of a clip, and the option that takes them."""
    if "reference_video" in entry:
        return [folder / entry["reference_video"]["file"]], "--reference-video"
    return [folder / image["file"] for image in entry.get("reference_images", ())], "--reference"


def parse_region(text: str) -> tuple[str, tuple[slice, slice]]:
    """Read NAME=LEFT,TOP,WIDTH,HEIGHT in pixels of the truth."""
    name, _, numbers = text.partition("=")
    try:
        left, top, width, height = (int(number) for number in numbers.split(","))
    except ValueError as error:
        raise RunnerError(f"--region: must be NAME=LEFT,TOP,WIDTH,HEIGHT in pixels; got {text!r}.") from error
    return name, (slice(top, top + height), slice(left, left + width))


def measure(
    entry: dict,
    low: Path,
    others: list[dict],
    region: tuple[slice, slice] | None,
    folder: Path,
    options: argparse.Namespace,
    host: Host,
    workflow: Path,
) -> dict:
    """Upscale one LR file without, with its own and with another clip's references, by the model alone."""
    truth, small = (np.stack(list(read_frames(file))) for file in (folder / entry["file"], low))
    files, option = references_of(entry, folder)
    where = _kept(truth, files[0]) if option == "--reference-video" else np.zeros(truth.shape[:3], bool)
    if option == "--reference":
        where[(slice(None), *(region or (slice(None), slice(None))))] = True
    inside = np.zeros_like(where)
    inside[:, _BORDER:-_BORDER, _BORDER:-_BORDER] = True
    cases = {"none": [], "right": _words(workflow, files, option)}
    cases |= {f"wrong {other['name']}": _words(workflow, *references_of(other, folder)) for other in others}
    scores = {}
    for name, more in cases.items():
        result = upscaled(small, probe(low).rate, truth.shape[1:3], options, host, more)
        scores[name] = _psnr(result, truth, where & inside)
    gains = {name: score - scores["none"] for name, score in scores.items() if name != "none"}
    wrong = [gain.mean() for name, gain in gains.items() if name.startswith("wrong")]
    row = {"none": scores["none"].mean(), **{name: gain.mean() for name, gain in gains.items()}}
    row |= {"wrong": max(wrong)} if wrong else {}
    row |= {f"t {name}": _t(gain) for name, gain in gains.items()}
    return {key: round(float(value), 4) for key, value in row.items()} | {
        "frames_better": int((gains["right"] > 0).sum())
    }


def _t(gain: np.ndarray) -> float:
    """Give the mean over frames in its standard errors."""
    return gain.mean() / max(gain.std(ddof=1) / len(gain) ** 0.5, 1e-9)


def _words(workflow: Path, files: list[Path], option: str) -> list[str]:
    """Write the options of run.py upscale: images follow one option, every video has its own."""
    if option == "--reference":
        return ["--workflow", str(workflow), option, *map(str, files)]
    return ["--workflow", str(workflow), *_VIDEO, *(word for file in files for word in (option, str(file)))]


def _kept(truth: np.ndarray, video: Path) -> np.ndarray:
    """Find the pixels that an edit left as they are in the reference video."""
    source = np.stack(list(read_frames(video)))
    return np.abs(truth.astype(np.int16) - source).max(-1) < KEPT


def _psnr(result: np.ndarray, truth: np.ndarray, where: np.ndarray) -> np.ndarray:
    """PSNR-Y of every frame over the pixels `where`."""
    import torch

    luma = load("models.pixels.metrics").luma
    a, b = (luma(torch.from_numpy(np.ascontiguousarray(frames))).numpy() for frames in (result, truth))
    errors = [np.square(x[k] - y[k]).mean() for x, y, k in zip(a, b, where, strict=True)]
    return 10 * np.log10(255**2 / np.maximum(errors, 1e-10))
