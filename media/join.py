"""The file of one segment of a film, and how such files become the film, by copying packets.

1. `write_segment` encodes the frames of a segment by an encoder of its own: it begins with a key frame and refers to
   nothing outside. Films store its packets; where packets cannot be joined (animations), and for pictures, every
   frame is stored as a PNG, without loss
2. `join` puts the packets behind each other. Times come from the source, not from the files, so that each frame has
   the time that it has in an unbroken run; tracks, tags and names are put there as by the writer

A file: packets one after the other, then their table (JSON), its length (8 bytes), and a mark.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import av
import av.packet
import numpy as np

from .errors import MediaError
from .files import replacing
from .plan import Encoding, Plan, encoding
from .segments import Segment
from .timeline import Timeline
from .tracks import Tracks
from .writer import Clock, encoded, fitting, loose_stream, peeked, png, result, with_texts, write, writing

_MARK = b"CascadeVSR segment 1"
_BESIDE = {"matroska_block_additional": 15}  # what belongs to a packet and is none of its bytes: VP9's transparency


def _copies_packets(how: Plan) -> bool:
    """Return whether a result is joined from packets, else from frames; older PyAV drops what is beside packets."""
    beside = how.encoding.alpha and how.encoding.encoder == "libvpx-vp9"
    return how.kind == "film" and (not beside or hasattr(av.packet, "PacketSideData"))


def _still(how: Plan) -> Encoding:
    """Return how a frame is stored by itself: as a folder's PNGs are, or quickly."""
    return how.encoding if how.kind == "folder" else encoding("png", deep=how.wish.depth > 8, alpha=how.wish.alpha)


def write_segment(
    file: Path, frames: Iterable[np.ndarray], out: Path, how: Plan, source: Timeline, segment: Segment
) -> None:
    """Write the frames of a segment of OUT to `file`, one after the other.

    Raises MediaError where they are more or fewer than the segment has, or what the writer raises; OSError for the
    disk.
    """
    first, frames = peeked(frames)
    size, count = first.shape[:2], 0
    table = {"size": size, "start": segment.start, "packets": [], "extradata": ""}
    with open(file, "wb") as target:
        if _copies_packets(how):
            style, clock = fitting(how.encoding, size), Clock.of(source)
            container, stream = loose_stream(out, style, clock, size, how.colour, source)
            with container:
                for packets, time in encoded(
                    stream, _limited(frames, segment), style, clock, how.colour, segment.start
                ):
                    count += time is not None
                    for packet in packets:
                        beside = {kind: bytes(packet.get_sidedata(kind)) for kind in _beside(packet)}
                        target.write(bytes(packet))
                        row = [packet.size, packet.pts, int(packet.is_keyframe), *map(len, beside.values())]
                        table["packets"].append(row)
                        for data in beside.values():
                            target.write(data)
                table["extradata"] = bytes(stream.codec_context.extradata or b"").hex()
        else:
            for frame in _limited(frames, segment):
                if frame.shape != first.shape:
                    raise MediaError(f"OUT: all frames must have one size; got {frame.shape} after {first.shape}.")
                data = png(frame, _still(how))
                table["packets"].append([len(data), segment.start + count, 1])
                target.write(data)
                count += 1
        if count != segment.frames or len(table["packets"]) != count:
            raise MediaError(_other_count(len(table["packets"]), segment))
        text = json.dumps(table).encode()
        target.write(text + struct.pack(">Q", len(text)) + _MARK)


def _limited(frames: Iterable[np.ndarray], segment: Segment) -> Iterator[np.ndarray]:
    for count, frame in enumerate(frames, 1):
        if count > segment.frames:
            raise MediaError(_other_count(f"more than {segment.frames}", segment))
        yield frame


def _other_count(found, segment: Segment) -> str:
    return f"OUT: frames {segment.start} to {segment.stop} must give {segment.frames} pictures; got {found}."


def _beside(packet) -> list[str]:
    has = getattr(packet, "has_sidedata", None)
    return [kind for kind in _BESIDE if has is not None and packet.has_sidedata(kind)]


class _Stored:
    """The file of a segment, for reading."""

    def __init__(self, file: Path, tick: Callable[[], None]) -> None:
        self.file, self._tick = file, tick
        tail = len(_MARK) + 8
        with open(file, "rb") as source:
            source.seek(0, 2)
            size = source.tell()
            source.seek(max(0, size - tail))
            length, mark = struct.unpack(f">Q{len(_MARK)}s", source.read(tail).rjust(tail, b"\0"))
            if mark != _MARK or length > size - tail:
                raise MediaError(f"OUT: {file} is no finished segment. Remove it, and render it again.")
            source.seek(size - tail - length)
            table = json.loads(source.read(length))
        self.size, self.start = tuple(table["size"]), table["start"]
        self.packets, self.extradata = table["packets"], bytes.fromhex(table["extradata"])

    def blocks(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """Yield the bytes of every packet, and what is beside them."""
        with open(self.file, "rb") as source:
            for size, _, _, *beside in self.packets:
                self._tick()
                yield source.read(size), [source.read(length) for length in beside]

    def order(self) -> list[int]:
        """Return the number that each packet's frame has in the film."""
        times = sorted(row[1] for row in self.packets)
        ranks = {time: self.start + rank for rank, time in enumerate(times)}
        return [ranks[row[1]] for row in self.packets]


def join(
    out: Path,
    files: Sequence[Path],
    how: Plan,
    source: Timeline,
    keep: str = "all",
    notes: dict[str, str] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> int:
    """Make OUT of the files of all its segments, in order, and return the number of frames; whole or not at all.

    `keep` and `notes` as of `write`; `tick` is called for every frame, and may raise to end it. Raises MediaError where
    a file is none, segments do not follow each other or are of several sizes, or were encoded by different encoders.
    """
    parts = [_Stored(file, tick) for file in files]
    count = 0
    for part in parts:
        if part.start != count or part.size != parts[0].size:
            height, width = part.size
            raise MediaError(
                f"OUT: segments must follow each other in one size; {part.file} is {width}x{height} and begins with "
                f"frame {part.start}, after {count} frames of {parts[0].size[1]}x{parts[0].size[0]}. Render it again."
            )
        count += len(part.packets)
    if count != source.frames:
        raise MediaError(f"OUT: all frames must be there; got {count} of {source.frames}. Render the others.")
    if how.kind == "folder":
        with writing(out), replacing(out, folder=True) as folder:
            for number, data in enumerate((data for part in parts for data, _ in part.blocks()), 1):
                (folder / f"frame_{number:05d}.png").write_bytes(with_texts(data, notes if number == 1 else None))
        return count
    if not _copies_packets(how):
        frames = (_decoded(data, how) for part in parts for data, _ in part.blocks())
        return write(out, frames, how, source, keep, notes=notes)
    tracks = Tracks(source, out.suffix.lower(), keep) if source.kind == "film" and keep != "none" else None
    if tracks is None:
        return _join_film(out, parts, how, source, None, notes)
    with tracks:
        return _join_film(out, parts, how, source, tracks, notes)


def _decoded(data: bytes, how: Plan) -> np.ndarray:
    context = av.CodecContext.create("png", "r")
    frame = (context.decode(av.Packet(data)) or context.decode(None))[0]
    deep, alpha = how.wish.depth > 8, how.wish.alpha
    return frame.to_ndarray(
        format=f"rgb{'a' * alpha}" + (("64le" if alpha else "48le") if deep else "" if alpha else "24")
    )


def _join_film(out: Path, parts: list[_Stored], how: Plan, source: Timeline, tracks, notes) -> int:
    clock, size = Clock.of(source), parts[0].size
    orders = [part.order() for part in parts]
    # how many frames later than its place a frame is decoded, at most: decoding begins so much before showing
    early = max(
        part.start + place - number
        for part, order in zip(parts, orders, strict=True)
        for place, number in enumerate(order)
    )
    with result(out, fitting(how.encoding, size), clock, size, how.colour, source, tracks, notes) as (stream, put):
        stream.container.start_encoding()
        wanted = bytes(stream.codec_context.extradata or b"")
        for part, order in zip(parts, orders, strict=True):
            if part.extradata != wanted:
                raise MediaError(
                    f"OUT: all segments must come from one version of {how.encoding.encoder}; {part.file} does not. "
                    "Render it again with this one."
                )
            for place, (row, (data, beside)) in enumerate(zip(part.packets, part.blocks(), strict=True), part.start):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, clock.base
                packet.pts, packet.duration = clock.at(order[place - part.start])
                packet.dts = _decoding_time(clock, place, early)
                packet.is_keyframe = bool(row[2])
                for kind, extra in zip(_BESIDE.values(), beside, strict=False):
                    held = av.packet.PacketSideData(kind, len(extra))
                    held.update(extra)
                    packet.set_sidedata(held, move=True)
                put([packet], clock.at(place)[0])
    return source.frames


def _decoding_time(clock: Clock, place: int, early: int) -> int:
    if place >= early:
        return clock.at(place - early)[0]
    return clock.at(place)[0] - (clock.at(early)[0] - clock.at(0)[0])
