"""`run.py join`: the film, of segments that were rendered in parts, on any machines."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..media.errors import MediaError
from ..media.files import check_output
from ..media.journal import Journal
from ..media.reader import probe
from ..media.render import finish
from .errors import RunnerError
from .host import Host
from .upscale import first_frames, parse_rate, plan_of


def main(options: argparse.Namespace, host: Host) -> int:
    """Read what the journal of OUT says, check that all is there, and join."""
    out = Path(options.output)
    journal = Journal.of(out)
    journal.require_all()
    source = Path(options.input or journal.about["input"])
    chosen = argparse.Namespace(**journal.about["options"])
    chosen.input, chosen.output = str(source), str(out)
    check_output(out, [source])
    try:
        clip = probe(source, parse_rate(chosen.rate))
    except MediaError as error:
        raise RunnerError(f"{str(error)} Name it with --input IN, if it was moved.") from error
    clip = clip.part(0, first_frames(chosen.first, clip)) if chosen.first else clip
    size = journal.about["size"]
    how = plan_of(chosen, clip, tuple(size) if size else None)
    finish(journal, out, clip, how, chosen.keep_tracks)
    print(f"OUT: {out}  {clip.frames} frames of {len(journal.segments)} segments")
    return 0
