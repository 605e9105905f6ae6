"""Write films, animated pictures, single pictures and folders of PNGs; nothing is ever left half-written.

1. `write` takes frames and what the plan says, and writes to a temporary file beside OUT
2. every frame becomes an encoder's picture (colour.py does YUV) with the time of its source
3. tracks of the source are put between them in the order of time
4. the temporary file gets OUT's name
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from .colour import SDR, Colour, flattened, planes, to_depth
from .errors import MediaError
from .files import locator, replacing
from .plan import Encoding, Plan, encoding
from .sound import Samples
from .timeline import Timeline
from .tracks import Tracks

_NO_TIME_OF_DAY = {"fflags": "+bitexact"}  # same frames, same bytes
_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".webp": "webp"}
_FORMATS |= {".png": "apng", ".apng": "apng"}
os.environ.setdefault("SVT_LOG", "1")  # errors only: SVT-AV1 tells the terminal all its settings otherwise
_PACKED = {"rgb24": 3, "rgba": 4, "bgra": 4, "bgr0": 4, "rgb48be": 3, "rgba64be": 4}


def write(
    out: Path,
    frames: Iterable[np.ndarray],
    how: Plan,
    source: Timeline,
    keep: str = "all",
    even: bool = False,
    sound: Samples | None = None,
    notes: dict[str, str] | None = None,
) -> int:
    """Write OUT from frames of `source` in its own times and return their count.

    Frames are (h, w, 3 or 4) uint8 or uint16. `even`: their number is another than the source's, so that they get its
    mean rate, and its tracks stay out. `sound` takes the place of the source's tracks. `notes`: named texts that the
    file carries with it (films, PNG), such as the graph that it came from.
    Raises MediaError for no frames, several sizes, or what the encoder or the disk refuses.
    """
    if how.kind == "folder":
        return write_pngs(out, frames, how.encoding, notes)
    if how.kind == "picture":
        return _write_picture(out, frames, how.encoding, notes)
    film = how.kind == "film"
    with contextlib.ExitStack() as stack:
        tracks = sound if film else None
        if film and source.kind == "film" and keep != "none" and not even and sound is None:
            tracks = stack.enter_context(Tracks(source, out.suffix.lower(), keep))
        clock = _Clock(source.rate.limit_denominator(60000)) if even else _Clock.of(source)
        return _write_stream(out, frames, how.encoding, clock, how.colour, source, tracks, notes if film else None)


def write_video(
    out: Path,
    frames: Iterable[np.ndarray],
    rate: Fraction,
    *,
    codec: str = "h264",
    crf: float = 12.0,
    tracks: Tracks | None = None,
) -> int:
    """Write a video of constant rate and return the frame count; `out` appears complete or not at all.

    "h264" is yuv420p in BT.709 (yuv444p for odd sides, unfit for 4:2:0); "h264-rgb" and "png" keep every bit, "png" up
    to 16.
    """
    first, frames = _peeked(frames)
    deep, alpha = first.dtype == np.uint16, first.shape[-1] == 4
    lossless = codec == "h264-rgb"
    how = encoding(codec.removesuffix("-rgb"), crf, lossless, deep and codec == "png", alpha and codec == "png")
    return _write_stream(out, frames, how, _Clock(Fraction(rate).limit_denominator(60000)), SDR, None, tracks)


def write_pngs(
    out: Path, frames: Iterable[np.ndarray], how: Encoding | None = None, notes: dict[str, str] | None = None
) -> int:
    """Write frames as `out`/frame_00001.png ... and return their count; all or nothing appears.

    The first of them carries the `notes`.
    """
    first, frames = _peeked(frames)
    how = how or encoding("png", deep=first.dtype == np.uint16, alpha=first.shape[-1] == 4)
    count = 0
    with _writing(out), replacing(out, folder=True) as folder:
        for count, frame in enumerate(frames, 1):
            (folder / f"frame_{count:05d}.png").write_bytes(_encoded(frame, how, notes if count == 1 else None))
    return count


@contextlib.contextmanager
def _writing(out: Path, hint: str = "") -> Iterator[None]:
    """Turn what encoders and disks raise into one sentence."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"OUT: {out} could not be written ({error.strerror}).{hint}") from error


def _write_picture(out: Path, frames: Iterable[np.ndarray], how: Encoding, notes: dict[str, str] | None) -> int:
    first, _ = _peeked(frames)
    with _writing(out), replacing(out) as temporary:
        if how.encoder == "png":
            temporary.write_bytes(_encoded(first, how, notes))
        else:
            with av.open(locator(temporary), "w", format="webp") as container:
                stream = container.add_stream("libwebp", rate=25, options=how.options)
                stream.height, stream.width, stream.pix_fmt = *first.shape[:2], how.layout
                container.mux(stream.encode(_picture(first, how, SDR)))
                container.mux(stream.encode())
    return 1


def _encoded(frame: np.ndarray, how: Encoding, notes: dict[str, str] | None = None) -> bytes:
    """Return one picture as the bytes of a PNG file, with notes as its text."""
    context = av.CodecContext.create("png", "w")
    context.height, context.width, context.pix_fmt = *frame.shape[:2], how.layout
    context.time_base, context.options = Fraction(1, 25), how.options
    picture = _picture(frame, how, SDR)
    picture.pts = 0
    data = b"".join(bytes(packet) for packet in (*context.encode(picture), *context.encode(None)))
    texts = b""
    for name, text in (notes or {}).items():
        chunk = b"tEXt" + f"{name}\0{text}".encode("latin-1", "replace")
        texts += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:33] + texts + data[33:]  # after the header


class _Clock:
    """Times of the frames of a result: even, or those of a source while its frames last."""

    def __init__(self, rate: Fraction, pts: np.ndarray | None = None, base: Fraction | None = None, last: int = 1):
        self.rate, self.pts, self.base, self.last = rate, pts, base or 1 / rate, last
        self.delay = 0  # of the first frame, in units of `base`

    @staticmethod
    def of(source: Timeline) -> _Clock:
        rate = source.rate.limit_denominator(60000)
        if source.constant:  # exact, where a container of the source has rounded to ms
            return _Clock(rate)
        return _Clock(rate, source.pts, source.time_base, max(1, round(source.last / float(source.time_base))))

    def at(self, index: int) -> tuple[int, int]:
        """Return (time, duration) of frame `index` in units of `base` seconds."""
        if self.pts is None:
            return index + self.delay, 1
        after = int(self.pts[index + 1]) if index + 1 < len(self.pts) else int(self.pts[index]) + self.last
        return int(self.pts[index]) + self.delay, after - int(self.pts[index])


def _write_stream(
    out: Path,
    frames: Iterable[np.ndarray],
    how: Encoding,
    clock: _Clock,
    colour: Colour,
    source: Timeline | None = None,
    tracks: Tracks | Samples | None = None,
    notes: dict[str, str] | None = None,
) -> int:
    first, frames = _peeked(frames)
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        how = replace(how, layout=how.layout.replace("420p", "444p"))
    if how.encoder == "libsvtav1" and (height % 2 or width % 2):
        raise MediaError(f"OUT: AV1 needs even sides; got {width}x{height}. Choose --codec vp9 or another size.")
    hint = " If a track of IN is damaged: --keep-tracks none." if isinstance(tracks, Tracks) else ""
    # around everything: a full disk may show only when the file is closed
    with _writing(out, hint), replacing(out) as temporary, contextlib.ExitStack() as stack:
        kind = _FORMATS[out.suffix.lower()]
        options = _options(kind, source) | (
            {"movflags": "use_metadata_tags"} if notes and kind in ("mp4", "mov") else {}
        )
        container = stack.enter_context(av.open(locator(temporary), "w", format=kind, options=options))
        stream = _stream(container, how, clock, (height, width), colour, source)
        waiting = iter(())
        if tracks is not None:
            clock.delay = int(np.ceil(tracks.lead() / clock.base))
            tracks.add_to(container, float(clock.delay * clock.base))
            waiting = tracks.packets()
        container.metadata.update(notes or {})
        return _fill(container, stream, frames, first.shape, how, clock, colour, waiting)


def _options(kind: str, source: Timeline | None) -> dict:
    name = {"apng": "plays", "webp": "loop"}.get(kind)
    return _NO_TIME_OF_DAY | ({name: str(source.plays if source else 0)} if name else {})


def _stream(container, how: Encoding, clock: _Clock, size: tuple[int, int], colour: Colour, source: Timeline | None):
    stream = container.add_stream(how.encoder, rate=clock.rate, options=how.options)
    stream.height, stream.width, stream.pix_fmt = *size, how.layout
    context = stream.codec_context
    context.time_base = clock.base
    if how.tag and container.format.name in ("mp4", "mov"):
        context.codec_tag = how.tag
    if how.layout.startswith("yuv"):
        context.color_primaries, context.color_trc = colour.primaries, colour.transfer
        context.colorspace, context.color_range = colour.matrix, 1
    if how.alpha and how.encoder == "libvpx-vp9":
        stream.metadata["alpha_mode"] = "1"
    if source is not None and (sar := _pixel_shape(source, size)) != 1:
        context.sample_aspect_ratio = sar
    return stream


def _pixel_shape(source: Timeline, size: tuple[int, int]) -> Fraction:
    """Return the width over height of a pixel of the result, so that the film keeps its shape on the screen."""
    if source.sar == 1:
        return Fraction(1)
    return (source.sar * Fraction(source.width, source.height) * Fraction(*size)).limit_denominator(1000)


def _fill(container, stream, frames, shape, how: Encoding, clock: _Clock, colour: Colour, waiting: Iterator) -> int:
    count, durations, track = 0, {}, next(waiting, None)

    def put(packets) -> None:
        for packet in packets:
            packet.duration = durations.pop(packet.pts, packet.duration)
            container.mux(packet)

    def put_track() -> None:
        with contextlib.suppress(av.error.InvalidDataError):  # a damaged piece of sound is left out
            container.mux(track[1])

    for index, frame in enumerate(frames):
        if frame.shape != shape:
            raise MediaError(f"OUT: all frames must have one size; got {frame.shape} after {shape}.")
        time, duration = clock.at(index)
        while track is not None and track[0] <= time * clock.base:
            put_track()
            track = next(waiting, None)
        picture = _picture(frame, how, colour)
        picture.pts, picture.time_base = time, clock.base
        durations[time] = duration
        put(stream.encode(picture))
        count += 1
    put(stream.encode())
    while track is not None:
        put_track()
        track = next(waiting, None)
    return count


def _picture(frame: np.ndarray, how: Encoding, colour: Colour) -> av.VideoFrame:
    """Convert a frame to the pixel format of an encoder."""
    if how.alpha and frame.shape[-1] == 3:
        frame = np.concatenate([frame, np.full_like(frame[..., :1], np.iinfo(frame.dtype).max)], -1)
    if not how.alpha:
        frame = flattened(frame)
    if how.layout.startswith("yuv"):
        parts = planes(frame, how.bits, colour.matrix, "420" in how.layout, how.alpha)
    else:
        frame = to_depth(frame, 8 if how.bits == 8 else 16)
        if how.bits in (10, 12):
            frame = np.rint(frame * (((1 << how.bits) - 1) / 65535)).astype(np.uint16)
        orders = {"bgra": [2, 1, 0, 3], "bgr0": [2, 1, 0, 0]}
        parts = [frame[..., orders[how.layout]] if how.layout in orders else frame]
        if how.layout.endswith("be"):
            parts = [parts[0].astype(">u2")]
        if how.layout not in _PACKED:
            parts = [frame[..., channel] for channel in (1, 2, 0, 3)[: frame.shape[-1]]]
    picture = av.VideoFrame(frame.shape[1], frame.shape[0], how.layout)
    for plane, part in zip(picture.planes, parts, strict=True):
        part = np.ascontiguousarray(part)
        lines = part.reshape(part.shape[0], -1).view(np.uint8)
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : lines.shape[1]] = lines
    if how.layout.startswith("yuv"):
        picture.colorspace, picture.color_range = colour.matrix, 1
    return picture


def _peeked(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise MediaError("OUT: a video needs at least one frame; got none.")

    def everything() -> Iterator[np.ndarray]:
        yield first
        yield from frames

    return first, everything()
