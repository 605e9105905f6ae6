"""SpyNet (Ranjan & Black 2017): optical flow from small networks on the levels of an image pyramid.

What the network does with two images (b, 3, h, w) in 0..1:

1. Both are enlarged to sides that are multiples of 32, and normalised by ImageNet's mean and deviation.
2. Each is halved five times: six levels, the coarsest (b, 3, h/32, w/32).
3. From a flow of zeros, on each level from the coarsest up: the flow (b, 2, r, c) is doubled to the level's size, the
   second image is warped by it, and five convolutions of 7x7 turn (first, warped second, flow), (b, 8, r, c), into a
   step that is added.
4. The flow is resized to (b, 2, h, w), each component by its own ratio.

Keys are those of the published `spynet_sintel_final` weights ("basic_module.LEVEL.basic_module.LAYER."), without
the constants "mean" and "std". Images are (b, 3, h, w) in 0..1, flows (b, 2, h, w) in px, (dx, dy).
"""

from collections.abc import Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F

from .flow import resize_flow, warp

_LEVELS = 6
_STRIDE = 2 ** (_LEVELS - 1)
_WIDTHS = (8, 32, 64, 32, 16, 2)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the images are normalised by


def spynet_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring published weights to the keys of SpyNet; other weights come back with other keys: is_spynet() tells."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    return {key: value for key, value in state.items() if key not in ("mean", "std")}


def is_spynet(state: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether weights that went through spynet_state() are SpyNet's."""
    first, last = (f"basic_module.{level}.basic_module.0.weight" for level in (0, _LEVELS - 1))
    return last in state and first in state and tuple(state[first].shape) == (_WIDTHS[1], _WIDTHS[0], 7, 7)


class SpyNet(nn.Module):
    """Estimate flow between two images of any size."""

    def __init__(self, ops: object = nn):  # a namespace of layers; the host passes its own
        super().__init__()
        self.basic_module = nn.ModuleList(_Level(ops) for _ in range(_LEVELS))

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Give the flow first -> second; inside, sides are rounded up to multiples of 32."""
        height, width = first.shape[-2:]
        size = tuple(_STRIDE * -(-side // _STRIDE) for side in (height, width))
        pyramids = [_pyramid(_normalised(_resized(image, size))) for image in (first, second)]
        batch, rows, columns = first.shape[0], size[0] // _STRIDE, size[1] // _STRIDE
        flow = first.new_zeros((batch, 2, rows, columns))
        for level, here, there in zip(self.basic_module, *pyramids, strict=True):
            if flow.shape[-2:] != here.shape[-2:]:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
            flow = flow + level(torch.cat((here, warp(there, flow), flow), 1))
        return resize_flow(flow, height, width)


class _Level(nn.Module):
    def __init__(self, ops: object):
        super().__init__()
        layers = []
        for width_in, width in zip(_WIDTHS[:-1], _WIDTHS[1:], strict=True):
            layers += [ops.Conv2d(width_in, width, 7, padding=3), nn.ReLU()]
        self.basic_module = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the step of the flow from (image, warped image, flow so far)."""
        return self.basic_module(x)


def _resized(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size, mode="bilinear", align_corners=False)


def _normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (image - mean) / std


def _pyramid(image: torch.Tensor) -> list[torch.Tensor]:
    """Halve the image five times; the coarsest comes first."""
    levels = [image]
    for _ in range(_LEVELS - 1):
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels[::-1]
