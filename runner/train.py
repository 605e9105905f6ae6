"""`run.py train`: the training package inside the environment."""

from __future__ import annotations

import runpy
import sys

from .host import Host
from .pack import NAME, register


def main(options, host: Host) -> int:
    """Run `training` as a program with the given arguments."""
    arguments = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    register()
    sys.argv = ["run.py train", *arguments]
    runpy.run_module(f"{NAME}.training.__main__", run_name="__main__", alter_sys=False)
    return 0
