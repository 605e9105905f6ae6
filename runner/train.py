"""`run.py train`: train inside the environment: the built-in model, an adapter, the ablations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .errors import RunnerError
from .host import Host
from .pack import load

PROGRAMS = {"builtin": "training.builtin", "adapter": "training.adapter", "ablations": "research.ablations"}


def choose(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return (name of the program, its arguments); options without a name belong to the built-in model."""
    rest = list(arguments[1:] if arguments[:1] == ["--"] else arguments)
    if rest and rest[0] in PROGRAMS:
        return rest[0], rest[1:]
    if rest and not rest[0].startswith("-"):
        raise RunnerError(f"train takes {', '.join(PROGRAMS)}; got {rest[0]!r}. See: run.py train --help")
    return "builtin", rest


def main(options: argparse.Namespace, host: Host) -> int:
    """Run the chosen training program with its arguments."""
    name, arguments = choose(options.arguments)
    try:
        load(PROGRAMS[name]).main(arguments)
    except (ValueError, FileNotFoundError) as error:
        if not str(error).startswith("Training:"):
            raise
        print(f"run.py train {name}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0
