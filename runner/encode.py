"""Write clips with PyAV; frames are (h, w, 3) uint8 RGB, and no file is ever left half-written."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .errors import RunnerError

_NO_TIME_OF_DAY = {"fflags": "+bitexact"}  # same frames, same bytes


@contextlib.contextmanager
def opened(source: Path) -> Iterator[av.container.InputContainer]:
    try:
        container = av.open(str(source))
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunnerError(
            f"IN: {source} cannot be read as a video ({reason}); it is damaged, truncated, or no video."
        ) from error
    with container:
        yield container


def write_pngs(out: Path, frames: Iterable[np.ndarray]) -> int:
    """Write frames as `out`/frame_00001.png ... and return their count; all or nothing appears."""
    out = out.absolute()
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".partial"))
    count = 0
    try:
        for count, frame in enumerate(frames, 1):
            Image.fromarray(frame).save(temporary / f"frame_{count:05d}.png", compress_level=3)
        if out.exists():
            shutil.rmtree(out)
        temporary.chmod(0o755)
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return count


def write_video(
    out: Path,
    frames: Iterable[np.ndarray],
    rate: Fraction,
    *,
    codec: str = "h264",
    crf: float = 12.0,
    audio_from: Path | None = None,
) -> int:
    """Write a video and return the frame count; `out` appears complete or not at all.

    "h264" is yuv420p in BT.709 (yuv444p for odd sides, unfit for 4:2:0); "h264-rgb" and "png" keep every bit.
    """
    out = out.absolute()
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.stem}.", suffix=f".partial{out.suffix}")
    os.close(handle)
    try:
        count = _encode(Path(name), iter(frames), Fraction(rate).limit_denominator(60000), codec, crf, audio_from)
        os.chmod(name, 0o644)
        os.replace(name, out)
    except av.FFmpegError as error:
        raise RunnerError(f"OUT: {out} could not be written ({error.strerror}).") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    return count


def _encode(out: Path, frames: Iterator[np.ndarray], rate: Fraction, codec: str, crf: float, audio_from) -> int:
    first = next(frames, None)
    if first is None:
        raise RunnerError("OUT: a video needs at least one frame; got none.")
    height, width = first.shape[:2]
    odd = height % 2 or width % 2
    layout = {"h264": "yuv444p" if odd else "yuv420p"}.get(codec, "rgb24")
    encoder, options = {
        "h264": ("libx264", {"crf": str(crf), "preset": "medium"}),
        "h264-rgb": ("libx264rgb", {"qp": "0", "preset": "veryfast"}),
        "png": ("png", {"compression_level": "1", "pred": "up"}),
    }[codec]
    count = 0
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(av.open(str(out), "w", options=_NO_TIME_OF_DAY))
        stream = container.add_stream(encoder, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, layout
        if codec == "h264":
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1  # BT.709
            context.color_range = 1
        audio = _audio_packets(stack, container, audio_from) if audio_from else iter(())
        waiting = next(audio, None)
        for index, frame in enumerate(_chain(first, frames)):
            if frame.shape != first.shape:
                raise RunnerError(f"OUT: all frames must have one size; got {frame.shape} after {first.shape}.")
            while waiting is not None and waiting[0] <= index / rate:
                container.mux(waiting[1])
                waiting = next(audio, None)
            picture = av.VideoFrame.from_ndarray(_planes(frame, layout), format=layout)
            picture.pts, picture.time_base = index, 1 / rate
            container.mux(stream.encode(picture))
            count += 1
        container.mux(stream.encode())
        for packet in _chain(waiting, audio) if waiting is not None else ():
            container.mux(packet[1])
    return count


def _chain(first, rest: Iterator):
    yield first
    yield from rest


def _planes(frame: np.ndarray, layout: str) -> np.ndarray:
    """Convert to the encoder's layout; by hand because libswscale's result is not the same on every run."""
    if layout == "rgb24":
        return np.ascontiguousarray(frame)
    rgb = frame.astype(np.float32) / 255
    y = rgb @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    chroma = np.stack([(rgb[..., 2] - y) / 1.8556, (rgb[..., 0] - y) / 1.5748])
    luma = _quantise(16 + 219 * y)
    if layout == "yuv444p":
        return np.concatenate([luma[None], _quantise(128 + 224 * chroma)])
    left = np.concatenate([chroma[..., :1], chroma[..., 1:-1:2]], -1)  # H.264 sites chroma on the left column
    chroma = 0.25 * left + 0.5 * chroma[..., 0::2] + 0.25 * chroma[..., 1::2]
    chroma = _quantise(128 + 224 * (chroma[:, 0::2] + chroma[:, 1::2]) / 2)
    return np.concatenate([luma.reshape(-1), chroma.reshape(-1)]).reshape(-1, frame.shape[1])


def _quantise(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


_COPIED = {"aac", "mp3", "ac3", "eac3", "alac"}  # every container of ours takes these as they are


def _audio_packets(stack: contextlib.ExitStack, container, source: Path) -> Iterator[tuple[float, object]]:
    """Yield (time, packets) of the source's first sound track: copied where possible, else AAC."""
    original = stack.enter_context(opened(source))
    if not original.streams.audio:
        return iter(())
    track = original.streams.audio[0]
    if track.codec_context.name in _COPIED:
        return _copied(original, track, container.add_stream_from_template(track))
    return _transcoded(original, track, container.add_stream("aac", rate=track.rate))


def _copied(original, track, stream) -> Iterator[tuple[float, object]]:
    for packet in original.demux(track):
        if packet.dts is not None:
            time = float(packet.dts * packet.time_base)
            packet.stream = stream
            yield time, packet


def _transcoded(original, track, stream) -> Iterator[tuple[float, object]]:
    resampler = av.AudioResampler(format="fltp", layout=track.layout, rate=track.rate)
    for frame in original.decode(track):
        for piece in resampler.resample(frame):
            yield float(piece.time or 0), stream.encode(piece)
    yield float("inf"), stream.encode()
