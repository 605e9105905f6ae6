"""What a planned run computes, and what the same run would with nothing left out (VSR Plan)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ..models.layout.pieces import Window, plan_windows
from ..models.layout.plan import RunPlan, Work
from ..models.layout.turns import alternating_windows
from .host.deep import Saving
from .host.flops import call_flops
from .host.keys import SAVING_KEY
from .host.model import system_of
from .prediction import percent_range


def saving_of(patcher: ModelPatcher) -> Saving:
    """Give what Faster Sampling leaves out of the runs of a MODEL."""
    return patcher.model_options.get("transformer_options", {}).get(SAVING_KEY, Saving())


def guided_counts(patcher: ModelPatcher, counts: Sequence[int], sigmas: torch.Tensor | None) -> tuple[int, ...]:
    """Take the negative from the predictions of those steps in which text does not guide.

    Without the `sigmas` of the run, steps are taken to be spaced evenly over the denoising.
    """
    saving = saving_of(patcher)
    if (saving.start, saving.end) == (0.0, 1.0):
        return tuple(counts)
    places = [(step + 0.5) / len(counts) for step in range(len(counts))]
    guided = [saving.start <= place <= saving.end for place in places]
    if sigmas is not None:
        wanted = percent_range("", patcher, saving.start, saving.end)
        guided = [wanted(float(sigma), sigmas) for sigma in sigmas[:-1]]
    return tuple(count - (count == 2 and not inside) for count, inside in zip(counts, guided, strict=True))


def with_turns(plan: RunPlan, patcher: ModelPatcher, handler: Any) -> RunPlan:
    """Add to a plan which windows take turns, and how often the deep half is computed."""
    plan = replace(plan, deep_every=saving_of(patcher).interval)
    frames, length = plan.latent[2], plan.window
    if not getattr(handler, "alternate", False) or frames <= length:
        return plan
    ahead = bool(handler.causal_window_fix)
    plans = [alternating_windows(frames, length, turn) for turn in (0, 1)]
    return replace(plan, turns=tuple(_lengths(each, ahead) for each in plans))


def with_work(plan: RunPlan, patcher: ModelPatcher) -> RunPlan:
    """Add to the plan of one of our networks what all passes cost, references apart, and with nothing left out."""
    if system_of(patcher) is None or not plan.branches:
        return plan
    saving, whole = saving_of(patcher), replace(plan, deep_every=1, turns=())
    if plan.turns:
        handler = patcher.model_options["context_handler"]
        shared = plan_windows(plan.latent[2], plan.window, handler.context_overlap)
        whole = replace(whole, windows=_lengths(shared, bool(handler.causal_window_fix)))
    if (saving.start, saving.end) != (0.0, 1.0):
        whole = replace(whole, branches=(max(plan.branches),) * len(plan.branches))
    return replace(plan, work=(_work(plan, patcher), _work(whole, patcher)))


def deep_share(plan: RunPlan, patcher: ModelPatcher) -> float:
    """Say what share of the time of its passes a run takes that keeps the deep half over steps."""
    return _work(plan, patcher).flops / _work(plan, patcher, keeps=False).flops


def _lengths(windows: Sequence[Window], ahead: bool) -> tuple[int, ...]:
    """Give the latent frames of windows, with the one that later ones have in front."""
    return tuple(each.length + (ahead and each.start > 0) for each in windows)


def _work(plan: RunPlan, patcher: ModelPatcher, keeps: bool = True) -> Work:
    network, channels = patcher.get_model_object("diffusion_model"), plan.latent[1] + patcher.model.lr_channels
    total, sizes = 0.0, Counter((tile.height, tile.width) for tile in plan.tiles)
    for step, branches in enumerate(plan.branches):
        given = keeps and plan.keeps_deep(step)
        parts = [2] * (branches // 2) + [1] * (branches % 2)  # a guided pair shares its beginning
        for frames in plan.windows_at(step):
            for (rows, columns), count in sizes.items():
                calls = (call_flops(network, channels, (part, frames, rows, columns), given) for part in parts)
                total += count * sum(calls)
    return Work(plan.passes * plan.latent[0], plan.latent[0] * total)
