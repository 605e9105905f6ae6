"""The frames of any source: upright RGB or RGBA, one at a time.

1. `probe` says what a source is (timeline.py for films, pictures.py for pictures)
2. `frames` yields it. A film goes through one filter graph: deinterlacing where asked, padding to multiples of 32 (at
   other widths libswscale's result is not the same on every run), YUV to RGB by the film's own matrix and range
   (more than 8 bits: by hand, in colour.py)
3. every frame is turned upright, tone-mapped where asked, and given the depth and channels that were asked for
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .colour import FILTER_NAMES, flattened, from_planes, to_depth, tone_mapped
from .errors import MediaError
from .files import is_picture
from .pictures import picture_frames, probe_pictures
from .timeline import Timeline, decoded, opened, probe_film, video_stream

_SKIPPED = 250  # frames that are decoded and left out rather than looked for anew


@dataclass(frozen=True)
class Wish:
    """How frames shall come.

    `depth`: 8 (uint8) or 16 (uint16, 65535 is full scale). `alpha`: RGBA; without, transparent frames are laid on
    black. `tonemap`: HDR becomes BT.709 with white at 203 nits. `deinterlace`: one whole frame of every two fields.
    `size`: height and width in px, upright, for previews (8 bits): films are scaled before they become RGB, which is
    many times faster and not exact.
    """

    depth: int = 8
    alpha: bool = False
    tonemap: bool = False
    deinterlace: bool = False
    size: tuple[int, int] | None = None


def probe(source: Path, rate: Fraction | None = None, tick: Callable[[int], None] = lambda count: None) -> Timeline:
    """Read a source to its end and describe it; `rate` (frames per second) is for folders of pictures.

    `tick` is told the number of frames of a film, one after the other, and may raise to end it.

    Raises MediaError where it is missing, no film or picture, empty, cut short, or changes its size.
    """
    if not source.exists():
        raise MediaError(f"IN: must be a video, an image or a folder of images; {source} does not exist.")
    if not (source.is_file() or source.is_dir()):
        raise MediaError(f"IN: must be a file or a folder; {source} is a device or a pipe. Save it to a file first.")
    timeline = probe_pictures(source, rate) if source.is_dir() or is_picture(source) else probe_film(source, tick)
    if rate is not None and timeline.kind != "pictures":
        raise MediaError(f"--rate: is for a folder of pictures; {source} has its own times. Leave --rate away.")
    return timeline


def frames(timeline: Timeline, wish: Wish | None = None, start: int = 0, stop: int | None = None) -> Iterator:
    """Yield frames `start` to `stop` (not included), (h, w, 3 or 4), exactly those of a run over everything."""
    wish, stop = wish or Wish(), min(timeline.frames, timeline.frames if stop is None else stop)
    if timeline.whole is not None:
        yield from frames(timeline.whole, wish, timeline.first + start, timeline.first + stop)
        return
    if timeline.kind == "film":
        found = _film_frames(timeline, wish, start, stop)
    else:
        found = picture_frames(timeline, start, stop)
    count = 0
    for frame in found:
        yield _finished(frame, timeline, wish)
        count += 1
    if count != stop - start:
        raise MediaError(
            f"IN: {timeline.path} gave {count} frames where it had {stop - start} before. It is being changed, or its "
            "disk fails: copy it, and try again."
        )


class Forward:
    """The frames of a source for spans that go forward, each decoded once, also where spans overlap."""

    def __init__(self, timeline: Timeline, wish: Wish) -> None:
        self.timeline, self.wish = timeline, wish
        self.decoded, self.position, self.kept = iter(()), timeline.frames, {}

    def span(self, start: int, stop: int, again: int | None = None) -> Iterator[np.ndarray]:
        """Yield frames `start` to `stop` (not included); those from `again` on are kept for the next span."""
        self.kept = {number: frame for number, frame in self.kept.items() if number >= start}
        if start not in self.kept and not self.position <= start <= self.position + _SKIPPED:
            self.decoded, self.position, self.kept = frames(self.timeline, self.wish, start), start, {}
        for number in range(start, stop):
            frame = self.kept.pop(number, None)
            while frame is None:
                found = next(self.decoded)
                self.position += 1
                frame = found if self.position > number else None
            if again is not None and number >= again:
                self.kept[number] = frame
            yield frame


def with_transparency(upscaled: Iterable[np.ndarray], source: Timeline, wish: Wish) -> Iterator[np.ndarray]:
    """Yield RGBA frames: the network's RGB with the source's transparency, enlarged by a bicubic kernel."""
    for frame, original in zip(upscaled, frames(source, replace(wish, alpha=True)), strict=True):
        height, width = frame.shape[:2]
        small = Image.fromarray(original[..., 3].astype(np.float32))
        large = np.rint(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)))
        alpha = np.clip(large, 0, np.iinfo(frame.dtype).max).astype(frame.dtype)
        yield np.dstack([frame, alpha])


def read_frames(source: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a source as (h, w, 3) uint8."""
    return frames(probe(source))


def _finished(frame: np.ndarray, timeline: Timeline, wish: Wish) -> np.ndarray:
    if wish.tonemap and timeline.colour.hdr:
        frame = tone_mapped(frame, timeline.colour.transfer)
    frame = to_depth(frame, wish.depth)
    if wish.size and frame.shape[:2] != wish.size:
        frame = np.asarray(Image.fromarray(frame).resize(wish.size[::-1], Image.Resampling.BICUBIC))
    if not wish.alpha:
        frame = flattened(frame)
    elif frame.shape[-1] == 3:
        frame = np.concatenate([frame, np.full_like(frame[..., :1], np.iinfo(frame.dtype).max)], -1)
    return np.ascontiguousarray(frame)


def _film_frames(timeline: Timeline, wish: Wish, start: int, stop: int) -> Iterator[np.ndarray]:
    """Decode from the key frame before `start`; where that does not land exactly, from the beginning."""
    if start >= stop:
        return
    with opened(timeline.path) as container:
        stream = video_stream(container, timeline.path)
        first = 0
        if start and not timeline.damaged and not wish.deinterlace and not timeline.jumps:
            first = _seek(container, stream, timeline, start)
    with opened(timeline.path) as container:
        stream = video_stream(container, timeline.path)
        if first:
            container.seek(_absolute(timeline, first), stream=stream)
        graph, waiting, index = _Graph(timeline, wish), deque(), first
        for frame in decoded(container, stream):
            waiting.append(index)
            index += 1
            for array in graph.put(frame):
                if (number := waiting.popleft()) >= start:
                    yield timeline.upright(array)
                    if number + 1 == stop:
                        return
        for array in graph.end():
            if waiting and waiting.popleft() >= start:
                yield timeline.upright(array)


def _absolute(timeline: Timeline, index: int) -> int:
    return int(timeline.pts[index]) + round(Fraction(timeline.start) / timeline.time_base)


def _seek(container, stream, timeline: Timeline, start: int) -> int:
    """Return the index of the key frame that a seek to `start` gives, or 0 where it cannot be relied on."""
    wanted = _absolute(timeline, max(0, start - 1))
    try:
        container.seek(wanted, stream=stream)
        frame = next(decoded(container, stream), None)
    except av.FFmpegError:
        return 0
    if frame is None or frame.pts is None or not frame.key_frame or frame.pts > wanted:
        return 0
    index = int(np.searchsorted(timeline.pts, frame.pts - _absolute(timeline, 0)))
    return index if _absolute(timeline, index) == frame.pts else 0


class _Graph:
    """Converts decoded frames to RGB or RGBA arrays in the order they came; deinterlacing holds one frame back."""

    def __init__(self, timeline: Timeline, wish: Wish) -> None:
        self.timeline, self.wish, self.ends, self.shape = timeline, wish, None, None
        self.deep = deep = timeline.depth > 8 and (wish.depth > 8 or wish.tonemap)
        self.layout = {(0, 0): "rgb24", (0, 1): "rgba", (1, 0): "rgb48le", (1, 1): "rgba64le"}[
            int(deep), int(timeline.alpha)
        ]

    def put(self, frame: av.VideoFrame) -> Iterator[np.ndarray]:
        """Convert one frame; yield what is ready."""
        plain = not self.wish.deinterlace and self.wish.size is None
        if plain and frame.format.name in ("rgb24", "gbrp", "rgba", "pal8", "bgr24"):
            yield frame.to_ndarray(format=self.layout)  # exact as it is
            return
        shape = frame.width, frame.height, frame.format.name
        if self.ends is None or shape != self.shape:
            self.shape, self.ends = shape, self._build(frame)
        self.ends[0].push(frame)
        yield from self._ready()

    def end(self) -> Iterator[np.ndarray]:
        """Yield what was held back."""
        if self.ends is not None:
            self.ends[0].push(None)
            yield from self._ready()

    def _ready(self) -> Iterator[np.ndarray]:
        while True:
            try:
                picture = self.ends[1].pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            height, width = (picture.height, picture.width) if self.wish.size else self.shape[1::-1]
            yield self._array(picture)[:height, :width]

    def _array(self, picture: av.VideoFrame) -> np.ndarray:
        if not picture.format.name.startswith("yuv"):
            return picture.to_ndarray()
        lines = [np.frombuffer(plane, np.uint16).reshape(plane.height, -1) for plane in picture.planes]
        return from_planes([plane[:, : picture.width] for plane in lines], self.timeline.colour)

    def _build(self, frame: av.VideoFrame) -> tuple:
        graph = av.filter.Graph()
        width, height = -(-frame.width // 32) * 32, -(-frame.height // 32) * 32
        chain = [("bwdif", "mode=send_frame:parity=auto:deint=all")] if self.wish.deinterlace else []
        if self.wish.size is None and (width, height) != (frame.width, frame.height):
            smear = f"right={width - frame.width}:bottom={height - frame.height}:mode=smear"
            chain += [("pad", f"{width}:{height}:0:0"), ("fillborders", smear)]
        flags = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
        if self.wish.size:
            height, width = self.wish.size[:: -1 if self.timeline.turn % 2 else 1]
            flags = f"{width}:{height}:flags=bicubic+accurate_rnd+full_chroma_int"  # without, it darkens by a level
        if not frame.format.is_rgb:
            colour = self.timeline.colour
            side = "full" if colour.full else "limited"
            out = side if self.deep else "full"
            flags += f":in_color_matrix={FILTER_NAMES[colour.matrix]}:in_range={side}:out_range={out}"
        layout = self.layout
        if self.deep and not frame.format.is_rgb:
            layout = "yuva444p16le" if self.timeline.alpha else "yuv444p16le"
            flags += f":out_color_matrix={FILTER_NAMES[colour.matrix]}"
        chain += [("scale", flags), ("format", layout), ("buffersink", None)]
        ends = [
            graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format.name,
                time_base=self.timeline.time_base,
            )
        ]
        for name, options in chain:
            ends.append(graph.add(name, options) if options else graph.add(name))
            ends[-2].link_to(ends[-1])
        graph.configure()
        return ends[0], ends[-1], graph
