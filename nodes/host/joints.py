"""Joints of windows that take turns: at every step they fade into what the turn before said there.

1. What the network predicts of every condition is kept where the other turn has its joints, which are the middles of
   this turn's windows: a part of the latent, until the run ends.
2. Around its own joints a turn mixes in what the other one said last. It costs no call of the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...models.layout.turns import alternating_windows, joint_weights

_Said = dict[tuple, list[torch.Tensor]]


class JointFade:
    """Keeps predictions of one run, (b, c, t, h, w), by their conditions.

    `reach` is how far a joint fades, in latent frames to each side.
    """

    def __init__(self, reach: int):
        self._reach = reach
        self._places: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._forget()

    def _forget(self) -> None:
        self._step = -1
        self._said: tuple[_Said, _Said] = {}, {}  # by each turn at the last of its steps
        self._taken: Counter = Counter()  # predictions of every condition at this step

    def outer_sample(self, executor: Any, *args, **kwargs):
        """Wrap a run: nothing is left of it."""
        try:
            return executor(*args, **kwargs)
        finally:
            self._forget()

    def __call__(
        self,
        predictions: Sequence[torch.Tensor],
        conds: Sequence[list[Mapping] | None],
        step: int,
        turn: int,
        window: int,
    ) -> list[torch.Tensor]:
        """Give the predictions of a step with their joints faded; windows have `window` latent frames at most.

        Nodes may predict a condition more than once in a step: they are told apart by the order in which they come.
        """
        if step != self._step:
            self._step = step
            self._said[turn].clear()
            self._taken.clear()
        here, weights = self._joints(predictions[0].shape[2], window, turn)
        there, _ = self._joints(predictions[0].shape[2], window, 1 - turn)
        faded = []
        for prediction, group in zip(predictions, conds, strict=True):
            name = None if group is None else tuple(cond.get("uuid") for cond in group)
            if name is not None:
                before = self._said[1 - turn].get(name, ())[self._taken[name] :]
                self._taken[name] += 1
                self._said[turn].setdefault(name, []).append(prediction.index_select(2, there.to(prediction.device)))
                if before:
                    places = here.to(prediction.device)
                    mixed = torch.lerp(prediction.index_select(2, places), before[0], weights.to(prediction))
                    prediction = prediction.index_copy(2, places, mixed)
            faded.append(prediction)
        return faded

    def _joints(self, *plan: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give (latent frames near joints of a turn, the other turn's share of them), worked out once for a plan."""
        if plan not in self._places:
            weights = joint_weights(alternating_windows(*plan), self._reach)
            places = weights.nonzero().flatten()
            self._places[plan] = places, weights[places].view(-1, 1, 1)
        return self._places[plan]
