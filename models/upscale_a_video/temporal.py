"""What the Upscale-A-Video networks are built of: residual blocks in space and time, and attention over frames.

Tensors are (b, c, t, h, w), inside transformers (b, t, n, c) with n = h * w; time embeddings (b, e) arrive before
their SiLU. "Per frame" means that a 2-D layer sees the frames as a batch.

- `Resnet`: norm, SiLU, 3x3 convolution per frame; the time embedding is added; norm, SiLU, 3x3 convolution; plus x.
- `TemporalResnet`: the same with convolutions over `kernel` frames, then 3, at every cell.
- `TemporalModule`, after every level of the image model: a TemporalResnet over 5 frames, a Resnet, a 1x1 convolution,
  plus x.
- `TemporalAttention`: (1) q, k, v of every token; (2) the first 32 dims of each head's q and k are turned by the
  frame's number; (3) scores (t, t) at every cell plus a learned bias by distance in frames; (4) softmax, values,
  output layer.

GroupNorms outside the transformers are joint: their statistics run over all frames at hand, so a result depends on
which frames are computed together. docs/systems/upscale_a_video.md describes the system.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..transformer import over_time, silu

ROTARY_WIDTH = 32  # of each head's dims the first 32 are rotated
# Angle per frame of each rotated pair, as every published file has it
ROTARY_FREQUENCIES = tuple(10000.0 ** (-2 * i / ROTARY_WIDTH) for i in range(ROTARY_WIDTH // 2))
BUCKETS = 32  # of the relative bias over frames: 16 a direction, of which 8 exact and 8 logarithmic
FARTHEST = 32  # frames; all distances from here on share the last bucket
TEMPORAL_EPS = 1e-6  # of every norm that was added to the image model
# The two bound memory; sizes that keep a processor busy.
CELLS_AT_ONCE = 1 << 22  # batch x channels x cells of a frame: larger frames are convolved in turn
ROWS_AT_ONCE = 1 << 20  # batch x frames x heads x positions whose attention over frames is computed together


def per_frame(layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply a 2-D layer to every frame of (b, c, t, h, w): small frames as one batch, large ones in turn.

    In turn, the copies that a change of layout takes are of one frame, not of the clip.
    """
    batch, _, frames = x.shape[:3]
    if frames == 1 or x.numel() // frames <= CELLS_AT_ONCE:
        return layer(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)
    result = None
    for k in range(frames):
        frame = layer(x[:, :, k])
        if result is None:
            result = frame.new_empty((*frame.shape[:2], frames, *frame.shape[2:]))
        result[:, :, k] = frame
    return result


class Resnet(nn.Module):
    """Residual block with per-frame convolutions and joint norms; `time_width` 0 means without time embedding."""

    def __init__(self, width_in: int, width: int, time_width: int, groups: int, eps: float, ops: ModuleType):
        super().__init__()
        self.norm1 = ops.GroupNorm(min(groups, width_in), width_in, eps=eps)  # 3 pixel channels: 3 groups
        self.conv1 = ops.Conv2d(width_in, width, 3, padding=1)
        self.time_emb_proj = ops.Linear(time_width, width) if time_width else None
        self.norm2 = ops.GroupNorm(groups, width, eps=eps)
        self.conv2 = ops.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = ops.Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, x: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        y = per_frame(self.conv1, silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            y += self.time_emb_proj(F.silu(temb))[:, :, None, None, None]
        y = silu(self.norm2(y))  # a line of its own: what entered the norm is free before the convolution
        y = per_frame(self.conv2, y)
        y += x if self.conv_shortcut is None else per_frame(self.conv_shortcut, x)
        return y


class TemporalResnet(nn.Module):
    """The same with convolutions along time only: `kernel` frames, then 3; zeros stand before and after the clip."""

    def __init__(self, width_in: int, width: int, time_width: int, kernel: int, groups: int, ops: ModuleType):
        super().__init__()
        self.norm1 = ops.GroupNorm(groups, width_in, eps=TEMPORAL_EPS)
        self.conv1 = over_time(ops.Conv3d(width_in, width, (kernel, 1, 1), padding=(kernel // 2, 0, 0)))
        self.time_emb_proj = ops.Linear(time_width, width) if time_width else None
        self.norm2 = ops.GroupNorm(groups, width, eps=TEMPORAL_EPS)
        self.conv2 = over_time(ops.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0)))
        self.conv_shortcut = over_time(ops.Conv3d(width_in, width, 1)) if width_in != width else None

    def forward(self, x: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        y = self.conv1(silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            y += self.time_emb_proj(F.silu(temb))[:, :, None, None, None]
        y = silu(self.norm2(y))
        y = self.conv2(y)
        y += x if self.conv_shortcut is None else self.conv_shortcut(x)
        return y


class TemporalModule(nn.Module):
    """What stands after every level of the image model: a look over five frames, one over space, a mixing layer."""

    def __init__(self, width: int, time_width: int, groups: int, ops: ModuleType):
        super().__init__()
        self.resblocks_3d_temporal = TemporalResnet(width, width, time_width, 5, groups, ops)
        self.resblocks_3d_spatial = Resnet(width, width, time_width, groups, TEMPORAL_EPS, ops)
        self.shift_conv = ops.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        y = self.resblocks_3d_spatial(self.resblocks_3d_temporal(x, temb), temb)
        y = per_frame(self.shift_conv, y)
        y += x
        return y


class Rotary(nn.Module):
    """Rotary positions along time; the first frame at hand is position 0.

    `freqs` is in every published file though it was never trained. The constants are computed instead: a network cast
    to half precision would turn by rounded angles.
    """

    def __init__(self):
        super().__init__()
        self.freqs = nn.Parameter(torch.tensor(ROTARY_FREQUENCIES), requires_grad=False)

    def angles(self, frames: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give cos and sin (t, 16), computed in float32, in the dtype of `like`."""
        position = torch.arange(frames, dtype=torch.float32, device=like.device)
        angle = position[:, None] * torch.tensor(ROTARY_FREQUENCIES, device=like.device)
        return angle.cos().to(like), angle.sin().to(like)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the first 32 dims of (..., t, d), neighbours forming pairs, by angles (t, 16)."""
    first, second = x[..., :ROTARY_WIDTH].unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)
    return torch.cat((turned, x[..., ROTARY_WIDTH:]), -1)


class RelativeBias(nn.Module):
    """Learned bias on attention scores by the distance in frames, one per head."""

    def __init__(self, heads: int, ops: ModuleType):
        super().__init__()
        self.relative_attention_bias = ops.Embedding(BUCKETS, heads)

    def forward(self, frames: int, device: torch.device) -> torch.Tensor:
        """Give (heads, t, t) for query frame i and key frame j.

        Half of the table's rows are for keys before the query, half for those after it. Of each half one part counts
        near frames one by one, the other far ones on a logarithmic scale up to FARTHEST.
        """
        position = torch.arange(frames, device=device)
        distance = position[:, None] - position[None, :]
        half, exact = BUCKETS // 2, BUCKETS // 4
        far = distance.abs().clamp_min(1).float() / exact
        far = exact + (torch.log(far) / math.log(FARTHEST / exact) * (half - exact)).long()
        near = torch.where(distance.abs() < exact, distance.abs(), far.clamp_max(half - 1))
        return self.relative_attention_bias(near + half * (distance < 0)).permute(2, 0, 1)


class TemporalAttention(nn.Module):
    """Self-attention over frames at each position, with rotary positions and a relative bias.

    Written out rather than left to the injected attention: sequences are a few frames long and the batch is every
    position of the picture, which exceeds the grid of fused kernels, and the bias would be a mask they dislike.
    """

    def __init__(self, width: int, heads: int, rotary: Rotary, ops: ModuleType):
        super().__init__()
        self.heads = heads
        self.to_q = ops.Linear(width, width, bias=False)
        self.to_k = ops.Linear(width, width, bias=False)
        self.to_v = ops.Linear(width, width, bias=False)
        self.to_out = nn.ModuleList([ops.Linear(width, width)])
        self.time_rel_pos_bias = RelativeBias(heads, ops)
        self.rotary_emb = rotary

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, t, n, c) -> the same; n positions do not see each other."""
        frames, width = x.shape[1], x.shape[-1]
        bias = self.time_rel_pos_bias(frames, x.device).to(x)
        cos, sin = self.rotary_emb.angles(frames, x)
        step = max(1, ROWS_AT_ONCE // (self.heads * frames * x.shape[0]))
        parts = []
        for part in x.split(step, 2):
            q = self.to_q(part) * (width // self.heads) ** -0.5
            # by head: (b, t, n, c) -> (b, n, heads, t, d)
            q, k, v = (
                each.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1, 4)
                for each in (q, self.to_k(part), self.to_v(part))
            )
            weights = (rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-1, -2) + bias).softmax(-1)
            parts.append((weights @ v).permute(0, 3, 1, 2, 4).flatten(3))
        return self.to_out[0](parts[0] if len(parts) == 1 else torch.cat(parts, 2))
