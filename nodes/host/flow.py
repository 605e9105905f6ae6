"""Estimating motion in the host: the network of an OPTICAL_FLOW on its device, and the motion of a clip by it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher

from ...models.motion.estimation import FlowEstimator, Motion, RaftFlow, SpyFlow, estimate_pairs, estimator_of
from . import services


def check_flow_model(title: str, flow_model: object) -> None:
    """Raise where `flow_model` holds no network."""
    if not isinstance(getattr(flow_model, "model", None), torch.nn.Module):
        raise ValueError(
            f"{title}: flow_model must come from Load Flow Model or Load Optical Flow Model; got "
            f"{type(flow_model).__name__}. Link one of them."
        )


def loaded_estimator(patcher: ModelPatcher, height: int, width: int) -> FlowEstimator:
    """Bring a flow network to its device and give its estimator of frames of a size."""
    estimator = estimator_of(patcher.model)
    cells = max(16, -(-height // 8)) * max(16, -(-width // 8))
    if isinstance(estimator, SpyFlow):
        services.load_network(patcher, 4 * 64 * 250 * cells)  # features of a few layers at full size
    elif isinstance(estimator, RaftFlow):
        # Correlation of all pairs; features and the flow of every update. Measured on the CPU: 243 MB at 640x360,
        # 1,689 MB at 1280x720, of 250 and 2,186 MB reserved.
        services.load_network(patcher, 4 * (2 * cells**2 + 11000 * cells))
    return estimator  # the built-in one has no weights


def estimated(frames: torch.Tensor, patcher: ModelPatcher, progress: Callable[[int, int], None]) -> Motion:
    """Estimate the motion of frames (T, H, W, 3) in 0..1, and log the cuts."""
    estimator, device = loaded_estimator(patcher, *frames.shape[1:3]), services.main_device()
    motion = estimate_pairs(
        frames, estimator, device=device, progress=progress, check_cancelled=services.check_cancelled
    )
    if motion.cuts:
        logging.getLogger(__name__).info("Scene cuts before frames %s", ", ".join(map(str, motion.cuts)))
    return motion
