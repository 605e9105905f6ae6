"""Latent propagation along optical flow, without training: Upscale-A-Video's, for any video latent.

A clip is (b, c, t, h, w). Forward flow i leads from frame i to i + 1, backward flow i from i + 1 to i, both
(b or 1, 2, t - 1, H, W) in pixels of their own grid, (dx, dy).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .warp import consistency, resize_flow, warp

DIRECTIONS = ("both", "backward", "forward")


@torch.no_grad()
def propagate(
    x: torch.Tensor,
    forward: torch.Tensor,
    backward: torch.Tensor,
    *,
    mode: str = "nearest",
    fuse: str = "fuse",
    weight: float = 0.5,
    alpha1: float = 0.001,
    alpha2: float = 0.05,
    direction: str = "both",
    cuts: Sequence[int] = (),
    reference: bool = False,
) -> torch.Tensor:
    """Carry each frame into its neighbour where the flow is consistent; the defaults are the published call's.

    A pass from the last frame to the first, then one from the first to the last on its result. "fuse" mixes
    `weight` of the warped frame in, "copy" takes all of it. `cuts` are the frames that start a new scene:
    nothing crosses into or out of them. `reference` scales both components of a resized flow by the width's ratio.
    Memory beyond input and output is that of single frames; flows may live on another device.
    """
    _check(x, forward, backward, mode, fuse, direction)
    share = 1.0 if fuse == "copy" else weight
    out = x.clone()

    def pull(target: int, source: int, there: torch.Tensor, back: torch.Tensor) -> None:
        flow, opposite = (_on_grid(each, x, reference) for each in (there, back))
        warped = warp(out[:, :, source], flow, mode, "zeros")
        kept = out[:, :, target]
        trusted = consistency(flow, opposite, alpha1, alpha2)
        kept.copy_(torch.where(trusted, torch.lerp(kept, warped, share), kept))

    starts = set(cuts)
    pairs = [i for i in range(x.shape[2] - 1) if i + 1 not in starts]  # pair i is frames i and i + 1
    if direction != "forward":
        for i in reversed(pairs):
            pull(i, i + 1, forward[:, :, i], backward[:, :, i])
    if direction != "backward":
        for i in pairs:
            pull(i + 1, i, backward[:, :, i], forward[:, :, i])
    return out


def _on_grid(flow: torch.Tensor, x: torch.Tensor, reference: bool) -> torch.Tensor:
    """Bring one flow to the device, batch and (h, w) of x, in float32."""
    flow = flow.to(x.device, torch.float32)
    height, width = x.shape[-2:]
    if reference and flow.shape[-2:] != (height, width):
        flow = F.interpolate(flow, (height, width), mode="area") * (width / flow.shape[-1])
    return resize_flow(flow, height, width, "area").expand(x.shape[0], -1, -1, -1)


def _check(x: torch.Tensor, forward: torch.Tensor, backward: torch.Tensor, *choices: str) -> None:
    allowed = (("nearest", "bilinear"), ("fuse", "copy"), DIRECTIONS)
    for choice, options in zip(choices, allowed, strict=True):
        if choice not in options:
            raise ValueError(
                f"Latent Propagation: choose one of {', '.join(options)}; got {choice!r}. Correct it."
            )
    fits = x.ndim == 5 and forward.ndim == 5 and forward.shape == backward.shape
    if not (fits and forward.shape[0] in (1, x.shape[0]) and forward.shape[1:3] == (2, x.shape[2] - 1)):
        raise ValueError(
            "Latent Propagation: a clip (b, c, t, h, w) needs forward and backward flows (b, 2, t - 1, H, W); "
            f"got {tuple(x.shape)}, {tuple(forward.shape)} and {tuple(backward.shape)}. "
            "Estimate the motion of this clip, with all its frames."
        )
