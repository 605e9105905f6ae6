"""What is finished of a film that is made in segments, beside the result, so that a run that was broken goes on.

1. `Journal.begin` finds the journal of OUT. It goes on where everything that decides the result is the same: the
   source, the settings, weights and versions, its `key`. Else it starts anew and says what has changed
2. a segment counts once its file and the record of it (range, size, SHA-256) have their names: each is written under a
   temporary name, put on the disk, then renamed. One process writes one segment, so several may share a journal
3. `missing` tells what is left to do, `finish` ends it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .errors import MediaError
from .files import picture_files, replacing, signature, sweep, to_disk
from .segments import Segment

_NAME = ".cascadevsr_film-"  # not the name of a temporary file, which `sweep` would remove
_PLAN = "journal.json"
_VERSION = 1
_END = 1 << 20  # bytes at both ends of a file, and of each of some pieces between, that stand for all of it
_PIECES = 14


def folder_of(out: Path) -> Path:
    """Return where the journal of OUT is: a hidden folder beside it, whose name is short and depends on OUT's only."""
    out = Path(os.path.realpath(out)) if out.is_dir() else out.absolute()
    return out.parent / (_NAME + hashlib.sha256(os.fsencode(out.name)).hexdigest()[:16])


def identity(path: Path) -> dict:
    """Return what tells one state of a file, or of a folder of pictures, from another: JSON data."""
    if path.is_dir():
        files = picture_files(path)
        states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        ends = [_sample(file) for file in (files[0], files[-1])] if files else []
        return {"pictures": len(files), "hash": hashlib.sha256(repr((states, ends)).encode()).hexdigest()[:32]}
    state = path.stat()
    return {"size": state.st_size, "changed": state.st_mtime_ns, "hash": _sample(path)}


def _sample(path: Path) -> str:
    """Hash both ends of a file and pieces between them; all of a small one."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with open(path, "rb") as file:
        for number in range(_PIECES + 2):
            file.seek(max(0, (size - _END) * number // (_PIECES + 1)))
            digest.update(file.read(_END if number in (0, _PIECES + 1) or size < _END * _PIECES else _END >> 4))
    return digest.hexdigest()[:32]


@dataclass
class Journal:
    """The journal of one film: how it is cut, and which segments are finished.

    `about` is what the caller wants to find again, such as the path of the source; it decides nothing.
    """

    folder: Path
    key: dict
    segments: tuple[Segment, ...]
    about: dict = field(default_factory=dict)
    good: set[int] = field(default_factory=set)  # segments whose file has been compared with its record

    @staticmethod
    def begin(
        out: Path,
        key: dict,
        cut: Callable[[], tuple[Segment, ...]],
        about: dict | None = None,
        fresh: bool = False,
        shared: bool = False,
    ) -> tuple[Journal, str]:
        """Return the journal of OUT, and a line on what was found ("": nothing).

        `cut` is called for a new one. `fresh`: start anew in any case. `shared`: others may be at work in it, so
        another key is an error. What killed runs left half-written is removed.
        """
        folder, key = folder_of(out), json.loads(json.dumps(key))
        old = None if fresh else _read(folder)
        if old is not None and old.key == key:
            sweep(folder)
            return old, ""
        line = f"starts anew ({changes(old.key, key)})" if old is not None else ""
        if old is not None and shared:
            raise MediaError(
                f"--part: all parts must be made alike; since {out.name} was begun, {changes(old.key, key)}. Repeat "
                "the command with the settings of the others, or begin again with run.py plan-film --fresh."
            )
        new = Journal(folder, key, cut(), about or {})
        with _kept(folder, "the journal"):
            # while this one looked for cuts, another process may have begun the same
            if not fresh and (other := _read(folder)) is not None and other.key == key:
                return other, ""
            _discard(folder)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{signature()}{os.getpid()}-") as above:
                beside = Path(above) / "journal"
                beside.mkdir()
                _write(beside / _PLAN, {"version": _VERSION, **_data(new)})
                try:
                    os.rename(beside, folder)
                except OSError:
                    other = _read(folder)
                    if other is None or other.key != key:
                        raise
                    return other, line
            to_disk(folder.parent)
        return new, line

    @staticmethod
    def of(out: Path) -> Journal:
        """Return the journal that OUT has; raise MediaError where it has none."""
        found = _read(folder_of(out))
        if found is None:
            raise MediaError(
                f"OUT: no segments of {out.name} are there ({folder_of(out)}). Render them first, with this very OUT; "
                "from another machine, copy that folder."
            )
        return found

    def file(self, index: int) -> Path:
        """Return the name of the file of segment `index`."""
        return self.folder / f"{index + 1:06d}.segment"

    def record(self, index: int) -> Path:
        """Return the name of the record of segment `index`."""
        return self.folder / f"{index + 1:06d}.json"

    @contextlib.contextmanager
    def writing(self, index: int, times: tuple[int, int] | None = None) -> Iterator[Path]:
        """Yield a temporary name; when the block ends without an error, the segment is finished.

        `times`: pts of its first and last frame, for the record. Raises MediaError where the disk refuses.
        """
        segment = self.segments[index]
        with _kept(self.folder, f"segment {index + 1} of {len(self.segments)}"):
            with replacing(self.file(index), durable=True) as temporary:
                yield temporary
                facts = {"file": self.file(index).name, "frames": [segment.start, segment.stop], "pts": times}
                facts |= {"size": temporary.stat().st_size, "sha256": _hash(temporary)}
            _write(self.record(index), facts)
        self.good.add(index)

    def is_finished(self, index: int) -> bool:
        """Return whether a segment is there, whole, as it was written."""
        if index not in self.good:
            facts, segment = _json(self.record(index)), self.segments[index]
            with contextlib.suppress(OSError):
                if (
                    facts is not None
                    and facts.get("frames") == [segment.start, segment.stop]
                    and self.file(index).stat().st_size == facts.get("size")
                    and _hash(self.file(index)) == facts.get("sha256")
                ):
                    self.good.add(index)
        return index in self.good

    def missing(self) -> list[int]:
        """Return the segments that are not finished."""
        return [index for index in range(len(self.segments)) if not self.is_finished(index)]

    def require_all(self) -> None:
        """Raise MediaError, which says which segments are missing, unless all are finished."""
        if missing := self.missing():
            ranges = [f"{index + 1} (frames {s.start + 1} to {s.stop})" for index, s in self._named(missing[:4])]
            more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            raise MediaError(
                f"OUT: {len(missing)} of {len(self.segments)} segments are missing or damaged: {', '.join(ranges)}"
                f"{more}. Render them: the same command does what is missing."
            )

    def _named(self, indices: list[int]) -> list[tuple[int, Segment]]:
        return [(index, self.segments[index]) for index in indices]

    def finish(self, out: Path) -> None:
        """Remove the journal and all segments, once OUT, which was made of them, is on the disk."""
        with _kept(self.folder, "OUT"):
            for path in (*(out.iterdir() if out.is_dir() else [out]), out.parent):
                to_disk(path)
        self.discard()

    def discard(self) -> None:
        """Remove the journal and all segments."""
        _discard(self.folder)


def _data(journal: Journal) -> dict:
    segments = [asdict(segment) for segment in journal.segments]
    return {"key": journal.key, "about": journal.about, "segments": segments}


def _read(folder: Path) -> Journal | None:
    data = _json(folder / _PLAN)
    if data is None or data.get("version") != _VERSION:
        return None
    segments = tuple(Segment(**segment) for segment in data["segments"])
    return Journal(folder, data["key"], segments, data["about"])


def _json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(path: Path, data: dict) -> None:
    with replacing(path, durable=True) as temporary:
        temporary.write_text(json.dumps(data, indent=1), encoding="utf-8")


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _discard(folder: Path) -> None:
    """Remove a journal; its plan goes first, so that a kill leaves nothing that counts."""
    (folder / _PLAN).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _kept(folder: Path, what: str) -> Iterator[None]:
    """Turn what the disk raises into one sentence."""
    try:
        yield
    except OSError as error:
        raise MediaError(
            f"OUT: {what} could not be written in {folder} ({error.strerror}). What is finished is kept: free some "
            "space, or mend the disk, and the same command goes on."
        ) from error


def changes(old: dict, new: dict, above: str = "") -> str:
    """Say what differs between two keys of journals."""
    found = []
    for name in dict.fromkeys([*old, *new]):
        was, now = old.get(name), new.get(name)
        if was == now:
            continue
        if name not in new or name not in old:
            found.append(f"{above}{name} {'is new' if name in new else 'is missing'}")
        elif isinstance(was, dict) and isinstance(now, dict):
            found.append(changes(was, now, f"{above}{name} "))
        elif len(f"{was}{now}") > 60:
            found.append(f"{above}{name} has changed")
        else:
            found.append(f"{above}{name} was {was}, is {now}")
    return "; ".join(found[:4]) + (" ..." if len(found) > 4 else "")
