"""Losses of the built-in model; clips are (b, 3, t, h, w) in -1..1."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..models.motion.warp import warp


def charbonnier(error: torch.Tensor) -> torch.Tensor:
    """A smooth L1: mean of sqrt(e^2 + 1e-6)."""
    return (error.float().square() + 1e-6).sqrt().mean()


def laplacian(error: torch.Tensor, levels: int = 3) -> torch.Tensor:
    """Mean absolute error of the bands of a Laplacian pyramid, finest first, each weighted alike."""
    error = error.float().transpose(1, 2).flatten(0, 1)
    total = error.new_zeros(())
    for _ in range(levels):
        small = F.avg_pool2d(error, 2)
        total = total + (error - F.interpolate(small, scale_factor=2, mode="bilinear")).abs().mean()
        error = small
    return total


def texture(output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean difference of the strength of detail (RMS Laplacian of 8x8 px) between output and truth.

    Pixel losses alone give the average of all possible details, which is none; this asks for as much as the truth has.
    """

    def strength(clip: torch.Tensor) -> torch.Tensor:
        frames = clip.float().transpose(1, 2).flatten(0, 1)
        return (F.avg_pool2d((frames - F.avg_pool2d(frames, 3, 1, 1)).square(), 8) + 1e-6).sqrt()

    return (strength(output) - strength(truth)).abs().mean()


def flicker(error: torch.Tensor, flow: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """How much the error changes along the motion: |e(t) - warp(e(t+1))| on visible pixels.

    Zero for a steady error, so it asks for the ground truth's own change over time, not for blur.
    """
    if error.shape[2] < 2:
        return error.new_zeros(())
    frames = error.float().transpose(1, 2)
    now, after = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    change = (now - warp(after, flow.flatten(0, 1))).abs() * visible.flatten(0, 1)
    return change.mean()


def pixel_loss(
    output: torch.Tensor, truth: torch.Tensor, flow: torch.Tensor, visible: torch.Tensor
) -> torch.Tensor:
    """Charbonnier + 0.1 Laplacian pyramid + 0.5 change along the exact flow."""
    error = output - truth
    return charbonnier(error) + 0.1 * laplacian(error) + 0.5 * flicker(error, flow, visible)
