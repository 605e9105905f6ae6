"""`run.py upscale` by segments: memory stays where it is, and a run that was broken goes on.

1. `begin` finds the journal of OUT (media/journal.py), or looks for scene cuts and decides the borders, once
2. `by_segments` renders what is missing, one segment with its context at a time, on one warm ComfyUI
3. it joins the segments and removes them; with `--part` it leaves that to `run.py join` (join.py)
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from ..media.join import join, write_segment
from ..media.journal import Journal, identity
from ..media.reader import Forward, Wish, with_transparency
from ..media.segments import Segment, cut_film, share
from ..media.timeline import Timeline
from .binding import begin_at, uses_sound
from .client import Progress
from .errors import RunnerError
from .host import Host
from .job import Outcome
from .pack import load
from .paths import ROOT, cache_root
from .progress import Display, duration
from .stage import stage
from .work import Work, follows, stage_models, stage_references
from .workflow import Workflow

CONTEXT = 8  # frames; see docs/film.md
_STEP = 8  # frames: models of the host look at 4 or 8 together
_SMALL = 144  # px of the shorter side in which cuts are looked for, about; they are compared at a quarter of it
_LEAST, _MOST = 32, 480  # frames of a segment, where memory decides
_BYTES = 40  # that a pixel of the result takes in ComfyUI's process, in several copies as float32
_SHARE = 0.4  # of the free memory
_WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pth", ".pt", ".bin", ".gguf")
# of the options, what does not decide a single pixel
_OF_THIS_RUN = {"command", "input", "output", "port", "cpu", "json", "fresh", "part", "workflow", "settings"}
_OF_THIS_RUN |= {"reference", "reference_video", "prompt", "image_model"}  # these are in the filled-in workflow


def begin(work: Work, host: Host | None) -> Journal | None:
    """Return the journal of OUT, or None where its film is one segment and may as well be made at once."""
    options, clip = work.options, work.clip
    if options.fresh and options.part:
        raise RunnerError("--fresh: would remove what other parts have made. Use it once, with run.py plan-film.")
    if options.context < 0 or options.segment is not None and options.segment < 0:
        raise RunnerError(
            f"--segment and --context: must be frames, 0 or more; got {options.segment} and {options.context}."
        )
    length = options.segment or automatic_length(clip, work.size)

    def cut() -> tuple[Segment, ...]:
        return cut_film(clip.frames, film_cuts(clip), length, options.context, _STEP)

    chosen = vars(options)
    about = {"input": str(work.source.absolute()), "size": work.size, "options": {**chosen, "part": None}}
    journal, line = Journal.begin(work.out, key(work, host), cut, about, options.fresh, bool(options.part))
    if line:
        print(f"  {line}", flush=True)
    alone = len(journal.segments) == 1 and not options.part and options.command != "plan-film"
    if alone and not journal.is_finished(0):
        journal.discard()
        return None
    return journal


def automatic_length(clip: Timeline, size: tuple[int, int] | None) -> int:
    """Return how many frames of a segment the free memory takes."""
    import psutil  # the host ships it

    height, width = size or (4 * clip.height, 4 * clip.width)
    count = int(_SHARE * psutil.virtual_memory().available / (_BYTES * height * width))
    return max(_LEAST, min(_MOST, count // 8 * 8))


def film_cuts(clip: Timeline) -> tuple[int, ...]:
    """Look for the frames of a film that begin a scene."""
    if clip.frames == 1 or clip.kind == "pictures" and clip.frames < 3:
        return ()
    import torch
    from PIL import Image

    display, less = Display(), max(1, min(clip.height, clip.width) // _SMALL)

    def pictures() -> Iterator[torch.Tensor]:
        for number, frame in enumerate(Forward(clip, Wish()).span(0, clip.frames)):
            display(Progress("cuts", "Looking for scene cuts", number + 1, clip.frames))
            yield torch.from_numpy(np.array(Image.fromarray(frame).reduce(less))).float() / 255

    cuts = load("models.motion.flow").scene_cuts(pictures())
    display.close()
    return cuts


def key(work: Work, host: Host | None) -> dict:
    """Return everything that decides the result, for the journal."""
    options = {f"--{name.replace('_', '-')}": value for name, value in vars(work.options).items()}
    options = {name: value for name, value in options.items() if name[2:].replace("-", "_") not in _OF_THIS_RUN}
    return {
        "IN": identity(work.source),
        **options,
        "workflow": hashlib.sha256(json.dumps(work.workflow.prompt, sort_keys=True).encode()).hexdigest(),
        "references": {name: identity(clip.path) for name, clip in work.references.items()},
        "weights": weights(work.workflow, host) | {name: state(file) for name, file in work.models.items()},
        "the pack": pack_state(),
        "ComfyUI": host.version if host else "",
        "PyAV": f"{av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}",
    }


def weights(workflow: Workflow, host: Host | None) -> dict:
    """Identify the weight files that a workflow names."""
    roots = [cache_root() / "serve" / "models", *([host.path / "models"] if host and host.external else [])]
    found = {}
    for node in workflow.prompt.values():
        for name in node["inputs"].values():
            if not (isinstance(name, str) and name.lower().endswith(_WEIGHTS)):
                continue
            for file in (file for root in roots if root.is_dir() for file in root.glob(f"*/{name}")):
                found[name] = state(file)
    return found


def state(file: Path) -> dict:
    """Identify a file whatever the time of its last change."""
    return {what: value for what, value in identity(file).items() if what != "changed"}


def pack_state() -> str:
    """Identify this version of the pack: its code and its own weights."""
    digest = hashlib.sha256()
    for folder in ("models", "nodes", "media"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in (".py", ".safetensors", ".json"):
                digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def by_segments(work: Work, journal: Journal, opened: Callable) -> dict | None:
    """Render the segments that are missing, or those of a part, and join them; return the costs, if there are any."""
    count, options = len(journal.segments), work.options
    mine = share(count, *parse_part(options.part)) if options.part else range(count)
    missing = [index for index in journal.missing() if index in mine]
    total = sum(journal.segments[index].frames for index in mine)
    lengths = [segment.frames for segment in journal.segments]
    scenes = journal.segments[-1].scene + 1
    many = f"{scenes} scenes" if scenes > 1 else "1 scene"
    print(f"  {many}, {count} segments of {min(lengths)} to {max(lengths)} frames", flush=True)
    if options.command == "plan-film":
        print(f"OUT: {work.out}: planned. Next: run.py upscale with --part, on any machine, then run.py join.")
        return None
    if len(missing) < len(mine):
        print(f"  {len(mine) - len(missing)} of {len(mine)} segments are finished already", flush=True)
    costs = None
    if missing:
        try:
            with opened() as job:
                stage_models(work, job)
                costs = _render(work, journal, job, missing, total)
        except KeyboardInterrupt:
            print("\nFinished segments are kept: the same command goes on.", flush=True)
            raise
    if options.part:
        left = len(journal.missing())
        print(f"OUT: part {options.part} is finished; {left} of {count} segments are left. At the end: run.py join.")
        return None
    join_film(work, journal)
    if costs is not None:
        costs["frames"] = work.clip.frames  # with those of runs before
    else:
        print(f"OUT: {work.out}  {work.clip.frames} frames")
    return costs


def parse_part(text: str) -> tuple[int, int]:
    """Read I/N."""
    number, _, total = text.partition("/")
    if not (number.isdigit() and total.isdigit()):
        raise RunnerError(f"--part: must be I/N, such as 3/10; got {text!r}.")
    return int(number), int(total)


def join_film(work: Work, journal: Journal) -> None:
    """Make OUT of the finished segments and remove them."""
    if identity(work.source) != journal.key["IN"]:
        raise RunnerError(
            f"IN: {work.source} has changed since its segments were made. Bring the old one back, or "
            "start anew with --fresh."
        )
    journal.require_all()
    files = [journal.file(index) for index in range(len(journal.segments))]
    join(work.out, files, work.how, work.clip, work.options.keep_tracks)
    journal.finish(work.out)


def _render(work: Work, journal: Journal, job, missing: list[int], total: int) -> dict:
    """Render segments and return what it cost."""
    clip, how, done, outcomes = work.clip, work.how, 0, []
    source, sound, began = Forward(clip, how.wish), uses_sound(work.workflow), time.monotonic()
    before = total - sum(journal.segments[index].frames for index in missing)
    follow = any(name.startswith("reference_video") and follows(work, it) for name, it in work.references.items())
    for place, index in enumerate(missing):
        segment = journal.segments[index]
        following = journal.segments[missing[place + 1]].first if place + 1 < len(missing) else clip.frames
        pictures = source.span(segment.first, segment.end, following)
        stage(clip.part(segment.first, segment.end), how.wish, job.input_dir, "input", sound, pictures)
        spent = time.monotonic() - began
        line = f"frame {before + done}/{total}"
        if done:
            line += f", {done / spent:.3g} fps, {duration(spent * (total - before - done) / done)} left"
        if follow or not place:
            stage_references(work, job.input_dir, segment)
        outcome = job.run(begin_at(work.workflow, segment.first), bits=how.wish.depth, said=line)
        _check(outcome, segment, work)
        times = int(clip.pts[segment.start]), int(clip.pts[segment.stop - 1])
        with journal.writing(index, times) as file:
            write_segment(file, _kept(outcome, segment, work), work.out, how, clip, segment)
        done += segment.frames
        outcomes.append({**outcome.costs(), "frames": segment.frames})
        del outcome
    print(f"  frame {before + done}/{total}  in {duration(time.monotonic() - began)}", flush=True)
    return _sum(outcomes)


def _check(outcome: Outcome, segment: Segment, work: Work) -> None:
    count, height, width = outcome.frames.shape[:3]
    wanted = segment.end - segment.first
    if count != wanted:
        raise RunnerError(
            f"OUT: a workflow that changes the number of frames must see the film at once; {count} came out of "
            f"{wanted}. Use --segment 0."
        )
    if work.strict and work.size and (height, width) != tuple(work.size):
        found = f"{width}x{height} came out; expected {work.size[1]}x{work.size[0]}"
        raise RunnerError(f"OUT: {found}. Nothing was written; please report this.")


def _kept(outcome: Outcome, segment: Segment, work: Work) -> Iterator[np.ndarray]:
    """Yield the frames of a segment without its context, with the transparency of the source."""
    frames = iter(outcome.frames[segment.before : segment.before + segment.frames])
    if work.how.wish.alpha:
        return with_transparency(frames, work.clip.part(segment.start, segment.stop), work.how.wish)
    return frames


def _sum(costs: list[dict]) -> dict:
    """Add up what segments have cost; the host counts its memory and calls itself."""
    total = {**costs[-1], "frames": sum(cost["frames"] for cost in costs)}
    total["seconds"] = round(sum(cost["seconds"] for cost in costs), 2)
    total["seconds_per_frame"] = round(total["seconds"] / total["frames"], 4)
    return total
