"""`run.py upscale` by segments: memory stays where it is, and a run that was broken goes on.

1. `begin` finds the journal of OUT (media/journal.py), or looks for scene cuts and decides the borders, once
2. `by_segments` renders what is missing, one segment with its context at a time, on one warm ComfyUI
3. it joins the segments and removes them; with `--part` it leaves that to `run.py join` (join.py)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

import numpy as np

from ..media.journal import Journal, identity
from ..media.pace import Pace, duration
from ..media.render import automatic_length, decide_borders, finish, key, render, state
from ..media.segments import Segment, share
from .binding import begin_at, uses_sound
from .client import Progress
from .errors import RunnerError
from .host import Host
from .job import Job, Outcome
from .pack import load
from .paths import cache_root
from .progress import Display, Whole
from .stage import stage
from .work import Work, follows, stage_models, stage_references
from .workflow import Workflow

_LISTED = 20  # scene cuts
_WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pth", ".pt", ".bin", ".gguf")
# of the options, what does not decide a single pixel
_OF_THIS_RUN = {"command", "input", "output", "port", "cpu", "json", "fresh", "part", "workflow", "settings", "first"}
_OF_THIS_RUN |= {"ray", "reference", "reference_video", "prompt", "image_model"}  # these are in the filled-in workflow


def begin(work: Work, host: Host | None) -> Journal | None:
    """Return the journal of OUT, or None where its film is one segment and may as well be made at once."""
    options, clip = work.options, work.clip
    if options.fresh and options.part:
        raise RunnerError("--fresh: would remove what other parts have made. Use it once, with run.py plan-film.")
    if options.context < 0 or options.segment is not None and options.segment < 0:
        raise RunnerError(
            f"--segment and --context: must be frames, 0 or more; got {options.segment} and {options.context}."
        )
    length = options.segment or automatic_length(work.size or (4 * clip.height, 4 * clip.width))
    display, found = Display(), []

    def tick(done: int, total: int) -> None:
        display(Progress("cuts", "Looking for scene cuts", done, total))

    def look(pictures: Iterator[np.ndarray]) -> tuple[int, ...]:
        import torch

        cuts = load("models.motion.flow").scene_cuts(torch.from_numpy(picture) / 255 for picture in pictures)
        found.extend(cuts)
        return cuts

    def cut() -> tuple[Segment, ...]:
        try:
            return decide_borders(clip, length, options.context, look, tick)
        finally:
            display.close()

    chosen = vars(options)
    about = {"input": str(work.source.absolute()), "size": work.size, "options": {**chosen, "part": None}}
    journal, line = Journal.begin(work.out, key_of(work, host), cut, about, options.fresh, bool(options.part))
    if line:
        print(f"  {line}", flush=True)
    if found:
        more = f" and {len(found) - _LISTED:,} more" if len(found) > _LISTED else ""
        print(f"  scene cuts before frames {', '.join(map(str, found[:_LISTED]))}{more}", flush=True)
    alone = len(journal.segments) == 1 and not (options.part or options.ray) and options.command != "plan-film"
    if alone and not journal.is_finished(0):
        journal.discard()
        return None
    return journal


def key_of(work: Work, host: Host | None) -> dict:
    """Return everything that decides the result, for the journal."""
    options = {f"--{name.replace('_', '-')}": value for name, value in vars(work.options).items()}
    options = {name: value for name, value in options.items() if name[2:].replace("-", "_") not in _OF_THIS_RUN}
    workflow = hashlib.sha256(json.dumps(work.workflow.prompt, sort_keys=True).encode()).hexdigest()
    return key(
        work.clip,
        {
            **options,
            "workflow": workflow,
            "references": {name: identity(clip.path) for name, clip in work.references.items()},
            "weights": _weights(work.workflow, host) | {name: state(file) for name, file in work.models.items()},
            "ComfyUI": host.version if host else "",
        },
    )


def _weights(workflow: Workflow, host: Host | None) -> dict:
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
            pace = Pace(total, total - sum(journal.segments[index].frames for index in missing))
            if options.ray:
                costs = _sum(load("runner.cluster").render_on_ray(work, journal, missing, pace))
            else:
                with opened() as job:
                    maker = Maker(work, job, pace)
                    render(journal, missing, work.out, work.clip, work.how, maker)
                    costs = _sum(maker.costs)
            print(f"  {pace.line()}  in {duration(pace.seconds)}", flush=True)
        except KeyboardInterrupt:
            print("\nFinished segments are kept: the same command goes on.", flush=True)
            raise
    if options.part:
        left = len(journal.missing())
        print(f"OUT: part {options.part} is finished; {left} of {count} segments are left. At the end: run.py join.")
        return None
    finish(journal, work.out, work.clip, work.how, options.keep_tracks)
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


class Maker:
    """Makes the frames of segments on one warm ComfyUI; `costs` of each."""

    def __init__(self, work: Work, job: Job, pace: Pace) -> None:
        stage_models(work, job)
        self.work, self.job, self.pace, self.costs = work, job, pace, []
        self.whole: Whole | None = None
        self.sound = uses_sound(work.workflow)
        videos = (clip for name, clip in work.references.items() if name.startswith("reference_video"))
        self.follow = any(follows(work, clip) for clip in videos)

    def __call__(self, segment: Segment, pictures: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Stage the frames of a segment with its context, and return those of the result."""
        work, wish = self.work, self.work.how.wish
        part = work.clip.part(segment.first, segment.end)
        stage(part, wish, self.job.input_dir, "input", self.sound, pictures)
        if self.follow or not self.costs:
            stage_references(work, self.job.input_dir, segment)
        workflow = begin_at(work.workflow, segment.first)
        if self.whole is None:
            self.whole = Whole(self.pace, workflow.prompt, work.kind(self.job))
        self.whole.begin(segment.frames)
        outcome = self.job.run(workflow, bits=wish.depth, whole=self.whole)
        self._check(outcome, segment)
        self.costs.append({**outcome.costs(), "frames": segment.frames})
        return self._counted(outcome.frames[segment.kept])

    def _counted(self, frames: np.ndarray) -> Iterator[np.ndarray]:
        yield from frames
        self.pace.made += len(frames)

    def _check(self, outcome: Outcome, segment: Segment) -> None:
        count, height, width = outcome.frames.shape[:3]
        wanted, size = segment.end - segment.first, self.work.size
        if count != wanted:
            raise RunnerError(
                f"OUT: a workflow that changes the number of frames must see the film at once; {count} came out of "
                f"{wanted}. Use --segment 0."
            )
        if self.work.strict and size and (height, width) != tuple(size):
            found = f"{width}x{height} came out; expected {size[1]}x{size[0]}"
            raise RunnerError(f"OUT: {found}. Nothing was written; please report this.")


def _sum(costs: list[dict]) -> dict:
    """Add up what segments have cost; the host counts its memory and calls itself."""
    total = {**costs[-1], "frames": sum(cost["frames"] for cost in costs)}
    total["seconds"] = round(sum(cost["seconds"] for cost in costs), 2)
    total["seconds_per_frame"] = round(total["seconds"] / total["frames"], 4)
    return total
