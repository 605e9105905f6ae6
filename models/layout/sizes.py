"""Sizes: what a network needs, what the user asked for, and the way between them without losing a pixel.

In order, as a clip passes: `target_size` works out the exact output, `resize_clip` (or `RegionReader`, a rectangle at a
time) brings frames to it, `padded_size` and `pad_clip` round it up to what a network takes, `latent_size` gives the
network's grid, and `crop_clip` cuts the padding off again.

A clip is (b, c, t, h, w); causal video networks take 1 + time (T - 1) frames and sides that are multiples of `space`.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

RESIZE_MODES = ("bilinear", "bicubic", "area", "lanczos")
_LANCZOS_TAPS = 3  # Pillow's Lanczos support
_BAND = 32  # samples of a side that are made at once
_REMEMBERED = 32  # sides whose samples' weights are kept
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
                f"frames, height and width must be at least 1; "
                f"got {self.frames} frames of {self.width}x{self.height}. Check the input and the target."
            )


def zeros(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Give what torch.zeros gives on the CPU, in large pages of memory, as numpy asks for them and torch does not.

    In pages of 4 KB a frame of 1280x720 costs 4 ms, ten times what it takes to write one.
    """
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def zeros_like(x: torch.Tensor) -> torch.Tensor:
    """Give zeros where a tensor lies, of its shape and dtype."""
    return zeros(tuple(x.shape), x.dtype) if x.device.type == "cpu" else torch.zeros_like(x)


def clip_size(clip: torch.Tensor) -> ClipSize:
    """Read the size of a (b, c, t, h, w) tensor."""
    if clip.ndim != 5:
        raise ValueError(
            f"a clip has five dimensions (b, c, t, h, w); got shape {tuple(clip.shape)}. "
            "Move the frames into the third dimension."
        )
    return ClipSize(*clip.shape[2:])


def latent_frames(frames: int, time: int = 4) -> int:
    """Count the latent frames that hold `frames` frames: the first alone, then `time` in each."""
    return 1 + -(-(frames - 1) // time)


def first_frame(latent: int, time: int) -> int:
    """Give the first frame that a latent frame stands for: the first alone, then `time` in each."""
    return 0 if latent == 0 else time * (latent - 1) + 1


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
    long_side: int | None = None,
    exact: tuple[int, int] | None = None,
    multiple: int = 1,
) -> tuple[int, int]:
    """Work out the exact output (height, width) from one of: a factor, the short or long side, or (height, width).

    Sides become the nearest multiple of `multiple` px, at least one. Raises ValueError for an exact size that is none.
    """
    if sum(rule is not None for rule in (scale, short_side, long_side, exact)) != 1:
        raise ValueError(
            f"give exactly one of scale, short side, long side and exact size; "
            f"got scale={scale}, short_side={short_side}, long_side={long_side}, exact={exact}. Remove the others."
        )
    if multiple != int(multiple) or multiple < 1:
        raise ValueError(f"multiple must be a whole number of at least 1 px; got {multiple}. Try 2.")
    source = ClipSize(1, height, width)
    if exact is not None:
        sides = exact
        rows, columns = exact
    else:
        if short_side is not None:
            scale = short_side / min(source.height, source.width)
        elif long_side is not None:
            scale = long_side / max(source.height, source.width)
        if not math.isfinite(scale):
            raise ValueError(f"the scale must be a finite number; got {scale}. Try 4.")
        sides = source.height * scale, source.width * scale
        rows, columns = (_nearest(side) for side in sides)
    if rows != int(rows) or columns != int(columns) or min(rows, columns) < 1:
        raise ValueError(
            f"the output needs whole sides of at least 1 px; got {columns}x{rows} from a "
            f"{width}x{height} input. Ask for a larger scale or size."
        )
    size = _nearest(sides[0], multiple), _nearest(sides[1], multiple)
    if exact is not None and size != (rows, columns):
        raise ValueError(
            f"both sides of an exact size must be multiples of {multiple} px; got {columns}x{rows}. "
            f"Ask for {size[1]}x{size[0]}, or set multiple to 1."
        )
    return size


def resize_clip(clip: torch.Tensor, height: int, width: int, mode: str = "bicubic") -> torch.Tensor:
    """Resize every frame of (b, c, t, h, w); the kernels equal Pillow's, results are not clamped.

    At the asked size already, the clip itself is returned. Works through few frames at a time in float32.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f"mode must be one of {', '.join(RESIZE_MODES)}; got {mode!r}. Choose one.")
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


Bands = list[tuple[slice, torch.Tensor]]  # pixels along a side, and what makes samples of them


def resized(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize x (b, c, h, w), float32, as resize_clip does bicubically; on a CPU in a third of the time."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    ways = []
    for many, few in zip(x.shape[-2:], size, strict=True):
        spacing = many / few
        ways.append(bands(many, few, spacing / 2, spacing, spacing, x.device))
    return sampled(x, *ways)


def sampled(x: torch.Tensor, rows: Bands, columns: Bands) -> torch.Tensor:
    """Give samples of x (b, c, h, w) on a grid of so many rows and columns."""
    x = torch.cat([weights @ x[..., taken, :] for taken, weights in rows], 2)
    return torch.cat([x[..., taken] @ weights.mT for taken, weights in columns], 3)


@lru_cache(_REMEMBERED)
@torch.inference_mode(False)  # what is kept may be used in training
def bands(pixels: int, samples: int, begin: float, spacing: float, size: float, device: torch.device) -> Bands:
    """Give the pixels that every few samples of a side are made of, and a matrix of their weights: Pillow's bicubic.

    The first sample lies `begin` px from the edge, the others `spacing` px apart; each is `size` px wide, or 1 px.
    """
    found, size = [], max(size, 1.0)  # the kernel is four times as wide
    for begun in range(0, samples, _BAND):
        numbers = torch.arange(begun, min(begun + _BAND, samples), device=device)
        ends = begin + spacing * begun - 2 * size, begin + spacing * (begun + _BAND - 1) + 2 * size
        taken = slice(max(0, math.floor(ends[0])), min(pixels, math.ceil(ends[1])))
        places = torch.arange(taken.start, taken.stop, device=device) + (0.5 - begin)
        away = (places - spacing * numbers[:, None]).abs() / size
        near, far = (1.5 * away - 2.5) * away**2 + 1, ((2.5 - 0.5 * away) * away - 4) * away + 2
        weights = torch.where(away < 1, near, torch.where(away < 2, far, 0.0))
        found.append((taken, weights / weights.sum(1, keepdim=True)))
    return found


def pad_clip(clip: torch.Tensor, size: ClipSize) -> torch.Tensor:
    """Repeat the last frame, row and column until the clip has the given size."""
    missing = _missing(clip, size)
    if min(missing) < 0:
        raise ValueError(
            f"the padded size must not be smaller than the clip; got {size} for {clip_size(clip)}. "
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
            f"the crop must not be larger than the clip; got {size} from {clip_size(clip)}. Pad the clip first."
        )
    return clip[:, :, : size.frames, : size.height, : size.width]


def _missing(clip: torch.Tensor, size: ClipSize) -> tuple[int, int, int]:
    now = clip_size(clip)
    return size.frames - now.frames, size.height - now.height, size.width - now.width


def _nearest(side: float, multiple: int = 1) -> int:
    """Round a side to whole px, halves up, or to a multiple of more px: halves down, 854x480 to 720 is 1280x720."""
    if multiple == 1:
        return math.floor(side + 0.5)
    count = round(side / multiple, 9)  # a factor's last bit must not decide which way a half goes
    return multiple * max(1, math.ceil(count - 0.5))


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


class RegionReader:
    """Reads rectangles of a resized and padded clip without ever making a whole frame of it.

    Resizing is linear along rows and along columns, so a rectangle needs those rows of two matrices only.
    """

    def __init__(
        self, frames: torch.Tensor, size: ClipSize, padded: ClipSize, mode: str, device: torch.device | None = None
    ):
        """Take LR frames (t, h, w, 3) in 0..1, the size to resize them to, and that with padding.

        They are resized on `device` (None: where they are), one at a time, and given back where they were. Raises
        ValueError for a mode other than bilinear, bicubic and lanczos.
        """
        self._frames, self._last = frames, len(frames) - 1
        self._device = frames.device if device is None else device
        self._rows = padded_matrix(frames.shape[1], size.height, padded.height, mode)
        self._columns = padded_matrix(frames.shape[2], size.width, padded.width, mode)

    def __call__(self, start: int, stop: int, rows: slice, columns: slice) -> torch.Tensor:
        """Give frames start..stop (n, h, w, 3) in 0..1 of a rectangle in px; the last frame repeats past the end."""
        down, above = matrix_support(self._rows[rows])
        across, left = matrix_support(self._columns[columns])
        result = self._frames.new_empty((stop - start, len(down), len(across), 3), dtype=torch.float32)
        down, across = down.to(self._device), across.to(self._device)
        for number in range(start, stop):
            frame = self._frames[min(number, self._last), above, left, :3].to(self._device, torch.float32)
            result[number - start] = (down @ frame.movedim(-1, 0) @ across.T).clamp_(0, 1).movedim(0, -1)
        return result


def padded_matrix(source: int, target: int, padded: int, mode: str) -> torch.Tensor:
    """Build the (padded, source) matrix of a resize along one axis; padding repeats the last row."""
    if mode not in ("bilinear", "bicubic", "lanczos"):
        raise ValueError(f"mode must be bilinear, bicubic or lanczos; got {mode!r}. Choose one.")
    if mode == "lanczos" and source != target:
        matrix = _lanczos_matrix(source, target, torch.device("cpu"))
    else:
        usual = "bilinear" if mode == "lanczos" else mode
        matrix = F.interpolate(torch.eye(source)[None, None], (target, source), mode=usual, antialias=True)[0, 0]
    return torch.cat((matrix, matrix[-1:].expand(padded - target, -1)))


def matrix_support(rows: torch.Tensor) -> tuple[torch.Tensor, slice]:
    """Cut rows of such a matrix to the columns they use, and say which."""
    used = rows.ne(0).any(0).nonzero().flatten()
    span = slice(int(used[0]), int(used[-1]) + 1)
    return rows[:, span], span
