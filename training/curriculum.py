"""Tasks and stages: the order of the UniMMVSR paper, difficult to easy (its section 3.4), and two to compare with.

Everything is a pure function of (step, seed): a resumed run draws the same tasks as an unbroken one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TEXT, IMAGES, VIDEO = "none", "images", "video"  # tasks, named by the references of a sample
TASKS = (TEXT, IMAGES, VIDEO)
DIFFICULT_FIRST, FULL, EASY_FIRST = "difficult to easy", "full", "easy to difficult"
ORDERS = (DIFFICULT_FIRST, FULL, EASY_FIRST)
_ALL = (0.5, 0.3, 0.2)  # the paper's final mix of text-to-video, multi-ID and editing


@dataclass(frozen=True)
class Stage:
    """A part of a run: shares of (text-to-video, multi-ID, editing), frames of a clip, share of all steps."""

    name: str
    shares: tuple[float, float, float]
    frames: int
    part: float

    def __post_init__(self):
        if abs(sum(self.shares) - 1) > 1e-6 or min(self.shares) < 0 or not 0 < self.part <= 1:
            raise ValueError(
                f"Curriculum: a stage's shares must add up to 1 and its part must be in (0, 1]; got {self.shares} and "
                f"{self.part:g}. Correct the stage."
            )
        if self.frames % 4 != 1:
            raise ValueError(f"Curriculum: clips must have 4n+1 frames; got {self.frames}. Use 5, 9, 13, 17, 21 ...")


# By order, the mixes of the first three stages. Difficult means: least to go by. What "easy to difficult" mixes on
# its way is not stated by the paper; here it mirrors the other.
_MIXES = {
    DIFFICULT_FIRST: ((1.0, 0.0, 0.0), (0.6, 0.4, 0.0), _ALL),
    FULL: (_ALL, _ALL, _ALL),
    EASY_FIRST: ((0.0, 0.0, 1.0), (0.0, 0.6, 0.4), _ALL),
}


def stages(
    order: str = DIFFICULT_FIRST, short: int = 21, long: int = 77, parts: Sequence[float] = (0.4, 0.2, 0.2, 0.2)
) -> tuple[Stage, ...]:
    """Give the four stages of an order: three on clips of `short` frames, the last mix again on `long` ones.

    The paper does not say how long each lasts; `parts` are shares of all steps.
    """
    if order not in _MIXES:
        raise ValueError(f"Curriculum: order must be one of {', '.join(ORDERS)}; got {order!r}. Use {DIFFICULT_FIRST}.")
    if len(parts) != 4 or abs(sum(parts) - 1) > 1e-6:
        raise ValueError(f"Curriculum: needs four parts that add up to 1; got {tuple(parts)}. Use 0.4 0.2 0.2 0.2.")
    mixes = (*_MIXES[order], _ALL)
    lengths = (short, short, short, long)
    return tuple(
        Stage(f"{number}: {_words(mix)}, {frames} frames", mix, frames, part)
        for number, (mix, frames, part) in enumerate(zip(mixes, lengths, parts, strict=True), 1)
        if part > 0
    )


def _words(mix: Sequence[float]) -> str:
    names = ("text-to-video", "multi-ID", "editing")
    return " + ".join(f"{share:g} {name}" for name, share in zip(names, mix, strict=True) if share)


def stage_at(step: int, steps: int, plan: Sequence[Stage]) -> Stage:
    """Give the stage that a step (from 0) of a run of `steps` steps belongs to."""
    reached = 0.0
    for stage in plan:
        reached += stage.part
        if step < round(reached * steps):
            return stage
    return plan[-1]


def rng_at(seed: int, step: int, stream: int = 0) -> np.random.Generator:
    """Give the generator of one step of a run; streams keep what is drawn for different ends apart."""
    return np.random.default_rng([seed, stream, step])


def task_at(step: int, steps: int, plan: Sequence[Stage], seed: int, place: int = 0) -> str:
    """Draw the task of a sample (`place` in the batch) at a step: one of TASKS, in the shares of its stage."""
    share = np.random.default_rng([seed, 1 + place, step, 0x7A5C]).random()
    edges = np.cumsum(stage_at(step, steps, plan).shares)
    return TASKS[min(int((share >= edges).sum()), 2)]
