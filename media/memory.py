"""How much memory a program may still take (psutil, which the host ships)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_CGROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60
# limit, use, and what of the use is files that the system gives up when asked: version 2, version 1
_NAMES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory(swap: bool = False) -> int:
    """Return the bytes of RAM that are free to this process; `swap`: with what the system may move to the disk.

    psutil knows the machine only; a container (Docker, Kubernetes, systemd) may have less of it, and who takes more is
    killed. Its limits are those of the process' control group and of all above it.
    """
    import psutil

    machine = psutil.virtual_memory().available + (psutil.swap_memory().free if swap else 0)
    return min([machine, *_limits()])


def _limits() -> Iterator[int]:
    for folder, version in _groups():
        limit, use, cached = _NAMES[version]
        try:
            most, used = (folder / limit).read_text().strip(), int((folder / use).read_text())
            rows = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
            if most != "max" and int(most) < _UNLIMITED:
                yield max(0, int(most) - used + int(rows.get(cached, 0)))
        except (OSError, ValueError):  # a group without this controller, or no group at all
            continue


def _groups() -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process' groups, innermost first: inside of a container that is the root itself."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version = 1 if controllers else 2
        if version == 1 and "memory" not in controllers.split(","):
            continue
        root = _CGROUPS / "memory" if version == 1 else _CGROUPS
        place = root / path.lstrip("/")
        for folder in (place, *place.parents):
            if folder.is_relative_to(root):
                yield folder, version
