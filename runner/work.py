"""One upscaling as a whole: what was decided before it, and what its frames become."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from ..media.plan import Plan
from ..media.reader import Wish, with_transparency
from ..media.segments import Segment
from ..media.timeline import Timeline
from ..media.writer import write as write_media
from .errors import RunnerError
from .job import Job, Outcome
from .progress import counted
from .stage import place, stage
from .workflow import Workflow


@dataclass
class Work:
    """Everything that is decided before the work: what goes in, what is made of it, and how it is written.

    `size`: height and width of the result in px, None where only the graph knows. `strict`: another number or size of
    frames is an error. `models`: files for the host, by the folder that it looks into.
    """

    options: argparse.Namespace
    source: Path
    out: Path
    workflow: Workflow
    references: dict[str, Timeline]
    clip: Timeline
    how: Plan
    size: tuple[int, int] | None
    strict: bool = True
    models: dict[str, Path] = field(default_factory=dict)

    def kind(self, job: Job) -> str:
        """Name the graph and the device, for what its nodes are known to take."""
        return f"{'CPU' if job.server.cpu else 'GPU'}, {self.workflow.name}"


def stage_models(work: Work, job: Job) -> None:
    """Put weight files into the folders that the host looks into."""
    for folder, file in work.models.items():
        (job.server.models_dir / folder).mkdir(parents=True, exist_ok=True)
        place(file, job.server.models_dir / folder, file.stem)


def follows(work: Work, reference: Timeline) -> bool:
    """Return whether a reference video is as long as IN, so that it shows the same moments."""
    return reference.frames == (work.clip.whole or work.clip).frames


def stage_references(work: Work, folder: Path, segment: Segment) -> None:
    """Put the reference files where the host finds them; of videos as long as IN, what belongs to a segment."""
    for name, reference in work.references.items():
        if name.startswith("reference_image"):
            place(reference.path, folder, name)
        else:
            keeps_hdr = bool(work.clip.colour.hdr) and not work.how.wish.tonemap
            wish = Wish(16 if reference.depth > 8 else 8, tonemap=not keeps_hdr)
            if follows(work, reference):
                reference = reference.part(segment.first, segment.end)
            stage(reference, wish, folder, name)


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
    write_media(out, counted(frames, "Writing OUT", len(outcome.frames)), how, clip, keep, even)
