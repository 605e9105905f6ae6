"""MGLD-VSR before its networks: LR frames at the target's size, padding, and the flows that guide sampling.

A clip is (b, c, t, h, w) in -1..1. These are the steps of the published program, on clips of one scene.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..motion.flow import occlusion, resize_flow
from ..motion.guidance import Flows
from ..motion.raft import STRIDE
from .config import SPACE

SHORTEST = 512  # px; smaller results are made this large, and reduced again in the end
PADDING = 32  # px; padded sides are multiples of it
FLOW_SHRINK = 4  # motion is estimated on frames of about the LR size
FLOW_ITERATIONS = 10


def enlarge(clip: torch.Tensor, upscale: float = 4.0) -> torch.Tensor:
    """Enlarge LR frames by `upscale`, or to 512 px on the shorter side if that is more; bicubic, clamped."""
    height, width = clip.shape[-2:]
    scale = max(SHORTEST / min(height, width), upscale)
    return _per_frame(
        clip, lambda frames: _bicubic(frames, int(height * scale), int(width * scale)).clamp_(-1, 1)
    )


def pad(clip: torch.Tensor) -> torch.Tensor:
    """Reflect the right and lower borders up to multiples of 32 px.

    As published, a side that divides already grows by 32 px when the other one does not.
    """
    height, width = clip.shape[-2:]
    if height % PADDING == 0 and width % PADDING == 0:
        return clip
    rows, columns = (PADDING - side % PADDING for side in (height, width))
    return _per_frame(clip, lambda frames: F.pad(frames, (0, columns, 0, rows), mode="reflect"))


def flow_frames(clip: torch.Tensor) -> torch.Tensor:
    """Reduce padded frames to what the motion is seen on: a quarter of the sides, in 0..1."""
    height, width = (side // FLOW_SHRINK for side in clip.shape[-2:])
    return _per_frame(clip, lambda frames: _bicubic(((frames + 1) / 2).clamp_(0, 1), height, width))


def raft_flow(
    raft: Callable[..., list[torch.Tensor]],
    first: torch.Tensor,
    second: torch.Tensor,
    iterations: int = FLOW_ITERATIONS,
) -> torch.Tensor:
    """Estimate the flow first -> second as published: RAFT on (b, 3, h, w) in 0..1, not the -1..1 it was made for."""
    height, width = first.shape[-2:]
    rows, columns = (-side % STRIDE for side in (height, width))
    border = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    flow = raft(*(F.pad(image, border, mode="replicate") for image in (first, second)), iterations)[-1]
    return flow[..., border[2] : border[2] + height, border[0] : border[0] + width]


@torch.no_grad()
def estimate_flows(
    clip: torch.Tensor, estimator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Flows:
    """Estimate the flows of padded frames on the grid of their latents, and what is seen again along them.

    `estimator` gives the flow (b, 2, h, w) in px from a first to a second image in 0..1; pairs come one by one.
    """
    frames = flow_frames(clip)
    height, width = (side // SPACE for side in clip.shape[-2:])
    found: list[list[torch.Tensor]] = [[], [], [], []]
    for i in range(clip.shape[2] - 1):
        first, second = frames[:, :, i], frames[:, :, i + 1]
        ahead, behind = (
            resize_flow(estimator(*pair), height, width) for pair in ((first, second), (second, first))
        )
        pair = (ahead, behind, 1 - occlusion(ahead, behind), 1 - occlusion(behind, ahead))
        for stack, part in zip(found, pair, strict=True):
            stack.append(part)
    if not found[0]:
        empty = clip.new_zeros((clip.shape[0], 2, 0, height, width))
        return Flows(empty, empty, empty[:, :1], empty[:, :1])
    return Flows(*(torch.stack(stack, 2) for stack in found))


def _per_frame(clip: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return torch.stack([change(clip[:, :, i]) for i in range(clip.shape[2])], 2)


def _bicubic(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(frames, (height, width), mode="bicubic", align_corners=False)
