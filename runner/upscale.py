"""`run.py upscale`: any workflow over any clip, headless; frame count and size come out exactly."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .binding import Target, bind_input, bind_prompt, bind_references, bind_target, check_loaders, parse_size
from .encode import write_pngs, write_video
from .errors import RunnerError
from .host import Host
from .job import Outcome, open_job
from .pack import load
from .paths import cache_root, require_space, write_atomic
from .video import CONTAINERS, ClipInfo, check_output, is_image, place, probe, stage, staged_name
from .workflow import Workflow, is_shipped

_TARGETS = {"scale": ("scale",), "short side": ("short_side",), "exact size": ("height", "width")}


def main(options: argparse.Namespace, host: Host) -> int:
    """Check everything that can be checked first, then run, then write OUT."""
    source, out = Path(options.input), Path(options.output)
    workflow = Workflow.load(options.workflow)
    files = {"input": source} | reference_files(options.reference, options.reference_video)
    fill(workflow, options, files)
    info = probe(source)
    check_sides(info)
    if out.absolute() == source.absolute():
        raise RunnerError(f"OUT: must be another file than IN; got {out} twice.")
    expected = expected_size(workflow, info)
    check_output(out, expected or info, options.lossless)
    if expected:
        _check_scratch(expected)
    arrow = f"  ->  {expected.width}x{expected.height}" if expected else ""
    print(f"IN: {info.frames} frames {info.width}x{info.height} at {float(info.rate):g} fps{arrow}", flush=True)
    with open_job(host, options.port, True if options.cpu else None) as job:
        for name, file in files.items():
            (place if name.startswith("reference_image") else stage)(file, job.input_dir, name)
        outcome = job.run(workflow)
        verify(outcome, info, expected, strict=is_shipped(options.workflow))
        write(out, outcome, info, source, options)
    costs = outcome.costs()
    memory = f"{costs['peak_memory_mb']} MB peak memory" if costs["peak_memory_mb"] else "peak memory unknown"
    print(
        f"OUT: {out}  {costs['frames']} frames {costs['width']}x{costs['height']}, "
        f"{costs['seconds_per_frame']:.3f} s a frame, {memory}, {costs['network_calls']} network calls"
    )
    if options.json:
        write_atomic(Path(options.json), json.dumps(costs, indent=1) + "\n")
    return 0


def reference_files(images: list[str], videos: list[str]) -> dict[str, Path]:
    """Check reference files and name them as they will be staged."""
    files = {f"reference_image_{i}": Path(name) for i, name in enumerate(images)}
    files |= {f"reference_video_{i}": Path(name) for i, name in enumerate(videos)}
    for name, file in files.items():
        option = "--reference" if name.startswith("reference_image") else "--reference-video"
        try:
            if name.startswith("reference_image") and not (file.is_file() and is_image(file)):
                raise RunnerError(f"must be an image file; got {file}.")
            probe(file)
        except RunnerError as error:
            raise RunnerError(f"{option}: {str(error).removeprefix('IN: ')}") from error
    return files


def fill(workflow: Workflow, options: argparse.Namespace, files: dict[str, Path]) -> None:
    """Connect files and options to the workflow; --set comes last, so that it wins."""
    names = {name: staged_name(file, name) for name, file in files.items()}
    bind_input(workflow, names["input"])
    bind_target(workflow, Target(options.scale, parse_size(options.size) if options.size else None))
    bind_prompt(workflow, options.prompt)
    bind_references(
        workflow,
        [file for name, file in names.items() if name.startswith("reference_image")],
        [file for name, file in names.items() if name.startswith("reference_video")],
    )
    for setting in options.settings:
        workflow.set(setting)
    check_loaders(workflow, names.values())


def check_sides(info: ClipInfo) -> None:
    """Refuse what no model can enlarge sensibly."""
    if min(info.height, info.width) < 2:
        raise RunnerError(f"IN: both sides must be at least 2 pixels; got {info.width}x{info.height}.")


def expected_size(workflow: Workflow, info: ClipInfo) -> ClipInfo | None:
    """Return the result's exact measures where one Cascade Input states them in numbers, else None."""
    nodes = workflow.of_type("VSRCascadeInput")
    if len(nodes) != 1:
        return None
    inputs = workflow.prompt[nodes[0]]["inputs"]
    values = [inputs.get(f"target.{name}") for name in _TARGETS.get(inputs.get("target"), ())]
    if not values or not all(isinstance(value, int | float) for value in values):
        return None  # another choice, or connected to a node
    name = {"scale": "scale", "short side": "short_side", "exact size": "exact"}[inputs["target"]]
    chosen = {name: values[0] if len(values) == 1 else tuple(values)}
    try:
        height, width = load("models.layout.sizes").target_size(info.height, info.width, **chosen)
    except ValueError as error:
        raise RunnerError(f"--scale/--size: {error}") from error
    return ClipInfo(info.frames, height, width, info.rate, info.has_audio)


def _check_scratch(expected: ClipInfo) -> None:
    """The host writes the frames once, uncompressed, before they are encoded."""
    needed = expected.frames * expected.height * expected.width * 3
    require_space(cache_root(), needed, "Scratch space", "Free some, or set CASCADEVSR_CACHE to another disk.")


def verify(outcome: Outcome, info: ClipInfo, expected: ClipInfo | None, strict: bool) -> None:
    """Compare the frames that came with those expected; own workflows may change them on purpose."""
    count, height, width = outcome.frames.shape[:3]
    wanted = (info.frames, expected.height, expected.width) if expected else (info.frames, height, width)
    if (count, height, width) == wanted:
        return
    text = f"{count} frames {width}x{height} came out; expected {wanted[0]} frames {wanted[2]}x{wanted[1]}"
    if strict:
        raise RunnerError(f"OUT: {text}. Nothing was written; please report this.")
    print(f"Note: {text}.", flush=True)


def write(out: Path, outcome: Outcome, info: ClipInfo, source: Path, options: argparse.Namespace) -> None:
    """Write OUT; sound follows into a video while the frame count, and so the duration, is the source's."""
    if out.suffix.lower() not in CONTAINERS:
        write_pngs(out, outcome.frames)
        return
    audio = source if info.has_audio and len(outcome.frames) == info.frames else None
    write_video(
        out,
        outcome.frames,
        info.rate,
        codec="h264-rgb" if options.lossless else "h264",
        crf=options.crf,
        audio_from=audio,
    )
