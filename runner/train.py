"""`run.py train`: train inside the environment: the built-in model, an adapter, the ablations."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .errors import RunnerError
from .host import Host
from .pack import load

PROGRAMS = {
    "builtin": ("training.builtin", "the built-in model (what `run.py train --photos ...` means too)"),
    "adapter": ("training.adapter", "a UniMMVSR adapter for a Wan-family base"),
    "ablations": ("research.ablations", "compare settings, and write a table and pictures"),
}


def choose(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Give (name of the program, its arguments); options without a name before them are those of the built-in one."""
    rest = list(arguments[1:] if arguments[:1] == ["--"] else arguments)
    if rest and rest[0] in PROGRAMS:
        return rest[0], rest[1:]
    if rest and not rest[0].startswith("-"):
        raise RunnerError(f"train takes {', '.join(PROGRAMS)}; got {rest[0]!r}. See: run.py train --help")
    return "builtin", rest


def main(options, host: Host) -> int:
    """Hand the arguments to the chosen training program."""
    name, arguments = choose(options.arguments)
    try:
        load(PROGRAMS[name][0]).main(arguments)
    except (ValueError, FileNotFoundError) as error:
        if not str(error).startswith("Training:"):
            raise
        print(f"run.py train {name}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0
