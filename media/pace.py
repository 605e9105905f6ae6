"""How far work is, how fast it goes, and how long it will take (standard library only)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_SOON = 1.0  # s
_SURE = 0.25  # of a stage that is done, when its own speed alone counts
_MEASURED = 0.02  # of the time of a round: what expectations of this machine weigh against what a run shows
Clock = Callable[[], float]  # seconds since some moment


def duration(seconds: float) -> str:
    """Write seconds for humans."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"


def countdown(seconds: float) -> str:
    """Write seconds as 0:34 or 1:02:03."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


class Pace:
    """Count the units of a work that are made, `before` of `total` by earlier runs. `unit`: frame, step, pair ..."""

    def __init__(self, total: int, before: int = 0, unit: str = "frame", now: Clock = time.monotonic) -> None:
        self.total, self.before, self.unit, self.made = total, before, unit, 0
        self._now, self._began = now, now()

    @property
    def done(self) -> int:
        """Return how many units are there."""
        return self.before + self.made

    @property
    def seconds(self) -> float:
        """Return the seconds since this run began."""
        return self._now() - self._began

    def left(self, partly: float = 0.0) -> float | None:
        """Return the seconds that the rest will take at the mean speed of this run; None in its first moments."""
        made = self.made + partly
        return self.seconds * (self.total - self.done - partly) / made if made > 0 and self.seconds > _SOON else None

    def rest(self, units: int, seconds: float) -> float:
        """Return the seconds that the rest will take, when the `units` that are being made take `seconds` more."""
        after = self.total - self.done - units
        return seconds + (self.seconds + seconds) * after / max(1, self.made + units)

    def line(self, partly: float = 0.0, certain: bool = True, left: float | None = None) -> str:
        """Say how far the work is and, once this run has made something, how fast and how long it will take.

        `partly`: units' worth of work done of what is being made; `certain`: whether that is known well enough to say
        more; `left`: the seconds left, where they are known better than by the mean speed.
        """
        done = self.done + partly
        left = self.left(partly) if left is None or self.seconds <= _SOON else left
        text = f"{self.unit} {int(done):,}/{self.total:,}"
        if left is not None and certain:
            if self.unit == "frame":
                text += f", {(self.made + partly) / self.seconds:.2g} fps"
            if done < self.total:
                text += f", {countdown(left)} left"
        return text


class Stages:
    """Tell how long a work will take that goes through the same stages again and again.

    `expected` gives the seconds (or any other common unit) of every stage that is known; the others are taken for as
    long as the longest so far, and what is told is no more than a guess before they are there. `measured`: whether they
    come from this machine; if not, only their ratios count. What stages take in a round is what is expected of the
    next.
    """

    def __init__(
        self, names: Sequence[str], expected: Mapping[str, float], now: Clock = time.monotonic, measured: bool = True
    ) -> None:
        self._now, self._trust = now, _MEASURED if measured else 0.0
        self._expected = {name: expected.get(name) for name in names}
        self.taken: dict[str, float] = {}  # seconds in this round
        self._stage, self._since, self._share, self._part = names[0], now(), 0.0, 0.0
        self._first: tuple[float, float] | None = None  # of the stage: the first part done, and the seconds it took

    def begin(self) -> None:
        """Begin a round."""
        if self.taken:
            self._expected, self._trust = {name: self.taken.get(name, 0.0) for name in self._expected}, _MEASURED
        self.taken, self._stage, self._since, self._share = {}, next(iter(self._expected)), self._now(), 0.0
        self._first = None

    def enter(self, name: str) -> None:
        """Begin with a stage; the one before it ends."""
        self.end()
        self._stage, self._part, self._first = name, 0.0, None

    def end(self) -> None:
        """End the stage."""
        now = self._now()
        self.taken[self._stage] = self.taken.get(self._stage, 0.0) + now - self._since
        self._since = now

    @property
    def seconds(self) -> float:
        """Return the seconds of this round so far."""
        return sum(self.taken.values()) + self._now() - self._since

    @property
    def certain(self) -> bool:
        """Tell whether what is told is more than a guess: no unknown stage is to come, or has just begun."""
        unknown = {name for name, seconds in self._expected.items() if seconds is None} - set(self.taken)
        return not unknown or (unknown == {self._stage} and self._part >= _SURE)

    def left(self, part: float) -> float:
        """Return the seconds that the rest of the round will take when `part` of the stage, 0..1, is done.

        The stage goes on as it went since its first sign, before which it may have had to prepare; the more so the more
        of it is done. What is expected of the later ones is corrected by how long those so far have taken.
        """
        self._part = part
        ended = {name: seconds for name, seconds in self.taken.items() if name != self._stage}
        known = {name: seconds for name, seconds in self._expected.items() if seconds is not None}
        trust = self._trust * sum(known.values())
        taken = trust + sum(seconds for name, seconds in ended.items() if name in known)
        foreseen = trust + sum(known.get(name, 0.0) for name in ended)
        spent, here = self.seconds - sum(ended.values()), known.get(self._stage)
        if self._first is None and part > 0:
            self._first = part, spent
        begun, preparing = self._first if self._first and part >= 2 * self._first[0] else (0.0, 0.0)
        going = spent + (1 - part) * (spent - preparing) / (part - begun) if part > 0 else spent
        sure = 1.0 if here is None else min(1.0, part / _SURE)
        guess = spent if here is None else taken / foreseen * here if foreseen else here
        stage = sure * going + (1 - sure) * max(spent, guess)
        if here is not None:
            taken, foreseen = taken + sure * going, foreseen + sure * here
        later = [name for name in self._expected if name != self._stage and name not in ended]
        rest = sum(known.get(name, 0.0) for name in later) * (taken / foreseen if foreseen else 1.0)
        rest += sum(name not in known for name in later) * max(stage, *ended.values(), 0.0)
        return max(0.0, stage - spent) + rest

    def share(self, part: float) -> float:
        """Return the share of the round's time that is over, 0..1, when `part` of the stage is done; it never falls."""
        spent = self.seconds
        self._share = max(self._share, spent / (spent + self.left(part)) if spent else 0.0)
        return self._share


class Speeds:
    """Remember in a small file how many seconds a unit of a work took, by a name of the work.

    A file that cannot be read or written is as good as none: then nothing is known at the beginning of a run.
    """

    def __init__(self, file: Path, most: int = 200) -> None:
        self._file, self._most = file, most

    def known(self, work: str) -> float | None:
        """Return the seconds of a unit, or None."""
        return self._read().get(work)

    def learn(self, work: str, seconds: float, units: float = 1.0) -> None:
        """Take what `units` took; half of what is remembered is new."""
        if units <= 0 or seconds <= 0:
            return
        known, new = self._read(), seconds / units
        old = known.pop(work, new)  # the newest come last
        known[work] = float(f"{(old + new) / 2:.4g}")
        temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(dict(list(known.items())[-self._most :]), indent=1), encoding="utf-8")
            os.replace(temporary, self._file)
        except OSError:
            temporary.unlink(missing_ok=True)

    def _read(self) -> dict[str, float]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        plain = found.items() if isinstance(found, dict) else ()
        return {name: float(value) for name, value in plain if isinstance(value, int | float) and value > 0}
