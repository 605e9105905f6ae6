"""`run.py bench beside --old FOLDER`: parts of this version beside the same parts of another one, in one run.

Each checkout has a process of its own (research/beside_parts.py), in turns, so that what else the machine does meets
both; the least of all rounds counts. To get version 0.1.0:

    git worktree add --detach FOLDER adb6f4d
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..runner.errors import RunnerError
from ..runner.host import Host
from ..runner.paths import ROOT

_ROUNDS = 3
_START = """import json, runpy, sys
sys.path.insert(0, sys.argv[1])
from runner.pack import load
print(json.dumps(runpy.run_path(sys.argv[2])["measured"](load, sys.argv[3:])))
"""


def beside(options: argparse.Namespace, host: Host) -> dict:
    """Parts of this version beside those of another checkout, --old: CPU time on one thread (five minutes)."""
    if not options.old or not (Path(options.old) / "runner" / "pack.py").is_file():
        raise RunnerError(
            f"bench beside: --old must be a checkout of another version; got {options.old}. "
            "Make one: git worktree add --detach FOLDER adb6f4d"
        )
    taken: dict[str, list[dict[str, float]]] = {"new": [], "old": []}
    for _ in range(_ROUNDS):
        for version, checkout in (("new", ROOT), ("old", Path(options.old))):
            taken[version].append(_timed(checkout, options.only or ()))
    rows = {}
    for part in taken["new"][0]:
        new, old = (min(seconds[part] for seconds in taken[version]) for version in ("new", "old"))
        rows[part] = {"ratio": round(new / old, 3), "new_ms": round(1e3 * new, 1), "old_ms": round(1e3 * old, 1)}
    return rows


def _timed(checkout: Path, names: Sequence[str]) -> dict[str, float]:
    """Give the seconds of each part of a checkout; RunnerError where it cannot be measured."""
    parts = Path(__file__).with_name("beside_parts.py")
    command = [sys.executable, "-c", _START, str(checkout.resolve()), str(parts), *names]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RunnerError(f"bench beside: measuring {checkout} ended with {done.returncode}; see above.")
    return json.loads(done.stdout.splitlines()[-1])
