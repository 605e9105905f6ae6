"""Flow at work: backward warping, forward-backward consistency, visibility and occlusion, resizing of flow.

A flow is (b, 2, h, w) in pixels of its own grid, (dx, dy): out(p) = in(p + flow(p)). Two flows of one pair of
frames are `flow` (first to second) and `opposite` (second to first).
"""

import torch
import torch.nn.functional as F


def warp(
    x: torch.Tensor, flow: torch.Tensor, mode: str = "bilinear", padding: str = "border"
) -> torch.Tensor:
    """Sample (b, c, h, w) at p + flow(p); mode bilinear, nearest or bicubic, padding border or zeros.

    Coordinates are float32 whatever the dtype of x: half precision would place columns past 2048 a pixel off.
    """
    _check(x, flow)
    height, width = x.shape[-2:]
    columns, rows = _targets(flow)
    # Corner-aligned coordinates, as published, but for a side of one pixel, which has no two corners.
    corners = min(height, width) > 1
    if corners:
        grid = torch.stack((2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1), dim=-1)
    else:
        grid = torch.stack(((2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1), dim=-1)
    return F.grid_sample(x.float(), grid, mode=mode, padding_mode=padding, align_corners=corners).to(x.dtype)


def in_frame(flow: torch.Tensor) -> torch.Tensor:
    """Tell, (b, 1, h, w) bool, where p + flow(p) lies inside the frame."""
    columns, rows = _targets(flow)
    inside = (columns >= 0) & (rows >= 0) & (columns <= flow.shape[-1] - 1) & (rows <= flow.shape[-2] - 1)
    return inside[:, None]


def consistency(
    flow: torch.Tensor, opposite: torch.Tensor, a: float = 0.01, b: float = 0.5, padding: str = "zeros"
) -> torch.Tensor:
    """Tell, (b, 1, h, w) bool, where going there and back returns: |f + g~|^2 < a (|f|^2 + |g~|^2) + b.

    g~ is the opposite flow warped by the flow (Sundaram et al. 2010); NaN flow is never consistent.
    """
    flow, back = flow.float(), warp(opposite.float(), flow, padding=padding)
    return _square(flow + back) < a * (_square(flow) + _square(back)) + b


def visible(flow: torch.Tensor, opposite: torch.Tensor, a: float = 0.01, b: float = 0.5) -> torch.Tensor:
    """Tell, (b, 1, h, w) bool, which pixels stay inside the frame and are seen again (Ruder et al. 2016)."""
    return in_frame(flow) & consistency(flow, opposite, a, b, padding="border")


def occlusion(flow: torch.Tensor, opposite: torch.Tensor, a: float = 0.01, b: float = 0.5) -> torch.Tensor:
    """Mark, (b, 1, h, w) float, occluded pixels with 1: |f + g~| > a (|f| + |g|) + b.

    MGLD-VSR's form: lengths instead of squares, a zero border, and the limit from g as it is, not warped.
    """
    flow, opposite = flow.float(), opposite.float()
    back = warp(opposite, flow, padding="zeros")
    limit = a * (_square(flow).sqrt() + _square(opposite).sqrt()) + b
    return (_square(flow + back).sqrt() > limit).float()


def resize_flow(flow: torch.Tensor, height: int, width: int, mode: str = "bilinear") -> torch.Tensor:
    """Resize a flow (mode bilinear or area) and scale dx by the width's ratio, dy by the height's."""
    old_height, old_width = flow.shape[-2:]
    if (old_height, old_width) == (height, width):
        return flow
    options = {} if mode == "area" else {"align_corners": False}
    resized = F.interpolate(flow, (height, width), mode=mode, **options)
    ratio = flow.new_tensor([width / old_width, height / old_height])
    return resized * ratio.view(1, 2, 1, 1)


def _targets(flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(flow.shape[-2], device=flow.device, dtype=torch.float32)
    columns = torch.arange(flow.shape[-1], device=flow.device, dtype=torch.float32)
    return columns + flow[:, 0].float(), rows[:, None] + flow[:, 1].float()


def _square(flow: torch.Tensor) -> torch.Tensor:
    return flow.square().sum(1, keepdim=True)


def _check(x: torch.Tensor, flow: torch.Tensor) -> None:
    if x.ndim != 4 or flow.shape != (x.shape[0], 2, *x.shape[2:]):
        raise ValueError(
            f"Warp: an image (b, c, h, w) needs a flow (b, 2, h, w) of the same size; got "
            f"{tuple(x.shape)} and {tuple(flow.shape)}. Resize the flow with resize_flow()."
        )
