"""Only adapter training needs diffusers: without it, or with a broken one, the pack loads and upscales."""

import subprocess
import sys

import pytest

_ABSENT = """
import importlib.machinery, pathlib
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *more: None if name.partition(".")[0] == "diffusers" else find(name, *more)
)
pathlib.Path(__file__).with_name("used").touch()
"""
_FILES = {
    "absent": {"sitecustomize.py": _ABSENT},
    "broken": {"diffusers/__init__.py": "raise RuntimeError('operator torchvision::nms does not exist')"},
    "old": {"diffusers/__init__.py": "__version__ = '0.1'"},
}


@pytest.fixture(params=_FILES)
def diffusers(request, tmp_path, monkeypatch):
    """Let the processes that a test starts find no diffusers, one that cannot be imported, or another API."""
    for name, text in _FILES[request.param].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return request.param


def test_the_pack_loads_and_upscales(diffusers, comfyui, tmp_path):
    from cascadevsr.research.graphs import run_graph

    outcome = run_graph(comfyui, "Upscale-a-Video", 5, (64, 48), cpu=True)
    assert outcome.frames.shape == (5, 48, 64, 3)
    assert diffusers != "absent" or (tmp_path / "used").exists()


def test_adapter_training_says_what_it_needs(diffusers, repository):
    start = f"import sys; sys.path.insert(0, {str(repository)!r}); from runner.pack import load; "
    start += "import argparse; options = argparse.Namespace(arguments=['adapter', '--base', 'x', '--videos', 'y']); "
    done = subprocess.run(
        [sys.executable, "-c", start + "sys.exit(load('runner.train').main(options, None))"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert "an adapter needs diffusers 0.33 or newer" in line and "-m pip install --upgrade diffusers" in line
    reason = {"absent": "No module named", "broken": "torchvision::nms", "old": "no attribute"}[diffusers]
    assert reason in line
