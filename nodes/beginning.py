"""The beginning of a film, to try settings on."""

import numpy as np
from comfy_api.latest import io

from ..media.timeline import Timeline


def first_seconds_input() -> io.Float.Input:
    """Describe how much of a film is taken; graphs saved without this input take all."""
    return io.Float.Input(
        "first_seconds",
        default=0.0,
        min=0.0,
        max=1e6,
        step=0.5,
        optional=True,
        tooltip="Only the first seconds of the film, to try settings on; 0 is all of it.",
    )


def beginning(timeline: Timeline, seconds: float) -> Timeline:
    """Return the frames that begin within the first `seconds`, one at least; 0 is all of them."""
    if not seconds:
        return timeline
    return timeline.part(0, max(1, int(np.searchsorted(timeline.times, seconds - 1e-6))))
