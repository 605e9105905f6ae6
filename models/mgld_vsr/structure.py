"""The MGLD-VSR structure encoder: what SPADE takes from the LR latent, at every resolution of the UNet.

It sees the clean LR latent (b, 4, t, h, w) and the time step, and runs again at every step. Frames are taken one by
one. In order, with the published sizes:

1. Time step -> sinusoids -> two layers: (1 or b*t, 1024).
2. Convolution -> (b*t, 256, h, w).
3. Down, levels of width 256, 256, 512, 512: two residual blocks, each followed by attention within the frame (not on
   the last level); what the level gives is kept; then height and width are halved, rounding up (not on the last
   level).
4. Middle: residual block, attention, residual block; its result is the map of the last level.
5. A residual block for each level makes the kept features maps [(b, 256, t, h / 2^k, w / 2^k)], k = 0..3.

Module names are those of the published weights. docs/systems/mgld_vsr.md describes the system.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..transformer import Attention, from_tokens, over_tokens
from .blocks import GROUPS, Downsample, ResBlock, embed_time, fold, time_layers, unfold
from .vae import LATENT_CHANNELS


@dataclass(frozen=True)
class StructureConfig:
    """Shape of :class:`StructureEncoder`."""

    in_channels: int = LATENT_CHANNELS
    out_channels: int = 256  # of every map
    model_channels: int = 256
    channel_mult: tuple[int, ...] = (1, 1, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (1, 2, 4)
    num_heads: int = 4  # in no weight


class AttentionBlock(nn.Module):
    """Self-attention over the cells of each frame, with residual."""

    def __init__(self, width: int, heads: int, ops: ModuleType, attention: Attention):
        super().__init__()
        self.heads = heads
        self.norm = ops.GroupNorm(GROUPS, width)
        self.qkv = over_tokens(ops.Conv1d(width, 3 * width, 1))
        self.proj_out = from_tokens(ops.Conv1d(width, width, 1))
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.qkv(self.norm(x).flatten(2).transpose(1, 2))
        # Channels are split by head first; each head's share is [q | k | v].
        q, k, v = tokens.unflatten(2, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        y = self.proj_out(self.attention(q, k, v).transpose(1, 2).flatten(2))
        return x + y.unflatten(2, x.shape[-2:])


class StructureEncoder(nn.Module):
    """Gives one map for each level of the UNet."""

    def __init__(
        self, config: StructureConfig, ops: ModuleType = nn, attention: Attention = F.scaled_dot_product_attention
    ):
        super().__init__()
        self.config = config
        time_width = 4 * config.model_channels
        widths = [config.model_channels * mult for mult in config.channel_mult]

        self.time_embed = time_layers(config.model_channels, ops)
        first = ops.Conv2d(config.in_channels, config.model_channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        width_in = config.model_channels
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                block = nn.ModuleList([ResBlock(width_in, width, time_width, ops)])
                if 2**level in config.attention_resolutions:
                    block.append(AttentionBlock(width, config.num_heads, ops, attention))
                self.input_blocks.append(block)
                width_in = width
            if level + 1 < len(widths):
                self.input_blocks.append(nn.ModuleList([Downsample(width, ops)]))
        self.middle_block = nn.ModuleList(
            [
                ResBlock(width_in, width_in, time_width, ops),
                AttentionBlock(width_in, config.num_heads, ops, attention),
                ResBlock(width_in, width_in, time_width, ops),
            ]
        )
        self.fea_tran = nn.ModuleList(ResBlock(width, config.out_channels, time_width, ops) for width in widths)

    def forward(
        self, lr_latent: torch.Tensor, timestep: torch.Tensor | float, first: bool = False
    ) -> list[torch.Tensor]:
        """Give the maps [(b, out_channels, t, h / 2^k, w / 2^k)] for the latent (b, 4, t, h, w), k from 0.

        `lr_latent` is that of the clean LR clip, scaled; `timestep` as for the UNet. Odd sides are halved rounding up.
        `first`: only that of level 0, for which the deeper levels need not run.
        """
        if lr_latent.ndim != 5 or lr_latent.shape[1] != self.config.in_channels:
            raise ValueError(
                f"MGLD-VSR structure encoder: the LR latent must be (b, {self.config.in_channels}, t, h, w); "
                f"got {tuple(lr_latent.shape)}. Encode the LR clip by the first stage."
            )
        emb = embed_time(self.time_embed, timestep, lr_latent, self.config.model_channels)
        x, maps = fold(lr_latent), []
        for block in self.input_blocks:
            if isinstance(block[0], Downsample):
                maps.append(x)
                if first:
                    break
            for layer in block:
                x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        if not (first and maps):
            x = self.middle_block[0](x, emb)
            x = self.middle_block[1](x)
            maps.append(self.middle_block[2](x, emb))
        batch = lr_latent.shape[0]
        return [unfold(layer(each, emb), batch) for layer, each in zip(self.fea_tran, maps, strict=False)]
