"""Sampling schedules as pure functions.

Flow matching: sigma runs from 1 (noise) to 0 (clean); shift moves steps towards the noisy end.
"""

import torch


def shift_sigma(sigma, shift: float):
    """Apply the time-step shift s t / (1 + (s - 1) t) to a number or tensor; 1 is the identity."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def unshift_sigma(sigma, shift: float):
    """Undo shift_sigma."""
    return sigma / (shift - (shift - 1) * sigma)


def flow_sigmas(steps: int, start: float = 1.0, shift: float = 1.0) -> torch.Tensor:
    """Give (steps + 1,) float32 sigmas, strictly descending from exactly `start` to exactly 0."""
    if steps < 1 or not 0 < start <= 1 or not 0 < shift < float("inf"):
        raise ValueError(
            f"Refine Sigmas: needs at least 1 step, a start sigma in (0, 1] and a positive shift; "
            f"got {steps} steps, start {start}, shift {shift}. Start from steps 1, start 1.0, shift 1.0."
        )
    times = torch.linspace(float(unshift_sigma(start, shift)), 0.0, steps + 1, dtype=torch.float64)
    sigmas = shift_sigma(times, shift)
    sigmas[0], sigmas[-1] = start, 0.0
    return sigmas.float()
