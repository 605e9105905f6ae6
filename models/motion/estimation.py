"""Estimating the motion of a clip, pair by pair, with any estimator; scene cuts are found on the way."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from .blockflow import BlockFlow
from .cuts import is_cut
from .field import Motion
from .raft import RAFT, SMALLEST, STRIDE
from .spynet import SpyNet
from .warp import resize_flow

__all__ = ["BlockFlow", "FlowEstimator", "Motion", "RaftFlow", "SpyFlow", "estimate_pairs"]


class FlowEstimator(Protocol):
    """Anything that finds the flow (b, 2, h, w) in px from `first` to `second`, (b, 3, h, w) in 0..1."""

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Estimate; any size from 1x1 px."""


class RaftFlow:
    """RAFT for frames of any size: sides below 128 px are enlarged, others rounded up to multiples of 8."""

    def __init__(self, raft: RAFT, iterations: int = 20, signed: bool = True):
        """Show frames to the network in -1..1, for which it was made, or not `signed`, in 0..1 (MGLD-VSR does)."""
        self._raft, self._iterations = raft.eval(), iterations
        self._scale, self._shift = (2, 1) if signed else (1, 0)

    @torch.no_grad()
    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Estimate on the enlarged frames and scale each component back by its own ratio."""
        height, width = first.shape[-2:]
        scale = max(1.0, SMALLEST / min(height, width))
        size = tuple(STRIDE * -(-round(side * scale) // STRIDE) for side in (height, width))
        pairs = zip(
            *(
                (self._scale * _resized(frame.float(), size) - self._shift).split(1)
                for frame in (first, second)
            ),
            strict=True,
        )
        # One at a time: the correlations of a pair fill gigabytes from 720p up.
        flow = torch.cat([self._raft(*pair, self._iterations) for pair in pairs])
        return resize_flow(flow, height, width)


class SpyFlow:
    """SpyNet, pair by pair."""

    def __init__(self, spynet: SpyNet):
        self._spynet = spynet.eval()

    @torch.no_grad()
    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Estimate on the frames as they are."""
        pairs = zip(first.float().split(1), second.float().split(1), strict=True)
        return torch.cat([self._spynet(*pair) for pair in pairs])


def _resized(frame: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if frame.shape[-2:] == size:
        return frame
    return F.interpolate(frame, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def estimate_pairs(
    frames: torch.Tensor,
    estimator: FlowEstimator,
    *,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> Motion:
    """Estimate the motion of frames (T, H, W, 3) in 0..1 on `device`, which holds one pair at a time."""
    count, height, width = frames.shape[:3]
    forward = torch.zeros(count - 1, 2, height, width, dtype=torch.float16)
    backward = torch.zeros_like(forward)
    cuts = []
    for pair in range(count - 1):
        if check_cancelled is not None:
            check_cancelled()
        both = frames[pair : pair + 2, ..., :3].movedim(-1, 1).to(device, torch.float32)
        there, back = estimator(both, both.flip(0)).chunk(2)  # both ways as one batch
        if is_cut(both[:1], both[1:], there, back):
            cuts.append(pair + 1)
        forward[pair], backward[pair] = there[0], back[0]
        if progress is not None:
            progress(pair + 1, count - 1)
    return Motion(forward, backward, tuple(cuts), count, height, width)
