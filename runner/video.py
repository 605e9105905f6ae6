"""Read and write clips with PyAV; frames are (h, w, 3) uint8 RGB, and no file is ever left half-written."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .errors import RunnerError
from .paths import require_space

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
CONTAINERS = {".mp4", ".mkv", ".mov"}
DEFAULT_RATE = Fraction(25)
_NO_TIME_OF_DAY = {"fflags": "+bitexact"}  # same frames, same bytes
# what a pixel of the result takes on disk, about, for noisy clips; used only for the check of free space
_BYTES_PER_PIXEL = {"png": 2.6, "lossless": 2.2, "lossy": 0.5}


@dataclass(frozen=True)
class ClipInfo:
    """What a clip is; `rate` is in frames per second."""

    frames: int
    height: int
    width: int
    rate: Fraction
    has_audio: bool = False


def image_files(folder: Path) -> list[Path]:
    """Return the images of a folder in natural order (2 before 10)."""
    files = [f for f in folder.iterdir() if f.suffix.lower() in IMAGES and not f.name.startswith(".")]
    return sorted(
        files, key=lambda f: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", f.name.lower())]
    )


def is_image(path: Path) -> bool:
    """Return whether a path is an image by its name."""
    return path.suffix.lower() in IMAGES


def probe(source: Path) -> ClipInfo:
    """Decode a clip to its end and say what it is; defects are errors here and not half-way through."""
    if not source.exists():
        raise RunnerError(f"IN: must be a video, an image or a folder of images; {source} does not exist.")
    if source.is_dir() or is_image(source):
        return _probe_images(source)
    count, height, width, end = 0, 0, 0, 0.0
    with _opened(source) as container:
        stream = _video_stream(container, source)
        declared, rate = stream.frames, stream.average_rate or stream.guessed_rate or DEFAULT_RATE
        has_audio, promised = bool(container.streams.audio), _promised_seconds(container, stream)
        packets = 0
        try:
            for packet in container.demux(stream):
                packets += packet.size > 0
                for frame in packet.decode():
                    count += 1
                    height, width = _upright(frame)
                    end = max(end, frame.time or 0.0)
        except av.FFmpegError as error:
            raise RunnerError(_broken(source, count, declared, error.strerror)) from error
    if count == 0:
        raise RunnerError(
            f"IN: must have at least one frame; {source} has none. It is empty, damaged or truncated."
        )
    if packets < declared or (declared == 0 and end + 3 / float(rate) < promised):
        raise RunnerError(_broken(source, count, declared, "the file ends early"))
    return ClipInfo(count, height, width, Fraction(rate), has_audio)


def _promised_seconds(container, stream) -> float:
    """Return the duration that the header states for the pictures, or 0; Matroska counts no frames."""
    if text := stream.metadata.get("DURATION"):
        hours, minutes, seconds = text.split(":")
        return 3600 * float(hours) + 60 * float(minutes) + float(seconds)
    alone = len(container.streams) == 1
    return container.duration / av.time_base if alone and container.duration else 0.0


def _broken(source: Path, count: int, declared: int, why: str) -> str:
    total = f" of {declared}" if declared else ""
    return (
        f"IN: {source} is damaged or truncated after {count}{total} frames ({why}). "
        "Copy it again, or cut it before that point: ffmpeg -i IN -frames:v N -c copy OUT."
    )


def _probe_images(source: Path) -> ClipInfo:
    files = image_files(source) if source.is_dir() else [source]
    if not files:
        raise RunnerError(f"IN: a folder must hold images ({' '.join(sorted(IMAGES))}); {source} holds none.")
    sizes = {}
    for file in files:
        try:
            with Image.open(file) as image:
                sizes.setdefault(image.size, file)
        except (OSError, ValueError) as error:
            raise RunnerError(f"IN: {file} is not a readable image ({error}).") from error
    if len(sizes) > 1:
        found = ", ".join(f"{w}x{h} ({file.name})" for (w, h), file in list(sizes.items())[:3])
        raise RunnerError(f"IN: all images of a folder must have one size; got {found}.")
    width, height = next(iter(sizes))
    return ClipInfo(len(files), height, width, DEFAULT_RATE)


def read_frames(source: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a video, an image or a folder of images."""
    if source.is_dir() or is_image(source):
        for file in image_files(source) if source.is_dir() else [source]:
            try:
                with Image.open(file) as image:
                    yield np.asarray(image.convert("RGB"))
            except (OSError, ValueError) as error:
                raise RunnerError(f"IN: {file} is not a readable image ({error}).") from error
        return
    with _opened(source) as container:
        for frame in container.decode(_video_stream(container, source)):
            array = frame.to_ndarray(format="rgb24")
            yield np.rot90(array, k=round(frame.rotation / 90)).copy() if frame.rotation else array


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[av.container.InputContainer]:
    try:
        container = av.open(str(source))
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunnerError(
            f"IN: {source} cannot be read as a video ({reason}); it is damaged, truncated, or no video."
        ) from error
    with container:
        yield container


def _video_stream(container, source: Path):
    if not container.streams.video:
        raise RunnerError(f"IN: must have a video stream; {source} has none (sound only?).")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _upright(frame: av.VideoFrame) -> tuple[int, int]:
    turned = round(frame.rotation / 90) % 2 if frame.rotation else 0
    return (frame.width, frame.height) if turned else (frame.height, frame.width)


def stage(source: Path, folder: Path, name: str) -> str:
    """Put a clip where Load Video finds it and return its file name; images become a lossless video."""
    if source.is_dir() or is_image(source):
        target = folder / f"{name}.mp4"
        write_video(target, read_frames(source), DEFAULT_RATE, lossless=True)
        return target.name
    return place(source, folder, name)


def staged_name(source: Path, name: str) -> str:
    """Return the file name that `stage` and `place` will give."""
    folder_of_images = source.is_dir() or (is_image(source) and not name.startswith("reference_image"))
    return f"{name}.mp4" if folder_of_images else f"{name}{source.suffix.lower()}"


def place(source: Path, folder: Path, name: str) -> str:
    """Hard-link a file into `folder`, or copy it, and return its name; the host refuses symbolic links."""
    target = folder / f"{name}{source.suffix.lower()}"
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
    return target.name


def check_output(out: Path, info: ClipInfo | None = None, lossless: bool = False) -> None:
    """Raise unless OUT can be written: its kind, its folder, and the free space for a clip such as `info`."""
    if out.suffix.lower() in CONTAINERS:
        if out.is_dir():
            raise RunnerError(
                f"OUT: {out} is a folder; name a video file in it, or a folder without such an ending."
            )
        kind = "lossless" if lossless else "lossy"
    elif out.suffix and not out.is_dir() and not str(out).endswith(("/", os.sep)):
        raise RunnerError(
            f"OUT: must be a video ({' '.join(sorted(CONTAINERS))}) or a folder for PNGs; got {out.name}."
        )
    else:
        kind = "png"
        strangers = [f.name for f in out.iterdir() if not _is_frame(f)] if out.is_dir() else []
        if strangers or out.is_file():
            found = f"holds {strangers[0]}" if strangers else "is a file"
            raise RunnerError(
                f"OUT: the folder for PNG frames must be new or hold such frames only; {out} {found}."
            )
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise RunnerError(f"OUT: cannot write in {parent} ({error.strerror}).") from error
    if info:
        size = info.frames * info.height * info.width * _BYTES_PER_PIXEL[kind]
        require_space(parent, int(size), "OUT", "Free some space, or choose another place.")


def _is_frame(file: Path) -> bool:
    return re.fullmatch(r"frame_\d+\.png", file.name) is not None


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
    lossless: bool = False,
    crf: float = 12.0,
    audio_from: Path | None = None,
) -> int:
    """Write H.264 and return the frame count; `out` appears complete or not at all.

    Lossless is H.264 RGB, bit for bit; else yuv420p in BT.709 (yuv444p for odd sides, unfit for 4:2:0).
    """
    out = out.absolute()
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.stem}.", suffix=f".partial{out.suffix}")
    os.close(handle)
    try:
        count = _encode(
            Path(name), iter(frames), Fraction(rate).limit_denominator(60000), lossless, crf, audio_from
        )
        os.chmod(name, 0o644)
        os.replace(name, out)
    except av.FFmpegError as error:
        raise RunnerError(f"OUT: {out} could not be written ({error.strerror}).") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    return count


def _encode(
    out: Path, frames: Iterator[np.ndarray], rate: Fraction, lossless: bool, crf: float, audio_from
) -> int:
    first = next(frames, None)
    if first is None:
        raise RunnerError("OUT: a video needs at least one frame; got none.")
    height, width = first.shape[:2]
    layout = "rgb24" if lossless else ("yuv420p" if height % 2 == width % 2 == 0 else "yuv444p")
    count = 0
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(av.open(str(out), "w", options=_NO_TIME_OF_DAY))
        stream = container.add_stream("libx264rgb" if lossless else "libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, layout
        stream.options = (
            {"qp": "0", "preset": "veryfast"} if lossless else {"crf": str(crf), "preset": "medium"}
        )
        if not lossless:
            _tag_bt709(stream.codec_context)
        audio = _audio_packets(stack, container, audio_from) if audio_from else iter(())
        waiting = next(audio, None)
        for index, frame in enumerate(_chain(first, frames)):
            if frame.shape != first.shape:
                raise RunnerError(
                    f"OUT: all frames must have one size; got {frame.shape} after {first.shape}."
                )
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


def _tag_bt709(context) -> None:
    context.colorspace, context.color_primaries, context.color_trc, context.color_range = 1, 1, 1, 1


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
    original = stack.enter_context(_opened(source))
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
