"""Losses of the built-in model; clips are (b, 3, t, h, w) in -1..1."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..models.motion.flow import warp


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
    """How much of the truth's detail (3x3 high-pass, 8x8 px windows) is missing from or too much in the output.

    Pixel losses alone give the average of all plausible detail, which is too weak. This compares the strength of detail
    along the truth's own with that of the truth. Comparing strength alone was tried: a network satisfies that with a
    regular pattern.
    """

    def detail(clip: torch.Tensor) -> torch.Tensor:
        frames = clip.float().transpose(1, 2).flatten(0, 1)
        return frames - F.avg_pool2d(frames, 3, 1, 1)

    ours, real = detail(output), detail(truth)
    power = F.avg_pool2d(real.square(), 8)
    return ((F.avg_pool2d(ours * real, 8) - power).abs() * (power + 1e-6).rsqrt()).mean()


def lattice(output: torch.Tensor, truth: torch.Tensor, grid: int = 4) -> torch.Tensor:
    """How much output and truth differ depending on the position in the decoder's cells of `grid` x `grid` px.

    Two measures: what is left of the error when each place is averaged over 8x8 cells (any pattern that repeats
    with the cells), and how the strength of steps from pixel to pixel varies with the place (hard cell borders).
    """

    def pattern(error: torch.Tensor) -> torch.Tensor:
        places = F.pixel_unshuffle(error, grid)
        places = F.avg_pool2d(places, [min(8, side) for side in places.shape[-2:]], stride=4)
        places = places.unflatten(1, (error.shape[1], -1))
        return (places - places.mean(2, keepdim=True)).abs().mean()

    def unevenness(frames: torch.Tensor, dim: int) -> torch.Tensor:
        steps = F.pad(frames.transpose(dim, 3).diff(dim=3).abs(), (0, 1))
        strength = steps.unflatten(3, (-1, grid)).mean((1, 2, 3))
        return strength - strength.mean(1, keepdim=True)

    output, truth = (clip.float().transpose(1, 2).flatten(0, 1) for clip in (output, truth))
    uneven = sum((unevenness(output, dim) - unevenness(truth, dim)).abs().mean() for dim in (2, 3))
    return pattern(output - truth) + uneven


def flicker(error: torch.Tensor, flow: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """How much the error changes along the motion: |e(t) - warp(e(t+1))| on visible pixels.

    Zero for an error that does not change, so it rewards the truth's own change over time, not blur.
    """
    if error.shape[2] < 2:
        return error.new_zeros(())
    frames = error.float().transpose(1, 2)
    now, after = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    change = (now - warp(after, flow.flatten(0, 1))).abs() * visible.flatten(0, 1)
    return change.mean()


def pixel_loss(output: torch.Tensor, truth: torch.Tensor, flow: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Charbonnier + 0.1 Laplacian pyramid + 0.5 change along the exact flow."""
    error = output - truth
    return charbonnier(error) + 0.1 * laplacian(error) + 0.5 * flicker(error, flow, visible)
