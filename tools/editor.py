"""Drive the real ComfyUI editor in a headless Chromium, from Python; `editor.cjs` does the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ..runner import environment
from ..runner.browser import BrowserTools
from ..runner.errors import RunnerError
from ..runner.host import Host

WORKFLOWS = Path(__file__).absolute().parent.parent / "workflows"


def drive(
    tools: BrowserTools, url: str, steps: list[dict], screenshots: Path | None = None, language: str = "en"
) -> dict:
    """Run the steps in one editor and return {"results": [{"value"} or {"error"}], "console": [...]}."""
    job = {"url": url, "steps": steps, "language": language} | (
        {"screenshots": str(screenshots)} if screenshots else {}
    )
    script = Path(__file__).with_name("editor.cjs")
    done = subprocess.run(
        [tools.node, str(script)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=tools.environ(),
        timeout=max(600, 90 * len(steps)),  # machines busy with other work take a minute for a step
    )
    if done.returncode:
        raise RunnerError(f"Editor: the browser script failed (exit {done.returncode}).\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


def api_text(prompt: dict) -> str:
    """Write an API-format prompt the way it is stored."""
    return json.dumps(prompt, indent=1, ensure_ascii=False) + "\n"


def shipped() -> dict[str, Path]:
    """Return the editor files of the shipped workflows by their names for programs, the starter first.

    A file is named for people; the name for programs is in the file, and is that of its API form.
    """
    files = sorted(WORKFLOWS.glob("*.json"))
    return {json.loads(file.read_text(encoding="utf-8"))["extra"]["cascadevsr"]["name"]: file for file in files}


def host_here() -> Host:
    """Return the ComfyUI to use; a script started outside the environment starts again inside it."""
    host = environment.host_inside()
    if host is None:
        ready = environment.prepare(("test",))
        environ = {**os.environ, environment.INSIDE: str(ready.host.path)}
        raise SystemExit(subprocess.call([str(ready.python), *sys.argv], env=environ))
    return host
