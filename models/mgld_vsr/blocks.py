"""What the MGLD-VSR networks are built of: residual blocks with SPADE, and the two layers that see several frames.

Frames are (n, c, h, w), n = clips x frames with the frame index fastest: every layer but the temporal ones takes each
frame by itself, and `in_turn` applies such a layer to large frames one after the other.

- `embed_time`: time steps -> sinusoids (n, c) -> two layers (n, 4c).
- `ResBlock`: (1) norm, SiLU, 3x3 convolution; (2) the time embedding is added; (3) norm, SiLU, 3x3 convolution; (4)
  in the UNet, SPADE; (5) plus x.
- `SPADE` (Park et al. 2019): structure map (n, s, h, w) -> 128 channels -> scale and shift (n, c, h, w) of normalised
  x.
- `TemporalConv`: a convolution over 3 frames at each cell, blended in by a learned share.
- `TemporalAttention`: tokens (b, h, w, t, c) attend over t, blended in by a learned share.

Module names are those of the published weights. docs/systems/mgld_vsr.md describes the system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..schedules import timestep_features
from ..transformer import over_time, silu

GROUPS = 32  # of every group norm
SPADE_WIDTH = 128  # of the layer between a structure map and its scale and shift
# Numbers (channels x cells x frames) worked on together: bounds memory, keeps a processor busy.
NUMBERS_AT_ONCE = 1 << 24


def fold(clip: torch.Tensor) -> torch.Tensor:
    """Turn a clip (b, c, t, h, w) into frames (b*t, c, h, w)."""
    return clip.transpose(1, 2).flatten(0, 1)


def unfold(frames: torch.Tensor, batch: int) -> torch.Tensor:
    """Turn frames (b*t, c, h, w) into a clip (b, c, t, h, w), without a copy."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def at_once(frames: torch.Tensor, growth: float = 1.0) -> int:
    """Say how many frames (n, c, h, w) to work on together, where the largest tensor has `growth` times their size."""
    return max(1, int(NUMBERS_AT_ONCE / (growth * frames[0].numel())))


def in_turn(layer: Callable[..., torch.Tensor], *inputs: torch.Tensor, growth: float = 1.0) -> torch.Tensor:
    """Apply a layer that takes each frame by itself: small frames together, large ones in turn."""
    count, step = inputs[0].shape[0], at_once(inputs[0], growth)
    if step >= count:
        return layer(*inputs)
    result = None
    for start in range(0, count, step):
        part = layer(*(each[start : start + step] for each in inputs))
        if result is None:
            result = part.new_empty((count, *part.shape[1:]))
        result[start : start + step] = part
    return result


def time_layers(width: int, ops: ModuleType) -> nn.ModuleList:
    """Make the two layers from time-step features to what residual blocks take; the gap in the numbers is a SiLU."""
    return nn.ModuleList([ops.Linear(width, 4 * width), nn.Identity(), ops.Linear(4 * width, 4 * width)])


def embed_time(layers: nn.ModuleList, timestep: torch.Tensor | float, clip: torch.Tensor, width: int) -> torch.Tensor:
    """Embed one time step (1, 4 * width), or one for each clip or each frame of (b, c, t, h, w): (b*t, 4 * width)."""
    batch, frames = clip.shape[0], clip.shape[2]
    time = torch.as_tensor(timestep, device=clip.device).reshape(-1)
    if time.numel() not in (1, batch, batch * frames):
        raise ValueError(
            f"MGLD-VSR: time steps must be one, {batch} (one a clip) or {batch * frames} (one a frame); "
            f"got {time.numel()}. Pass one for all."
        )
    x = layers[2](F.silu(layers[0](timestep_features(time, width).to(clip.dtype))))
    return x.repeat_interleave(frames, 0) if 1 < time.numel() == batch else x


class SPADE(nn.Module):
    """Normalise features, then scale and shift every cell by what a structure map says there."""

    def __init__(self, width: int, structure_width: int, ops: ModuleType):
        super().__init__()
        self.param_free_norm = ops.GroupNorm(GROUPS, width)  # the published name: it has weight and bias
        self.mlp_shared = nn.ModuleList([ops.Conv2d(structure_width, SPADE_WIDTH, 3, padding=1)])
        self.mlp_gamma = ops.Conv2d(SPADE_WIDTH, width, 3, padding=1)
        self.mlp_beta = ops.Conv2d(SPADE_WIDTH, width, 3, padding=1)

    def forward(self, x: torch.Tensor, structure: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.mlp_shared[0](structure))
        return self.param_free_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class ResBlock(nn.Module):
    """Residual block with time embedding, and SPADE before the sum where `structure_width` is given."""

    def __init__(self, width_in: int, width: int, time_width: int, ops: ModuleType, structure_width: int | None = None):
        super().__init__()
        # What has no weights (SiLU, dropout) holds its place in the published numbering.
        self.in_layers = nn.ModuleList(
            [ops.GroupNorm(GROUPS, width_in), nn.Identity(), ops.Conv2d(width_in, width, 3, padding=1)]
        )
        self.emb_layers = nn.ModuleList([nn.Identity(), ops.Linear(time_width, width)])
        self.out_layers = nn.ModuleList(
            [ops.GroupNorm(GROUPS, width), nn.Identity(), nn.Identity(), ops.Conv2d(width, width, 3, padding=1)]
        )
        self.skip_connection = ops.Conv2d(width_in, width, 1) if width_in != width else None
        self.spade = None if structure_width is None else SPADE(width, structure_width, ops)

    def forward(self, x: torch.Tensor, emb: torch.Tensor, structure: torch.Tensor | None = None) -> torch.Tensor:
        """x (n, c, h, w), emb (1 or n, e) before its SiLU, structure (n, s, h, w)."""
        y = self.in_layers[2](silu(self.in_layers[0](x)))
        y += self.emb_layers[1](F.silu(emb))[:, :, None, None]
        y = silu(self.out_layers[0](y))
        y = self.out_layers[3](y)
        if self.spade is not None:
            y = self.spade(y, structure)
        return y + (x if self.skip_connection is None else self.skip_connection(x))


class Downsample(nn.Module):
    """Halves height and width, rounding up."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.op = ops.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x)


class TemporalConv(nn.Module):
    """Convolution over three frames at each cell, blended in by a learned share; zeros stand around the clip."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.temporal_conv = over_time(ops.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0)))
        self.temporal_alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, batch: int) -> torch.Tensor:
        """Frames (b*t, c, h, w) -> the same, written over x unless gradients are recorded."""
        clip, alpha = unfold(x, batch), self.temporal_alpha.to(x)
        if torch.is_grad_enabled():
            return fold(torch.lerp(clip, self.temporal_conv(clip), alpha))
        # Cells do not see each other: rows can take their turn, and their results the place of what they came from.
        rows = max(1, NUMBERS_AT_ONCE // (x[:, :, 0].numel()))
        for part in clip.split(rows, 3):
            part.lerp_(self.temporal_conv(part), alpha)
        return x

    def each(self, frames: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Mix frames (1, c, h, w) that come one by one; each leaves when the next one is there, the last at the end."""
        layer = over_time(copy(self.temporal_conv), 0)  # the same weights: neighbours are given, and zeros at both ends
        before, now = None, next(frames)
        for after in frames:
            yield self._between(layer, before, now, after)
            before, now = now, after
        yield self._between(layer, before, now, None)

    def _between(
        self, layer: nn.Module, before: torch.Tensor | None, now: torch.Tensor, after: torch.Tensor | None
    ) -> torch.Tensor:
        result, alpha = torch.empty_like(now), self.temporal_alpha.to(now)
        rows = max(1, NUMBERS_AT_ONCE // (3 * now[:, :, 0].numel()))
        for top in range(0, now.shape[2], rows):
            span = slice(top, top + rows)
            middle = now[:, :, span]
            clip = [torch.zeros_like(middle) if each is None else each[:, :, span] for each in (before, now, after)]
            result[:, :, span] = torch.lerp(middle, layer(torch.stack(clip, 2))[:, :, 0], alpha)
        return result


class FrameAttention(nn.Module):
    """The projections of an attention over frames; positions do not see each other, frames have no order.

    Written out rather than left to the injected attention: sequences are a few frames long and the batch is every
    position of the picture, which exceeds the grid of fused kernels.
    """

    def __init__(self, width: int, heads: int, ops: ModuleType):
        super().__init__()
        self.heads = heads
        self.to_q = ops.Linear(width, width, bias=False)
        self.to_k = ops.Linear(width, width, bias=False)
        self.to_v = ops.Linear(width, width, bias=False)
        self.to_out = nn.ModuleList([ops.Linear(width, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., t, c) -> the same."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for layer in (self.to_q, self.to_k, self.to_v)
        )
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
        return self.to_out[0]((weights @ v).transpose(-2, -3).flatten(-2))


class TemporalAttention(nn.Module):
    """Attention over the frames of a clip, blended in by a learned share."""

    def __init__(self, width: int, heads: int, ops: ModuleType):
        super().__init__()
        self.temporal_attn = FrameAttention(width, heads, ops)
        self.norm = ops.LayerNorm(width)
        self.temporal_alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, batch: int) -> torch.Tensor:
        """Frames (b*t, c, h, w) -> the same."""
        tokens = unfold(x, batch).permute(0, 3, 4, 2, 1)  # (b, h, w, t, c)
        y = torch.lerp(tokens, self.temporal_attn(self.norm(tokens)), self.temporal_alpha.to(x))
        return fold(y.permute(0, 4, 3, 1, 2)).contiguous()
