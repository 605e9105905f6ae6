"""Layers of Stable Diffusion's transformers and convolutions over time, which two published systems share.

In the order of a forward pass:
1. `timestep_features`: time steps (n,) -> sinusoids (n, width), which two layers of a network embed.
2. `CrossAttention`: tokens (B, n, c) attend to a context (B, m, d), which may be the tokens themselves -> (B, n, c).
3. `FeedForward`: tokens (..., c) -> 8c, of which one half gates the other -> 4c -> (..., c).
4. `over_time`: convolutions along time alone, clips (b, c, t, h, w) -> the same.
5. `over_tokens`, `from_tokens`: convolutions of single cells, tokens (..., c) -> the same, (b, n, c) -> (b, c, n).

Module names are those of the published weights; layers come from an `ops` namespace, attention is injected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F

# (q, k, v), each (b, heads, n, d) -> (b, heads, n, d)
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
TRANSFORMER_EPS = 1e-6  # of the group norm in front of the tokens
TOKENS_AT_ONCE = 1 << 15  # the feed-forward's inner layer is 12 times as wide as its input: bounds its memory


@dataclass
class Deep:
    """What the deeper levels of a UNet hand to its outermost one, kept over steps (Ma et al., DeepCache, 2024).

    With `given`, of a call before, they are left out; else `kept` is set to what they computed.
    """

    given: torch.Tensor | None = None
    kept: torch.Tensor | None = None


def silu(x: torch.Tensor) -> torch.Tensor:
    """Apply SiLU to a tensor nobody else needs: in place unless gradients are recorded."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def over_time(layer: nn.Conv3d, padding: int | None = None) -> nn.Conv3d:
    """Let a Conv3d whose kernel is (k, 1, 1) compute as a convolution of pictures (t, h * w); returns it.

    `padding` zeros stand before and after the clip (None: as many as the layer says). The same to rounding, in 0.35 to
    0.45 of the time on a CPU. Only the innermost call is another: weights keep their names and shapes, and layers of a
    host cast and offload them as before.
    """
    around = (layer.padding[0] if padding is None else padding), 0

    def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *_, **__) -> torch.Tensor:
        return F.conv2d(x.flatten(3), weight.flatten(3), bias, padding=around).unflatten(3, x.shape[3:])

    layer._conv_forward = convolve
    return layer


def over_tokens(layer: nn.Conv1d | nn.Conv2d) -> nn.Conv1d | nn.Conv2d:
    """Let a convolution of single cells take tokens (..., width) as a linear layer does; returns it.

    Attention wants tokens: so nothing is turned around twice. Weights keep their names and shapes, as in `over_time`.
    """

    def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *_, **__) -> torch.Tensor:
        return F.linear(x, weight.flatten(1), bias)

    layer._conv_forward = multiply
    return layer


def from_tokens(layer: nn.Conv1d | nn.Conv2d) -> nn.Conv1d | nn.Conv2d:
    """Let a convolution of single cells take tokens (b, n, width) and give cells (b, width, n), as maps hold them.

    Added to a map, cells take two thirds of the time that tokens take, which lie across it (one core of a CPU).
    """

    def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *_, **__) -> torch.Tensor:
        return torch.baddbmm(bias.unsqueeze(1), weight.flatten(1).expand(len(x), -1, -1), x.mT)

    layer._conv_forward = multiply
    return layer


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to a context, which may be the tokens themselves."""

    def __init__(self, width: int, context_width: int, heads: int, ops: ModuleType, attention: Attention):
        super().__init__()
        self.heads = heads
        self.to_q = ops.Linear(width, width, bias=False)
        self.to_k = ops.Linear(context_width, width, bias=False)
        self.to_v = ops.Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([ops.Linear(width, width)])
        self.attention = attention

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """x (B, n, c), context (B, m, d) -> (B, n, c)."""
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (q, k, v))
        return self.to_out[0](self.attention(q, k, v).transpose(1, 2).flatten(2))


class GatedLinear(nn.Module):
    """A linear layer whose output is half value, half gate."""

    def __init__(self, width_in: int, width: int, ops: ModuleType):
        super().__init__()
        self.proj = ops.Linear(width_in, 2 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated feed-forward of four times the width."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        # The middle of the published list is a dropout, which has no weights.
        self.net = nn.ModuleList([GatedLinear(width, 4 * width, ops), nn.Identity(), ops.Linear(4 * width, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.net[2](self.net[0](part)) for part in x.flatten(0, -2).split(TOKENS_AT_ONCE)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x.shape)
