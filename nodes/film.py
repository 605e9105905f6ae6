"""Load Film and Save Film: a film keeps its time, colour, depth, transparency, sound and tracks.

1. Load Film reads a film, an animated picture, one picture or a folder of them: VIDEO, IMAGE and MASK
2. whatever the graph makes of the IMAGE goes to Save Film, with the VIDEO as its source
3. Save Film gives every frame the time of its source, and the file its tags, tracks and transparency
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.latest import Input, InputImpl, io

from ..media.files import CONTAINERS, FILMS, is_picture
from ..media.plan import Plan, natural_ending, plan
from ..media.reader import Wish, probe, with_transparency
from ..media.timeline import Timeline
from ..media.writer import write
from ..models.layout.sizes import ClipSize
from .beginning import beginning, first_seconds_input
from .host import services
from .host.film import (
    ENDINGS,
    Film,
    check_saving,
    even_timeline,
    film_of,
    frames_of,
    graph_texts,
    in_graph,
    masked,
    place,
    preview,
    read_images,
    read_times,
    said_by,
    saving_inputs,
)
from .host.progress import Progress
from .host.room import check_room, clip_bytes
from .samples import placed_samples

_LOAD, _SAVE = "Load Film", "Save Film"


class LoadFilm(io.ComfyNode):
    """Reads a source with everything it has."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRLoadFilm",
            display_name=_LOAD,
            category=services.CATEGORY,
            description=(
                "Loads a film, an animated picture (GIF, WebP, PNG), one picture, or a folder of pictures from the "
                "input folder, upright and with exact colours. Link its video to Save Film, which gives the result "
                "the same times, sound, tracks, tags and transparency."
            ),
            search_aliases=[
                "load video",
                "import video",
                "open video",
                "load gif",
                "image sequence",
                "alpha video",
                "cascade vsr",
            ],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=_sources(),
                    upload=io.UploadType.video,
                    tooltip="A film, a picture, or a folder of pictures in the input folder.",
                ),
                io.Int.Input(
                    "start", default=0, min=0, max=10**7, tooltip="Frames that are left out at the beginning."
                ),
                io.Int.Input(
                    "frames", default=0, min=0, max=10**7, tooltip="Frames that are loaded; 0 is all of them."
                ),
                io.Boolean.Input(
                    "deinterlace",
                    default=False,
                    advanced=True,
                    tooltip="Makes one whole frame of every two fields of an interlaced film (bwdif).",
                ),
                io.Boolean.Input(
                    "tonemap",
                    default=False,
                    advanced=True,
                    tooltip=(
                        "Makes BT.709 of an HDR film, white at 203 nits. Off: HDR goes through as it is, looks pale in "
                        "previews, and Save Film keeps it."
                    ),
                ),
                io.Float.Input(
                    "rate",
                    default=25.0,
                    min=0.01,
                    max=1000.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Frames per second of a folder of pictures; films and animated pictures have their own.",
                ),
                first_seconds_input(),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The film itself, for Save Film."),
                io.Image.Output(display_name="images", tooltip="Its frames, upright."),
                io.Mask.Output(display_name="mask", tooltip="1 where a frame is transparent, as of Load Image."),
                io.Float.Output(display_name="fps", tooltip="Frames per second, on average."),
                io.Int.Output(display_name="count", tooltip="Number of frames."),
            ],
        )

    @classmethod
    def execute(
        cls,
        file: str,
        start: int,
        frames: int,
        deinterlace: bool,
        tonemap: bool,
        rate: float,
        first_seconds: float = 0.0,
    ):
        """Read the source to its end, then its frames."""
        path = Path(folder_paths.get_annotated_filepath(file))
        with said_by(_LOAD):
            timeline = read_times(path, Fraction(rate).limit_denominator(60000) if path.is_dir() else None)
            if deinterlace and timeline.kind != "film":
                raise ValueError(f"{_LOAD}: deinterlace is for films; {file} is a picture. Switch it off.")
            timeline = timeline.part(start, start + frames if frames else timeline.frames)
            timeline = beginning(timeline, first_seconds)
            remedy = " Load a part of it (start, frames), or link Load Video to Upscale Film."
            size = ClipSize(timeline.frames, timeline.height, timeline.width)
            check_room(_LOAD, size, clip_bytes(size), remedy)
            film = Film(timeline, Wish(16 if timeline.depth > 8 else 8, tonemap=tonemap, deinterlace=deinterlace))
            images, opacity = read_images(film, Progress(_LOAD, timeline.frames))
        shape = images.shape[:3]
        mask = torch.zeros(1, 1, 1).expand(shape) if opacity is None else 1 - opacity
        lines = _described(file, film)
        rate = float(timeline.rate)
        return io.NodeOutput(film, services.mark_finite(images), mask, rate, timeline.frames, ui={"text": lines})

    @classmethod
    def validate_inputs(cls, file: str):
        """Say before the work that a file is missing; its name need not be in the list."""
        return True if folder_paths.exists_annotated_filepath(file) else f"{_LOAD}: file must exist; got {file}."

    @classmethod
    def fingerprint_inputs(cls, file: str, **_):
        """Notice a changed file."""
        return services.newest_change(Path(folder_paths.get_annotated_filepath(file)))


def _sources() -> list[str]:
    """List what the input folder holds, films, pictures, folders of pictures, and the sample clips."""
    found = []
    for path in Path(folder_paths.get_input_directory()).iterdir():
        with contextlib.suppress(OSError):  # a folder that may not be read is none of pictures
            files = path.iterdir() if path.is_dir() else [path]
            if any(is_picture(file) or (file is path and file.suffix.lower() in FILMS) for file in files):
                found.append(path.name)
    return [*sorted(found), *placed_samples()]


def _described(file: str, film: Film) -> list[str]:
    """Return lines on a source for the node and the log: what it is, and what its user should know."""
    timeline, wish = film.timeline, film.wish
    lines = [f"{timeline.frames} frames {timeline.width}x{timeline.height} at {float(timeline.rate):.5g} fps"]
    lines += timeline.notes()
    if timeline.interlaced and not wish.deinterlace:
        lines.append("interlaced, and its combs would be enlarged: switch deinterlace on")
    if timeline.colour.hdr:
        kept = "becomes BT.709, white at 203 nits" if wish.tonemap else "goes through as it is; previews look pale"
        lines.append(f"HDR ({timeline.colour.hdr}) {kept}")
    for line in lines[1:]:
        logging.getLogger(__name__).warning("%s: %s: %s", _LOAD, file, line)
    return lines


class SaveFilm(io.ComfyNode):
    """Writes a film as its source was."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRSaveFilm",
            display_name=_SAVE,
            category=services.CATEGORY,
            description=(
                "Writes frames to the output folder, each at the time of its source's, with the source's sound, "
                "subtitles, chapters, colour tags, depth, pixel shape and transparency, as far as the format holds "
                "them. It says what stays behind."
            ),
            search_aliases=[
                "save video",
                "export video",
                "video combine",
                "save gif",
                "save prores",
                "save webm",
                "cascade vsr",
            ],
            inputs=[
                io.Image.Input("images", optional=True, tooltip="The frames; without them, those of the source."),
                io.Video.Input(
                    "source",
                    optional=True,
                    tooltip="The film that the frames were made from, best of Load Film: its times and tracks go on.",
                ),
                io.Audio.Input("audio", optional=True, tooltip="Sound in the place of the source's tracks."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 where the result is transparent. Without it, the source's transparency is enlarged.",
                ),
                *saving_inputs("video/film"),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="Frames per second. 0: the times of the source. Needed without a source.",
                ),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="The written film.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None, format: str | None, codec: str | None):
        """Try name and codec before the work."""
        return check_saving(_SAVE, filename_prefix, format, codec)

    @classmethod
    def execute(
        cls,
        filename_prefix: str,
        format: str,
        codec: str,
        crf: float,
        lossless: bool,
        keep_tracks: str,
        fps: float,
        images: torch.Tensor | None = None,
        source: Input.Video | None = None,
        audio: dict | None = None,
        mask: torch.Tensor | None = None,
    ):
        """Decide how, then write."""
        if images is not None:
            services.check_frames(_SAVE, "images", images)
        with said_by(_SAVE):
            film, timeline, lines = _timed(images, source, fps, codec)
            clear = _is_clear(images, mask, film, timeline)
            timeline = replace(timeline, alpha=clear)
            suffix = natural_ending(timeline) if ENDINGS[format] is None else ENDINGS[format]
            height, width = (timeline.height, timeline.width) if images is None else images.shape[1:3]
            out, subfolder = place(filename_prefix, suffix, width, height)
            how = plan(
                out,
                timeline,
                codec=codec if suffix in CONTAINERS else "auto",
                crf=crf,
                lossless=lossless,
                tonemap=film.wish.tonemap,
                deinterlace=film.wish.deinterlace and timeline.kind == "film",
                keep="none" if audio is not None else keep_tracks,
                size=(height, width),
            )
            lines += [in_graph(line) for line in how.notes]
            pictures = _counted(_pictures(images, mask, film, how, clear), timeline.frames)
            sound = film.samples(suffix, audio) if how.kind == "film" else None
            write(out, pictures, how, timeline, keep_tracks, sound=sound, notes=graph_texts(cls.hidden))
        for line in lines:
            logging.getLogger(__name__).warning("%s: %s", _SAVE, line)
        video = InputImpl.VideoFromFile(str(out)) if how.kind == "film" else Film(probe(out))
        view = preview(out, subfolder, how, (height, width), timeline)
        return io.NodeOutput(video, ui={**view, "text": [out.name, *lines]})


def _timed(images, source, fps: float, codec: str) -> tuple[Film, Timeline, list[str]]:
    """Return the source, the timeline of the result, and lines on what is lost."""
    if source is None:
        if images is None:
            raise ValueError(f"{_SAVE}: images or source must be linked; got neither. Link the frames of the result.")
        if not fps:
            raise ValueError(f"{_SAVE}: fps must be set without a source; got 0. Link a source, or set fps.")
        deep = 8 if codec in ("auto", "h264", "vp9") else 16  # of numbers that have all depth
        timeline = even_timeline(images, Fraction(fps), deep)
        return Film(timeline), timeline, []
    film, lines = film_of(source), []
    if film.parts is not None:
        lines.append("the source has no file behind it: one even frame rate and one sound track are all it has")
    timeline, count = film.timeline, film.timeline.frames if images is None else len(images)
    if not fps and count == timeline.frames:
        return film, timeline, lines
    rate = Fraction(fps).limit_denominator(60000) if fps else timeline.rate
    steps, last = np.arange(count, dtype=np.int64), float(1 / rate)
    even = replace(timeline, pts=steps, time_base=1 / rate, rate=rate, constant=True, last=last)
    if count != timeline.frames and not fps:
        lines.append(f"{count} frames, and the source has {timeline.frames}: even times at its rate; fps sets another")
    if abs(even.duration - timeline.duration) > 2.5 * max(last, float(1 / timeline.rate)):
        lines.append(
            f"the result lasts {even.duration:.2f} s, and the source {timeline.duration:.2f} s: its sound and tracks "
            "stay behind"
        )
        even = replace(even, kind="frames")
    return film, even, lines


def _is_clear(images, mask, film: Film, timeline: Timeline) -> bool:
    """Return whether the result has transparency: the mask's, the frames' own, or the source's."""
    if mask is not None:
        services.check_count(_SAVE, "mask", len(mask), timeline.frames if len(mask) > 1 else 1)
        return True
    if images is not None and images.shape[-1] == 4:
        return True
    return film.timeline.alpha and timeline.frames == film.timeline.frames


def _pictures(images, mask, film: Film, how: Plan, clear: bool) -> Iterator[np.ndarray]:
    """Yield the frames of the result as the writer takes them; `clear`: RGBA, which it lays on black where it must."""
    if images is None:
        pictures = film.pictures(how.wish)
    else:
        mapped = film.timeline.colour.transfer if how.wish.tonemap and not film.wish.tonemap else 0
        pictures = frames_of(images if mask is None else images[..., :3], how.wish.depth, mapped)
        if clear and mask is None and images.shape[-1] == 3:
            pictures = with_transparency(pictures, film.timeline, how.wish)
    return pictures if mask is None else masked(pictures, mask)


def _counted(pictures: Iterator[np.ndarray], total: int) -> Iterator[np.ndarray]:
    """Pass frames on and show the progress."""
    tick = Progress(_SAVE, total)
    for index, picture in enumerate(pictures):
        yield picture
        tick(index + 1, total)
