"""What a planned run computes, and what the same run would with nothing left out (VSR Plan)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ..models.layout.pieces import plan_windows
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


def with_work(plan: RunPlan, patcher: ModelPatcher, handler: Any) -> RunPlan:
    """Add to a plan which windows take turns, and for our networks what all passes cost, references apart."""
    saving = saving_of(patcher)
    plan = replace(plan, deep_every=saving.interval)
    frames, length, whole = plan.latent[2], plan.window, plan
    if getattr(handler, "alternate", False) and frames > length:
        turns = (alternating_windows(frames, length, turn) for turn in (0, 1))
        ahead = bool(handler.causal_window_fix)
        found = tuple(tuple(each.length + (ahead and each.start > 0) for each in turn) for turn in turns)
        shared = plan_windows(frames, length, handler.context_overlap)
        whole = replace(plan, windows=tuple(each.length + (ahead and each.start > 0) for each in shared))
        plan = replace(plan, turns=found)
    if (saving.start, saving.end) != (0.0, 1.0):
        whole = replace(whole, branches=(max(2, *plan.branches),) * len(plan.branches))
    if system_of(patcher) is None or not plan.branches:
        return plan
    channels = plan.latent[1] + patcher.model.lr_channels
    network = patcher.get_model_object("diffusion_model")
    return replace(plan, work=tuple(_work(each, network, channels) for each in (plan, replace(whole, deep_every=1))))


def _work(plan: RunPlan, network: Any, channels: int) -> Work:
    total = 0.0
    sizes = [(tile.height, tile.width) for tile in plan.tiles]
    for step, branches in enumerate(plan.branches):
        given = step % plan.deep_every > 0
        for frames in plan.windows_at(step):
            for rows, columns in set(sizes):
                # References, which make a third branch, are left out of the count: a pair and one alone
                parts = [2] * (branches // 2) + [1] * (branches % 2)
                calls = (call_flops(network, channels, (part, frames, rows, columns), given) for part in parts)
                total += sizes.count((rows, columns)) * sum(calls)
    return Work(plan.passes * plan.latent[0], plan.latent[0] * total)
