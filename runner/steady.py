"""`run.py steady`: a film that was upscaled frame by frame, made to agree with its neighbours and with its source.

OUT keeps what UPSCALED has: times, sound, tags; IN, the film before it was upscaled, only says what is right.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..media.reader import probe
from ..media.timeline import Timeline
from .binding import STEADY, bind_references, load_film
from .errors import RunnerError
from .host import Host
from .pack import load
from .stage import staged_name
from .upscale import reference_files, run
from .workflow import Workflow


def main(options: argparse.Namespace, host: Host) -> int:
    """Check that the films belong together, then run the node over them."""
    if not (options.input and options.output and options.source):
        raise RunnerError("UPSCALED, OUT and --source: must be names of files; got an empty one.")
    clip = probe(Path(options.input))
    source = reference_files([], [options.source], "--source")["reference_video_0"]
    check(clip, source)
    references = {"source": source, **reference_files(options.reference, [])}
    if options.reference_video:
        references["original"] = reference_files([], [options.reference_video])["reference_video_0"]
    controls = {name: getattr(options, name) for name in ("steadiness", "fidelity", "sharpness")}
    if wrong := next((name for name, value in controls.items() if not 0 <= value <= 1), None):
        raise RunnerError(f"--{wrong}: must be in 0..1; got {controls[wrong]:g}.")
    workflow = Workflow({}, "steady")
    films = ("input", *(name for name in references if not name.startswith("reference_image")))
    frames = {name: [load_film(workflow, name.capitalize(), f"{name}.mov"), 1] for name in films}
    inputs = {"images": frames["input"], "lr_frames": frames["source"], "source": options.quality_of_source, **controls}
    if "original" in frames:
        inputs["original"] = frames["original"]
    steady = workflow.add(STEADY, "Steady Upscaled Video", **inputs)
    pictures = [staged_name(name, clip.path) for name, clip in references.items() if name.startswith("reference_image")]
    bind_references(workflow, pictures, [])
    workflow.add("PreviewImage", "Output", images=[steady, 0])
    return run(workflow, clip, references, options, host, (clip.height, clip.width), strict=True)


def check(clip: Timeline, source: Timeline) -> None:
    """Raise unless one film can be the other, upscaled: as many frames, one shape, 1 to 8 times as large."""
    if clip.frames != source.frames:
        raise RunnerError(
            f"--source: must have as many frames as UPSCALED ({clip.frames}); got {source.frames}. Name the film that "
            "it was made from, or cut both alike."
        )
    try:
        load("models.steady").check_pair((source.height, source.width), (clip.height, clip.width))
    except ValueError as error:
        raise RunnerError(f"--source: {error}") from error
