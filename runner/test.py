"""`run.py test`: pytest inside the environment."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys

from .environment import INSIDE
from .errors import RunnerError
from .host import Host
from .paths import ROOT


def main(options: argparse.Namespace, host: Host) -> int:
    """Run pytest with the given arguments and return its exit code."""
    probe = subprocess.run([sys.executable, "-c", "import pytest, hypothesis"], capture_output=True)
    if probe.returncode:
        raise RunnerError(
            f"{sys.executable} has no pytest and hypothesis. Run: {sys.executable} -m pip install pytest hypothesis"
        )
    arguments = options.pytest[1:] if options.pytest[:1] == ["--"] else options.pytest
    environ = {**os.environ, INSIDE: str(host.path)}
    child = subprocess.Popen([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, env=environ)
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            return child.wait()
