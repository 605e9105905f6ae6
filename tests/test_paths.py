"""How many own files a clip passes, and how deep the calls go: short paths stay short.

`python tests/tracer.py` prints a path with all its functions.
"""

import json
import os
import subprocess
import sys

import pytest
from cascadevsr.tests.tracer import PATHS, ROOT, describe

# path -> (most files, deepest stack; None: not limited). Since 0.1.0 a clip also passes the restorer that looks at
# neighbours and the two files of motion, texts of SeedVR2 (conditioning), and caches kept apart by tile and window.
BUDGETS = {
    "template": (22, 11),
    "release": (25, 14),
    "reference": (15, None),
    "steady": (11, 11),
    "film": (14, 8),
    "long film": (39, 17),
}


@pytest.fixture(scope="module")
def traces(comfyui, tmp_path_factory):
    """All paths, traced in a process of their own: what other tests left in caches would hide calls."""
    report = tmp_path_factory.mktemp("paths") / "traces.json"
    command = [sys.executable, str(ROOT / "tests" / "tracer.py"), "--json", str(report)]
    environ = {**os.environ, "COMFYUI_PATH": str(comfyui.path), "PYTHONIOENCODING": "utf-8"}
    run = subprocess.run(command, env=environ, capture_output=True, encoding="utf-8", timeout=600)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(report.read_text(encoding="utf-8"))


def test_every_path_has_a_budget():
    assert set(BUDGETS) == set(PATHS)


@pytest.mark.parametrize("path", BUDGETS)
def test_a_path_passes_few_files_and_few_levels(traces, path):
    files, levels = BUDGETS[path]
    trace = traces[path]
    assert trace["files"], "nothing was traced"
    fits = len(trace["files"]) <= files and (levels is None or len(trace["stack"]) <= levels)
    if not fits:
        limits = f"{files} files" + (f" and {levels} levels" if levels else "")
        pytest.fail(
            f"{path}: at most {limits}; got {describe(trace, functions=False)}\n"
            f"All functions: python tests/tracer.py {path}",
            pytrace=False,
        )
