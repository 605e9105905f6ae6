"""Put clips where the host's Load Video finds them, exactly as its network shall see them.

ComfyUI 0.30 reads white as 254/255 (256/257 of every value) from all but a few pixel formats, keeps one mean frame rate
and knows no HDR. So every clip is staged as PNG frames in a .mov, which it reads exactly: upright, at an even rate,
without sound. Times, sound, tags and transparency are put back from the source when OUT is written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from ..media.errors import MediaError
from ..media.reader import Wish, frames
from ..media.timeline import Timeline
from ..media.tracks import Tracks
from ..media.writer import write_video
from .errors import RunnerError


def staged_name(name: str, source: Path) -> str:
    """Return the file name that `stage` or `place` gives: reference images go as they are."""
    return f"{name}{source.suffix.lower()}" if name.startswith("reference_image") else f"{name}.mov"


def stage(source: Timeline, wish: Wish, folder: Path, name: str, sound: bool = False) -> str:
    """Write the frames of a source as `folder`/`name`.mov and return that name; what transparency hides is kept.

    `sound`: with the first sound track, for graphs whose result depends on it.
    """
    target = folder / f"{name}.mov"
    pictures = (frame[..., :3] for frame in frames(source, wish))
    with contextlib.ExitStack() as stack:
        tracks = stack.enter_context(Tracks(source, ".mov", "first")) if sound and source.kind == "film" else None
        try:
            write_video(target, pictures, source.rate, codec="png", tracks=tracks)
        except MediaError as error:
            if (text := str(error)).startswith("OUT: "):
                text = f"Scratch space: {text[5:]} Free some space, or set CASCADEVSR_CACHE to another disk."
            raise RunnerError(text) from error
    return target.name


def place(source: Path, folder: Path, name: str) -> str:
    """Hard-link a file into `folder`, or copy it, and return its name; the host refuses symbolic links."""
    target = folder / f"{name}{source.suffix.lower()}"
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
    return target.name
