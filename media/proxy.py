"""A small film of two clips, the one beside the other in every frame, which a browser plays and steps through in sync.

1. `pair` decides which frame of either clip belongs to each frame of the small film, and when it is shown
2. `Sheet.of` says where the two lie in a frame, each no larger than it is and than was asked for
3. `write_pairs` encodes: H.264 with a key frame in every twelve and none that refers to a later one, so that a browser
   lands on any of them soon and exactly; with key frames only the film is up to three times as large, and a page holds
   most of it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .errors import MediaError
from .files import locator, replacing
from .timeline import Timeline
from .writer import writing

_BLOCK = 16  # px: macroblocks of H.264, so that no block holds parts of both clips
_BASE = Fraction(1, 90000)  # s: what MP4 counts in
_EVEN = 0.0011  # s: Matroska notes times in ms, so two clips of one rate meet no closer
_CRF = 14  # of H.264: differences of the encoder stay below those of two clips
_GROUP = 12  # frames from key frame to key frame: what a step back decodes at most


@dataclass(frozen=True)
class Pairs:
    """Which frames are shown together: `before` and `after` int64 (frames,), `times` and `last` in s as of Timeline."""

    before: np.ndarray
    after: np.ndarray
    times: np.ndarray
    last: float

    def part(self, start: int, count: int) -> Pairs:
        """Return `count` pairs from `start` on, or those that there are; their times begin at 0 again.

        Raises MediaError where none is left.
        """
        total, stop = len(self.times), min(start + count, len(self.times))
        if not 0 <= start < stop:
            raise MediaError(
                f"--start: must leave a frame of the {total} that are compared; got {start}. Begin earlier."
            )
        last = self.last if stop == total else float(self.times[stop] - self.times[stop - 1])
        chosen = slice(start, stop)
        return Pairs(self.before[chosen], self.after[chosen], self.times[chosen] - self.times[start], last)


def pair(before: Timeline, after: Timeline) -> Pairs:
    """Pair the frames of two clips: by number where both have as many, else by time, as long as the shorter one lasts.

    By time, every frame of the faster clip is shown, with the frame that the slower one shows then. A clip of one frame
    is a picture, and stays.
    """
    counts = before.frames, after.frames
    if counts[0] == counts[1] or 1 in counts:
        clock = before if counts[0] > counts[1] else after
        steps = np.arange(clock.frames)
        return Pairs(np.minimum(steps, counts[0] - 1), np.minimum(steps, counts[1] - 1), clock.times, clock.last)
    fast = before if before.duration / counts[0] < after.duration / counts[1] - _EVEN / max(counts) else after
    times = fast.times[fast.times < min(before.duration, after.duration) - _EVEN]
    found = [np.maximum(np.searchsorted(clip.times, times + _EVEN, "right") - 1, 0) for clip in (before, after)]
    last = fast.last if len(times) == fast.frames else float(fast.times[len(times)] - times[-1])
    return Pairs(*found, times, last)


@dataclass(frozen=True)
class Sheet:
    """Where the two clips lie in a frame: boxes (x, y, width, height) in px, even, and the frame's own size."""

    before: tuple[int, int, int, int]
    after: tuple[int, int, int, int]
    width: int
    height: int

    @staticmethod
    def of(before: Timeline, after: Timeline, longest: int) -> Sheet:
        """Lay out two clips whose longer side becomes `longest` px at most: wide ones stacked, else abreast."""
        (w1, h1), (w2, h2) = sizes = [_small(clip, longest) for clip in (before, after)]
        wide = w2 >= h2
        x, y = (0, _up(h1)) if wide else (_up(w1), 0)
        width, height = (max(x + w2, w1), max(y + h2, h1))
        return Sheet((0, 0, *sizes[0]), (x, y, *sizes[1]), _up(width), _up(height))

    def fill(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Put two frames (h, w, 3) uint8 of any size into their boxes; their edges go on between the boxes."""
        sheet = np.zeros((self.height, self.width, 3), np.uint8)
        for frame, (x, y, width, height) in ((before, self.before), (after, self.after)):
            picture = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
            rows, columns = min(_up(height), self.height - y), min(_up(width), self.width - x)
            padding = ((0, rows - height), (0, columns - width), (0, 0))
            sheet[y : y + rows, x : x + columns] = np.pad(np.asarray(picture), padding, "edge")
        return sheet


def _up(side: int) -> int:
    return -(-side // _BLOCK) * _BLOCK


def shown_size(clip: Timeline) -> tuple[int, int]:
    """Return width and height of a clip in square pixels."""
    return max(1, round(clip.width * clip.sar)), clip.height


def _small(clip: Timeline, longest: int) -> tuple[int, int]:
    width, height = shown_size(clip)
    scale = min(1.0, longest / max(width, height))
    return tuple(max(2, round(side * scale / 2) * 2) for side in (width, height))


def write_pairs(out: Path, sheets: Iterable[np.ndarray], pairs: Pairs, most: int) -> Iterator[int]:
    """Write frames (h, w, 3) uint8 at the times of their pairs to an MP4 of about `most` bytes at most.

    Yields the number of frames that are written; `out` appears after the last one.
    """
    count, rate = len(pairs.times), Fraction(len(pairs.times) / (float(pairs.times[-1]) + pairs.last))
    ends = np.rint(np.append(pairs.times, pairs.times[-1] + pairs.last) / float(_BASE)).astype(np.int64)
    bits = max(1, min(2**30, int(8 * most / count * rate)))  # a second; what its fields hold
    options = {"crf": str(_CRF), "preset": "veryfast", "g": str(_GROUP), "bf": "0"}
    options |= {"maxrate": str(bits), "bufsize": str(bits)}
    with writing(out), replacing(out) as temporary:
        with av.open(locator(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = None
            for number, sheet in enumerate(sheets):
                if stream is None:
                    stream = container.add_stream("libx264", rate=rate.limit_denominator(60000), options=options)
                    stream.height, stream.width, stream.pix_fmt = *sheet.shape[:2], "yuv420p"
                    stream.time_base = stream.codec_context.time_base = _BASE
                    context = stream.codec_context
                    context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1
                picture = av.VideoFrame.from_ndarray(sheet, format="rgb24")
                picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
                picture.pts, picture.time_base = int(ends[number]), _BASE
                for packet in stream.encode(picture):
                    packet.duration = int(ends[number + 1] - ends[number])
                    container.mux(packet)
                yield number + 1
            for packet in stream.encode():
                container.mux(packet)
