"""A real ComfyUI, headless, with the pack linked in (standard library only)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from .errors import RunnerError
from .host import Host
from .paths import PACK_NAME, ROOT, cache_root

CAPTURE_NAME, PARENT_NAME = "cascadevsr_runner_capture", "cascadevsr_runner_parent"
FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models")
_NOT_COPIED = shutil.ignore_patterns(
    ".git", "__pycache__", "output", "tests", "training", "research", ".*_cache", ".venv", "venv"
)
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/dri/renderD128")


def port_is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on `port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def choose_port(required: int | None, preferred: int | None = None) -> int:
    """Return `required` if it is free (an error if not), else `preferred` if free, else any free port."""
    if required is not None:
        if not 0 < required < 65536:
            raise RunnerError(f"--port: must be 1 to 65535; got {required}.")
        if not port_is_free(required):
            raise RunnerError(f"--port: {required} is taken by another program. Choose another, or leave --port away.")
        return required
    if preferred is not None and port_is_free(preferred):
        return preferred
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def has_gpu() -> bool:
    """Return whether torch sees an accelerator; on Linux without a device file the slow import is spared."""
    if sys.platform.startswith("linux") and not any(os.path.exists(name) for name in _GPU_FILES):
        return False
    import torch

    mps = getattr(torch.backends, "mps", None)
    xpu = getattr(torch, "xpu", None)
    return bool(torch.cuda.is_available() or (mps and mps.is_available()) or (xpu and xpu.is_available()))


class HostServer:
    """One ComfyUI process over a base folder of its own; use as a context manager."""

    def __init__(
        self,
        host: Host,
        base: Path,
        *,
        port: int | None = None,
        cpu: bool | None = None,
        capture: bool = False,
        arguments: tuple[str, ...] = (),
        python: str = sys.executable,
        pack: bool = True,
        echo: bool = False,
    ) -> None:
        self.host, self.base, self.python, self.pack = host, Path(base), python, pack
        self.port = choose_port(port)
        self.cpu = (not has_gpu()) if cpu is None else cpu
        self.capture, self.arguments, self.echo = capture, arguments, echo
        self.log_path = self.base / "server.log"
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def input_dir(self) -> Path:
        return self.base / "input"

    @property
    def output_dir(self) -> Path:
        return self.base / "output"

    @property
    def models_dir(self) -> Path:
        return self.base / "models"

    def command(self) -> list[str]:
        """Return the command line of the host."""
        names = [name for name, used in ((PACK_NAME, self.pack), (CAPTURE_NAME, self.capture)) if used]
        whitelist = ["--whitelist-custom-nodes", PARENT_NAME, *names]
        return [
            self.python,
            "main.py",
            *(["--cpu"] if self.cpu else []),
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base),
            "--disable-all-custom-nodes",
            *whitelist,
            "--disable-api-nodes",
            "--disable-auto-launch",
            "--database-url",
            "sqlite:///:memory:",
            *self._model_paths(),
            *self.arguments,
        ]

    def start(self, timeout: float = 600.0) -> HostServer:
        """Start the process and wait until it answers."""
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        if self.pack:
            _link(ROOT, self.base / "custom_nodes" / PACK_NAME)
        _link(ROOT / "runner" / "parent", self.base / "custom_nodes" / PARENT_NAME)
        if self.capture:
            _link(ROOT / "runner" / "capture", self.base / "custom_nodes" / CAPTURE_NAME)
        own_group = {"start_new_session": True} if os.name == "posix" else {}  # Ctrl-C reaches us; we stop the host
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.host.path,
                stdin=subprocess.PIPE,  # its end tells the host that we are gone, however we went: see parent/
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
                stdout=None if self.echo else log,
                stderr=None if self.echo else subprocess.STDOUT,
                **own_group,
            )
        try:
            self._wait(timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def _wait(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if not self.alive():
                raise RunnerError(f"ComfyUI stopped while starting (exit {self.process.returncode}).\n{self.tail()}")
            with contextlib.suppress(urllib.error.URLError, OSError, ValueError):
                with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5) as answer:
                    json.load(answer)
                return
            time.sleep(0.15)
        raise RunnerError(f"ComfyUI did not answer within {timeout:.0f} s.\n{self.tail()}")

    def alive(self) -> bool:
        """Return whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End the process: politely first, then not."""
        if self.process is None:
            return
        for send in (signal.SIGINT, signal.SIGTERM, None):
            if not self.alive():
                break
            with contextlib.suppress(OSError, ValueError):
                if send is None:
                    self.process.kill()
                else:
                    self.process.send_signal(send) if os.name == "posix" else self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(8 if send == signal.SIGINT else 4)

    def log(self) -> str:
        """Return everything the host has logged."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def tail(self, lines: int = 25) -> str:
        """Return the end of the host's log, for errors."""
        text = self.log().strip().splitlines()[-lines:]
        return "The end of ComfyUI's log:\n" + "\n".join(f"  {line[:300]}" for line in text) if text else ""

    def peak_memory(self) -> int | None:
        """Return the process's peak resident memory in bytes so far, or None where it is unknown."""
        return peak_memory(self.process.pid) if self.alive() else None

    def _model_paths(self) -> list[str]:
        """Let the temporary base folder see the weights of the user's ComfyUI and of `run.py serve`."""
        roots = [cache_root() / "serve" / "models"]
        if self.host.external:
            roots.insert(0, self.host.path / "models")
        sections = [section for index, root in enumerate(roots) if (section := _yaml_section(index, root))]
        if not sections or self.base == cache_root() / "serve":
            return []
        path = self.base / "model_paths.yaml"
        self.base.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(sections), encoding="utf-8")
        return ["--extra-model-paths-config", str(path)]

    def __enter__(self) -> HostServer:
        return self.start()

    def __exit__(self, *_) -> None:
        self.stop()


def peak_memory(pid: int) -> int | None:
    """Return a process's peak resident set in bytes (its present one where that is unknown), or None."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    with contextlib.suppress(ImportError, OSError):
        import psutil

        with contextlib.suppress(psutil.Error):
            info = psutil.Process(pid).memory_info()
            return getattr(info, "peak_wset", info.rss)
    return None


def _yaml_section(index: int, root: Path) -> str:
    folders = sorted(item.name for item in root.iterdir() if item.is_dir()) if root.is_dir() else []
    if not folders:
        return ""
    return "\n".join([f"place{index}:", f"  base_path: {json.dumps(str(root))}", *(f"  {n}: {n}" for n in folders)])


def _link(source: Path, place: Path) -> None:
    """Link a folder, or copy it where the system forbids links; a stale link or copy is replaced."""
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)
    try:
        place.symlink_to(source, target_is_directory=True)
    except OSError:
        shutil.copytree(source, place, ignore=_NOT_COPIED)
