"""Checks at the borders of nodes: bad input ends here, with the node, the rule, the value and the remedy."""

import contextlib
from collections.abc import Iterator

import torch

from ..models.layout.geometry import ClipSize
from .keys import WORK_KEY

SIZE_KEY = "vsr_size"  # in a LATENT: the exact frames, height and width the padded latent stands for
_CHECK_FRAMES = 16  # frames looked at together; bounds the scratch memory of the NaN test


@contextlib.contextmanager
def titled(title: str) -> Iterator[None]:
    """Put a node's title before the message of a ValueError of the core, which knows no nodes."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(f"{title}: "):
            error.args = (f"{title}: {error}",)
        raise


def check_frames(title: str, name: str, frames) -> torch.Tensor:
    """Return IMAGE `frames` (B, H, W, 3): not empty, at least 2 px a side, finite; alpha is left out."""
    if not isinstance(frames, torch.Tensor) or frames.ndim != 4:
        got = tuple(frames.shape) if isinstance(frames, torch.Tensor) else type(frames).__name__
        raise ValueError(
            f"{title}: {name} must be an IMAGE (frames, height, width, channels); got {got}. Link an image."
        )
    count, height, width, channels = frames.shape
    if count < 1:
        raise ValueError(
            f"{title}: {name} must have at least one frame; got 0. Check the video's range and path."
        )
    if min(height, width) < 2:
        raise ValueError(
            f"{title}: {name} must be at least 2 px a side; got {width}x{height}. Use a larger picture."
        )
    if channels not in (3, 4):
        raise ValueError(
            f"{title}: {name} must have 3 channels (RGB); got {channels}. Convert it to RGB first."
        )
    for start in range(0, count, _CHECK_FRAMES):
        if not torch.isfinite(frames[start : start + _CHECK_FRAMES]).all():
            bad = (
                (~torch.isfinite(frames[start : start + _CHECK_FRAMES]).flatten(1).all(1)).nonzero()[0].item()
            )
            raise ValueError(
                f"{title}: {name} must be finite numbers; got NaN or infinity in frame {start + bad}. "
                "A node before this one broke the picture: look at its settings."
            )
    return frames[..., :3]


def check_latent(title: str, name: str, latent, channels: int | None = None) -> torch.Tensor:
    """Return the samples of a video LATENT, (b, c, T, h, w) and finite; `channels` names what is required."""
    samples = unpacked(title, name, latent)
    if not isinstance(samples, torch.Tensor) or samples.ndim != 5:
        got = tuple(samples.shape) if isinstance(samples, torch.Tensor) else type(samples).__name__
        raise ValueError(
            f"{title}: {name} must be a video latent (batch, channels, T, height, width); got {got}. "
            "Link the latent of a video model."
        )
    if samples.numel() == 0:
        raise ValueError(
            f"{title}: {name} must not be empty; got {tuple(samples.shape)}. Check the clip's length."
        )
    if channels is not None and samples.shape[1] != channels:
        raise ValueError(
            f"{title}: {name} must have {channels} channels; got {samples.shape[1]}. "
            "Latent and VAE come from different models: use the pair of one loader."
        )
    return check_finite(title, name, samples)


def unpacked(title: str, name: str, latent):
    """Return the samples of a LATENT, or None where there are none; refuses those packed with sound."""
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if getattr(samples, "is_nested", False):
        shapes = ", ".join(str(tuple(part.shape)) for part in samples.unbind())
        raise ValueError(
            f"{title}: {name} must be the video latent alone; got one packed with sound ({shapes}). Put the host's "
            "Separate AV Latent before this node and link its video_latent."
        )
    return samples


def check_finite(title: str, name: str, samples: torch.Tensor) -> torch.Tensor:
    """Return a latent without NaN and infinity."""
    if not torch.isfinite(samples).all():
        raise ValueError(
            f"{title}: {name} must be finite numbers; got NaN or infinity. "
            "The sampler before this node broke it: try sampler euler, scheduler simple, precision fp32."
        )
    return samples


def check_clip(title: str, shape: tuple[int, ...]) -> None:
    """Raise where what is sampled is no clip (b, c, T, h, w), but packs sound or other data with it."""
    if len(shape) != 5:
        raise ValueError(
            f"{title}: what is sampled must be a video latent (5 dimensions); got {shape}, which packs sound or other "
            "data. Set this node to off, or refine the video latent alone (Separate AV Latent)."
        )


def guides(conds) -> bool:
    """Say whether processed conditionings (groups of dicts) tell of guide frames at the end of a clip, as LTX's do."""
    return any("keyframe_idxs" in cond.get("model_conds", {}) for group in conds for cond in group or ())


def check_count(title: str, name: str, count: int, wanted: int) -> None:
    """Raise where two clips that belong together have different numbers of frames."""
    if count != wanted:
        raise ValueError(
            f"{title}: {name} must have as many frames as the clip ({wanted}); got {count}. Link the "
            "frames of this clip."
        )


def size_dict(size: ClipSize) -> dict[str, int]:
    """Write a size the way it travels in a LATENT."""
    return {"frames": size.frames, "height": size.height, "width": size.width}


def latent_target(title: str, latent: dict, space: int, time: int) -> ClipSize:
    """Read the exact size a LATENT stands for; without our entry, all that its grid holds."""
    samples = latent["samples"]
    whole = ClipSize(1 + time * (samples.shape[2] - 1), samples.shape[3] * space, samples.shape[4] * space)
    if SIZE_KEY not in latent:
        return whole
    size = ClipSize(**latent[SIZE_KEY])
    work = work_size(latent, size)
    slack = (whole.frames - work.frames, whole.height - work.height, whole.width - work.width)
    if min(slack) < 0 or slack[0] >= time or max(slack[1:]) >= space:
        raise ValueError(
            f"{title}: the latent must have the grid of its target size {size.frames} x "
            f"{size.width}x{size.height}; "
            f"got room for {whole.frames} x {whole.width}x{whole.height}. "
            f"{_remedy(whole.frames, slack[0], time)}"
        )
    return size


def _remedy(frames: int, slack: int, time: int) -> str:
    """Say what to do about a latent of another grid; too long by whole latent frames, it may carry guides."""
    if slack < time:
        return "A node cut or resized the latent on its way: do that before Cascade Input."
    counts = ", ".join(str(frames + step * time) for step in (-1, 0, 1))
    return (
        f"Its frames count as 1 + {time} n ({counts}). Guide frames that a node appended must go: LTXVCropGuides "
        "after the sampler; a clip is lengthened before Cascade Input."
    )


def work_size(latent: dict, size: ClipSize) -> ClipSize:
    """Read the size that the picture in a LATENT has: `size`, unless a small picture was enlarged."""
    return ClipSize(size.frames, *latent[WORK_KEY]) if WORK_KEY in latent else size
