"""The host's context windows with our plan and weights, for Temporal Windows."""

import inspect

import comfy.context_windows as context_windows
import comfy.model_management as management
import torch

from ..models.layout.windows import Window, plan_weights, plan_windows
from . import checks, host, run_state
from .keys import TILES_KEY

_AT_ONCE = 4  # windows predicted together on a GPU, where they fit
_HEADROOM = 1.3  # share of free memory they may not use
_ALONE = ("area", "mask", "control", "gligen")  # conditioning that is not joined for several windows


class WindowHandler(context_windows.IndexListContextHandler):
    """The host's context windows with our plan (every window full) and our weights (any overlap).

    `causal` says that a clip's first latent frame is special; `plan` gives (windows, weights) of a clip's
    length where the published ones are wanted.
    """

    def __init__(self, length: int, overlap: int, causal: bool = True, plan=None):
        settings = {
            "context_schedule": context_windows.get_matching_context_schedule("standard_static"),
            "fuse_method": context_windows.get_matching_fuse_method("flat"),
            "context_length": length,
            "context_overlap": overlap,
            "dim": 2,
        }
        # One frame before each later window takes the place that training knows as a clip's first latent.
        if "causal_window_fix" in inspect.signature(super().__init__).parameters:
            settings["causal_window_fix"] = causal
        super().__init__(**settings)
        self._own_plan, self._at_once = plan, _AT_ONCE

    def should_use_context(self, model, conds, x_in, timestep, model_options):
        """Leave a clip that fits into one window to the plain call, bit for bit."""
        checks.check_clip("Temporal Windows", tuple(x_in.shape))
        long = x_in.shape[self.dim] > self.context_length
        if long and checks.guides(conds):
            raise ValueError(
                "Temporal Windows: a window must not lose sight of guide frames; got a clip of "
                f"{x_in.shape[self.dim]} latent frames with guides at its end. Set windows to off, or take the "
                "guides out (LTXVCropGuides)."
            )
        return long

    def get_context_windows(self, model, x_in, model_options):
        """Plan the windows with the core's rule."""
        length, make = x_in.shape[self.dim], context_windows.IndexListContextWindow
        windows = self._plan(length)[0]
        return [make(list(range(w.start, w.stop)), dim=self.dim, total_frames=length) for w in windows]

    def execute(self, calc_cond_batch, model, conds, x_in, timestep, model_options):
        """Predict all windows; several as one batch where they fit, with the results of one after the other.

        The host walks through windows twice then: first what it would ask is noted, then the answers are given.
        """
        together = self._count_together(model, conds, x_in, model_options)
        if together > 1:
            asked = []

            def note(_, *question):
                asked.append(question)
                return [torch.zeros_like(question[1]) for _ in question[0]]

            super().execute(note, model, conds, x_in, timestep, model_options)
            try:
                answers = iter(_answer(calc_cond_batch, model, asked, together))
                return super().execute(lambda *_: next(answers), model, conds, x_in, timestep, model_options)
            except Exception as error:  # the host tells out-of-memory errors of all devices from others
                if not management.is_oom(error):
                    raise
            self._at_once = 1
            management.soft_empty_cache()
        return super().execute(calc_cond_batch, model, conds, x_in, timestep, model_options)

    def _count_together(self, model, conds, x_in, model_options) -> int:
        """Say how many windows to predict as one batch: of our models, on a GPU, as many as fit."""
        groups = [group for group in conds if group]
        joined = not any(cond.get(key) is not None for group in groups for cond in group for key in _ALONE)
        ours = hasattr(model.latent_format, "vsr_window") and not self.causal_window_fix
        if management.is_device_cpu(x_in.device) or not (joined and ours):
            return 1
        tile = model_options.get("transformer_options", {}).get(TILES_KEY)
        sides = x_in.shape[-2:] if tile is None else (tile.height, tile.width)
        sides = [min(side, full) for side, full in zip(sides, x_in.shape[-2:], strict=True)]
        free = model.current_patcher.get_free_memory(x_in.device)
        batch, channels = x_in.shape[0] * len(groups), x_in.shape[1]
        for together in range(min(self._at_once, len(self._plan(x_in.shape[self.dim])[0])), 1, -1):
            shape = [together * batch, channels, self.context_length, *sides]
            if model.memory_required(shape) * _HEADROOM < free:
                return together
        return 1

    def evaluate_context_windows(
        self, calc_cond_batch, model, x_in, conds, timestep, enumerated, model_options, *args, **kwargs
    ):
        """Evaluate as the host does, with progress told about the window."""
        count = len(self._plan(x_in.shape[self.dim])[0])
        options = run_state.inside(model_options, enumerated[0][0], count)
        return super().evaluate_context_windows(
            calc_cond_batch, model, x_in, conds, timestep, enumerated, options, *args, **kwargs
        )

    def combine_context_window_results(
        self,
        x_in,
        sub_conds_out,
        sub_conds,
        window,
        window_idx,
        total_windows,
        timestep,
        final,
        counts,
        biases,
    ):
        """Add a window's predictions with weights that sum to one; the host then divides by ones."""
        weights = self._plan(x_in.shape[self.dim])[1][window_idx]
        weights = weights.to(x_in.device).view(-1, *[1] * (x_in.ndim - self.dim - 1))
        span = (slice(None),) * self.dim + (slice(window.index_list[0], window.index_list[-1] + 1),)
        for total, count, value in zip(final, counts, sub_conds_out, strict=True):
            total[span] += value * weights
            count[...] = 1.0

    def _plan(self, length: int) -> tuple[tuple[Window, ...], tuple[torch.Tensor, ...]]:
        if self._own_plan is not None:
            return self._own_plan(length)
        windows = plan_windows(length, self.context_length, self.context_overlap)
        return windows, plan_weights(windows)


def _answer(calc_cond_batch, model, asked, together: int):
    """Yield the predictions of every question (conds, x, timestep, options), `together` questions at a time."""
    for start in range(0, len(asked), together):
        host.check_cancelled()
        conds, parts, times, options = zip(*asked[start : start + together], strict=True)
        joined = [_join_group(groups) for groups in zip(*conds, strict=True)]
        inner = run_state.joined(options[0], options[-1])
        results = calc_cond_batch(model, joined, torch.cat(parts), torch.cat(times), inner)
        yield from zip(*(result.chunk(len(parts)) for result in results), strict=True)


def _join_group(groups):
    """Put the conditionings of several windows one after the other in the batch."""
    if groups[0] is None:
        return None
    joined = []
    for conds in zip(*groups, strict=True):
        values = {key: _join([cond["model_conds"][key] for cond in conds]) for key in conds[0]["model_conds"]}
        joined.append({**conds[0], "model_conds": values})
    return joined


def _join(values):
    tensors = [getattr(value, "cond", None) for value in values]
    if not all(isinstance(tensor, torch.Tensor) and tensor.ndim for tensor in tensors):
        return values[0]  # numbers, and lists that every window sees whole
    return values[0]._copy_with(torch.cat(tensors))
