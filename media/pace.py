"""How fast a film is made, and how long it will take (standard library only)."""

from __future__ import annotations

import time


def duration(seconds: float) -> str:
    """Write seconds for humans."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"


class Pace:
    """Count the frames of a film that are made, `before` of `total` by earlier runs."""

    def __init__(self, total: int, before: int = 0) -> None:
        self.total, self.before, self.made, self.began = total, before, 0, time.monotonic()

    @property
    def done(self) -> int:
        """Return how many frames are there."""
        return self.before + self.made

    @property
    def seconds(self) -> float:
        """Return the seconds since this run began."""
        return time.monotonic() - self.began

    def line(self, partly: float = 0.0) -> str:
        """Say how far the film is and, once this run has made something, how fast and how long it will take.

        `partly`: frames' worth of work done of the segment that is being made.
        """
        done, made = self.done + partly, self.made + partly
        text = f"frame {int(done):,} of {self.total:,}"
        if made and done < self.total:
            text += f", {made / self.seconds:.3g} fps, {duration(self.seconds * (self.total - done) / made)} left"
        return text
