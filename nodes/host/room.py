"""Whether a result fits into memory, before anything is computed; and what it is, in words."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management as management

from ...media.memory import free_memory
from ...models.layout.sizes import ClipSize
from . import services

_GIB = 2**30
_CHUNK = 17  # frames that are resized and worked on together at most ...
_COPIES = 2  # ... of which there are so many copies


def clip_bytes(size: ClipSize) -> int:
    """Count the bytes of a clip as the host keeps IMAGE."""
    return 3 * management.intermediate_dtype().itemsize * size.frames * size.height * size.width


def needed(size: ClipSize) -> int:
    """Count the bytes of a resulting clip and of what is worked on beside it."""
    return clip_bytes(replace(size, frames=size.frames + _COPIES * min(_CHUNK, size.frames)))


def clip_words(before: ClipSize, after: ClipSize) -> str:
    """Say what becomes of a clip: 25 frames, 128x72 -> 512x288, 0.04 GiB."""
    sizes = f"{before.width}x{before.height} -> {after.width}x{after.height}"
    return f"{after.frames:,} frame{'s' * (after.frames != 1)}, {sizes}, {clip_bytes(after) / _GIB:.2f} GiB"


def check_room(title: str, size: ClipSize, need: float | None = None, remedy: str = "") -> None:
    """Raise where a result does not fit into the free memory, and name the size that does.

    `need`: its bytes with all that is worked on, where that is another number. What the system may move to the disk
    counts as free: that is slow, but works.
    """
    device = management.intermediate_device()
    free = free_memory(swap=True) if device.type == "cpu" else services.free_bytes(device)
    need = needed(size) if need is None else need
    if need <= free:
        return
    share = (free / need) ** 0.5
    width, height = (max(2, int(side * share) // 2 * 2) for side in (size.width, size.height))
    frames = _frames_that_fit(size, free)
    fits = f"{width}x{height} for so many frames" + (f", or {frames:,} frames of this size" if frames else "")
    raise ValueError(
        f"{title}: the result must fit into memory; got {size.frames:,} frames of {size.width}x{size.height}, for "
        f"which {need / _GIB:,.1f} GiB are needed, and {free / _GIB:,.1f} GiB are free. What fits: {fits}."
        f"{remedy or ' Upscale Film makes films of any length, part by part.'}"
    )


def _frames_that_fit(size: ClipSize, free: float) -> int:
    frame = clip_bytes(replace(size, frames=1))
    count = int(free / frame)
    return count - _COPIES * _CHUNK if count > (1 + _COPIES) * _CHUNK else count // (1 + _COPIES)
