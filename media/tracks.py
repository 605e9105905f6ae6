"""Sound, subtitles, chapters, attachments and names of a film, for its larger copy.

1. `survey` says before the work what will stay behind or be encoded anew, and tries the encoders
2. `Tracks` adds a stream to the result for each that goes on: copied where the container takes it, sound and subtitles
   of text encoded anew where not
3. `packets` yields them in the order of time. A film's clock begins anywhere, the result's with its first picture:
   every time is moved by minus the first picture's, so that what was early or late stays so. Where sound begins before
   the picture, the picture begins later by that much: no time is negative, which MP4 would cut away
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.subtitles.subtitle import SubtitleSet

from .clock import Joined
from .errors import MediaError
from .timeline import Timeline, disposition, is_cover, opened, video_stream

KEEP = ("all", "first", "none")
_PCM = {"pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le"}
_MP4 = {"aac", "mp3", "ac3", "eac3", "alac"}
_SOUND = {
    ".mp4": _MP4 | {"flac", "opus"},
    ".mov": _MP4 | _PCM | {"pcm_s16be", "pcm_s24be"},
    ".mkv": _MP4 | _PCM | {"flac", "opus", "vorbis", "mp2", "dts", "truehd", "pcm_u8", "wavpack", "tta"},
    ".webm": {"opus", "vorbis"},
}
_SUBTITLES = {
    ".mp4": {"mov_text"},
    ".mov": {"mov_text"},
    ".mkv": {"subrip", "srt", "ass", "ssa", "webvtt", "hdmv_pgs_subtitle", "dvd_subtitle", "dvb_subtitle"},
    ".webm": {"webvtt"},
}
_TEXTS = {"subrip", "srt", "ass", "ssa", "webvtt", "mov_text", "text"}
_TEXT_ENCODERS = {".mp4": "mov_text", ".mov": "mov_text", ".mkv": "subrip", ".webm": "webvtt"}
_COVERS = {"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png")}
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)  # Hz
_USUAL = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}  # by channels
_OPUS = {3: "3.0", 4: "quad"}  # the only ones that it takes of so many
_LAYOUTS = {*_USUAL.values(), "3.0", "5.0(side)", "5.1(side)", "quad", "7.1(wide)"}
# PyAV of older hosts cannot write attachments, chapters or subtitles of text: `hasattr` asks below
_LEAD = 0.03  # s: less sound before the picture is the start-up of an encoder, which every container knows
_OF_THE_CONTAINER = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "software"}


def _codec(stream) -> str:
    """Return the codec of a stream, not its decoder: "mp3" for what mp3float decodes; "" where it is unknown."""
    context = getattr(stream, "codec_context", None)
    return "" if context is None else context.codec.canonical_name


def _name(stream) -> str:
    language = stream.metadata.get("language", "und")
    kind = {"audio": "sound", "subtitle": "subtitles", "video": "picture"}.get(stream.type, stream.type)
    kind = "cover picture" if stream.type == "video" and is_cover(stream) else kind
    codec = _codec(stream) or "unknown"
    return f"{kind} track {stream.index} ({codec}{'' if language == 'und' else ', ' + language})"


def _is_text(stream) -> bool:
    """Return whether subtitles are text that can be encoded anew."""
    return _codec(stream) in _TEXTS and hasattr(stream.codec_context, "encode_subtitle")


def _goes_as_cover(stream, suffix: str) -> bool:
    if suffix == ".webm" or not is_cover(stream) or _codec(stream) not in _COVERS:
        return False
    return suffix != ".mkv" or hasattr(av.container.OutputContainer, "add_attachment")


def _fits(stream, suffix: str) -> bool:
    """Return whether a file ending in `suffix` takes a track as it is."""
    kind = {"audio": _SOUND, "subtitle": _SUBTITLES}.get(stream.type)
    return _codec(stream) in kind[suffix] if kind else stream.type == "attachment" and suffix == ".mkv"


def _sort(container, path: Path, suffix: str, keep: str) -> tuple[list, list]:
    """Return the streams that go on, and those that stay behind."""
    going, staying = [], []
    if keep == "none":
        return going, staying
    shown = video_stream(container, path).index
    for stream in container.streams:
        if stream.type == "audio" and _codec(stream) and stream.rate and stream.channels:
            (staying if keep == "first" and going else going).append(stream)
        elif stream.type in ("audio", "subtitle", "data"):
            fits = stream.type == "subtitle" and (_codec(stream) in _SUBTITLES[suffix] or _is_text(stream))
            (going if fits and keep == "all" else staying).append(stream)
        elif stream.type == "video" and stream.index != shown:
            (going if keep == "all" and _goes_as_cover(stream, suffix) else staying).append(stream)
        elif stream.type == "attachment":
            fits = suffix == ".mkv" and keep == "all" and hasattr(av.container.OutputContainer, "add_attachment")
            (going if fits else staying).append(stream)
    return going, staying


def survey(timeline: Timeline, suffix: str, keep: str = "all") -> list[str]:
    """Return lines on what stays behind in a file ending in `suffix` ("" where it holds pictures only)."""
    if timeline.kind != "film":
        return []
    with opened(timeline.path) as container:
        if suffix not in _SOUND:
            count = sum(s.type in ("audio", "subtitle") for s in container.streams)
            return [f"{count} sound and subtitle tracks stay behind: OUT holds pictures only"] if count else []
        going, staying = _sort(container, timeline.path, suffix, keep)
        anew = [s for s in going if s.type == "audio" and not _fits(s, suffix)]
        lines = [f"{_name(s)} is encoded anew as {_described(s, suffix)}: {suffix} does not take it" for s in anew]
        if names := [_name(s) for s in staying if s.type != "data"]:
            better = keep == "all" and suffix != ".mkv" and any(_fits(s, ".mkv") for s in staying)
            hint = "; .mkv takes them" if better else ""
            lines.append(f"{', '.join(names)} stay{'' if len(names) > 1 else 's'} behind{hint}")
        return lines


def _described(stream, suffix: str) -> str:
    codec, layout, _ = _anew(stream, suffix)
    fewer = av.AudioLayout(layout).nb_channels < stream.channels
    return f"{codec} with {layout} of its {stream.channels} channels" if fewer else codec


def is_complete(timeline: Timeline, suffix: str) -> bool:
    """Return whether a file ending in `suffix` takes every track of a film, as it is or encoded anew."""
    with opened(timeline.path) as container:
        return not any(s.type != "data" for s in _sort(container, timeline.path, suffix, "all")[1])


class Tracks:
    """The tracks of one film on their way into one result; use as a context."""

    def __init__(self, timeline: Timeline, suffix: str, keep: str = "all") -> None:
        self.timeline, self.suffix, self.keep = timeline, suffix, keep
        self.ways = {}
        self.start = timeline.start  # s on the source's clock, which becomes the 0 of the result's

    def __enter__(self) -> Tracks:
        self._opening = opened(self.timeline.path)
        self.source = self._opening.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._opening.__exit__(None, None, None)

    def lead(self) -> float:
        """Return how many seconds the sound begins before the first picture (0 where later)."""
        going = _sort(self.source, self.timeline.path, self.suffix, self.keep)[0]
        starts = [float(s.start_time * s.time_base) for s in going if s.type == "audio" and s.start_time is not None]
        early = self.timeline.start - min(starts, default=self.timeline.start)
        return early if early > _LEAD and self.timeline.whole is None else 0.0

    def add_to(self, out: av.container.OutputContainer, delay: float = 0.0) -> None:
        """Add a stream for every track that goes on, chapters, attachments and names; before the first packet.

        `delay`: seconds on the result's clock at which its first picture is shown.
        """
        self.start = self.timeline.start - delay
        for stream in _sort(self.source, self.timeline.path, self.suffix, self.keep)[0]:
            if stream.type == "attachment":
                self._attach(out, stream)
                continue
            if stream.type == "video" and self.suffix == ".mkv":
                self._attach_cover(out, stream)
                continue
            if stream.type == "video" or _fits(stream, self.suffix):
                way = _Copy(stream, out)
            else:
                way = (_Encode if stream.type == "audio" else _Text)(stream, out, self.suffix)
            way.joined = Joined(self.source, self.timeline.jumps)
            way.name_it()
            self.ways[stream.index] = way
        if self.keep == "none":
            return
        names = {k: v for k, v in self.source.metadata.items() if k.lower() not in _OF_THE_CONTAINER}
        out.metadata.update(names)
        if hasattr(out, "set_chapters"):
            chapters = [_moved(chapter, self.start, self.timeline) for chapter in self.source.chapters()]
            if chapters := [chapter for chapter in chapters if chapter["start"] < chapter["end"]]:
                out.set_chapters(chapters)

    @staticmethod
    def _attach(out, stream) -> None:
        name = stream.metadata.get("filename", f"attachment{stream.index}")
        out.add_attachment(name, stream.metadata.get("mimetype", "application/octet-stream"), stream.data)

    def _attach_cover(self, out, stream) -> None:
        with opened(self.timeline.path) as container:
            packet = next((p for p in container.demux(container.streams[stream.index]) if p.size), None)
        if packet is not None:
            ending, kind = _COVERS[_codec(stream)]
            out.add_attachment(f"cover.{ending}", kind, bytes(packet))

    def packets(self) -> Iterator[tuple[float, list]]:
        """Yield (seconds on the result's clock, packets of the result), in the order of the source."""
        streams = [self.source.streams[index] for index in self.ways]
        if not streams:
            return
        try:
            for packet in self.source.demux(streams):
                if packet.size and (packet.dts is not None or packet.pts is not None or packet.stream.type == "video"):
                    way = self.ways[packet.stream_index]
                    way.joined.put(packet)
                    if self._is_shown(packet):
                        yield from way.put(packet, self.start)
        except av.FFmpegError as error:  # a cut file: what was read goes on, as the pictures do
            if isinstance(error, av.error.ArgumentError):
                raise
        for way in self.ways.values():
            yield from way.end(self.start)

    def _is_shown(self, packet: av.Packet) -> bool:
        """Return whether a packet belongs to the part of the film that is written; always, where all of it is."""
        if self.timeline.whole is None:
            return True
        time = packet.pts if packet.pts is not None else packet.dts
        if packet.stream.type == "video":  # a cover
            return True
        return 0 <= float(time * packet.time_base) - self.timeline.start < self.timeline.duration


def _moved(chapter: dict, start: float, timeline: Timeline) -> dict:
    shift = round(start / float(chapter["time_base"]))
    begin, end = (max(0, chapter[name] - shift) for name in ("start", "end"))
    if timeline.whole is not None:
        end = min(end, round(timeline.duration / float(chapter["time_base"])))
    return {**chapter, "start": begin, "end": end}


class _Way:
    """One track's way into the result."""

    joined: Joined

    def __init__(self, old, new) -> None:
        self.old, self.new = old, new
        self.before = None  # the time of the last packet of sound, in units of the stream

    def in_order(self, packet) -> bool:
        """Return whether sound comes after what came before; where parts overlap, muxers would refuse it."""
        time = packet.dts if packet.dts is not None else packet.pts
        if time is None or (self.old.type == "audio" and self.before is not None and time <= self.before):
            return False
        self.before = time
        return True

    def name_it(self) -> None:
        """Carry on the language and title of the track, and what it is for."""
        kept = {k: v for k, v in self.old.metadata.items() if k.lower() in ("language", "title", "handler_name")}
        self.new.metadata.update(kept)
        if hasattr(self.new, "disposition"):
            self.new.disposition = disposition(self.old)

    def end(self, start: float) -> Iterator[tuple[float, list]]:
        """Yield what was held back."""
        yield from ()


class _Copy(_Way):
    """As it is."""

    def __init__(self, old, out) -> None:
        super().__init__(old, out.add_stream_from_template(old))

    def put(self, packet, start: float) -> Iterator[tuple[float, list]]:
        if packet.is_discard:  # before the beginning of an edit list: not shown
            return
        if self.old.type == "video":  # a cover has no time
            packet.pts = packet.dts = 0
            start = 0.0
        shift = round(start / float(packet.time_base))
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        time = packet.dts if packet.dts is not None else packet.pts
        if self.old.type == "audio" and not packet.duration and self.before is not None:
            packet.duration = max(0, time - self.before)  # Matroska may not tell it; MP4 would drop the last packet
        packet.stream = self.new
        if self.in_order(packet):
            yield float(time * packet.time_base), [packet]


def sound_encoder(rate: int, channels: int, layout: str, suffix: str, name: str) -> tuple[str, str, int]:
    """Return encoder, layout and rate (Hz) for a sound track, tried; raise MediaError where they are refused.

    A `layout` that says nothing ("1 channels", or "") becomes the usual one of so many channels.
    """
    codec = "libopus" if suffix == ".webm" else "aac"
    rate = 48000 if codec == "libopus" else next((r for r in _AAC_RATES if r >= rate), 48000)
    if codec == "libopus":
        layout = _OPUS.get(channels) or _USUAL.get(channels, "stereo")
    elif layout not in _LAYOUTS:
        layout = _USUAL.get(channels, "stereo")
    try:
        context = av.CodecContext.create(codec, "w")
        context.rate, context.layout, context.format = rate, layout, "fltp" if codec == "aac" else "s16"
        context.open()
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(
            f"IN: {name} cannot be encoded as {codec} ({layout}, {rate} Hz): {error}. "
            "Use an OUT that ends in .mkv, or --keep-tracks none."
        ) from error
    return codec, layout, rate


def _anew(old, suffix: str) -> tuple[str, str, int]:
    return sound_encoder(old.rate, old.channels, old.layout.name, suffix, _name(old))


class _Encode(_Way):
    """Sound, decoded and encoded as AAC (WebM: Opus); a rate that the encoder refuses is resampled."""

    def __init__(self, old, out, suffix: str) -> None:
        codec, layout, rate = _anew(old, suffix)
        new = out.add_stream(codec, rate=rate, layout=layout)
        self.resampler = av.AudioResampler(new.format, layout, rate)
        super().__init__(old, new)

    def put(self, packet, start: float) -> Iterator[tuple[float, list]]:
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            return  # a damaged piece is silent
        for frame in frames:
            yield from self._encoded(frame, start)

    def end(self, start: float) -> Iterator[tuple[float, list]]:
        yield from self._encoded(None, start)
        yield float("inf"), [packet for packet in self.new.encode(None) if self.in_order(packet)]

    def _encoded(self, frame, start: float) -> Iterator[tuple[float, list]]:
        for piece in self.resampler.resample(frame):
            if piece.pts is not None:
                piece.pts -= round(start / float(piece.time_base))
            try:
                yield float(piece.time or 0), [packet for packet in self.new.encode(piece) if self.in_order(packet)]
            except av.FFmpegError as error:
                raise MediaError(
                    f"IN: {_name(self.old)} could not be encoded ({error.strerror}). Use --keep-tracks none."
                ) from error


class _Text(_Way):
    """Subtitles of text in the form that the container takes."""

    _BASE = Fraction(1, 1000)

    def __init__(self, old, out, suffix: str) -> None:
        new = out.add_stream(_TEXT_ENCODERS[suffix])
        old.codec_context.open(strict=False)
        new.codec_context.subtitle_header = old.codec_context.subtitle_header or b""
        new.time_base = new.codec_context.time_base = self._BASE
        super().__init__(old, new)

    def put(self, packet, start: float) -> Iterator[tuple[float, list]]:
        try:
            found = packet.stream.codec_context.decode2(packet)
        except av.error.InvalidDataError:
            return  # a damaged line is left out
        text = b"\\N".join(line.ass for line in found or () if line.type == b"ass")
        if not text or packet.pts is None:  # MP4 writes pauses as empty lines
            return
        at = round((float(packet.pts * packet.time_base) - start) / self._BASE)
        length = round(float((packet.duration or 0) * packet.time_base) / self._BASE)
        # neither before the first picture, nor together with the line before, which MP4 forbids
        first = 0 if self.before is None else self.before + 1
        at, length = max(first, at), length + min(0, at - first)
        if length > 0:
            self.before = at
            new = self.new.codec_context.encode_subtitle(SubtitleSet.create(text, 0, length, at))
            new.stream, new.time_base = self.new, self._BASE
            yield at / 1000, [new]
