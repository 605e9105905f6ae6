"""`run.py upscale`: any workflow over any clip, headless; frame count and size come out exactly.

1. check everything that can be checked first: the workflow, IN to its end, OUT's place, what OUT keeps of IN
2. stage IN for the host and run the workflow
3. write OUT with the times, tags, sound and transparency of IN; a long film by segments (segments.py)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from ..media.errors import MediaError
from ..media.files import CONTAINERS, check_output, is_picture, same_place, try_name
from ..media.pace import Pace, duration
from ..media.plan import Plan, plan
from ..media.reader import frames, probe
from ..media.segments import Segment
from ..media.timeline import Timeline
from .binding import (
    Target,
    bind_image_model,
    bind_input,
    bind_prompt,
    bind_references,
    bind_target,
    check_loaders,
    parse_size,
    sized_by,
    uses_sound,
)
from .errors import RunnerError
from .host import Host
from .job import open_job
from .pack import load
from .paths import cache_root, require_space, write_atomic
from .progress import Whole, counted
from .segments import begin, by_segments
from .stage import stage, staged_name
from .work import Work, stage_models, stage_references, verify, write
from .workflow import Workflow, is_shipped

# Cascade Input's target -> its inputs, and the rule's name in models/layout/sizes.py
_TARGETS = {
    "scale": (("scale",), "scale"),
    "short side": (("short_side",), "short_side"),
    "largest edge": (("largest_edge",), "long_side"),
    "exact size": (("height", "width"), "exact"),
}
# what a pixel of the result takes on disk at 8 bits, about, for noisy clips; used only for the check of free space
_BYTES_PER_PIXEL = {"pictures": 2.6, "lossless": 2.2, "film": 0.5}


def main(options: argparse.Namespace, host: Host) -> int:
    """Fill in the workflow, then run it."""
    if not (options.input and options.output):
        raise RunnerError("IN and OUT: must be names of files; got an empty one.")
    if options.image_model:
        return with_image_model(options, host)
    source = Path(options.input)
    if options.workflow == "Upscale-a-Video":  # the default, in which references act through the model alone
        made_for = [
            ("Upscale-an-Edited-Video", options.reference_video),
            ("Upscale-with-Identity-Images", options.reference),
        ]
        options.workflow = next((name for name, given in made_for if given), options.workflow)
    workflow = Workflow.load(options.workflow)
    references = reference_files(options.reference, options.reference_video)
    fill(workflow, options, {"input": source, **{name: clip.path for name, clip in references.items()}})
    clip = probe(source, parse_rate(options.rate))
    expected = expected_size(workflow, clip.height, clip.width)
    return run(workflow, clip, references, options, host, expected, is_shipped(options.workflow))


def with_image_model(options: argparse.Namespace, host: Host) -> int:
    """Run the workflow that upscales by an image upscaler's file, frame by frame, and makes the frames steady."""
    model = Path(options.image_model)
    if not model.exists():
        raise RunnerError(f"--image-model: not found: {model} does not exist. Check its name and folder.")
    if not model.is_file():
        raise RunnerError(f"--image-model: must be a file with an upscaler's weights; got {model}.")
    if options.workflow == "Upscale-a-Video":  # the default
        options.workflow = "Upscale-with-any-Model"
    workflow, source = Workflow.load(options.workflow), Path(options.input)
    references = reference_files(options.reference, options.reference_video)
    clip = probe(source, parse_rate(options.rate))
    size = None
    if options.scale is not None or options.size:
        exact = parse_size(options.size)[::-1] if options.size else None
        rule = {"exact": exact} if exact else {"scale": options.scale, "multiple": 2}
        try:
            size = load("models.layout.sizes").target_size(clip.height, clip.width, **rule)
            load("models.steady").check_pair((clip.height, clip.width), size)
        except ValueError as error:
            raise RunnerError(f"--scale/--size: {error}") from error
    options.scale = options.size = None
    fill(workflow, options, {"input": source, **{name: clip.path for name, clip in references.items()}})
    bind_image_model(workflow, f"{model.stem}{model.suffix.lower()}", size and size[::-1])
    models = {"upscale_models": model}
    return run(workflow, clip, references, options, host, size, is_shipped(options.workflow), models)


def run(
    workflow: Workflow,
    clip: Timeline,
    references: dict[str, Timeline],
    options: argparse.Namespace,
    host: Host,
    expected: tuple[int, int] | None,
    strict: bool,
    models: dict[str, Path] | None = None,
) -> int:
    """Check everything that can be checked, run a filled-in workflow over a clip, and write OUT.

    `references`: what else is staged, by the names in the workflow. `expected`: height and width of the result, where
    known. `strict`: another number or size of frames than expected is an error. `models`: files for the host, by the
    folder that it looks into.
    """
    out = Path(options.output)
    check_sides(clip.height, clip.width)
    if options.first:
        clip = clip.part(0, first_frames(options.first, clip))
    sources = [clip.path, *(reference.path for reference in references.values())]
    check_output(out, sources)
    if options.json:
        check_json(Path(options.json), [*sources, out])
    how = plan_of(options, clip, expected)
    work = Work(options, clip.path, out, workflow, references, clip, how, expected, strict, models or {})
    arrow = f"  ->  {expected[1]}x{expected[0]}" if expected else ""
    print(f"IN: {clip.frames} frames {clip.width}x{clip.height} at {float(clip.rate):g} fps{arrow}", flush=True)
    for note in (*clip.notes(), *how.notes):
        print(f"  {note}", flush=True)
    opened = partial(open_job, host, options.port, True if options.cpu else None)
    if options.segment == 0 and (options.part or options.command == "plan-film"):
        raise RunnerError("--segment: 0 makes the film at once, so it has no parts. Leave --segment away.")
    journal = begin(work, host) if options.segment != 0 else None
    longest = max(s.end - s.first for s in journal.segments) if journal else None
    if options.command != "plan-film":
        check_space(out, clip.frames, expected or (clip.height, clip.width), how, options.lossless, longest)
    costs = at_once(work, opened) if journal is None else by_segments(work, journal, opened)
    if costs is None:  # a plan, a part, or segments that were all there
        return 0
    memory = f"{costs['peak_memory_mb']} MB peak memory" if costs["peak_memory_mb"] else "peak memory unknown"
    print(
        f"OUT: {out}  {costs['frames']} frames {costs['width']}x{costs['height']}, "
        f"{costs['seconds_per_frame']:.3f} s a frame, {memory}, {costs['network_calls']} network calls"
    )
    if options.json:
        write_atomic(Path(options.json), json.dumps(costs, indent=1) + "\n")
    return 0


def plan_of(options: argparse.Namespace, clip: Timeline, size: tuple[int, int] | None) -> Plan:
    """Decide how OUT is written."""
    return plan(
        Path(options.output),
        clip,
        size=size,
        codec=options.codec,
        crf=options.crf,
        lossless=options.lossless,
        tonemap=options.tonemap,
        deinterlace=options.deinterlace,
        keep=options.keep_tracks,
    )


def at_once(work: Work, opened: Callable) -> dict:
    """Make OUT by one run over the whole clip, and return what it cost."""
    with opened() as job:
        stage_models(work, job)
        read = counted(frames(work.clip, work.how.wish), "Reading IN", work.clip.frames)
        stage(work.clip, work.how.wish, job.input_dir, "input", uses_sound(work.workflow), read)
        stage_references(work, job.input_dir, Segment(0, work.clip.frames))
        whole = Whole(Pace(work.clip.frames), work.workflow.prompt, work.kind(job))
        whole.begin(work.clip.frames)
        outcome = job.run(work.workflow, bits=work.how.wish.depth, whole=whole)
        taken = f"{len(outcome.frames)} frames in {duration(outcome.seconds)}"
        print(f"Workflow {work.workflow.name}: {taken}.", flush=True)
        verify(outcome, work.clip.frames, work.size, work.strict)
        write(work.out, outcome, work.how, work.clip, work.options.keep_tracks)
    return outcome.costs()


def first_frames(text: str, clip: Timeline) -> int:
    """Read how much of the beginning is meant: 240 frames, or 10s."""
    number = text.removesuffix("s")
    try:
        seconds = float(number) if number != text else None
        count = int(text) if seconds is None else int(np.searchsorted(clip.times, seconds - 1e-6))
    except ValueError:
        count = 0
    if count < 1:
        raise RunnerError(f"--first: must be a number of frames, or of seconds such as 10s, above 0; got {text!r}.")
    return count


def check_json(file: Path, others: list[Path]) -> None:
    """Raise before the work unless the costs can be written to `file`."""
    if any(same_place(file, other) for other in others):
        raise RunnerError(f"--json: must not be IN, OUT or a reference; got {file}. Choose another name.")
    if file.is_dir() or is_picture(file) or file.suffix.lower() in CONTAINERS:
        kind = "folder" if file.is_dir() else "film or picture"
        raise RunnerError(f"--json: must be a text file; {file} is a {kind}. Choose another name.")
    try_name(file, "--json")


def parse_rate(text: str | None) -> Fraction | None:
    """Read frames per second: 24, 30000/1001, or 29.97, which means 30000/1001."""
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise RunnerError(
            f"--rate: must be frames per second above 0 and at most 1000, such as 24 or 29.97; got {text!r}."
        )
    television = Fraction(round(rate * Fraction(1001, 1000)) * 1000, 1001)
    return television if rate.denominator > 1 and abs(television - rate) < Fraction(1, 200) else rate


def reference_files(images: list[str], videos: list[str], of_videos: str = "--reference-video") -> dict[str, Timeline]:
    """Read reference files to their end and name them as they will be staged; `of_videos`: the option for errors."""
    files = {f"reference_image_{i}": Path(name) for i, name in enumerate(images)}
    files |= {f"reference_video_{i}": Path(name) for i, name in enumerate(videos)}
    clips = {}
    for name, file in files.items():
        option = "--reference" if name.startswith("reference_image") else of_videos
        try:
            if not file.exists():
                raise RunnerError(f"not found: {file} does not exist. Check its name and folder.")
            if name.startswith("reference_image") and not (file.is_file() and is_picture(file)):
                raise RunnerError(f"must be an image file; got {file}.")
            clips[name] = probe(file)
        except (RunnerError, MediaError) as error:
            raise RunnerError(f"{option}: {str(error).removeprefix('IN: ')}") from error
    return clips


def fill(workflow: Workflow, options: argparse.Namespace, files: dict[str, Path]) -> None:
    """Connect files and options to the workflow; --set comes last, so that it wins."""
    names = {name: staged_name(name, file) for name, file in files.items()}
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


def check_sides(height: int, width: int) -> None:
    """Refuse what no model can enlarge sensibly."""
    if min(height, width) < 2:
        raise RunnerError(f"IN: both sides must be at least 2 pixels; got {width}x{height}.")


def expected_size(workflow: Workflow, height: int, width: int) -> tuple[int, int] | None:
    """Return the result's exact height and width where one node states them in numbers, else None."""
    nodes = sized_by(workflow)
    if len(nodes) != 1:
        return None
    inputs = workflow.prompt[nodes[0]]["inputs"]
    names, rule = _TARGETS.get(inputs.get("target"), ((), ""))
    values = [inputs.get(f"target.{name}") for name in names]
    multiple = inputs.get("multiple", 1)  # graphs of 0.1.0 have none
    if not values or not all(isinstance(value, int | float) for value in (*values, multiple)):
        return None  # another choice, or connected to a node
    chosen = {rule: values[0] if len(values) == 1 else tuple(values)}
    try:
        return load("models.layout.sizes").target_size(height, width, multiple=multiple, **chosen)
    except ValueError as error:
        raise RunnerError(f"--scale/--size ({workflow.title(nodes[0])}): {error}") from error


def check_space(
    out: Path, frames: int, size: tuple[int, int], how: Plan, lossless: bool = False, longest: int | None = None
) -> None:
    """Raise unless OUT fits its disk, and the frames, which the host writes once uncompressed, the scratch space.

    `longest`: frames of the longest segment, where OUT is made of such, which are there twice while they are joined.
    """
    kind = "pictures" if how.kind != "film" else "lossless" if lossless else "film"
    pixels = size[0] * size[1] * (how.wish.depth // 8)
    needed = int(frames * pixels * _BYTES_PER_PIXEL[kind]) * (2 if longest else 1)
    require_space(out.absolute().parent, needed, "OUT", "Free some space, or choose another place.")
    remedy = "Free some, or set CASCADEVSR_CACHE to another disk."
    require_space(cache_root(), 3 * (longest or frames) * pixels, "Scratch space", remedy)
