"""The Python environment: made once in the cache folder, found again in a moment (standard library only)."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .errors import RunnerError
from .host import Host, cached_path, fetch_host, find_host
from .paths import GIB, ROOT, Say, cache_root, locked, require_space, write_atomic

# Of one build and seen to boot ComfyUI 0.30; other pairings mix CUDA builds and torchaudio does not import.
TRIO = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
TOOLS = {"base": (), "test": ("pytest>=8", "hypothesis>=6", "ruff==0.17.6", "opencv-python-headless>=4.8")}
TOOLS["ray"] = ("ray>=2.30",)
PYTHONS = ((3, 10), (3, 14))  # what wheels of the trio exist for
SPACE_NEEDED = 9 * GIB  # 6.3 GiB installed, plus the wheels while they are being unpacked
SPACE_RESUMED = 1 * GIB
STAMP = "cascadevsr.json"
INSIDE = "CASCADEVSR_INSIDE"  # set to the host's path in the process that runs inside the environment
_OF_A_HOST = ("torch", "torchvision", "av", "aiohttp", "safetensors", "kornia", "yaml", "PIL")


@dataclass(frozen=True)
class Environment:
    """The interpreter to run with, and the host it runs."""

    python: Path
    host: Host
    origin: str


def prepare(extras: tuple[str, ...] = (), say: Say = print) -> Environment:
    """Return a ready environment and host, setting up what is missing."""
    host = find_host()
    if host and host.external and (own := _python_of(host)):
        return Environment(own, host, "the Python that runs it")
    python = _ensure(host, ("base", *extras), say)
    host = host or find_host()
    if host is None:
        raise RunnerError(f"Set-up: ComfyUI vanished from {cache_root()} meanwhile. Run the command again.")
    return Environment(python, host, "the environment in the cache folder")


def _python_of(host: Host) -> Path | None:
    """Return an interpreter that can already run an external host: this one, else the host's own venv."""
    if all(importlib.util.find_spec(name) for name in _modules(host)):
        return Path(sys.executable)
    for place in (host.path / ".venv", host.path / "venv", host.path.parent / "python_embeded"):
        for python in (place / "bin" / "python", place / "Scripts" / "python.exe", place / "python.exe"):
            if python.exists() and _works(python, f"import {', '.join(_modules(host))}"):
                return python
    return None


def _modules(host: Host) -> tuple[str, ...]:
    """Return what an interpreter must import to run a host; newer ones no longer ask for torchaudio."""
    asked = "torchaudio" in host.requirements.read_text(encoding="utf-8")
    return (*_OF_A_HOST, "torchaudio") if asked else _OF_A_HOST


def _other_requirements(host: Host | None) -> str | None:
    """Return the requirements of an external host where they differ from the pinned one's, else None."""
    if host is None or not host.external:
        return None
    text, pinned = host.requirements.read_text(encoding="utf-8"), cached_path() / "requirements.txt"
    return None if pinned.exists() and pinned.read_text(encoding="utf-8") == text else text


def environment_path(host: Host | None) -> Path:
    """Return the environment's folder; a host with other requirements than the pinned one gets its own."""
    text = _other_requirements(host)
    return cache_root() / ("env" if text is None else f"env-{hashlib.sha256(text.encode()).hexdigest()[:8]}")


def python_of(environment: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    if sys.platform == "win32":
        return environment / "Scripts" / "python.exe"
    return environment / "bin" / "python"


def fingerprint(layer: str, host: Host | None) -> str:
    """Return a hash of everything that decides what `layer` installs."""
    parts = [*TRIO, *TOOLS[layer]]
    if layer == "base":
        parts += [(ROOT / name).read_text(encoding="utf-8") for name in ("requirements.txt", "host.txt")]
        if text := _other_requirements(host):
            parts.append(text)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def read_stamp(environment: Path) -> dict[str, str]:
    """Return which layers were completely installed; none for a missing or damaged environment."""
    try:
        stamp = json.loads((environment / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and python_of(environment).exists() else {}


def missing_layers(environment: Path, layers: tuple[str, ...], host: Host | None) -> list[str]:
    """Return the layers that still have to be installed."""
    stamp = read_stamp(environment)
    return [layer for layer in layers if stamp.get(layer) != fingerprint(layer, host)]


def _ensure(host: Host | None, layers: tuple[str, ...], say: Say) -> Path:
    environment = environment_path(host)
    python = python_of(environment)
    if host and not missing_layers(environment, layers, host):
        return python
    _check_python()
    with locked(cache_root() / "env.lock", "Another run.py is setting up the environment; waiting for it ..."):
        missing = missing_layers(environment, layers, host)
        if not missing and host:
            return python
        started = time.monotonic()
        _check_space(environment)
        say(f"Setting up {environment} (once; a few minutes) ...")
        _make_venv(environment, say)
        host = host or fetch_host([str(python), "-m", "pip"], say)
        for layer in missing_layers(environment, layers, host):
            _install_layer(environment, layer, host, say)
        say(f"Environment ready after {time.monotonic() - started:.0f} s.")
    return python


def _check_python() -> None:
    low, high = PYTHONS
    if not low <= sys.version_info[:2] <= high:
        found = ".".join(map(str, sys.version_info[:2]))
        raise RunnerError(
            f"Set-up: needs Python {low[0]}.{low[1]} to {high[0]}.{high[1]} (for PyTorch); this is {found}. "
            "Start run.py with such a Python, or set COMFYUI_PATH to a ComfyUI that has its own."
        )


def _check_space(environment: Path) -> None:
    resumed = (
        any(environment.glob("lib/python*/site-packages/torchvision"))
        or (environment / "Lib" / "site-packages" / "torchvision").exists()
    )
    require_space(
        environment,
        SPACE_RESUMED if resumed else SPACE_NEEDED,
        "Set-up of PyTorch and ComfyUI",
        "Free some space, or set CASCADEVSR_CACHE to a folder on another disk.",
    )


def _make_venv(environment: Path, say: Say) -> None:
    """Create the venv, or keep one that an earlier, interrupted set-up left in working order."""
    python = python_of(environment)
    if _works(python, "import pip"):
        return
    if environment.exists():
        say("  removing the rest of a broken set-up ...")
        shutil.rmtree(environment)
    _run([sys.executable, "-m", "venv", "--without-pip", str(environment)], "Creating the virtual environment")
    if importlib.util.find_spec("ensurepip"):
        _run([str(python), "-m", "ensurepip", "--upgrade", "--default-pip"], "Installing pip")
    else:  # Debian without python3-venv has no ensurepip; pip can install itself into another interpreter
        _run([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "pip"], "Installing pip")


def _install_layer(environment: Path, layer: str, host: Host, say: Say) -> None:
    """Install one layer; only a complete one is written to the stamp, so an interrupted one is continued."""
    if layer == "base":
        _pip(environment, list(TRIO), "PyTorch (the largest part)", say)
        files = ["-r", str(host.requirements), "-r", str(ROOT / "requirements.txt")]
        _pip(environment, files, "what ComfyUI and the pack need", say)
        probe = f"import {', '.join(_modules(host))}"
        if not _works(python_of(environment), probe):
            say("  an import fails: installing once more from scratch ...")
            _pip(environment, ["--force-reinstall", *TRIO, *files], "everything again", say)
            _run([str(python_of(environment)), "-c", probe], "Checking the environment")
    else:
        _pip(environment, list(TOOLS[layer]), f"{layer} tools", say)
    stamp = {**read_stamp(environment), layer: fingerprint(layer, host)}
    write_atomic(environment / STAMP, json.dumps(stamp, indent=1))


def _pip(environment: Path, what: list[str], title: str, say: Say) -> None:
    say(f"  installing {title} ...")
    constraints = environment / "constraints.txt"
    constraints.write_text("\n".join(TRIO) + "\n", encoding="utf-8")
    temporary = cache_root() / "tmp"  # /tmp is often a small memory disk; PyTorch's wheels are 2.5 GB
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    started = time.monotonic()
    try:
        install = [str(python_of(environment)), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        _run(
            [*install, "--no-cache-dir", "-c", str(constraints), *what],
            f"Installing {title}",
            extra={"TMPDIR": str(temporary), "TEMP": str(temporary)},
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(f"    {time.monotonic() - started:.0f} s")


def _run(command: list[str], purpose: str, extra: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**_clean_environ(), **(extra or {})})
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).strip().splitlines() if "WARNING" not in line]
        tail = "\n".join(lines[-12:])
        raise RunnerError(
            f"{purpose} failed:\n{tail}\nRun the same command again to continue where it stopped; "
            f"to start over, delete {cache_root()}."
        )


def _works(python: Path, code: str) -> bool:
    if not python.exists():
        return False
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True, env=_clean_environ()).returncode == 0
    except OSError:
        return False


def _clean_environ() -> dict[str, str]:
    """Return os.environ without what would leak the outer Python's packages into the environment."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__")}


def enter(environment: Environment, arguments: list[str]) -> int:
    """Run `run.py` with `arguments` again inside the environment: in this process's place, so that a kill finds it.

    Windows has no such thing: there, as a child, whose exit code is returned.
    """
    command = [str(environment.python), str(ROOT / "run.py"), *arguments]
    environ = {**_clean_environ(), INSIDE: str(environment.host.path), "PYTHONUNBUFFERED": "1"}
    if os.name == "posix":
        os.execve(command[0], command, environ)
    child = subprocess.Popen(command, env=environ)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())  # the child stops its ComfyUI and goes
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # the child got Ctrl-C as well and cleans up
            return child.wait()


def host_inside() -> Host | None:
    """Return the host this process was started for, or None outside the environment."""
    path = os.environ.get(INSIDE)
    if not path:
        return None
    place = Path(path)
    return Host(place, "handed over", external=place.parent != cache_root())
