"""`run.py upscale`: any workflow over any clip, headless; frame count and size come out exactly.

1. check everything that can be checked first: the workflow, IN to its end, OUT's place, what OUT keeps of IN
2. stage IN for the host and run the workflow
3. write OUT with the times, tags, sound and transparency of IN
"""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path

from ..media.errors import MediaError
from ..media.files import CONTAINERS, check_output, is_picture, same_place, try_name
from ..media.plan import Plan, plan
from ..media.reader import Wish, probe, with_transparency
from ..media.timeline import Timeline
from ..media.writer import write as write_media
from .binding import (
    Target,
    bind_image_model,
    bind_input,
    bind_prompt,
    bind_references,
    bind_target,
    check_loaders,
    parse_size,
    uses_sound,
)
from .errors import RunnerError
from .host import Host
from .job import Outcome, open_job
from .pack import load
from .paths import cache_root, require_space, write_atomic
from .stage import place, stage, staged_name
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
    workflow = Workflow.load(options.workflow)
    references = reference_files(options.reference, options.reference_video)
    fill(workflow, options, {"input": source, **{name: clip.path for name, clip in references.items()}})
    clip = probe(source, parse_rate(options.rate))
    expected = expected_size(workflow, clip.height, clip.width)
    return run(workflow, clip, references, options, host, expected, is_shipped(options.workflow))


def with_image_model(options: argparse.Namespace, host: Host) -> int:
    """Run the workflow that upscales by an image upscaler's file, frame by frame, and makes the frames steady."""
    model = Path(options.image_model)
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
    sources = [clip.path, *(reference.path for reference in references.values())]
    check_output(out, sources)
    if options.json:
        check_json(Path(options.json), [*sources, out])
    how = plan(
        out,
        clip,
        size=expected,
        codec=options.codec,
        crf=options.crf,
        lossless=options.lossless,
        tonemap=options.tonemap,
        deinterlace=options.deinterlace,
        keep=options.keep_tracks,
    )
    check_space(out, clip.frames, expected or (clip.height, clip.width), how, options.lossless)
    arrow = f"  ->  {expected[1]}x{expected[0]}" if expected else ""
    print(f"IN: {clip.frames} frames {clip.width}x{clip.height} at {float(clip.rate):g} fps{arrow}", flush=True)
    for note in (*clip.notes(), *how.notes):
        print(f"  {note}", flush=True)
    with open_job(host, options.port, True if options.cpu else None) as job:
        for folder, file in (models or {}).items():
            (job.server.models_dir / folder).mkdir(parents=True, exist_ok=True)
            place(file, job.server.models_dir / folder, file.stem)
        stage(clip, how.wish, job.input_dir, "input", uses_sound(workflow))
        for name, reference in references.items():
            if name.startswith("reference_image"):
                place(reference.path, job.input_dir, name)
            else:
                keeps_hdr = bool(clip.colour.hdr) and not how.wish.tonemap
                wish = Wish(16 if reference.depth > 8 else 8, tonemap=not keeps_hdr)
                stage(reference, wish, job.input_dir, name)
        outcome = job.run(workflow, bits=how.wish.depth)
        verify(outcome, clip.frames, expected, strict)
        write(out, outcome, how, clip, options.keep_tracks)
    costs = outcome.costs()
    memory = f"{costs['peak_memory_mb']} MB peak memory" if costs["peak_memory_mb"] else "peak memory unknown"
    print(
        f"OUT: {out}  {costs['frames']} frames {costs['width']}x{costs['height']}, "
        f"{costs['seconds_per_frame']:.3f} s a frame, {memory}, {costs['network_calls']} network calls"
    )
    if options.json:
        write_atomic(Path(options.json), json.dumps(costs, indent=1) + "\n")
    return 0


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
    """Return the result's exact height and width where one Cascade Input states them in numbers, else None."""
    nodes = workflow.of_type("VSRCascadeInput")
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


def check_space(out: Path, frames: int, size: tuple[int, int], how: Plan, lossless: bool = False) -> None:
    """Raise unless OUT fits its disk, and the frames, which the host writes once uncompressed, the scratch space."""
    kind = "pictures" if how.kind != "film" else "lossless" if lossless else "film"
    pixels, channels = frames * size[0] * size[1] * (how.wish.depth // 8), 3
    needed = int(pixels * _BYTES_PER_PIXEL[kind])
    require_space(out.absolute().parent, needed, "OUT", "Free some space, or choose another place.")
    remedy = "Free some, or set CASCADEVSR_CACHE to another disk."
    require_space(cache_root(), pixels * channels, "Scratch space", remedy)


def verify(outcome: Outcome, frames: int, expected: tuple[int, int] | None, strict: bool) -> None:
    """Compare the frames that came with those expected; own workflows may change them on purpose."""
    count, height, width = outcome.frames.shape[:3]
    wanted = (frames, *(expected or (height, width)))
    if (count, height, width) == wanted:
        return
    text = f"{count} frames {width}x{height} came out; expected {wanted[0]} frames {wanted[2]}x{wanted[1]}"
    if strict:
        raise RunnerError(f"OUT: {text}. Nothing was written; please report this.")
    print(f"Note: {text}.", flush=True)


def write(out: Path, outcome: Outcome, how: Plan, clip: Timeline, keep: str) -> None:
    """Write OUT; times, tracks and transparency follow while the frame count, and so the duration, is the source's."""
    frames, even = outcome.frames, len(outcome.frames) != clip.frames
    if even:
        print("Note: another number of frames: even times, no sound, no transparency.", flush=True)
    elif how.wish.alpha:
        frames = with_transparency(frames, clip, how.wish)
    write_media(out, frames, how, clip, keep, even)
