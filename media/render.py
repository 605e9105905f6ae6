"""A long film segment by segment, whatever renders its frames: the ComfyUI of run.py, or a node inside of one.

1. `decide_borders` looks for scene cuts and cuts the film; `automatic_length` says how long segments are
2. `key` names everything that decides the result, for the journal
3. `render` gives each segment that is missing, with its context, to whoever makes frames, and writes what comes back
4. `finish` joins the segments and removes them
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .errors import MediaError
from .join import join, write_segment
from .journal import Journal, identity
from .memory import free_memory
from .plan import Plan
from .reader import Forward, Wish, with_transparency
from .segments import Segment, cut_film
from .timeline import Timeline

_STEP = 8  # frames: models of the host look at 4 or 8 together
_SMALL = 144  # px of the shorter side in which cuts are looked for, about; they are compared at a quarter of it
_LEAST, _MOST = 32, 480  # frames of a segment, where memory decides
BYTES_PLAIN, BYTES = 18, 30  # that a pixel of the result takes in ComfyUI's process, measured; with Colour Match
_SHARE = 0.4  # of the free memory
_PACK = Path(__file__).absolute().parents[1]

Cuts = Callable[[Iterator[np.ndarray]], tuple[int, ...]]  # small frames (h, w, 3) uint8 -> those that begin a scene
Made = Callable[[Segment, Iterator[np.ndarray]], Iterable[np.ndarray]]


def automatic_length(size: tuple[int, int]) -> int:
    """Return how many frames of a segment the free memory takes; `size`: height and width of the result in px."""
    count = int(_SHARE * free_memory() / (BYTES * size[0] * size[1]))
    return max(_LEAST, min(_MOST, count // 8 * 8))


def decide_borders(
    clip: Timeline, length: int, context: int, scene_cuts: Cuts, tick: Callable[[int, int], None]
) -> tuple[Segment, ...]:
    """Look for scene cuts and cut a film into segments; `tick` is told how many of all frames were looked at."""
    cuts: tuple[int, ...] = ()
    if clip.frames > 1 and not (clip.kind == "pictures" and clip.frames < 3):
        cuts = scene_cuts(_small_frames(clip, tick))
    return cut_film(clip.frames, cuts, length, context, _STEP, -(-context // 2))


def _small_frames(clip: Timeline, tick: Callable[[int, int], None]) -> Iterator[np.ndarray]:
    less = max(1, min(clip.height, clip.width) // _SMALL)
    for number, frame in enumerate(Forward(clip, Wish()).span(0, clip.frames)):
        tick(number + 1, clip.frames)
        yield np.array(Image.fromarray(frame).reduce(less))


def key(clip: Timeline, settings: dict) -> dict:
    """Return everything that decides a result, for the journal: its source, `settings`, this pack and the encoders."""
    source = {"IN": identity(clip.path), "frames": [clip.first, clip.first + clip.frames]}
    versions = ".".join(map(str, av.library_versions["libavcodec"]))
    return {**source, **settings, "the pack": _pack_state(), "PyAV": f"{av.__version__}, libavcodec {versions}"}


def state(file: Path) -> dict:
    """Identify a file, or a folder of files, whatever the time of its last change: JSON data."""
    if file.is_dir():
        return {each.name: state(each) for each in sorted(file.iterdir()) if each.is_file()}
    return {what: value for what, value in identity(file).items() if what != "changed"}


def _pack_state() -> str:
    """Identify this version of the pack: its code and its own weights."""
    digest = hashlib.sha256()
    for folder in ("models", "nodes", "media"):
        for file in sorted((_PACK / folder).rglob("*")):
            if file.suffix in (".py", ".safetensors", ".json"):
                digest.update(file.relative_to(_PACK).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def render(journal: Journal, missing: list[int], out: Path, clip: Timeline, how: Plan, made: Made) -> None:
    """Render the segments `missing`, in rising order, and write them into the journal.

    `made(segment, frames)` takes the frames `segment.first` to `segment.end` of the source, (h, w, 3 or 4), and
    returns those of the result that belong to the segment itself, without its context.
    """
    source = Forward(clip, how.wish)
    for place, index in enumerate(missing):
        segment = journal.segments[index]
        following = journal.segments[missing[place + 1]].first if place + 1 < len(missing) else clip.frames
        frames = made(segment, source.span(segment.first, segment.end, following))
        with journal.writing(index, times_of(segment, clip)) as file:
            store(file, frames, out, clip, how, segment)


def times_of(segment: Segment, clip: Timeline) -> tuple[int, int]:
    """Return pts of the first and of the last frame of a segment."""
    return int(clip.pts[segment.start]), int(clip.pts[segment.stop - 1])


def store(file: Path, frames: Iterable[np.ndarray], out: Path, clip: Timeline, how: Plan, segment: Segment) -> None:
    """Write the frames of a segment, with the transparency of the source, to a file of its own."""
    if how.wish.alpha:
        frames = with_transparency(iter(frames), clip.part(segment.start, segment.stop), how.wish)
    write_segment(file, frames, out, how, clip, segment)


def finish(
    journal: Journal,
    out: Path,
    clip: Timeline,
    how: Plan,
    keep: str = "all",
    notes: dict[str, str] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Make OUT of the finished segments and remove them; `keep`, `notes` and `tick` as of `join`.

    Raises MediaError where the source has changed, or segments are missing.
    """
    if identity(clip.path) != journal.key["IN"]:
        raise MediaError(
            f"IN: {clip.path} has changed since its segments were made. Bring the old one back, or make the film anew."
        )
    journal.require_all()
    join(out, [journal.file(index) for index in range(len(journal.segments))], how, clip, keep, notes, tick)
    journal.finish(out)
