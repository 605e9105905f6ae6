"""Flow as a picture: the hue is the direction, the depth of the colour the speed; white stands still."""

import math

import torch

# Corners of the wheel at 0, 60, ... 300 degrees: red, yellow, green, cyan, blue, magenta.
_WHEEL = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1))


def flow_picture(flow: torch.Tensor, fastest: float | None = None) -> torch.Tensor:
    """Paint (n, 2, h, w) as (n, h, w, 3) in 0..1; `fastest` px are full colour, by default the 99th percentile.

    Red moves right, green to the lower left, blue to the upper left.
    """
    flow = flow.float()
    speed = flow.square().sum(1).sqrt()
    if fastest is None:
        fastest = max(1e-3, _percentile(speed, 0.99))
    hue = torch.atan2(flow[:, 1], flow[:, 0]).remainder(2 * math.pi) * 3 / math.pi
    corner = hue.floor().clamp(0, 5)
    wheel = flow.new_tensor(_WHEEL)
    share = (hue - corner)[..., None]
    colour = torch.lerp(wheel[corner.long()], wheel[(corner.long() + 1) % 6], share)
    depth = (speed / fastest).clamp(0, 1)[..., None]
    return 1 - depth * (1 - colour)


def _percentile(values: torch.Tensor, share: float) -> float:
    flat = values.flatten()
    flat = flat[:: max(1, flat.numel() >> 20)]  # about a million values tell as much as all
    return float(torch.quantile(flat, share))
