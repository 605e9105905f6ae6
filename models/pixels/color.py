"""Colour match: give frames the colours of a reference and keep their detail.

Frames are (B, H, W, C) in 0..1. A reference has as many frames, or one for all, and any size. Every function
works through few frames at a time and returns its input exactly where frames and reference are equal; only
match_colour clamps.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..layout.sizes import resize_clip, zeros_like

_EPSILON = 1e-5 / 4  # on the variance: the published 1e-5 holds for values in -1..1
_CHUNK_PIXELS = 1 << 22  # pixels matched at a time: a few frames
SCRATCH = 500 << 20  # bytes that these take at most
_BLUR = (0.25, 0.5, 0.25)


def match_colour(
    frames: torch.Tensor,
    reference: torch.Tensor,
    method: str = "wavelet",
    strength: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Match by one of METHODS, mix by strength (0 = unchanged), clamp; progress(done, total) in frames.

    It is computed on `device` (None: where the frames are), with SCRATCH bytes of it.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}. Choose wavelet.")
    settings = {"strength": strength, "clamp": True, "progress": progress, "device": device}
    return _by_chunk(frames, reference, METHODS[method], **settings)


def adain(frames: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Give every frame and channel the mean and deviation of the reference's."""
    return _by_chunk(frames, reference, _adain)


def wavelet(frames: torch.Tensor, reference: torch.Tensor, levels: int = 5) -> torch.Tensor:
    """Keep the detail of the frames and take the reference's low band, past `levels` a-trous levels."""
    return _by_chunk(frames, reference, lambda frame, target: _wavelet(frame, target, levels))


def lab(frames: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Give every frame the reference's mean and deviation of lightness and chroma in CIELAB; RGB only."""
    return _by_chunk(frames, reference, _lab)


def low_frequencies(clip: torch.Tensor, levels: int = 5) -> torch.Tensor:
    """Blur (b, c, h, w) with [1 2 1] x [1 2 1] / 16 at dilations 1, 2, 4 ...: the a-trous low band."""
    channels = clip.shape[1]
    kernel = clip.new_tensor(_BLUR)
    for level in range(levels):
        reach = 2**level
        for shape, pad in (((1, 3), (reach, reach, 0, 0)), ((3, 1), (0, 0, reach, reach))):
            weight = kernel.view(1, 1, *shape).expand(channels, 1, *shape)
            clip = F.conv2d(F.pad(clip, pad, mode="replicate"), weight, dilation=reach, groups=channels)
    return clip


def _adain(frames: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    mean, deviation = _statistics(frames)
    target_mean, target_deviation = _statistics(target)
    gain = target_deviation / deviation
    return frames * gain + (target_mean - mean * gain)


def _wavelet(frames: torch.Tensor, target: torch.Tensor, levels: int = 5) -> torch.Tensor:
    # high(frames) + low(target) = frames + low(target - frames), the bands being linear: one blur, not two.
    return frames + low_frequencies(target - frames, levels)


def _lab(frames: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    from kornia.color import lab_to_rgb, rgb_to_lab  # here: importing kornia takes longer than the whole pack

    colours = rgb_to_lab(frames.clamp(0, 1))
    matched = _adain(colours, rgb_to_lab(target.clamp(0, 1)))
    # As a difference, so that the round trip through LAB costs no precision and no out-of-range value.
    return frames + (lab_to_rgb(matched, clip=False) - lab_to_rgb(colours, clip=False))


METHODS = {"wavelet": _wavelet, "adain": _adain, "lab": _lab}


def _statistics(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = frames.shape[-2] * frames.shape[-1]
    variance, mean = torch.var_mean(frames, dim=(-2, -1), keepdim=True, correction=min(1, pixels - 1))
    return mean, (variance + _EPSILON).sqrt()


def _by_chunk(
    frames: torch.Tensor,
    reference: torch.Tensor,
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    strength: float = 1.0,
    clamp: bool = False,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | None = None,
) -> torch.Tensor:
    _check(frames, reference)
    device = frames.device if device is None else device
    total, height, width = frames.shape[:3]
    step = max(1, _CHUNK_PIXELS // (height * width))
    result = zeros_like(frames)
    for start in range(0, total, step):
        span = slice(start, min(start + step, total))
        source = frames[span].to(device).movedim(-1, 1).float()
        target = reference if reference.shape[0] == 1 else reference[span]
        target = target.to(device).movedim(-1, 1).float()
        target = resize_clip(target[:, :, None], height, width, "bicubic")[:, :, 0].expand_as(source)
        matched = function(source, target)
        if strength != 1.0:
            matched = source + strength * (matched - source)
        result[span] = (matched.clamp_(0, 1) if clamp else matched).movedim(1, -1)
        if progress is not None:
            progress(span.stop, total)
    return result


def _check(frames: torch.Tensor, reference: torch.Tensor) -> None:
    if frames.ndim != 4 or reference.ndim != 4 or frames.shape[-1] != reference.shape[-1]:
        raise ValueError(
            f"images and reference are (frames, height, width, channels), equal in channels; got "
            f"{tuple(frames.shape)} and {tuple(reference.shape)}. Connect two RGB clips."
        )
    if reference.shape[0] not in (1, frames.shape[0]):
        raise ValueError(
            f"the reference needs one frame, or one for each of the {frames.shape[0]} images; got "
            f"{reference.shape[0]}. Connect the clip the images were made from."
        )
