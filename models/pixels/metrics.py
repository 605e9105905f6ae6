"""Measures of a video against another, and against its own motion.

Frames are (B, H, W, 3), uint8 or float 0..1; differences are counted in 0..255. Work is frame by frame in
float64, so memory does not grow with the clip. Luma is BT.601 studio swing, not rounded.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ..motion.flow import visible, warp

BORDER = 4  # px shaved on every side before PSNR and SSIM: the scale, by the field's custom
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
_SSIM_SIDE = 11  # px of the Gaussian window, whose deviation is 1.5 px


def luma(frames: torch.Tensor) -> torch.Tensor:
    """Give (..., H, W) float64 luma, 16..235, of (..., H, W, 3) frames."""
    return 16 + _bytes(frames) @ torch.tensor(_LUMA, dtype=torch.float64, device=frames.device)


def psnr_y(result: torch.Tensor, truth: torch.Tensor, border: int = BORDER) -> float:
    """Give the mean over frames of the luma PSNR in dB."""
    return _mean_over_frames(lambda a, b: _psnr(luma(a), luma(b), border), result, truth)


def psnr_rgb(result: torch.Tensor, truth: torch.Tensor, border: int = BORDER) -> float:
    """Give the mean over frames of the PSNR over all three channels in dB."""

    def frame_psnr(a: torch.Tensor, b: torch.Tensor) -> float:
        return _psnr(_bytes(a).movedim(-1, 0), _bytes(b).movedim(-1, 0), border)

    return _mean_over_frames(frame_psnr, result, truth)


def ssim_y(result: torch.Tensor, truth: torch.Tensor, border: int = BORDER) -> float:
    """Give the mean over frames of the luma SSIM (11x11 Gaussian window, inner area); NaN below 11 px."""
    return _mean_over_frames(lambda a, b: _ssim(luma(a), luma(b), border), result, truth)


def detail_ratio(result: torch.Tensor, truth: torch.Tensor) -> float:
    """Compare mean |Laplacian| of luma with the truth's: below 1 is blurry, above over-sharp or noisy."""
    return _mean_over_frames(lambda a, b: _laplacian(a) / max(_laplacian(b), 1e-6), result, truth)


def warping_errors(frames: torch.Tensor, flows: tuple[torch.Tensor, torch.Tensor]) -> list[float]:
    """Give, per pair of frames, 1000 times the mean squared RGB difference (0..1) along visible motion.

    flows = (forward t -> t+1, backward t+1 -> t), each (B-1, 2, H, W) px. Compare with the truth's own value:
    less is blur, not consistency.
    """
    forward, backward = flows
    if len(forward) != len(frames) - 1 or len(backward) != len(forward):
        raise ValueError(
            f"warping errors: {len(frames)} frames need {len(frames) - 1} flows each way; got "
            f"{len(forward)} and {len(backward)}. Estimate the motion on the same clip."
        )
    errors = []
    for index in range(len(forward)):
        there, back = forward[index : index + 1], backward[index : index + 1]
        first, second = (_bytes(frames[i]).float().movedim(-1, 0)[None] / 255 for i in (index, index + 1))
        error = (first - warp(second, there)).square().sum(1, keepdim=True)[visible(there, back)]
        errors.append(1e3 * float(error.double().mean()) if error.numel() else 0.0)
    return errors


def warping_error(frames: torch.Tensor, flows: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Give the mean of warping_errors; NaN for a single frame."""
    return _mean(warping_errors(frames, flows))


def flicker(frames: torch.Tensor) -> list[float]:
    """Give the mean absolute luma change of each step from frame to frame."""
    return [float((luma(b) - luma(a)).abs().mean()) for a, b in zip(frames[:-1], frames[1:], strict=True)]


def color_drift(result: torch.Tensor, truth: torch.Tensor | None = None) -> float:
    """Give how far (RGB distance, 0..255) the mean colour moves from first to last frame.

    The change in the truth, of any size, is subtracted first.
    """
    change = _mean_colour(result[-1]) - _mean_colour(result[0])
    if truth is not None:
        change = change - (_mean_colour(truth[-1]) - _mean_colour(truth[0])).to(change)
    return float(change.norm())


def _bytes(frames: torch.Tensor) -> torch.Tensor:
    return frames.double() if frames.dtype == torch.uint8 else frames.double() * 255


def _mean_colour(frame: torch.Tensor) -> torch.Tensor:
    return _bytes(frame).flatten(0, 1).mean(0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _mean_over_frames(
    measure: Callable[[torch.Tensor, torch.Tensor], float], result: torch.Tensor, truth: torch.Tensor
) -> float:
    if result.shape != truth.shape or result.ndim != 4 or result.shape[-1] != 3:
        raise ValueError(
            "two RGB clips (frames, height, width, 3) of equal size are compared; got "
            f"{tuple(result.shape)} and {tuple(truth.shape)}. Crop or resize one of them."
        )
    return _mean([measure(a, b.to(a.device)) for a, b in zip(result, truth, strict=True)])


def _shave(planes: torch.Tensor, border: int, keep: int) -> torch.Tensor:
    """Cut the border off (..., H, W), but leave at least `keep` px of a side that has them."""
    top, left = (max(0, min(border, (side - keep) // 2)) for side in planes.shape[-2:])
    return planes[..., top : planes.shape[-2] - top, left : planes.shape[-1] - left]


def _psnr(a: torch.Tensor, b: torch.Tensor, border: int) -> float:
    error = float(_shave(a - b, border, 1).square().mean())
    return 10 * math.log10(255**2 / max(error, 1e-10)) if not math.isnan(error) else math.nan


def _ssim(a: torch.Tensor, b: torch.Tensor, border: int) -> float:
    """Give the mean SSIM of two planes (H, W) in 0..255."""
    a, b = _shave(a, border, _SSIM_SIDE), _shave(b, border, _SSIM_SIDE)
    if min(a.shape) < _SSIM_SIDE:
        return math.nan
    from kornia.metrics import ssim  # here: importing kornia takes longer than the whole pack

    return float(ssim(a[None, None], b[None, None], _SSIM_SIDE, max_val=255.0, padding="valid").mean())


def _laplacian(frame: torch.Tensor) -> float:
    # By hand: kornia's kernel has eight neighbours, that of the field (and of OpenCV) four.
    kernel = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64, device=frame.device)
    plane = luma(frame)[None, None]
    mode = "reflect" if min(plane.shape[-2:]) > 1 else "replicate"
    return float(F.conv2d(F.pad(plane, (1, 1, 1, 1), mode=mode), kernel[None, None]).abs().mean())
