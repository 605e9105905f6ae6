"""Show a running prompt on the terminal: stage, step, elapsed time and time to go."""

from __future__ import annotations

import sys
import time

from ..media.pace import duration
from .client import Progress


class Display:
    """A callback for HostClient.run: one line that rewrites itself, or a line every few seconds in a log.

    `seconds` adds up the time of every node that has run, by its title.
    """

    def __init__(self, stream=None, every: float = 5.0, said: str = "") -> None:
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.every, self.said = every, said
        self.started = self.stage_started = time.monotonic()
        self.node_id, self.title, self.shown = "", "", 0.0
        self.seconds: dict[str, float] = {}

    def __call__(self, step: Progress) -> None:
        now = time.monotonic()
        if step.node_id != self.node_id:
            self._end_stage(now)
            self.node_id, self.title, self.shown = step.node_id, step.title, 0.0
            self._show(step, now)
        elif now - self.shown > (0.1 if self.live else self.every) or step.value >= step.total > 0:
            self._show(step, now)

    def _end_stage(self, now: float) -> None:
        if self.node_id:
            self.seconds[self.title] = self.seconds.get(self.title, 0.0) + now - self.stage_started
        self.stage_started = now

    def _show(self, step: Progress, now: float) -> None:
        self.shown = now
        parts = [self.said] if self.said else []
        parts.append(f"[{duration(now - self.started)}] {step.title}")
        if step.total:
            parts.append(f"{step.value:g}/{step.total:g} ({100 * step.value / step.total:.0f} %)")
            spent = now - self.stage_started
            if 0 < step.value < step.total and spent > 0.5:
                parts.append(f"{duration(spent * (step.total - step.value) / step.value)} to go")
        line = "  ".join(parts)
        self.stream.write(f"\r\033[K{line[:118]}" if self.live else f"{line}\n")
        self.stream.flush()

    def close(self) -> None:
        """End the line and the time of the last node."""
        self._end_stage(time.monotonic())
        self.node_id = ""
        if self.live:
            self.stream.write("\r\033[K")
            self.stream.flush()
