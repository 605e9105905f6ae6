"""`run.py lint`: ruff's rules and its formatter, as pyproject.toml configures them."""

from __future__ import annotations

import argparse
import subprocess
import sys

from .errors import RunnerError
from .host import Host
from .paths import ROOT


def main(options: argparse.Namespace, host: Host) -> int:
    """Check all files; return 1 where a rule is broken or a file is not formatted."""
    ruff = [sys.executable, "-m", "ruff"]
    if subprocess.run([*ruff, "--version"], capture_output=True).returncode:
        raise RunnerError(f"{sys.executable} has no ruff. Run: {sys.executable} -m pip install ruff")
    checks = (["check", "."], ["format", "--check", "."])
    return int(any([subprocess.run([*ruff, *check], cwd=ROOT).returncode for check in checks]))
