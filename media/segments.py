"""How a film becomes segments that are made one after the other, or on several machines (standard library only).

1. nothing crosses a cut: every scene is cut by itself
2. a long scene becomes segments of about equal length
3. what a segment needs of its neighbours, its context, is made with it and thrown away, so that no joint is seen
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .errors import MediaError

CONTEXT = 16  # frames before a segment, half after it: models and decoders remember more than they look ahead
_LONG = 4  # times the step


@dataclass(frozen=True)
class Segment:
    """Frames `start` to `stop` (not included) of a film, with `before` and `after` frames of context around them.

    `scene`: the number of their scene, from 0.
    """

    start: int
    stop: int
    before: int = 0
    after: int = 0
    scene: int = field(default=0, compare=False)

    @property
    def frames(self) -> int:
        """Return the number of frames that are kept."""
        return self.stop - self.start

    @property
    def kept(self) -> slice:
        """Return which of the frames that are made are kept."""
        return slice(self.before, self.before + self.frames)

    @property
    def first(self) -> int:
        """Return the first frame that is made."""
        return self.start - self.before

    @property
    def end(self) -> int:
        """Return the frame after the last that is made."""
        return self.stop + self.after


def cut_film(
    frames: int, cuts: Iterable[int], length: int, context: int = 0, step: int = 1, after: int | None = None
) -> tuple[Segment, ...]:
    """Cut a film into segments of at most `length` frames, and `step` or `context` more where that saves a segment.

    `cuts`: frames that begin a scene, the first of the film or not. `context`: frames that are made before and after
    a segment (`after`: another number of them there), as far as its scene has them. `step`: what is made begins a
    multiple of so many frames after its scene, for models that look at frames in groups: long segments begin there,
    for short ones context grows.
    Raises MediaError for what is out of range. The result depends on these numbers only.
    """
    if frames < 1 or length < 1 or context < 0 or step < 1:
        raise MediaError(
            f"--segment: must be at least 1 frame of a film that has some, with a context of 0 or more; got {length} "
            f"of {frames} frames, context {context}."
        )
    borders = sorted({0, *cuts, frames})
    if borders[0] < 0 or borders[-1] > frames:
        raise MediaError(f"Cuts must lie within the film, 0 to {frames}; got {borders[0]} to {borders[-1]}.")
    found = []
    for scene, (begin, end) in enumerate(zip(borders, borders[1:], strict=False)):
        total = end - begin
        # a tail that is shorter than its context would be made twice, and as often as it is long
        grid = step if length >= _LONG * step else 1
        count = 1 if total <= length + context else -(-total // length)
        edges = [begin + total * number // count // grid * grid for number in range(count)] + [end]
        for start, stop in zip(edges, edges[1:], strict=False):
            before = min(context, start - begin)
            before += (start - before - begin) % step
            found.append(Segment(start, stop, before, min(context if after is None else after, end - stop), scene))
    return tuple(found)


def share(count: int, part: int, parts: int) -> range:
    """Return which of `count` segments part `part` of `parts` (from 1) makes: neighbours, about as many in each."""
    if not 1 <= part <= parts:
        raise MediaError(f"--part: must be I/N with I from 1 to N; got {part}/{parts}.")
    return range(count * (part - 1) // parts, count * part // parts)
