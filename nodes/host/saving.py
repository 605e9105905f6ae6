"""Films in the output folder: the inputs that say how one is written, its name there, and what a node shows of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import folder_paths
import numpy as np
from comfy.cli_args import args
from comfy_api.latest import io, ui
from PIL import Image

from ...media.files import CONTAINERS, check_output
from ...media.plan import CODECS, Plan, check_codec
from ...media.reader import Wish, frames
from ...media.timeline import Timeline
from ...media.tracks import KEEP
from ...media.writer import write_video
from . import services
from .film import said_by, texts

ENDINGS = {
    **{"as source": None, "mp4": ".mp4", "mov": ".mov", "mkv": ".mkv", "webm": ".webm"},
    **{"webp": ".webp", "png": ".png", "png frames": ""},
}
_PREVIEW = 120, 480  # frames, and px of the longer side, of the small film that is shown for what no browser plays


def saving_inputs(prefix: str) -> list[io.Input]:
    """Describe how a film is written."""
    return [
        io.String.Input("filename_prefix", default=prefix, tooltip="Name in the output folder."),
        io.Combo.Input(
            "format",
            options=list(ENDINGS),
            default="as source",
            tooltip="Kind of file. As source: the same kind, or one that holds all of the source.",
        ),
        io.Combo.Input(
            "codec",
            options=list(CODECS),
            default="auto",
            tooltip="Auto: H.264; HEVC with 10 bits where the source is deep or HDR; what holds transparency.",
        ),
        io.Float.Input("crf", default=12.0, min=0.0, max=51.0, step=0.5, tooltip="Quality: 0 is best, 51 is worst."),
        io.Boolean.Input("lossless", default=False, tooltip="Keeps every bit of every pixel; large files."),
        io.Combo.Input(
            "keep_tracks",
            options=list(KEEP),
            default="all",
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


def graph_texts(hidden: io.HiddenHolder | None) -> dict[str, str]:
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
        return ui.PreviewVideo([ui.SavedResult(small.name, "", io.FolderType.temp)]).as_dict()
    result = ui.SavedResult(out.name, subfolder, io.FolderType.output)
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
