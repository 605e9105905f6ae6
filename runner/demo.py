"""`run.py demo`: the shipped workflow on the sample clip in a real ComfyUI, with pictures and numbers."""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..media.files import check_output
from ..media.writer import write_video
from .binding import Target, bind_input, bind_target
from .host import Host
from .job import open_job
from .pack import load
from .paths import write_atomic
from .sample import SCALE, Sample, make_sample
from .workflow import Workflow

WORKFLOW = "Upscale-a-Video"
_RATE = Fraction(24)
_CROP = (104, 60)  # of the truth; shown four times enlarged


def main(options: argparse.Namespace, host: Host) -> int:
    """Run the demo and leave video, picture and table in the output folder."""
    out = Path(options.output)
    workflow = Workflow.load(WORKFLOW)
    check_output(out / "upscaled.mp4", [])
    print("Making the sample clip ...", flush=True)
    sample = make_sample()
    write_video(out / "low_resolution.mp4", sample.low, _RATE)
    with open_job(host, options.port) as job:
        bind_input(workflow, "input.mov")
        bind_target(workflow, Target(scale=SCALE))
        write_video(job.input_dir / "input.mov", sample.low, _RATE, codec="png")  # exactly what is measured
        outcome = job.run(workflow, keep_savers=True)
        frames = np.array(outcome.frames)
    report = measure(sample, frames) | {"cost": outcome.costs()}
    write_video(out / "upscaled.mp4", frames, _RATE)
    save_png(out / "comparison.png", comparison(sample, frames))
    table = table_of(report)
    write_atomic(out / "measures.txt", table)
    write_atomic(out / "measures.json", json.dumps(report, indent=1) + "\n")
    print(
        f"\n{table}\nIn {out.absolute()}: upscaled.mp4, comparison.png, measures.txt, measures.json, low_resolution.mp4"
    )
    print("Next: python3 run.py upscale YOUR_VIDEO out.mp4   or   python3 run.py serve")
    return 0


def bicubic(sample: Sample) -> np.ndarray:
    """Enlarge the LR clip as any program would."""
    height, width = sample.truth.shape[1:3]
    return np.stack([_resized(frame, (width, height), Image.Resampling.BICUBIC) for frame in sample.low])


def _resized(frame: np.ndarray, size: tuple[int, int], kernel) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize(size, kernel))


def measure(sample: Sample, ours: np.ndarray) -> dict:
    """Return PSNR-Y, SSIM-Y and warping error (times 1000, exact motion) of bicubic, ours and the truth."""
    import torch

    metrics = load("models.pixels.metrics")
    truth, flows = (
        torch.from_numpy(sample.truth),
        (torch.from_numpy(sample.forward), torch.from_numpy(sample.backward)),
    )
    report = {}
    for name, clip in (("bicubic", bicubic(sample)), ("ours", ours), ("truth", sample.truth)):
        frames = torch.from_numpy(clip)
        numbers = {"warping_error_x1000": round(float(metrics.warping_error(frames, flows)), 4)}
        if name != "truth":
            numbers["psnr_y"] = round(float(metrics.psnr_y(frames, truth)), 3)
            numbers["ssim_y"] = round(float(metrics.ssim_y(frames, truth)), 4)
        report[name] = numbers
    return report


def table_of(report: dict) -> str:
    """Write the report as a plain-text table."""
    rows = (
        ("PSNR-Y (dB, higher is better)", "psnr_y", "{:.2f}"),
        ("SSIM-Y (1 is best)", "ssim_y", "{:.4f}"),
        ("warping error x1000 (close to the truth's)", "warping_error_x1000", "{:.3f}"),
    )
    names = ("bicubic", "ours", "truth")
    lines = [f"{'':44}" + "".join(f"{name:>10}" for name in names)]
    for title, key, form in rows:
        cells = [form.format(report[name][key]) if key in report[name] else "-" for name in names]
        lines.append(f"{title:44}" + "".join(f"{cell:>10}" for cell in cells))
    cost = report["cost"]
    memory = f"{cost['peak_memory_mb']} MB" if cost["peak_memory_mb"] else "unknown"
    lines.append(
        f"\n{cost['frames']} frames {cost['width']}x{cost['height']}: {cost['seconds']:.1f} s in ComfyUI, "
        f"{cost['seconds_per_frame']:.2f} s a frame; peak memory of its process {memory}; "
        f"{cost['network_calls']} network calls"
    )
    return "\n".join(lines) + "\n"


def comparison(sample: Sample, ours: np.ndarray) -> Image.Image:
    """Draw the middle frame as LR, bicubic, ours and truth, and its busiest part enlarged below."""
    middle = len(ours) // 2
    height, width = sample.truth.shape[1:3]
    panels = {
        "input, 4x nearest": _resized(sample.low[middle], (width, height), Image.Resampling.NEAREST),
        "bicubic": bicubic(sample)[middle],
        "Cascade VSR": ours[middle],
        "truth": sample.truth[middle],
    }
    left, top = _busiest(sample.truth[middle])
    sheet = Image.new("RGB", (4 * width + 3 * 8, 2 * height + 8 + 28), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for column, (name, panel) in enumerate(panels.items()):
        x = column * (width + 8)
        crop = np.ascontiguousarray(panel[top : top + _CROP[1], left : left + _CROP[0]])
        draw.text((x + 4, 3), name, fill="black", font=font)
        sheet.paste(Image.fromarray(panel), (x, 28))
        sheet.paste(Image.fromarray(_resized(crop, (width, height), Image.Resampling.NEAREST)), (x, 28 + height + 8))
    return sheet


def _busiest(frame: np.ndarray) -> tuple[int, int]:
    """Return left and top of the crop with the most fine detail."""
    grey = frame.astype(np.float32).mean(-1)
    detail = np.abs(np.diff(grey, axis=1, append=0)) + np.abs(np.diff(grey, axis=0, append=0))
    width, height = _CROP
    places = [(x, y) for y in range(0, grey.shape[0] - height + 1, 12) for x in range(0, grey.shape[1] - width + 1, 16)]
    return max(places, key=lambda place: detail[place[1] : place[1] + height, place[0] : place[0] + width].mean())


def save_png(path: Path, image: Image.Image) -> None:
    """Write a picture under a temporary name and put it in place whole."""
    partial = path.with_name(f".{path.name}.partial")
    image.save(partial, "PNG")
    partial.replace(path)
