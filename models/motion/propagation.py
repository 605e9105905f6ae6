"""Latent propagation along optical flow, without training: Upscale-A-Video's, for any video latent.

A clip is (b, c, t, h, w). Forward flow i leads from frame i to i + 1, backward flow i from i + 1 to i, both
(b or 1, 2, t - 1, H, W) in pixels of their own grid, (dx, dy).

What propagate() does:

1. Backward: from the last frame but one to the first, each frame takes from the next one.
2. Forward: from the second frame to the last, each takes from the one before, on the result of the first pass.
3. One step brings the two flows of the pair to the grid of x, (b, 2, h, w), warps the neighbour (b, c, h, w), and
   mixes it in where going there and back returns; everywhere else the frame keeps its own values.
4. No step crosses a scene cut.
"""

from collections.abc import Sequence

import torch

from .flow import consistency, resize_flow, warp

DIRECTIONS = ("both", "backward", "forward")


@torch.no_grad()
def propagate(
    x: torch.Tensor,
    forward: torch.Tensor,
    backward: torch.Tensor,
    *,
    mode: str = "nearest",
    weight: float = 0.5,
    alpha1: float = 0.001,
    alpha2: float = 0.05,
    direction: str = "both",
    cuts: Sequence[int] = (),
) -> torch.Tensor:
    """Mix `weight` of each frame's warped neighbour in where the flow is consistent; defaults as published.

    `mode` samples the neighbour, nearest or bilinear. `alpha1` and `alpha2` are consistency()'s a and b, in cells.
    `cuts` are the frames that start a new scene: nothing crosses into or out of them. Memory beyond input and output
    is that of single frames; flows may be on another device.
    """
    _check(x, forward, backward, mode, direction)
    out = x.clone()

    def pull(target: int, source: int, there: torch.Tensor, back: torch.Tensor) -> None:
        flow, opposite = (
            resize_flow(each.to(x.device, torch.float32), *x.shape[-2:], "area").expand(len(x), -1, -1, -1)
            for each in (there, back)
        )
        warped = warp(out[:, :, source], flow, mode, "zeros")
        kept = out[:, :, target]
        trusted = consistency(flow, opposite, alpha1, alpha2)
        kept.copy_(torch.where(trusted, torch.lerp(kept, warped, weight), kept))

    starts = set(cuts)
    pairs = [i for i in range(x.shape[2] - 1) if i + 1 not in starts]  # pair i is frames i and i + 1
    if direction != "forward":
        for i in reversed(pairs):
            pull(i, i + 1, forward[:, :, i], backward[:, :, i])
    if direction != "backward":
        for i in pairs:
            pull(i + 1, i, backward[:, :, i], forward[:, :, i])
    return out


def _check(x: torch.Tensor, forward: torch.Tensor, backward: torch.Tensor, mode: str, direction: str) -> None:
    for name, choice, options in (
        ("sampling", mode, ("nearest", "bilinear")),
        ("direction", direction, DIRECTIONS),
    ):
        if choice not in options:
            raise ValueError(f"{name} must be one of {', '.join(options)}; got {choice!r}. Use {options[0]}.")
    matching = x.ndim == 5 and forward.ndim == 5 and forward.shape == backward.shape
    if not (matching and forward.shape[0] in (1, x.shape[0]) and forward.shape[1:3] == (2, x.shape[2] - 1)):
        raise ValueError(
            "a clip (b, c, t, h, w) needs forward and backward flows (b, 2, t - 1, H, W); got "
            f"{tuple(x.shape)}, {tuple(forward.shape)} and {tuple(backward.shape)}. Estimate the motion of this "
            "clip, with all its frames."
        )
