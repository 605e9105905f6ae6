"""Show a running prompt on the terminal: frames, speed and time left of the whole run, and what runs now."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

from ..media.pace import Clock, Pace, Speeds, Stages, duration
from .client import Progress
from .paths import cache_root

_PATIENCE = 1.5  # seconds; quicker work needs no words


class Whole:
    """How far a run over a film is, of which ComfyUI makes one part after the other by the same graph.

    `prompt`: the graph; `kind`: its name and the device, under which it is remembered what its nodes took.
    """

    def __init__(self, pace: Pace, prompt: dict, kind: str, now: Clock = time.monotonic) -> None:
        self.pace, self._kind, self._frames = pace, kind, 0
        self._speeds = Speeds(cache_root() / "speeds.json")
        known = {node: self._speeds.known(f"{kind}: node {node}") for node in prompt}
        found = {node: seconds or 0.0 for node, seconds in known.items()} if any(known.values()) else {}
        self._stages = Stages(["", *prompt], {"": 0.0, **found} if found else {}, now)

    def begin(self, frames: int) -> None:
        """Begin with a part of so many frames."""
        self._stages.begin()
        self._frames = frames

    def __call__(self, step: Progress, changed: bool) -> str | None:
        """Return the line on the whole run; None as long as nobody knows how its nodes share the time."""
        if changed:
            self._stages.enter(step.node_id)
        if not (self._stages.certain or self.pace.made):
            return None
        part = step.value / step.total if step.total else 0.0
        left = self.pace.rest(self._frames, self._stages.left(part))
        return self.pace.line(self._frames * self._stages.share(part), left=left)

    def end(self, pixels: float) -> None:
        """End the part, whose frames have so many `pixels`, and remember what its nodes took."""
        self._stages.end()
        for node, seconds in self._stages.taken.items():
            if node:
                self._speeds.learn(f"{self._kind}: node {node}", seconds, pixels / 1e6)


def counted(frames: Iterable, what: str, total: int) -> Iterator:
    """Pass frames on; where that takes long, show how far it is."""
    pace, display = Pace(total), Display()
    try:
        for frame in frames:
            yield frame
            pace.made += 1
            if pace.seconds > _PATIENCE:
                display(Progress(what, what, text=pace.line()))
    finally:
        display.close()


class Display:
    """A callback for HostClient.run: one line that rewrites itself, or a line every few seconds in a log.

    `seconds` adds up the time of every node that has run, by its title. Without `whole`, or where that cannot tell, the
    line is that of the running node.
    """

    def __init__(self, stream=None, every: float = 5.0, whole: Whole | None = None) -> None:
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.every, self.whole = every, whole
        self.started = self.stage_started = time.monotonic()
        self.node_id, self.title, self.shown = "", "", 0.0
        self.seconds: dict[str, float] = {}

    def __call__(self, step: Progress) -> None:
        now, changed = time.monotonic(), step.node_id != self.node_id
        if changed:
            self._end_stage(now)
            self.node_id, self.title, self.shown = step.node_id, step.title, 0.0
        whole = self.whole(step, changed) if self.whole else None
        if changed or now - self.shown > (0.1 if self.live else self.every):
            self._show(step, now, whole)

    def _end_stage(self, now: float) -> None:
        if self.node_id:
            self.seconds[self.title] = self.seconds.get(self.title, 0.0) + now - self.stage_started
        self.stage_started = now

    def _show(self, step: Progress, now: float, whole: str | None) -> None:
        self.shown = now
        parts = [f"[{duration(now - self.started)}]", *([whole] if whole else []), step.title]
        if step.text and not whole:
            parts.append(step.text)
        elif step.total:
            parts.append(f"{100 * step.value / step.total:.0f} %")
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
