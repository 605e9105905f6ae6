"""The clock of a track, which jumps where recordings were joined (standard library only)."""

from __future__ import annotations

_BACK = 1.0  # s that a clock goes back where recordings were joined; B-frames and rounding go back by less
_FAR = 3600.0  # s that it goes forward there in a transport stream: 26.5 h less is a clock that is taken to run over
_CLOCKS_RUN_OVER = ("mpegts", "mpeg")


class Joined:
    """Lets the clock of a track go on where it jumps, as in recordings that were joined.

    `jumps` as in a Timeline: None to find them (in the film's pictures), else to repeat them (in its other tracks).
    """

    def __init__(self, container, jumps: tuple[float, ...] | None = None) -> None:
        self.known, self.jumps, self.count, self.before, self.length = jumps, [], 0, None, 0.0
        self.far = _FAR if container.format.name in _CLOCKS_RUN_OVER else float("inf")

    def put(self, packet) -> None:
        """Move the times of the next packet of the track."""
        ticks = packet.dts if packet.dts is not None else packet.pts
        if ticks is None:
            return
        time, unit = float(ticks * packet.time_base), packet.time_base
        if self.before is not None and not self.before - _BACK < time < self.before + self.far:
            if self.known is None:
                added = self.before + self.length - time
                self.jumps.append(added + (self.jumps[-1] if self.jumps else 0.0))
            self.count += 1
        elif self.before is not None:
            self.length = time - self.before
        self.before, self.length = time, float((packet.duration or 0) * unit) or self.length
        jumps = self.jumps if self.known is None else self.known
        if self.count and jumps:
            shift = round(jumps[min(self.count, len(jumps)) - 1] / float(unit))
            packet.dts = None if packet.dts is None else packet.dts + shift
            packet.pts = None if packet.pts is None else packet.pts + shift
