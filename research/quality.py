"""`run.py bench quality`: the shipped workflow on clips with known truth, beside bicubic and back-projection."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..media.reader import probe, read_frames
from ..media.writer import write_video
from ..runner import upscale
from ..runner.cli import parser
from ..runner.errors import RunnerError
from ..runner.host import Host
from ..runner.pack import load
from ..runner.paths import scratch_folder

if TYPE_CHECKING:
    from torch import Tensor

BACK_PROJECTIONS = 10
_VIDEOS = {".mp4", ".mkv", ".mov"}
Upscaler = Callable[["Tensor"], "Tensor"]  # a picture (1, 3, h, w) in 0..1, enlarged


def run(options: argparse.Namespace, host: Host) -> dict:
    """run.py upscale on clips with known truth (--clips, --lr): PSNR-Y, SSIM-Y, warping error (minutes).

    Means over clips of: PSNR-Y of bicubic and what ours gains over it and over back-projection (dB), SSIM-Y
    gained, warping error as a ratio to the truth's own, sharpness (mean |Laplacian|) as a ratio to the truth's, and
    `neighbours`: what true neighbours gain over copies of the middle frame (dB, there), and `colour`: how far the mean
    colour is from the truth's (8-bit levels). With --image-model FILE also the gain of that network on every frame by
    itself, as the host's Upscale Image (using Model) gives it.
    """
    if not options.clips or not options.lr:
        raise RunnerError("bench quality: needs --clips FOLDER (truth) and --lr FOLDER (NAME_MODE.mp4 each).")
    rows = {}
    for mode in options.modes:
        pairs = [(clip, Path(options.lr) / f"{clip.stem}_{mode}.mp4") for clip in sorted(Path(options.clips).iterdir())]
        pairs = [(clip, low) for clip, low in pairs if clip.suffix in _VIDEOS and low.is_file()]
        for clip, low in pairs:
            if clip.stem in options.exclude or (options.only and clip.stem not in options.only):
                continue
            row = measure(clip, low, options, host)
            rows.setdefault(mode, {})[clip.stem] = row
            print(f"  {mode:8} {clip.stem:20} " + " ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
    if not rows:
        raise RunnerError(f"bench quality: no clip of {options.clips} has its NAME_MODE.mp4 in {options.lr}.")
    means = {mode: _mean(list(clips.values())) for mode, clips in rows.items()}
    return {"means": means, "clips": rows}


def _mean(rows: list[dict]) -> dict:
    return {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}


def measure(clip: Path, low: Path, options: argparse.Namespace, host: Host) -> dict:
    """Upscale one LR file by `run.py upscale` and compare with its truth."""
    truth, small = np.stack(list(read_frames(clip))), np.stack(list(read_frames(low)))
    rate = probe(low).rate
    ours = upscaled(small, rate, truth.shape[1:3], options, host)
    bicubic = np.stack([_bicubic(frame, truth.shape[1:3]) for frame in small])
    reference = np.stack([_back_projected(frame, truth.shape[1:3]) for frame in small])
    flows, middle = true_flows(truth), len(small) // 2
    still = upscaled(np.repeat(small[middle : middle + 1], len(small), 0), rate, truth.shape[1:3], options, host)
    base = score_of(bicubic, truth, flows)
    score = score_of(ours, truth, flows)
    own = score_of(truth, truth, flows)["warp"]
    here = slice(middle, middle + 1)
    colours = ours.mean((0, 1, 2)) - truth.mean((0, 1, 2))
    networks = {Path(file).stem: load_upscaler(Path(file)) for file in options.image_models or ()}
    alone = {f"{name}_gain": score_of(_alone(net, small), truth, None)["psnr"] for name, net in networks.items()}
    return {
        "bicubic": base["psnr"],
        "gain": score["psnr"] - base["psnr"],
        "over_ibp": score["psnr"] - score_of(reference, truth, None)["psnr"],
        "ssim_gain": score["ssim"] - base["ssim"],
        "warp_ratio": score["warp"] / own,
        "bicubic_warp_ratio": base["warp"] / own,
        "sharpness": score["sharpness"],
        "neighbours": score_of(ours[here], truth[here], None)["psnr"]
        - score_of(still[here], truth[here], None)["psnr"],
        "colour": float(np.abs(colours).max()),
        **{name: psnr - base["psnr"] for name, psnr in alone.items()},
    }


def upscaled(
    small: np.ndarray,
    rate: Fraction,
    size: tuple[int, int],
    options: argparse.Namespace,
    host: Host,
    more: Sequence[str] = (),
) -> np.ndarray:
    """Run the command `run.py upscale IN OUT --size WxH --lossless` and `more` on frames and read its result."""
    with scratch_folder("quality-") as folder:
        source, result = folder / "in.mp4", folder / "out.mp4"
        write_video(source, small, rate, codec="h264-rgb")
        command = ["upscale", str(source), str(result), "--size", f"{size[1]}x{size[0]}", "--lossless"]
        command += ["--workflow", options.workflow]
        command += [word for setting in options.settings for word in ("--set", setting)]
        command += more
        if upscale.main(parser().parse_args(command), host):
            raise RunnerError(f"bench quality: run.py {' '.join(command)} failed.")
        return np.stack(list(read_frames(result)))


def load_upscaler(file: Path) -> Upscaler:
    """Read the weights of an image upscaler as ComfyUI does, without executing code from them."""
    from spandrel import ImageModelDescriptor, ModelLoader

    model = ModelLoader().load_from_state_dict(load("models.checkpoints").load_state(file)[0])
    if not isinstance(model, ImageModelDescriptor):
        raise RunnerError(f"--image-model: must upscale single pictures; got {file.name}. Choose another.")
    return model.eval()


def _alone(upscaler: Upscaler, small: np.ndarray) -> np.ndarray:
    """Enlarge every frame (n, h, w, 3) uint8 by itself."""
    import torch

    frames = torch.from_numpy(small).movedim(-1, 1).float() / 255
    with torch.no_grad():
        results = [upscaler(frame[None]).clamp(0, 1)[0] for frame in frames]
    return (torch.stack(results).movedim(1, -1) * 255).round().byte().numpy()


def _bicubic(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC))


def _back_projected(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Iterative back-projection (Irani & Peleg 1991): what needs no training."""
    import torch

    resize_clip = load("models.layout.sizes").resize_clip
    low = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None, :, None].float()
    high = resize_clip(low, *size, "bicubic")
    for _ in range(BACK_PROJECTIONS):
        high = high + resize_clip(low - resize_clip(high, *frame.shape[:2], "bicubic"), *size, "bicubic")
    return high[0, :, 0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def true_flows(truth: np.ndarray) -> tuple:
    """Estimate forward and backward flow of the truth, (n-1, 2, h, w) px each, by OpenCV's DIS (medium)."""
    import cv2
    import torch

    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in truth]
    pairs = list(zip(grey[:-1], grey[1:], strict=True))
    return tuple(
        torch.from_numpy(np.stack([dis.calc(*pair[::step], None) for pair in pairs])).permute(0, 3, 1, 2)
        for step in (1, -1)
    )


def score_of(result: np.ndarray, truth: np.ndarray, flows: tuple | None) -> dict:
    """Give PSNR-Y; with the truth's flows SSIM-Y, warping error and sharpness, too. Frames (n, h, w, 3) uint8."""
    import torch

    metrics = load("models.pixels.metrics")
    a, b = torch.from_numpy(np.ascontiguousarray(result)), torch.from_numpy(np.ascontiguousarray(truth))
    score = {"psnr": float(metrics.psnr_y(a, b))}
    if flows is not None:
        score |= {"ssim": float(metrics.ssim_y(a, b)), "warp": float(metrics.warping_error(a, flows))}
        score["sharpness"] = float(metrics.detail_ratio(a, b))
    return score
