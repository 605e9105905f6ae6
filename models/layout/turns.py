"""Windows that share no frame and take turns: their joints lie at other places in every other turn.

A window that shares frames with its neighbours computes them twice. Windows that lie side by side compute every frame
once, but neighbours never agree at their joint. Where places alternate from step to step, what was a joint is the
middle of a window in the next step, which makes both sides agree. For the results of a step to agree, too, the
prediction of the turn before is mixed in around the joints (`joint_weights`).

Where a turn lasts several steps (features are kept over them) that prediction grows old, so the last step is a turn of
its own (`turn_at`): its joints are mixed with what was said one step before. On the built-in model that takes the seam
of turns of 6 steps from 1.19 below 1.04 (docs/compute.md).
"""

import math
from collections.abc import Sequence

import torch

from .pieces import Window


def turn_at(step: int, steps: int, every: int) -> int:
    """Give the number of the turn of a step, both from 0: turns last `every` steps, the last of a run one."""
    return step // every + (step == steps - 1 and step % every > 0)


def alternating_windows(length: int, window: int, turn: int) -> tuple[Window, ...]:
    """Cover `length` positions once each, with windows of at most `window`, all about as long.

    In odd turns joints lie in the middles of the windows of even turns; the first and the last window are then half
    as long. A window at least as long as the axis gives one window, the whole axis.
    """
    if length < 1 or window < 1:
        raise ValueError(f"length and window must be at least 1; got {length} and {window}. Choose larger ones.")
    count = math.ceil(length / window)
    if count == 1:
        return (Window(0, length),)
    shift = turn % 2
    joints = [(2 * i + shift) * length // (2 * count) for i in range(1 - shift, count)]
    edges = sorted({0, *joints, length})
    return tuple(Window(start, stop) for start, stop in zip(edges[:-1], edges[1:], strict=True))


def joint_weights(plan: Sequence[Window], reach: int) -> torch.Tensor:
    """Give float32 weights (length,) of another prediction around the joints: large there, 0 from `reach` on.

    One position to each side is mixed by halves; more fall as a raised cosine.
    """
    weights = torch.zeros(plan[-1].stop)
    for joint in (window.start for window in plan[1:]):
        for away in range(reach):
            for place in (joint - 1 - away, joint + away):
                if 0 <= place < len(weights):
                    weights[place] = max(float(weights[place]), math.cos(math.pi / 2 * (away + 0.5) / reach) ** 2)
    return weights
