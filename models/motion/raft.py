"""RAFT, the large model (Teed & Deng 2020), as torchvision builds it; its published weights under torchvision's names.

What the network does with two images (b, 3, h, w) in -1..1, sides multiples of 8 and at least 128 px:

1. The feature encoder turns both into features (b, 256, h/8, w/8).
2. Every cell of the first is correlated with every cell of the second: (b h/8 w/8, 1, h/8, w/8), then halved three
   times; below 128 px the coarsest level would be one cell wide.
3. The context encoder turns the first into a hidden state and a context, (b, 128, h/8, w/8) each.
4. Each update looks up 9x9 correlations a level around where the flow leads, (b, 324, h/8, w/8), and a gated
   recurrent step gives the next hidden state and a step of the flow, (b, 2, h/8, w/8).
5. Every full-size vector is a convex mix of its nine coarse neighbours: flows (b, 2, h, w) in px, one an update.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn as nn

STRIDE = 8  # px that a cell of the recurrent part stands for
SMALLEST = 128  # px; the network refuses smaller sides

# The published names (raft-things.pth) -> torchvision's, applied in this order.
_NAMES = (
    (r"^fnet\.", r"feature_encoder."),
    (r"^cnet\.", r"context_encoder."),
    (r"^(\w+_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(\w+_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
    (r"(layer\d\.\d)\.conv([12])\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm([12])\.", r"\1.convnormrelu\2.1."),
    (r"(layer\d\.\d)\.norm3\.", r"\1.downsample.1."),  # the shortcut's norm has two published names
    (r"^update_block\.encoder\.convc([12])\.", r"update_block.motion_encoder.convcorr\1.0."),
    (r"^update_block\.encoder\.convf([12])\.", r"update_block.motion_encoder.convflow\1.0."),
    (r"^update_block\.encoder\.conv\.", r"update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])([12])\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", r"mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", r"mask_predictor.conv."),
)


def raft_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring weights of the large RAFT, as published or as torchvision has them, to torchvision's names.

    Other weights come back with other names: is_raft() tells.
    """
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        for published, name in _NAMES:
            key = re.sub(published, name, key)
        renamed[key] = value
    return renamed


def is_raft(state: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether weights that went through raft_state() are those of the large RAFT."""
    first = "feature_encoder.convnormrelu.0.weight"  # 64 channels; the small RAFT has 32
    second = "context_encoder.convnormrelu.1.running_mean"
    gate = "update_block.recurrent_block.convgru2.convz.weight"
    return {first, second, gate} <= state.keys() and state[first].shape[0] == 64


def build_raft() -> nn.Module:
    """Build torchvision's raft_large without weights, for inference."""
    from torchvision.models.optical_flow import raft_large  # here: its import takes long

    return raft_large(weights=None, progress=False).eval()
