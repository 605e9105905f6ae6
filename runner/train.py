"""`run.py train`: train the built-in model inside the environment."""

from __future__ import annotations

from .host import Host
from .pack import load


def main(options, host: Host) -> int:
    """Hand the arguments to the training program."""
    arguments = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    load("training.builtin").main(arguments)
    return 0
