"""Folders of the pack and its cache, and small file-system helpers (standard library only)."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import RunnerError

# Not resolved: a link inside custom_nodes/ must stay visible.
ROOT = Path(os.path.abspath(__file__)).parent.parent
PACK_NAME = "ComfyUI-CascadeVSR"
Say = Callable[[str], None]  # reports progress, as print does
GIB = 1 << 30


def cache_root() -> Path:
    """Return the user cache folder: $CASCADEVSR_CACHE, else the platform's cache folder."""
    if chosen := os.environ.get("CASCADEVSR_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "cascadevsr"
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "cascadevsr"
    return Path.home() / ".cache" / "cascadevsr"


def free_bytes(path: Path) -> int:
    """Return the free space of the file system that holds the nearest existing parent of `path`."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def require_space(path: Path, needed: int, purpose: str, remedy: str) -> None:
    """Raise a RunnerError when fewer than `needed` bytes are free on the disk of `path`."""
    free = free_bytes(path)
    if free < needed:
        raise RunnerError(f"{purpose}: needs {_size(needed)} free at {path}; found {_size(free)}. {remedy}")


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


@contextlib.contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold an exclusive lock on file `path`; the system drops it when the process dies, however it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as handle:
        announced = False
        while not _try_lock(handle):
            if not announced:
                print(waiting, flush=True)
                announced = True
            time.sleep(0.5)
        yield


def _try_lock(handle) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")  # short: names may be long
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Yield a fresh folder under the cache (a big disk, unlike many /tmp) and remove it afterwards.

    What killed runs left there is removed first.
    """
    from ..media.files import signature, sweep  # here: run.py reads this file before the package exists

    parent = cache_root() / "runs"
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{signature()}{os.getpid()}-{prefix}"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
