"""Names of files (standard library only).

1. `is_picture`, `picture_files`   sort sources by their names
2. `locator`                       a name as FFmpeg takes it: never a URL, never an option
3. `check_output`                  before the work: OUT is not IN, can be created, and destroys nothing
4. `replacing`                     while writing: a short temporary name beside the target, then one rename
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import MediaError

PICTURES = set(".png .jpg .jpeg .jfif .webp .bmp .tif .tiff .gif .apng .avif .heic .heif".split())
FILMS = set(".mp4 .m4v .mov .mkv .webm .avi .ts .mts .m2ts .mpg .mpeg .vob .wmv .flv .3gp .ogv .mxf .dv".split())
CONTAINERS = {".mp4", ".mkv", ".mov", ".webm"}
ANIMATIONS = {".png", ".apng", ".webp"}  # of a film; one picture becomes one picture
_TEMPORARY = ".cascadevsr-"
_OWN_FRAME = re.compile(r"frame_\d+\.png")
_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"}


def is_picture(path: Path) -> bool:
    """Return whether a path is a picture, still or animated, by its name."""
    return path.suffix.lower() in PICTURES


def is_hidden(name: str) -> bool:
    """Return whether a file in a folder is the system's own: .DS_Store, Thumbs.db and the like."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder in natural order (2 before 10)."""
    files = [file for file in folder.iterdir() if is_picture(file) and not is_hidden(file.name)]
    return sorted(files, key=lambda f: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", f.name.lower())])


def locator(path: Path) -> str:
    """Return a path as FFmpeg takes it: absolute, so that `12:30.mp4` is no URL and `-x.mp4` no option."""
    return os.path.abspath(path)


def same_place(one: Path, two: Path) -> bool:
    """Return whether two paths are one file or folder, through links, other spellings and hard links."""
    with contextlib.suppress(OSError):
        if os.path.samefile(one, two):
            return True
    return os.path.normcase(os.path.realpath(one)) == os.path.normcase(os.path.realpath(two))


def check_output(out: Path, sources: Iterable[Path]) -> None:
    """Raise MediaError unless OUT may be written: its kind, its place, its name, and that it is no source.

    Creates missing folders above OUT, tries its name, and removes what killed runs left beside it. Where OUT is a link
    to a file, the link is replaced and the file stays; where it is one to a folder of frames, the folder is replaced.
    """
    sources = list(sources)
    for source in sources:
        if same_place(out, source):
            raise MediaError(
                f"OUT: must not be a file that is read; got {out}, which is {source}. Choose another name."
            )
        if is_folder(out) and Path(os.path.realpath(out)) in Path(os.path.realpath(source)).parents:
            raise MediaError(
                f"OUT: its folder is replaced as a whole, so it must hold no source; got {out} with {source} in it. "
                "Choose another folder."
            )
        if source.is_dir() and is_picture(out) and _lies_in(out, source):
            raise MediaError(
                f"OUT: must not lie among the pictures that are read; got {out} in {source}. Choose another folder."
            )
    if os.path.exists(out) and not (os.path.isfile(out) or os.path.isdir(out)):
        raise MediaError(f"OUT: must be a file or a folder; {out} is a device or a pipe. Choose another name.")
    if is_folder(out):
        names = os.listdir(out) if os.path.isdir(out) else []
        strangers = [name for name in names if not (_OWN_FRAME.fullmatch(name) or is_hidden(name))]
        if strangers or os.path.isfile(out):
            found = f"holds {strangers[0]}" if strangers else "is a file"
            raise MediaError(f"OUT: the folder for PNG frames must be new or hold such frames only; {out} {found}.")
    elif os.path.isdir(out):
        raise MediaError(f"OUT: {out} is a folder; name a file in it, or a folder without such an ending.")
    elif out.suffix.lower() not in CONTAINERS | ANIMATIONS:
        endings = " ".join(sorted(CONTAINERS | ANIMATIONS))
        raise MediaError(f"OUT: must be a film or picture ({endings}) or a folder for PNGs; got {out.name}.")
    try_name(out)
    sweep(out.absolute().parent)


def is_folder(out: Path) -> bool:
    """Return whether OUT means a folder of PNG frames: no ending, or a folder already."""
    if out.suffix.lower() in CONTAINERS | ANIMATIONS:
        return False
    return not (out.suffix or out.name.endswith(".")) or os.path.isdir(out) or str(out).endswith(("/", os.sep))


def _lies_in(out: Path, folder: Path) -> bool:
    """Return whether a picture is one of a folder's, or would become one."""
    inside = os.path.realpath(out.absolute().parent) == os.path.realpath(folder)
    return inside or any(same_place(out, file) for file in picture_files(folder))


def try_name(out: Path, who: str = "OUT") -> None:
    """Raise MediaError about `who` unless a file of that name can be created; creates the folders above it."""
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
        if not os.path.lexists(out):
            handle = os.open(out, os.O_CREAT | os.O_EXCL)
            os.close(handle)
            os.unlink(out)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise MediaError(
                f"{who}: its name is longer than this file system takes ({len(os.fsencode(out.name))} bytes). "
                "Choose a shorter one."
            ) from error
        raise MediaError(f"{who}: cannot write in {out.parent} ({error.strerror}). Choose another place.") from error


def signature() -> str:
    """Name this machine: a process number tells nothing about a file that another machine left on a shared disk."""
    return f"{_TEMPORARY}{hashlib.sha256(platform.node().encode()).hexdigest()[:6]}-"


def sweep(folder: Path, older_than: float = 2 * 24 * 3600) -> None:
    """Remove temporary files and folders of ours whose process has died, or that are `older_than` seconds old."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{_TEMPORARY}*"):
            with contextlib.suppress(OSError):
                if _is_dead(path.name) or time.time() - path.stat().st_mtime > older_than:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_dead(name: str) -> bool:
    found = re.match(re.escape(signature()) + r"(\d+)-", name)
    if not found or sys.platform == "win32":  # there, asking for a process by its number may end it
        return False
    try:
        os.kill(int(found.group(1)), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


@contextlib.contextmanager
def replacing(out: Path, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary file (or folder) beside `out`; it becomes `out` when the block ends without an error.

    Its name is short, whatever OUT's is, and says whose it is, so that `sweep` finds it after a kill.
    """
    out = Path(os.path.realpath(out)) if folder else out.absolute()
    prefix = f"{signature()}{os.getpid()}-"
    if folder:
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=prefix))
    else:
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=prefix, suffix=out.suffix[:8])
        os.close(handle)
        temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o755 if folder else 0o644)  # mkstemp makes it private
        if folder and out.exists():
            for file in out.iterdir():  # the system's files stay where they are
                if not _OWN_FRAME.fullmatch(file.name):
                    shutil.move(str(file), temporary / file.name)
            old = Path(tempfile.mkdtemp(dir=out.parent, prefix=prefix))
            os.replace(out, old)  # two renames: the shortest time without a folder
            os.replace(temporary, out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True) if folder else temporary.unlink(missing_ok=True)
        raise
