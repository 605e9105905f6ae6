"""Sizes: what a network needs, what the user asked for, and the way between them without losing a pixel.

A clip is (b, c, t, h, w); the networks take 1 + 4 (T - 1) frames and sides that are multiples of 8.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

RESIZE_MODES = ("bilinear", "bicubic", "area", "lanczos")
_LANCZOS_TAPS = 3  # Pillow's Lanczos support
_RESIZE_PIXELS = 1 << 24  # pixels of one resize call: bounds the float32 scratch memory to about 200 MB


@dataclass(frozen=True)
class ClipSize:
    """Hold a number of frames and the height and width of each."""

    frames: int
    height: int
    width: int

    def __post_init__(self):
        if min(self.frames, self.height, self.width) < 1:
            raise ValueError(
                f"Clip Size: frames, height and width must be at least 1; "
                f"got {self.frames} frames of {self.width}x{self.height}. Check the input and the target."
            )


def clip_size(clip: torch.Tensor) -> ClipSize:
    """Read the size of a (b, c, t, h, w) tensor."""
    if clip.ndim != 5:
        raise ValueError(
            f"Clip Size: a clip has five dimensions (b, c, t, h, w); got shape {tuple(clip.shape)}. "
            "Move the frames into the third dimension."
        )
    return ClipSize(*clip.shape[2:])


def latent_frames(frames: int, time: int = 4) -> int:
    """Count the latent frames that hold `frames` frames: the first alone, then `time` in each."""
    return 1 + -(-(frames - 1) // time)


def padded_size(size: ClipSize, space: int = 8, time: int = 4) -> ClipSize:
    """Round a size up to what a causal video VAE takes: 1 + n time frames, sides multiples of space."""
    return ClipSize(
        1 + time * (latent_frames(size.frames, time) - 1),
        space * -(-size.height // space),
        space * -(-size.width // space),
    )


def latent_size(size: ClipSize, space: int = 8, time: int = 4) -> ClipSize:
    """Give the latent grid (T, h, w) of a clip, padding included."""
    return ClipSize(latent_frames(size.frames, time), -(-size.height // space), -(-size.width // space))


def target_size(
    height: int,
    width: int,
    *,
    scale: float | None = None,
    short_side: int | None = None,
    exact: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Work out the exact output (height, width) from one of: a factor, the short side, or (height, width)."""
    if sum(rule is not None for rule in (scale, short_side, exact)) != 1:
        raise ValueError(
            f"Target Size: give exactly one of scale, short side and exact size; "
            f"got scale={scale}, short_side={short_side}, exact={exact}. Remove the others."
        )
    source = ClipSize(1, height, width)
    if exact is not None:
        rows, columns = exact
    else:
        factor = scale if scale is not None else short_side / min(source.height, source.width)
        if not math.isfinite(factor):
            raise ValueError(f"Target Size: the scale must be a finite number; got {factor}. Try 4.")
        rows, columns = _round(source.height * factor), _round(source.width * factor)
    if rows != int(rows) or columns != int(columns) or min(rows, columns) < 1:
        raise ValueError(
            f"Target Size: the output needs whole sides of at least 1 px; got {columns}x{rows} from a "
            f"{width}x{height} input. Ask for a larger scale or size."
        )
    return int(rows), int(columns)


def resize_clip(clip: torch.Tensor, height: int, width: int, mode: str = "bicubic") -> torch.Tensor:
    """Resize every frame of (b, c, t, h, w); the kernels equal Pillow's, results are not clamped.

    At the asked size already, the clip itself is returned. Works through few frames at a time in float32.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f"Resize: mode must be one of {', '.join(RESIZE_MODES)}; got {mode!r}. Choose one.")
    size, target = clip_size(clip), ClipSize(clip.shape[2], height, width)
    if (size.height, size.width) == (height, width):
        return clip
    result = clip.new_empty((*clip.shape[:3], height, width))
    step = max(1, _RESIZE_PIXELS // (max(height * width, size.height * size.width) * clip.shape[0]))
    for start in range(0, target.frames, step):
        part = clip[:, :, start : start + step].transpose(1, 2).float()
        part = _resize_frames(part.flatten(0, 1), height, width, mode).unflatten(0, part.shape[:2])
        result[:, :, start : start + step] = part.transpose(1, 2)
    return result


def resize_matrix(source: int, target: int, mode: str) -> torch.Tensor:
    """Build the (target, source) matrix that resizes one axis; rows, then columns, give what resize_clip gives."""
    if mode not in ("bilinear", "bicubic", "lanczos"):
        raise ValueError(f"Resize: mode must be bilinear, bicubic or lanczos; got {mode!r}. Choose one.")
    if mode == "lanczos" and source != target:
        return _lanczos_matrix(source, target, torch.device("cpu"))
    rows = torch.eye(source)[None, None]
    return F.interpolate(
        rows, (target, source), mode="bilinear" if mode == "lanczos" else mode, antialias=True
    )[0, 0]


def pad_clip(clip: torch.Tensor, size: ClipSize) -> torch.Tensor:
    """Repeat the last frame, row and column until the clip has the given size."""
    missing = _missing(clip, size)
    if min(missing) < 0:
        raise ValueError(
            f"Pad Clip: the padded size must not be smaller than the clip; got {size} for {clip_size(clip)}. "
            "Crop the clip, or pad to padded_size()."
        )
    if not any(missing):
        return clip
    frames, rows, columns = missing
    return F.pad(clip, (0, columns, 0, rows, 0, frames), mode="replicate")


def crop_clip(clip: torch.Tensor, size: ClipSize) -> torch.Tensor:
    """Undo pad_clip: keep the first frames, rows and columns (a view)."""
    if max(_missing(clip, size)) > 0:
        raise ValueError(
            f"Crop Clip: the crop must not be larger than the clip; got {size} from {clip_size(clip)}. "
            "Pad the clip first."
        )
    return clip[:, :, : size.frames, : size.height, : size.width]


def _missing(clip: torch.Tensor, size: ClipSize) -> tuple[int, int, int]:
    now = clip_size(clip)
    return size.frames - now.frames, size.height - now.height, size.width - now.width


def _round(value: float) -> int:
    return math.floor(value + 0.5)  # halves go up, so a side does not shrink by Python's half-to-even


def _resize_frames(frames: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    if mode == "area":
        return F.interpolate(frames, (height, width), mode="area")
    if mode == "lanczos":
        rows = _lanczos_matrix(frames.shape[-2], height, frames.device)
        columns = _lanczos_matrix(frames.shape[-1], width, frames.device)
        return rows @ (frames @ columns.T)
    return F.interpolate(frames, (height, width), mode=mode, align_corners=False, antialias=True)


def _lanczos_matrix(source: int, target: int, device: torch.device) -> torch.Tensor:
    """Build the (target, source) matrix of Pillow's Lanczos filter: wider when shrinking, rows sum to one."""
    ratio = source / target
    stretch = max(ratio, 1.0)
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * ratio
    distance = (torch.arange(source, dtype=torch.float64)[None] + 0.5 - centres[:, None]) / stretch
    kernel = torch.sinc(distance) * torch.sinc(distance / _LANCZOS_TAPS)
    kernel = torch.where(distance.abs() < _LANCZOS_TAPS, kernel, torch.zeros_like(kernel))
    return (kernel / kernel.sum(1, keepdim=True)).float().to(device)
