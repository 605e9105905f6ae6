"""Read and check clips with PyAV, and pass them to the host exactly; frames are (h, w, 3) uint8 RGB."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .encode import opened, write_video
from .errors import RunnerError
from .paths import require_space

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
CONTAINERS = {".mp4", ".mkv", ".mov"}
DEFAULT_RATE = Fraction(25)
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
    return sorted(files, key=lambda f: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", f.name.lower())])


def is_image(path: Path) -> bool:
    """Return whether a path is an image by its name."""
    return path.suffix.lower() in IMAGES


def probe(source: Path) -> ClipInfo:
    """Decode a clip to its end and describe it, so that defects are errors now and not in the middle of a run."""
    if not source.exists():
        raise RunnerError(f"IN: must be a video, an image or a folder of images; {source} does not exist.")
    if source.is_dir() or is_image(source):
        return _probe_images(source)
    count, height, width, end = 0, 0, 0, 0.0
    with opened(source) as container:
        stream = _video_stream(container, source)
        declared, rate = stream.frames, stream.average_rate or stream.guessed_rate or DEFAULT_RATE
        has_audio, promised = bool(container.streams.audio), _promised_seconds(container, stream)
        packets = 0
        try:
            for packet in container.demux(stream):
                packets += packet.size > 0
                for frame in packet.decode():
                    count += 1
                    height, width = frame.height, frame.width
                    if frame.rotation and round(frame.rotation / 90) % 2:
                        height, width = width, height  # a phone held upright
                    end = max(end, frame.time or 0.0)
        except av.FFmpegError as error:
            raise RunnerError(_broken(source, count, declared, error.strerror)) from error
    if count == 0:
        raise RunnerError(f"IN: must have at least one frame; {source} has none. It is empty, damaged or truncated.")
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
    with opened(source) as container:
        aligned = _Aligned()
        for frame in container.decode(_video_stream(container, source)):
            array = aligned(frame)
            yield np.rot90(array, k=round(frame.rotation / 90)).copy() if frame.rotation else array


class _Aligned:
    """Convert frames to RGB, padded meanwhile: libswscale is only reproducible at multiples of 32."""

    def __init__(self) -> None:
        self.ends: tuple | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if frame.format.is_rgb or frame.width % 32 == 0:
            return frame.to_ndarray(format="rgb24")
        if self.ends is None:
            self.ends = self._graph(frame)
        self.ends[0].push(frame)
        return np.ascontiguousarray(self.ends[1].pull().to_ndarray(format="rgb24")[: frame.height, : frame.width])

    def _graph(self, frame: av.VideoFrame) -> tuple:
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format.name, time_base=Fraction(1, 1000)
        )
        width, height = -(-frame.width // 32) * 32, -(-frame.height // 32) * 32
        pad = graph.add("pad", f"{width}:{height}:0:0")
        smear = f"right={width - frame.width}:bottom={height - frame.height}:mode=smear"
        fill, sink = graph.add("fillborders", smear), graph.add("buffersink")
        source.link_to(pad)
        pad.link_to(fill)
        fill.link_to(sink)
        graph.configure()
        return source, sink, graph


def _video_stream(container, source: Path):
    if not container.streams.video:
        raise RunnerError(f"IN: must have a video stream; {source} has none (sound only?).")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def stage(source: Path, folder: Path, name: str) -> str:
    """Put a clip where Load Video finds it and return its file name.

    ComfyUI 0.30 reads white as 254/255 (256/257 of every value) from all but a few pixel formats.
    PNG frames in a .mov are read exactly, so that is what 8-bit clips and images become, with their sound.
    """
    target = folder / staged_name(source, name)
    if target.suffix != ".mov" or _is_deep(source):
        return place(source, folder, name)
    moving = not (source.is_dir() or is_image(source))
    rate = probe(source).rate
    write_video(target, read_frames(source), rate, codec="png", audio_from=source if moving else None)
    return target.name


def staged_name(source: Path, name: str) -> str:
    """Return the file name that `stage` and `place` will give."""
    kept = name.startswith("reference_image") or _is_deep(source)
    return f"{name}{source.suffix.lower()}" if kept else f"{name}.mov"


def _is_deep(source: Path) -> bool:
    """Return whether a video has more than 8 bits a channel, which PNG staging would round away."""
    if source.is_dir() or is_image(source) or not source.exists():
        return False
    with opened(source) as container:
        layout = _video_stream(container, source).codec_context.format
        return layout is not None and layout.components[0].bits > 8


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
            raise RunnerError(f"OUT: {out} is a folder; name a video file in it, or a folder without such an ending.")
        kind = "lossless" if lossless else "lossy"
    elif out.suffix and not out.is_dir() and not str(out).endswith(("/", os.sep)):
        raise RunnerError(
            f"OUT: must be a video ({' '.join(sorted(CONTAINERS))}) or a folder for PNGs; got {out.name}."
        )
    else:
        kind = "png"
        names = [file.name for file in out.iterdir()] if out.is_dir() else []
        strangers = [name for name in names if not re.fullmatch(r"frame_\d+\.png", name)]
        if strangers or out.is_file():
            found = f"holds {strangers[0]}" if strangers else "is a file"
            raise RunnerError(f"OUT: the folder for PNG frames must be new or hold such frames only; {out} {found}.")
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
