"""Films between the host's VIDEO and media/: every time, tag and track stays with the VIDEO.

1. `Film` is the host's VIDEO over a source that media/ has read; host nodes find in it what they expect
2. `film_of` gives the Film behind any VIDEO: ours, one of the host with a file behind it, or plain frames
3. `read_images` decodes to IMAGE, `frames_of` leads back to what the writer takes
4. `saving_inputs`, `place` and `preview`: how a film is written to the output folder, and what a node shows of it
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import folder_paths
import numpy as np
import torch
import torch.nn.functional as F
from comfy.cli_args import args
from comfy_api.latest import Input, InputImpl, Types, ui
from comfy_api.latest import io as nodes_io
from PIL import Image

from ...media.colour import SDR, to_depth, tone_mapped
from ...media.errors import MediaError
from ...media.files import CONTAINERS, check_output, replacing
from ...media.plan import CODECS, Plan, check_codec, plan
from ...media.reader import Wish, frames, probe
from ...media.sound import Samples, read_sound
from ...media.timeline import Timeline
from ...media.tracks import KEEP
from ...media.writer import write, write_video
from ...models.layout.sizes import zeros
from . import services
from .progress import Progress

ENDINGS = {
    **{"as source": None, "mp4": ".mp4", "mov": ".mov", "mkv": ".mkv", "webm": ".webm"},
    **{"webp": ".webp", "png": ".png", "png frames": ""},
}
joints: dict[Path, tuple[int, ...]] = {}  # of films made by segments in this process: frames that begin one
_PREVIEW = 120, 480  # frames, and px of the longer side, of the small film that is shown for what no browser plays
_OPTION = re.compile(r"--([a-z][a-z-]*)")


@contextmanager
def said_by(title: str) -> Iterator[None]:
    """Turn errors of media/, which speaks to the user of the command, into errors of a node."""
    try:
        yield
    except MediaError as error:
        raise ValueError(f"{title}: {in_graph(str(error))}") from error


def in_graph(text: str) -> str:
    """Say a line of media/ in the words of a graph: IN is the source, OUT the result, an option is an input."""
    text, command, rest = text.partition("ffmpeg ")  # what is to be typed stays
    text = re.sub(r"^(IN|OUT): ", "", text)
    text = text.replace("the same command", "Run")
    text = _OPTION.sub(lambda found: found[1].replace("-", "_"), text)
    text = re.sub(r"\bIN\b", "the source", re.sub(r"\bOUT\b", "the result", text))
    return text + command + rest


class Film(Input.Video):
    """A VIDEO whose frames, times, tracks and tags media/ reads from their source, each time anew.

    `wish` says how its frames come, with transparency where the source has it. `parts`: of a VIDEO without a file,
    what it holds in memory.
    """

    def __init__(self, timeline: Timeline, wish: Wish | None = None, parts: Types.VideoComponents | None = None):
        self.timeline, self.parts = timeline, parts
        self.wish = replace(wish or Wish(16 if timeline.depth > 8 else 8), alpha=timeline.alpha)

    def get_components(self) -> Types.VideoComponents:
        """Decode everything: frames at their mean rate, and the first sound track from the first frame on."""
        if self.parts is not None:
            return self.parts
        with said_by("Film"):
            images, alpha = read_images(self)
            found = read_sound(self.timeline)
        audio = found and {"waveform": torch.from_numpy(found[0]).unsqueeze(0), "sample_rate": found[1]}
        known = {field.name for field in fields(Types.VideoComponents)}  # older hosts know no transparency
        more = {"alpha": alpha} if alpha is not None and "alpha" in known else {}
        return Types.VideoComponents(images=images, audio=audio, frame_rate=self.timeline.rate, **more)

    def samples(self, suffix: str, audio: dict | None = None) -> Samples | None:
        """Return AUDIO, or the sound of a VIDEO without a file, as the writer takes it; None: the source's tracks."""
        audio = audio or (self.parts and self.parts.audio)
        return audio and Samples(audio["waveform"][0].float().cpu().numpy(), int(audio["sample_rate"]), suffix)

    def pictures(self, wish: Wish, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yield frames `start` to `stop` (not included) as the writer takes them."""
        if self.parts is None:
            return frames(self.timeline, wish, start, stop)
        return frames_of(self.parts.images[start:stop], wish.depth, size=wish.size)

    def save_to(self, path, format=None, codec=None, metadata=None, bit_depth=None, crf=None, **newer) -> None:
        """Write an MP4 with everything that it can hold; a buffer gets its bytes.

        Depth and colours stay the film's own, whatever a host asks for (`newer`: color_space, preset).
        """
        with said_by("Film"), tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "film.mp4" if isinstance(path, io.BytesIO) else Path(path)
            quality = {} if crf is None else {"crf": crf}
            how = plan(out, self.timeline, tonemap=self.wish.tonemap, deinterlace=self.wish.deinterlace, **quality)
            sound, notes = self.samples(out.suffix), texts(metadata or {})
            write(out, self.pictures(how.wish), how, self.timeline, sound=sound, notes=notes)
            if isinstance(path, io.BytesIO):
                path.write(out.read_bytes())

    def as_trimmed(self, start_time=None, duration=None, strict_duration=True) -> Film | None:
        """Return the part from `start_time` (s, negative: from the end) that is `duration` long (s, 0: to the end)."""
        start, duration, times = start_time or 0.0, duration or 0.0, self.timeline.times
        start = max(0.0, self.timeline.duration + start) if start < 0 else start
        if strict_duration and start + duration > self.timeline.duration + 1e-3:
            return None
        first = int(np.searchsorted(times, start - 1e-6))
        stop = int(np.searchsorted(times, start + duration - 1e-6)) if duration else len(times)
        return Film(self.timeline.part(first, stop), self.wish) if first < stop else None

    def get_stream_source(self) -> str | io.BytesIO:
        """Return the file of a whole film; everything else is written into a buffer."""
        timeline = self.timeline
        if timeline.kind == "film" and timeline.whole is None and self.parts is None:
            return str(timeline.path)
        return super().get_stream_source()

    def get_dimensions(self) -> tuple[int, int]:
        """Return width and height, upright."""
        return self.timeline.width, self.timeline.height

    def get_bit_depth(self) -> int:
        """Return bits a channel as the host counts them: 8, or 10 for anything deeper."""
        return 10 if self.timeline.depth > 8 else 8

    def get_color_space(self) -> str:
        """Return what newer hosts ask for: sRGB, HDR (HLG) or HDR PQ."""
        hdr = "" if self.wish.tonemap else self.timeline.colour.hdr
        return {"PQ": "HDR PQ", "HLG": "HDR"}.get(hdr, "sRGB")

    def get_duration(self) -> float:
        """Return seconds."""
        return self.timeline.duration

    def get_frame_count(self) -> int:
        """Return the number of frames, which were counted."""
        return self.timeline.frames

    def get_frame_rate(self) -> Fraction:
        """Return frames per second, the mean of a variable rate."""
        return self.timeline.rate


def texts(metadata: dict) -> dict[str, str]:
    """Write what the host wants to be kept in a file (prompt, workflow) as texts."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}


def film_of(video: Input.Video, tick: Callable[[], None] | None = None) -> Film:
    """Give the Film behind a VIDEO of any node; one without a file keeps what it has in memory.

    `tick` is called at every frame that is read, and may raise to end it.

    Raises MediaError for a file that cannot be read, or a part of it without a frame.
    """
    if isinstance(video, Film):
        return video
    edited = hasattr(video, "has_pending_frame_edits") and video.has_pending_frame_edits()  # by hosts that crop, resize
    if isinstance(video, InputImpl.VideoFromFile) and not edited:
        source = video.get_stream_source()
        film = Film(read_times(_spilled(source) if isinstance(source, io.BytesIO) else Path(source), tick=tick))
        # older hosts know neither trimmed videos nor depths
        start, duration = video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0.0, 0.0)
        if not start and not duration:
            return film
        part = film.as_trimmed(start, duration, strict_duration=False)
        if part is None:
            raise MediaError(f"IN: the part from {start:g} s on must hold a frame; {film.timeline.path} ends before.")
        return part
    parts = video.get_components()
    depth = video.get_bit_depth() if hasattr(video, "get_bit_depth") else 8
    return Film(even_timeline(parts.images, Fraction(parts.frame_rate), depth), parts=parts)


def read_times(source: Path, rate: Fraction | None = None, tick: Callable[[], None] | None = None) -> Timeline:
    """Read a source to its end, as `probe`; the user may interrupt it, or whoever else `tick` asks."""
    beat = tick or Progress().beat
    return probe(source, rate, lambda _: beat())


def even_timeline(images: torch.Tensor, rate: Fraction, depth: int = 8) -> Timeline:
    """Describe IMAGE frames without a file behind them, `rate` of them a second."""
    count, height, width = images.shape[:3]
    rate, steps = rate.limit_denominator(60000), np.arange(count, dtype=np.int64)
    last = float(1 / rate)
    return Timeline(Path("frames"), "frames", height, width, steps, 1 / rate, rate, last=last, colour=SDR, depth=depth)


def _spilled(buffer: io.BytesIO) -> Path:
    """Write a film that is only in memory to the host's temporary folder, once, and return its path."""
    data = buffer.getvalue()
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"film-{hashlib.sha256(data).hexdigest()[:16]}.bin"
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_bytes(data)
        os.utime(path, (0, 0))  # the same film, whenever it was written
    return path


def read_images(film: Film, tick: Callable[[int, int], None] = lambda done, total: None):
    """Decode a film to IMAGE (frames, h, w, 3) in 0..1 and its opacity (frames, h, w), or None where all is opaque."""
    timeline = film.timeline
    shape = timeline.frames, timeline.height, timeline.width
    alpha = torch.empty(shape) if timeline.alpha else None
    return images_of(frames(timeline, film.wish), shape, tick, alpha), alpha


def images_of(
    pictures: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    tick: Callable[[int, int], None] = lambda done, total: None,
    alpha: torch.Tensor | None = None,
) -> torch.Tensor:
    """Collect `shape` (frames, h, w) pictures as IMAGE in 0..1, and their opacity in `alpha`, where that is given."""
    images = zeros((*shape, 3))
    for index, frame in enumerate(pictures):
        picture = torch.from_numpy(frame.astype(np.float32)) / float(np.iinfo(frame.dtype).max)
        images[index] = picture[..., :3]
        if alpha is not None:
            alpha[index] = picture[..., 3]
        tick(index + 1, shape[0])
    return images


def frames_of(
    images: torch.Tensor, depth: int, mapped: int = 0, size: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """Yield IMAGE frames as uint8 (`depth` 8) or uint16 (h, w, channels), rounded.

    `mapped`: the transfer (18 HLG, 16 PQ) of HDR frames that become BT.709 here, 0 for none. `size`: height and width
    in px of previews.
    """
    kind = np.uint8 if depth == 8 else np.uint16
    full = np.iinfo(np.uint16 if mapped else kind).max
    for image in images:
        if size and image.shape[:2] != size:
            image = F.interpolate(image.movedim(-1, 0)[None].float(), size, mode="area")[0].movedim(0, -1)
        values = np.rint(image.float().clamp(0, 1).cpu().numpy() * full)
        frame = values.astype(np.uint16 if mapped else kind)
        yield to_depth(tone_mapped(frame, mapped), depth) if mapped else frame


def masked(pictures: Iterator[np.ndarray], mask: torch.Tensor) -> Iterator[np.ndarray]:
    """Yield RGBA: one mask for all frames or one each, brought to their size."""
    for index, picture in enumerate(pictures):
        opacity = Image.fromarray(1 - mask[min(index, len(mask) - 1)].float().cpu().numpy())
        opacity = np.asarray(opacity.resize(picture.shape[1::-1], Image.Resampling.BICUBIC))
        full = np.iinfo(picture.dtype).max
        yield np.dstack([picture[..., :3], np.rint(opacity.clip(0, 1) * full).astype(picture.dtype)])


# Films in the output folder


def saving_inputs(prefix: str) -> list[nodes_io.Input]:
    """Describe how a film is written."""
    return [
        nodes_io.String.Input("filename_prefix", default=prefix, tooltip="Name in the output folder."),
        nodes_io.Combo.Input(
            "format",
            options=list(ENDINGS),
            default="as source",
            tooltip="Kind of file. As source: the same kind, or one that holds all of the source.",
        ),
        nodes_io.Combo.Input(
            "codec",
            options=list(CODECS),
            default="auto",
            advanced=True,
            tooltip="Auto: H.264; HEVC with 10 bits where the source is deep or HDR; what holds transparency.",
        ),
        nodes_io.Float.Input(
            "crf", default=12.0, min=0.0, max=51.0, step=0.5, tooltip="Quality: 0 is best, 51 is worst."
        ),
        nodes_io.Boolean.Input(
            "lossless", default=False, advanced=True, tooltip="Keeps every bit of every pixel; large files."
        ),
        nodes_io.Combo.Input(
            "keep_tracks",
            options=list(KEEP),
            default="all",
            advanced=True,
            tooltip="Which of the source's sound tracks and subtitles go on.",
        ),
    ]


def check_saving(title: str, prefix: str | None, format: str | None, codec: str | None) -> bool | str:
    """Try name and codec before the work, for `validate_inputs`; what is linked is None, and not known yet."""
    try:
        for name, value, allowed in (("format", format, ENDINGS), ("codec", codec, CODECS)):
            if value is not None:
                services.check_choice(title, name, value, allowed)
        suffix = ENDINGS[format or "as source"]
        with said_by(title):
            if prefix:
                place(prefix, ".mp4" if suffix is None else suffix, 1, 1)
            if suffix in CONTAINERS and codec:
                check_codec(codec, suffix)
    except ValueError as error:
        return str(error)
    return True


def place(prefix: str, suffix: str, width: int, height: int) -> tuple[Path, str]:
    """Return where the next result of this name goes, and its folder below the output folder."""
    root = folder_paths.get_output_directory()
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, root, width, height)
    out = Path(folder) / f"{name}_{counter:05}_{suffix}"
    check_output(out, [])
    return out, subfolder


def graph_texts(hidden: nodes_io.HiddenHolder | None) -> dict[str, str]:
    """Return the graph, for the file to carry, unless the host's user wants none."""
    if args.disable_metadata or hidden is None:
        return {}
    prompt = {} if hidden.prompt is None else {"prompt": _plain(hidden.prompt)}
    return texts({**(hidden.extra_pnginfo or {}), **prompt})


def _plain(prompt: dict) -> dict:
    """Leave out what the host notes in a graph while it runs, such as times of files."""
    return {key: {name: part for name, part in node.items() if name != "is_changed"} for key, node in prompt.items()}


def _plays(out: Path, how: Plan, size: tuple[int, int]) -> bool:
    """Return whether browsers play a result of this height and width."""
    layouts = {".mp4": ("yuv420p",), ".webm": ("yuv420p", "yuva420p")}.get(out.suffix, ())
    return how.encoding.layout in layouts and how.encoding.encoder != "libx265" and not any(side % 2 for side in size)


def preview(out: Path, subfolder: str, how: Plan, size: tuple[int, int], clip: Timeline) -> dict:
    """Return what the node shows: the file, or a small film of its beginning where browsers do not play it.

    `size`: height and width of the written frames in px; `clip`: their times.
    """
    if how.kind == "folder":
        subfolder, out = str(Path(subfolder) / out.name), out / "frame_00001.png"
    elif how.kind == "film" and not _plays(out, how, size):
        small = Path(folder_paths.get_temp_directory()) / f"{out.stem}preview.mp4"
        small.parent.mkdir(parents=True, exist_ok=True)
        write_video(small, _beginning(out, how, size, clip), clip.rate)
        return ui.PreviewVideo([ui.SavedResult(small.name, "", nodes_io.FolderType.temp)]).as_dict()
    result = ui.SavedResult(out.name, subfolder, nodes_io.FolderType.output)
    animated = how.kind in ("film", "animation")
    return ui.PreviewVideo([result]).as_dict() if animated else {"images": [result]}


def _beginning(out: Path, how: Plan, size: tuple[int, int], clip: Timeline):
    """Yield the first frames of a written film, small; to probe all of it would take as long as the film is."""
    written = replace(
        clip.part(0, _PREVIEW[0]),
        path=out,
        kind="film",
        height=size[0],
        width=size[1],
        turn=0,
        mirrored=False,
        colour=how.colour,
        depth=how.encoding.bits,
        alpha=how.encoding.alpha,
        damaged=(),
        jumps=(),
        whole=None,
        first=0,
    )
    for frame in frames(written, Wish(tonemap=True)):
        small = Image.fromarray(frame)
        small.thumbnail(_PREVIEW[1:] * 2)
        yield np.asarray(small.resize([max(2, side // 2 * 2) for side in small.size]))
