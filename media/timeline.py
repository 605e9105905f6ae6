"""What a source is: the time of every frame, shape, colour, depth. Read once, by decoding a film to its end.

1. `opened` opens the container; `video_stream` picks the picture stream
2. `decoded` yields its frames in the order they are shown, and goes on after a damaged one
3. `probe_film` notes the time of every frame, then checks: is it all there, is it all of one size
4. the result is a `Timeline`, which readers and writers share

A time that is missing in the middle (a null frame of an AVI, a damaged frame, a gap) needs no picture: the frame
before is simply shown longer.
"""

from __future__ import annotations

import contextlib
import os
import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from .clock import Joined
from .colour import UNSPECIFIED, Colour, resolved
from .errors import MediaError
from .files import locator

DEFAULT_RATE = Fraction(25)
_TICK = 0.0011  # s: Matroska notes times in ms, so a constant rate is met no closer
_MOST_DAMAGED = 0.5  # of the frames
_COVER = 0x400  # the disposition of a picture that is none of the film's
_CHANGING_HDR = {
    "DYNAMIC_HDR_PLUS": "HDR10+",
    "DOVI_RPU_BUFFER": "Dolby Vision",
    "DOVI_METADATA": "Dolby Vision",
    "DYNAMIC_HDR_VIVID": "HDR Vivid",
}


@dataclass(frozen=True)
class Timeline:
    """A source, as it is to be shown.

    `height`, `width`: px, upright. `pts`: int64 (frames,), times in units of `time_base` seconds, the first is 0.
    `last`: seconds that the last frame is shown. `start`: seconds of the first frame on the file's own clock, which its
    sound shares. `rate`: frames per second, the mean where `constant` is false. `sar`: width over height of a pixel,
    upright. `turn`: quarter-turns anticlockwise that make a stored frame upright, after `mirrored` has swapped its left
    and right. `depth`: bits a channel. `plays`: how often an animation is shown (0: endlessly).
    `light`: what an HDR film says of its mastering display and brightest frames, as options of x265.
    `interlaced`: frames that say they are two fields. `damaged`: (number from 0, seconds) of frames that were lost.
    `jumps`: seconds that are added to the file's clock from the first, second ... time on that it jumps.
    `remarks`: what else a user should know, one line each.
    `whole`: of a part, the timeline of the whole source, and `first` its first frame there.
    """

    path: Path
    kind: str  # "film", "animation", "pictures", "picture"
    height: int
    width: int
    pts: np.ndarray = field(compare=False)
    time_base: Fraction
    rate: Fraction
    constant: bool = True
    last: float = 0.04
    start: float = 0.0
    sar: Fraction = Fraction(1)
    turn: int = 0
    colour: Colour = Colour()
    depth: int = 8
    alpha: bool = False
    interlaced: bool = False
    damaged: tuple[tuple[int, float], ...] = ()
    light: tuple[str, ...] = ()
    mirrored: bool = False
    plays: int = 0
    jumps: tuple[float, ...] = ()
    remarks: tuple[str, ...] = ()
    whole: Timeline | None = None
    first: int = 0

    @property
    def frames(self) -> int:
        """Return the number of frames."""
        return len(self.pts)

    @property
    def times(self) -> np.ndarray:
        """Return the seconds of every frame from the first, float64 (frames,)."""
        return self.pts * float(self.time_base)

    @property
    def duration(self) -> float:
        """Return seconds from the first frame to the end of the last."""
        return float(self.times[-1]) + self.last

    def part(self, start: int, stop: int) -> Timeline:
        """Return frames `start` to `stop` (not included) as a source of its own; its times begin at 0 again.

        Raises MediaError where no frame is left.
        """
        stop = min(stop, self.frames)
        if not 0 <= start < stop:
            found = f"{start} to {stop} of {self.frames}"
            raise MediaError(f"IN: a part must hold at least one frame; got frames {found}. Begin earlier.")
        if (start, stop) == (0, self.frames):
            return self
        pts = self.pts[start:stop] - self.pts[start]
        after = self.pts[stop] - self.pts[stop - 1] if stop < self.frames else None
        return replace(
            self,
            pts=pts,
            last=self.last if after is None else float(after * self.time_base),
            start=self.start + float(self.times[start]),
            damaged=(),
            whole=self.whole or self,
            first=self.first + start,
        )

    def notes(self) -> list[str]:
        """Return what a user should know before the work, one line each."""
        lines = []
        if self.damaged:
            total = self.frames + len(self.damaged)
            found = ", ".join(f"frame {number + 1}, at {time:.2f} s" for number, time in self.damaged[:3])
            more = " ..." if len(self.damaged) > 3 else ""
            lines.append(
                f"{len(self.damaged)} of {total} frames could not be decoded ({found}{more}); "
                "the frame before is shown longer"
            )
        if not self.constant:
            lines.append(f"variable frame rate, {float(self.rate):.4g} fps on average; every frame keeps its time")
        return [*lines, *self.remarks]

    def upright(self, frame: np.ndarray) -> np.ndarray:
        """Return a stored frame (h, w, c) as it is to be shown."""
        return np.rot90(frame[:, ::-1] if self.mirrored else frame, self.turn)


@contextlib.contextmanager
def opened(source: Path) -> Iterator[av.container.InputContainer]:
    """Open a film; raise MediaError where it is none."""
    try:
        container = av.open(locator(source), metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(
            f"IN: {source} cannot be read as a video ({reason}); it is damaged, truncated, or no video."
        ) from error
    with container:
        yield container


def disposition(stream) -> int:
    """Return what a stream is for, as FFmpeg's flags; older versions of PyAV give no number."""
    flags = getattr(stream, "disposition", 0)
    return int(getattr(flags, "value", flags))


def is_cover(stream) -> bool:
    """Return whether a stream is a picture on the cover of a film or of music."""
    return bool(disposition(stream) & _COVER)


def video_stream(container, source: Path):
    """Return the first stream of moving pictures (cover pictures of music do not count)."""
    streams = [s for s in container.streams.video if not is_cover(s)]
    if not streams:
        raise MediaError(f"IN: must have a video stream; {source} has none (sound only?).")
    if streams[0].codec_context is None:
        raise MediaError(
            f"IN: {source} holds pictures of a kind that is not known here. Convert it, to H.264 for example."
        )
    streams[0].thread_type = "AUTO"
    return streams[0]


def has_hidden_alpha(stream) -> bool:
    """Return whether a WebM carries transparency beside its frames, which only libvpx decodes."""
    stated = {name.lower(): value for name, value in stream.metadata.items()}  # Matroska writes it in capitals
    return stream.codec_context.name in ("vp8", "vp9") and stated.get("alpha_mode") == "1"


def decoded(container, stream, look: Callable = lambda packet: None, failed: Callable = lambda: None) -> Iterator:
    """Yield the frames of a stream as they are shown; `look` sees every packet, `failed` counts the undecodable."""
    decode = stream.codec_context.decode
    if has_hidden_alpha(stream):
        name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}[stream.codec_context.name]
        context = av.CodecContext.create(name, "r")
        decode = context.decode
    for packet in container.demux(stream):
        look(packet)
        try:
            yield from decode(packet if packet.size else None)
        except (av.error.InvalidDataError, av.error.PatchWelcomeError):
            failed()


class _Times:
    """Collects the times of packets and frames of one stream, in its own time base."""

    def __init__(self, interval: int, joined: Joined) -> None:
        self.interval, self.joined = max(1, interval), joined
        self.frames, self.packets = array("q"), array("q")
        self.last_packet, self.last_duration, self.errors = None, 0, 0

    def packet(self, packet) -> None:
        self.joined.put(packet)
        if packet.size and packet.pts is not None and not packet.is_discard:
            self.packets.append(packet.pts)
            if self.last_packet is None or packet.pts >= self.last_packet:
                self.last_packet, self.last_duration = packet.pts, packet.duration or 0

    def frame(self, frame) -> None:
        pts = frame.pts if frame.pts is not None else frame.dts
        before = self.frames[-1] if self.frames else None
        if pts is None or (before is not None and pts <= before):
            pts = 0 if before is None else before + (1 if pts is not None else self.interval)
        self.frames.append(pts)

    def failed(self) -> None:
        self.errors += 1

    def lost(self) -> list[int]:
        """Return times of packets without a frame near them: those that could not be decoded."""
        if not self.errors or not self.frames:
            return []
        known, packets = np.asarray(self.frames), np.unique(np.asarray(self.packets, np.int64))
        after = np.minimum(np.searchsorted(known, packets), len(known) - 1)
        before = np.maximum(after - 1, 0)
        distance = np.minimum(np.abs(packets - known[before]), np.abs(packets - known[after]))
        return [int(pts) for pts in packets[distance > 0.7 * self.interval]]


def probe_film(source: Path, tick: Callable[[int], None] = lambda count: None) -> Timeline:
    """Decode a film to its end and describe it, so that defects are errors now and not in the middle of a run."""
    with opened(source) as container:
        stream = video_stream(container, source)
        stated = [r for r in (stream.average_rate, stream.guessed_rate, stream.base_rate) if r]
        base = stream.time_base
        times = _Times(round(1 / (stated[0] if stated else DEFAULT_RATE) / base), Joined(container))
        first, size, interlaced = None, None, 0
        try:
            for frame in decoded(container, stream, times.packet, times.failed):
                first = first or _Facts.of(frame, stream)
                size = size or (frame.width, frame.height)
                if size != (frame.width, frame.height):
                    raise MediaError(_another_size(source, size, frame, len(times.frames)))
                interlaced += bool(frame.interlaced_frame)
                times.frame(frame)
                tick(len(times.frames))
        except av.FFmpegError as error:
            raise MediaError(_broken(source, len(times.frames), error.strerror)) from error
        if first is None:
            raise MediaError(
                f"IN: must have at least one frame; {source} has none that can be decoded. It is empty, damaged or "
                "truncated."
            )
        promised = _promised_seconds(container, stream, source)
        sar = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    pts = np.asarray(times.frames, np.int64)
    interval = float(times.interval * base)
    last = times.last_duration if times.last_packet == pts[-1] and times.last_duration else times.interval
    end = float((pts[-1] + last) * base)
    if promised and max(end, float((times.last_packet or 0) * base)) + 2.5 * interval < promised:
        raise MediaError(_broken(source, len(pts), "the file ends early"))
    lost = times.lost()
    if len(lost) > _MOST_DAMAGED * (len(lost) + len(pts)):
        raise MediaError(_broken(source, len(pts), f"{len(lost)} frames cannot be decoded"))
    jumps = tuple(times.joined.jumps)
    remarks = ["its clock jumps (joined recordings?): the parts follow each other at once"] if jumps else []
    if first.changing_hdr:
        remarks.append(f"what {first.changing_hdr} says of single scenes is not kept")
    seconds, length = (pts - pts[0]) * float(base), float((pts[-1] - pts[0] + last) * base)
    rate, constant = _rate(seconds, length, stated)
    height, width = size[::-1] if first.turn % 2 == 0 else size
    sar = Fraction(sar) if sar and sar > 0 else Fraction(1)
    return Timeline(
        source,
        "film",
        height,
        width,
        pts - pts[0],
        base,
        rate,
        constant,
        last=float(last * base),
        start=float(pts[0] * base),
        sar=sar if first.turn % 2 == 0 else 1 / sar,
        turn=first.turn,
        colour=resolved(first.colour, size[1], size[0]),
        depth=first.depth,
        alpha=first.alpha,
        interlaced=interlaced > len(pts) // 2,
        light=first.light,
        mirrored=first.mirrored,
        jumps=jumps,
        remarks=tuple(remarks),
        damaged=tuple((int(np.searchsorted(pts, p)) + i, float((p - pts[0]) * base)) for i, p in enumerate(lost)),
    )


@dataclass(frozen=True)
class _Facts:
    """What the first frame says."""

    turn: int
    colour: Colour
    depth: int
    alpha: bool
    light: tuple[str, ...]
    mirrored: bool
    changing_hdr: str

    @staticmethod
    def of(frame, stream) -> _Facts:
        context, name = stream.codec_context, frame.format.name

        def tag(attribute: str) -> int:
            values = (int(getattr(frame, attribute, 0) or 0), int(getattr(context, attribute, 0) or 0))
            return next((value for value in values if value not in (0, UNSPECIFIED)), UNSPECIFIED)

        ranges = {int(getattr(thing, "color_range", 0) or 0) for thing in (frame, context)}
        full = name.startswith("yuvj") or frame.format.is_rgb or 2 in ranges  # 0 is not stated, 1 is limited
        colour = Colour(tag("color_primaries"), tag("color_trc"), tag("colorspace"), full)
        components = frame.format.components
        depth = 8 if name == "pal8" else min(16, max(c.bits for c in components))
        alpha = name == "pal8" or any(c.is_alpha for c in components)
        found = {data.type.name: data for data in frame.side_data}
        turn, mirrored = _orientation(found.get("DISPLAYMATRIX"))
        changing = " and ".join(dict.fromkeys(_CHANGING_HDR[name] for name in found if name in _CHANGING_HDR))
        return _Facts(turn, colour, depth, alpha, tuple(_light(frame)), mirrored, changing)


def _orientation(matrix) -> tuple[int, bool]:
    """Return quarter-turns anticlockwise, and whether left and right are swapped before, of a display matrix."""
    if matrix is None:
        return 0, False
    # a point (x, y) is shown at (ax + cy, bx + dy), y downwards
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    mirrored = a * d - b * c < 0
    angle = np.arctan2(-b, a) if not mirrored else np.arctan2(b, -a)
    return round(float(angle) / (np.pi / 2)) % 4, mirrored


def _light(frame) -> Iterator[str]:
    """Yield the mastering display (primaries in 1/50000, light in 1/10000 nits) and light level (nits) of a frame."""
    for data in frame.side_data:
        if data.type.name == "CONTENT_LIGHT_LEVEL":
            yield "max-cll={},{}".format(*struct.unpack_from("=2I", bytes(data)))
        elif data.type.name == "MASTERING_DISPLAY_METADATA":
            numbers = struct.unpack_from("=22i", bytes(data))  # 10 fractions, then whether colours and light are known
            x = [n / d if d else 0 for n, d in zip(numbers[0:20:2], numbers[1:20:2], strict=True)]
            if numbers[20] and numbers[21]:
                red, green, blue, white = (
                    "({:.0f},{:.0f})".format(*(50000 * v for v in x[i : i + 2])) for i in (0, 2, 4, 6)
                )
                low, high = (round(10000 * value) for value in x[8:])
                yield f"master-display=G{green}B{blue}R{red}WP{white}L({high},{low})"


def _rate(seconds: np.ndarray, length: float, stated: list[Fraction]) -> tuple[Fraction, bool]:
    """Return the frame rate and whether every frame keeps to it."""
    steps = np.arange(len(seconds))
    for rate in stated:
        if np.abs(seconds - steps / float(rate)).max() <= _TICK:
            return Fraction(rate), True
    return Fraction(len(seconds) / length).limit_denominator(1001) if length > 0 else DEFAULT_RATE, False


def _promised_seconds(container, stream, source: Path) -> float:
    """Return where the header says that the pictures end, in seconds on the file's clock, or 0 where it does not."""
    if container.format.name == "avi":  # null frames at the end are healthy, and invisible: only the size tells
        with open(source, "rb") as file:
            stated = int.from_bytes(file.read(8)[4:], "little") + 8
        return float("inf") if stated > 8 and os.path.getsize(source) < stated - 1024 else 0.0
    if stream.duration and stream.time_base and container.format.name.startswith("mov"):
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    if text := stream.metadata.get("DURATION"):
        with contextlib.suppress(ValueError):
            hours, minutes, seconds = text.split(":")
            return 3600 * float(hours) + 60 * float(minutes) + float(seconds)
    alone = len(container.streams) == 1 and container.format.name.startswith("matroska")
    return container.duration / av.time_base if alone and container.duration else 0.0


def _broken(source: Path, count: int, why: str) -> str:
    return (
        f"IN: {source} is damaged or truncated after {count} frames ({why}). "
        f"Copy it again, or keep what is there: ffmpeg -i IN -frames:v {max(1, count)} OUT."
    )


def _another_size(source: Path, size: tuple[int, int], frame, index: int) -> str:
    return (
        f"IN: all frames must have one size; {source} has {size[0]}x{size[1]}, then {frame.width}x{frame.height} from "
        f"frame {index + 1}. Bring them to one first: ffmpeg -i IN -vf scale={size[0]}:{size[1]},setsar=1 OUT."
    )
