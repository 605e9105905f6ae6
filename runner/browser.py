"""Get a headless Chromium and playwright-core for the browser tests (standard library only)."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .errors import RunnerError
from .paths import Say, cache_root, locked

PLAYWRIGHT = "playwright-core@1.49.1"
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(frozen=True)
class BrowserTools:
    """Where the tools are: `node`, `chromium`, and the folder to put into NODE_PATH."""

    node: str
    chromium: str
    node_path: Path

    def environ(self) -> dict[str, str]:
        """Return os.environ with NODE_PATH and CHROMIUM set for a node script."""
        return {**os.environ, "NODE_PATH": str(self.node_path), "CHROMIUM": self.chromium}


def in_ci() -> bool:
    """Return whether a continuous-integration service runs us: there, missing tools are a failure."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def find_chromium() -> str | None:
    """Return an installed Chromium: $CHROMIUM, else one on the PATH."""
    return os.environ.get("CHROMIUM") or next((path for name in _CHROMIUM if (path := shutil.which(name))), None)


def ensure_browser(say: Say = print) -> BrowserTools:
    """Return the tools, installing what is missing; a RunnerError says what could not be had."""
    with locked(cache_root() / "browser.lock", "Another run.py is installing the browser; waiting ..."):
        packages = [
            name
            for name, found in (
                ("chromium", find_chromium()),
                ("nodejs", shutil.which("node")),
                ("npm", shutil.which("npm")),
            )
            if not found
        ]
        if packages:
            _apt(packages, say)
        chromium, node = find_chromium(), shutil.which("node")
        if not chromium or not node or not shutil.which("npm"):
            raise RunnerError(f"Browser tests: {', '.join(packages)} could not be installed. Install them by hand.")
        folder = cache_root() / "browser"
        if not (folder / "node_modules" / "playwright-core" / "package.json").exists():
            say(f"Installing {PLAYWRIGHT} ...")
            folder.mkdir(parents=True, exist_ok=True)
            _run(["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", PLAYWRIGHT])
    return BrowserTools(node, chromium, folder / "node_modules")


def _apt(packages: list[str], say: Say) -> None:
    missing = ", ".join(packages)
    if not shutil.which("apt-get") or not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise RunnerError(f"Browser tests: need {missing}; install by hand (Debian: sudo apt-get install {missing}).")
    say(f"Installing {missing} by apt-get ...")
    environ = {"DEBIAN_FRONTEND": "noninteractive"}
    _run(["apt-get", "update", "-q"], environ)
    _run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages, "fonts-dejavu-core"], environ)


def _run(command: list[str], extra: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(extra or {})}, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunnerError(f"Browser tests: {' '.join(command[:3])} failed: {error}") from error
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise RunnerError(f"Browser tests: {' '.join(command[:3])} failed:\n{tail}")
