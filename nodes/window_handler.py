"""The host's context windows with our plan and weights, for Temporal Windows."""

import inspect

import comfy.context_windows as context_windows
import torch

from ..models.layout.windows import Window, plan_weights, plan_windows
from . import run_state


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
        self._own_plan = plan

    def should_use_context(self, model, conds, x_in, timestep, model_options):
        """Leave a clip that fits into one window to the plain call, bit for bit."""
        return x_in.ndim == 5 and x_in.shape[self.dim] > self.context_length

    def get_context_windows(self, model, x_in, model_options):
        """Plan the windows with the core's rule."""
        length, make = x_in.shape[self.dim], context_windows.IndexListContextWindow
        windows = self._plan(length)[0]
        return [make(list(range(w.start, w.stop)), dim=self.dim, total_frames=length) for w in windows]

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
