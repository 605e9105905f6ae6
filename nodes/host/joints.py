"""The last joints of windows that take turns: they fade into what the turn before said there.

1. At the last step of the turn before, what the network predicts of every condition is kept.
2. At the last step of a run, whose windows lie side by side with nothing to follow, this is mixed in around the joints,
   where the turn before had the middles of its windows. It costs no call of the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...models.layout.pieces import Window
from ...models.layout.turns import joint_weights


class JointFade:
    """Keeps predictions of one run, (b, c, t, h, w), by their conditions."""

    def __init__(self, reach: int):
        self.reach = reach  # latent frames to each side of a joint
        self._kept: dict[tuple, list[torch.Tensor]] = {}

    def outer_sample(self, executor: Any, *args, **kwargs):
        """Wrap a run: nothing is left of it."""
        try:
            return executor(*args, **kwargs)
        finally:
            self._kept.clear()

    def __call__(
        self,
        predictions: Sequence[torch.Tensor],
        conds: Sequence[list[Mapping] | None],
        plan: Sequence[Window],
        step: int,
        steps: int,
        interval: int,
    ) -> list[torch.Tensor]:
        """Give the predictions of a step of `steps`; a turn lasts `interval` steps, and `plan` is that of this one.

        Nodes may predict a condition more than once in a step: what was kept is taken in the order it came.
        """
        last = steps - 1
        if step == last // interval * interval - 1:
            for prediction, group in zip(predictions, conds, strict=True):
                if group is not None:
                    self._kept.setdefault(_name(group), []).append(prediction)
        if step != last or not self._kept:
            return list(predictions)
        weights = joint_weights(plan, self.reach).to(predictions[0]).view(-1, 1, 1)
        faded = []
        for prediction, group in zip(predictions, conds, strict=True):
            before = self._kept.get(_name(group)) if group is not None else None
            faded.append(torch.lerp(prediction, before.pop(0), weights) if before else prediction)
        return faded


def _name(group: list[Mapping]) -> tuple:
    return tuple(cond.get("uuid") for cond in group)
