"""Upscale-A-Video's published plan of a run: which frames the UNet and the decoder see together.

1. LR frames (b, 3, t, h, w) in -1..1 receive noise of a level in 0..350, counted in steps of SCHEDULE.
2. The UNet sees 8 frames at once, 2 of them shared with the window before; the last window is shifted back to be
   full: `published_windows`, spans (start, stop) in frames.
3. Their predictions are blended one after the other, half of what is there and half of the new one. As weights, which
   sum to 1 at every frame: `published_window_weights`, (windows, t).
4. The decoder takes DECODE_CHUNK frames at once, without overlap.

The whole published program, an oracle for tests, is in tests/published/. Source: Zhou et al., CVPR 2024.
"""

from __future__ import annotations

import torch

from ..schedules import DiffusionSettings

WINDOW = 8  # frames the UNet sees at once
WINDOW_OVERLAP = 2
DECODE_CHUNK = 3  # frames decoded together
# The scheduler of the x4 upscaler that the model was made from: for a checkpoint without its jsons.
SCHEDULE = DiffusionSettings(
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)

Span = tuple[int, int]


def published_windows(frames: int) -> list[Span]:
    """Give the windows in their order; the last ones are shifted back and can be the same twice."""
    if frames <= WINDOW:
        return [(0, frames)]
    stops = (min(start + WINDOW, frames) for start in range(0, frames, WINDOW - WINDOW_OVERLAP))
    return [(stop - WINDOW, stop) for stop in stops]


def published_window_weights(frames: int) -> torch.Tensor:
    """Give (windows, frames) float32: what each window counts after the published blending.

    It mixes windows one after another, half of what is there and half of the new one, where frames are covered.
    """
    windows = published_windows(frames)
    weights = torch.zeros(len(windows), frames)
    covered = 0
    for row, (start, stop) in enumerate(windows):
        weights[:, start:covered] *= 0.5
        weights[row, start:covered] = 0.5
        weights[row, covered:stop] = 1.0
        covered = stop
    return weights
