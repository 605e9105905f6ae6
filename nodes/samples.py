"""Sample Clip: small clips that come with the pack, so that the first Run needs no file.

They lie in assets/samples, whose origin and licence assets/README.md states. Load Film finds copies of them in the
host's temporary folder: there the editor plays them, as it plays files of the input folder.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import folder_paths
from comfy_api.latest import InputImpl, io

from .host import services
from .host.film import Film, read_images, read_times
from .host.progress import Progress

_TITLE = "Sample Clip"
_FOLDER = Path(__file__).parent.parent / "assets" / "samples"
CLIPS = {"bunny 160x90": "bunny_160x90.mp4", "bunny 640x360 (its original)": "bunny_640x360.mp4"}


class SampleClip(io.ComfyNode):
    """Gives a clip that is always there."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRSampleClip",
            display_name=_TITLE,
            category=services.CATEGORY,
            description=(
                "A clip of 32 frames that comes with Cascade VSR, to try a graph without a file of your own: a piece "
                "of Big Buck Bunny, (c) 2008 Blender Foundation, www.bigbuckbunny.org, licence CC BY 3.0. For your own "
                "film use Load Film or Load Video instead."
            ),
            search_aliases=["sample video", "example video", "test clip", "demo", "big buck bunny", "cascade vsr"],
            inputs=[
                io.Combo.Input(
                    "clip",
                    options=list(CLIPS),
                    default=next(iter(CLIPS)),
                    tooltip="The small clip to upscale, or the same piece four times as large, to compare with.",
                ),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The clip as a film."),
                io.Image.Output(display_name="images", tooltip="Its frames."),
            ],
        )

    @classmethod
    def execute(cls, clip: str):
        """Read the clip."""
        services.check_choice(_TITLE, "clip", clip, CLIPS)
        path = _FOLDER / CLIPS[clip]
        timeline = read_times(path, None)
        images, _ = read_images(Film(timeline), Progress())
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), services.mark_finite(images))


def sample_film() -> Film:
    """Give the small clip as a film, for a node that nothing is linked to."""
    return Film(read_times(_FOLDER / next(iter(CLIPS.values())), None))


def place_samples() -> None:
    """Copy the clips to the temporary folder, which the host empties when it starts and ends."""
    folder = Path(folder_paths.get_temp_directory())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in CLIPS.values():
            shutil.copyfile(_FOLDER / name, folder / name)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: no copy for Load Film (%s)", _TITLE, error)


def placed_samples() -> list[str]:
    """Return what Load Film calls the clips that lie in the temporary folder."""
    folder = Path(folder_paths.get_temp_directory())
    return [f"{name} [temp]" for name in CLIPS.values() if (folder / name).is_file()]
