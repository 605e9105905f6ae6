"""The Upscale-A-Video UNet: the x4 upscaler of Stable Diffusion 2 with layers over time. It predicts v.

It takes noisy latents x (b, 4, t, h, w), noised LR frames (b, 3, t, h, w) of the same grid, text (b, L, 1024), time
step and noise level. In order, with the published sizes:

1. Time step -> sinusoids (b, 256) -> two layers (b, 1024), plus a learned embedding of the noise level: temb.
2. Latents and LR frames side by side on the channels (b, 7, t, h, w) -> convolution (b, 256, t, h, w).
3. Down, levels of width 256, 512, 512, 1024: twice a residual block and (not on the first level) a transformer; then
   height and width are halved (not on the last level); then a temporal module. The results of the convolution, of
   every block with its transformer, and of every halving are kept as skips.
4. Middle (b, 1024, t, h/8, w/8): residual block, transformer, residual block, temporal module.
5. Up, the levels in reverse: three times the last skip is joined on the channels, then residual block and
   transformer; then height and width grow to those of the next skip (not on the finest level); then a temporal
   module.
6. Norm, SiLU, convolution -> v (b, 4, t, h, w).

A transformer runs a temporal residual block, then on tokens (b, t, n, c): attention within each frame (deepest level
and middle) or to the text (the others), attention to the text, attention over the frames at each cell, feed-forward.

Module names are those of the published weights. docs/systems/upscale_a_video.md describes the system.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..schedules import timestep_features
from ..transformer import TRANSFORMER_EPS, Attention, CrossAttention, Deep, FeedForward, silu
from .temporal import ROTARY_WIDTH, Resnet, Rotary, TemporalAttention, TemporalModule, TemporalResnet, per_frame
from .vae import LATENT_CHANNELS

# Of the LR frames, of 1000 steps; the embedding has more rows, which were never trained.
MAX_NOISE_LEVEL = 350


@dataclass(frozen=True)
class UNetConfig:
    """Shape of :class:`VideoUNet`; tuples are per level, from full resolution down.

    A level without attention carries the heads of the deepest one and "only cross", which then mean nothing: so
    equal networks have equal configs.
    """

    in_channels: int = 7
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (256, 512, 512, 1024)
    layers_per_block: int = 2
    attention: tuple[bool, ...] = (False, True, True, True)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    only_cross_attention: tuple[bool, ...] = (True, True, True, False)
    cross_attention_dim: int = 1024
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    num_class_embeds: int = 1000
    max_noise_level: int = MAX_NOISE_LEVEL
    down_temporal_idx: tuple[int, ...] = (0, 1, 2, 3)
    mid_temporal: bool = True
    up_temporal_idx: tuple[int, ...] = (0, 1, 2, 3)  # counted from the deepest level


class TimeEmbedding(nn.Module):
    """Two layers from the sinusoid to the embedding that residual blocks take."""

    def __init__(self, width_in: int, width: int, ops: ModuleType):
        super().__init__()
        self.linear_1 = ops.Linear(width_in, width)
        self.linear_2 = ops.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class TransformerBlock(nn.Module):
    """Frame (or text) attention, text attention, attention over frames, feed-forward."""

    def __init__(
        self,
        width: int,
        heads: int,
        text_width: int,
        only_text: bool,
        rotary: Rotary,
        ops: ModuleType,
        attention: Attention,
    ):
        super().__init__()
        self.only_text = only_text
        self.attn1 = CrossAttention(width, text_width if only_text else width, heads, ops, attention)
        self.norm1 = ops.LayerNorm(width)
        self.attn2 = CrossAttention(width, text_width, heads, ops, attention)
        self.norm2 = ops.LayerNorm(width)
        self.attn_temporal = TemporalAttention(width, heads, rotary, ops)
        self.norm_temporal = ops.LayerNorm(width)
        self.ff = FeedForward(width, ops)
        self.norm3 = ops.LayerNorm(width)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Tokens x (b, t, n, c), text (b, L, d)."""
        # All frames share their clip's text and tokens do not see each other: one sequence (b, t*n, c) serves them all.
        if self.only_text:
            x = x + self.attn1(self.norm1(x).flatten(1, 2), text).view(x.shape)
        else:
            frames = self.norm1(x).flatten(0, 1)
            x = x + self.attn1(frames, frames).view(x.shape)
        x = x + self.attn2(self.norm2(x).flatten(1, 2), text).view(x.shape)
        x = x + self.attn_temporal(self.norm_temporal(x))
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """A temporal residual block, then one transformer block over tokens; the residual starts after the former."""

    def __init__(
        self,
        width: int,
        heads: int,
        text_width: int,
        only_text: bool,
        groups: int,
        rotary: Rotary,
        ops: ModuleType,
        attention: Attention,
    ):
        super().__init__()
        self.resblock_temporal = TemporalResnet(width, width, 0, 3, groups, ops)
        self.norm = ops.GroupNorm(groups, width, eps=TRANSFORMER_EPS)
        self.proj_in = ops.Linear(width, width)
        block = TransformerBlock(width, heads, text_width, only_text, rotary, ops, attention)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = ops.Linear(width, width)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = self.resblock_temporal(x)
        tokens = per_frame(self.norm, x).permute(0, 2, 3, 4, 1).flatten(2, 3)  # (b, t, n, c)
        tokens = self.proj_in(tokens)
        tokens = self.transformer_blocks[0](tokens, text)
        y = self.proj_out(tokens).unflatten(2, x.shape[-2:]).permute(0, 4, 1, 2, 3)
        return x + y


class Downsample(nn.Module):
    """Halves height and width, rounding up."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return per_frame(self.conv, x)


class Upsample(nn.Module):
    """Repeats cells up to height x width, then smoothes by a convolution; time stays."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return per_frame(lambda frames: self.conv(F.interpolate(frames, (height, width))), x)


class Level(nn.Module):
    """The layers of one resolution, run by the UNet; transformer k follows residual block k where there are any."""

    def __init__(self, resnets: list[Resnet], attentions: list[Transformer]):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)


@dataclass(frozen=True)
class _Maker:
    """Makes the levels of a UNet; levels count from full resolution down, on the way up too."""

    config: UNetConfig
    ops: ModuleType
    attention: Attention
    rotary: Rotary

    def resnets(self, widths_in: Sequence[int], width: int) -> list[Resnet]:
        """Make one residual block for each width that enters."""
        config = self.config
        time_width = 4 * config.block_out_channels[0]
        return [
            Resnet(each, width, time_width, config.norm_num_groups, config.norm_eps, self.ops) for each in widths_in
        ]

    def transformers(self, level: int, count: int, only_text: bool) -> list[Transformer]:
        """Make the transformers of one level."""
        config = self.config
        width, heads = config.block_out_channels[level], config.heads[level]
        if count and (width % heads or width // heads < ROTARY_WIDTH):
            raise ValueError(
                f"Upscale-A-Video UNet: heads must divide the width into {ROTARY_WIDTH} or more; got {heads} heads "
                f"for width {width}. In the json attention_head_dim is the number of heads."
            )
        parts = (width, heads, config.cross_attention_dim, only_text, config.norm_num_groups)
        return [Transformer(*parts, self.rotary, self.ops, self.attention) for _ in range(count)]

    def temporal(self, level: int, wanted: bool) -> TemporalModule | None:
        """Make what follows a level, for levels that have it."""
        widths = self.config.block_out_channels
        if not wanted:
            return None
        return TemporalModule(widths[level], 4 * widths[0], self.config.norm_num_groups, self.ops)

    def down(self, level: int) -> Level:
        """Make a level on the way down; its first block changes the width."""
        widths, count = self.config.block_out_channels, self.config.layers_per_block
        width = widths[level]
        entering = [widths[max(level - 1, 0)]] + [width] * (count - 1)
        has, only_text = self.config.attention[level], self.config.only_cross_attention[level]
        made = Level(self.resnets(entering, width), self.transformers(level, count * has, only_text))
        if level + 1 < len(widths):
            made.downsamplers = nn.ModuleList([Downsample(width, self.ops)])
        return made

    def up(self, level: int) -> Level:
        """Make a level on the way up, with a block more: every output of the way down enters as a skip."""
        widths, count = self.config.block_out_channels, self.config.layers_per_block + 1
        width = widths[level]
        hidden = [widths[min(level + 1, len(widths) - 1)]] + [width] * (count - 1)
        skip = [width] * (count - 1) + [widths[max(level - 1, 0)]]
        entering = [h + s for h, s in zip(hidden, skip, strict=True)]
        has, only_text = self.config.attention[level], self.config.only_cross_attention[level]
        made = Level(self.resnets(entering, width), self.transformers(level, count * has, only_text))
        if level > 0:
            made.upsamplers = nn.ModuleList([Upsample(width, self.ops)])
        return made


class VideoUNet(nn.Module):
    """Predicts v from noisy latents, noised LR frames, time step, noise level and text."""

    def __init__(self, config: UNetConfig, ops: ModuleType = nn, attention: Attention = F.scaled_dot_product_attention):
        super().__init__()
        self.config = config
        widths, deepest = config.block_out_channels, len(config.block_out_channels) - 1
        rotary = Rotary()
        make = _Maker(config, ops, attention, rotary)
        down, up = range(len(widths)), range(deepest, -1, -1)

        self.conv_in = ops.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], 4 * widths[0], ops)
        self.class_embedding = ops.Embedding(config.num_class_embeds, 4 * widths[0])
        self.temporal_rotary_emb = rotary
        self.down_blocks = nn.ModuleList([make.down(i) for i in down])
        self.down_temp_blocks = nn.ModuleList(make.temporal(i, i in config.down_temporal_idx) for i in down)
        self.mid_block = Level(make.resnets([widths[-1]] * 2, widths[-1]), make.transformers(deepest, 1, False))
        self.mid_temp_block = make.temporal(deepest, config.mid_temporal)
        self.up_blocks = nn.ModuleList([make.up(i) for i in up])
        self.up_temp_blocks = nn.ModuleList(make.temporal(i, deepest - i in config.up_temporal_idx) for i in up)
        self.conv_norm_out = ops.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = ops.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor | float,
        low_res: torch.Tensor,
        text: torch.Tensor,
        noise_level: torch.Tensor | int,
        progress: Callable[[int, int], None] | None = None,
        deep: Deep | None = None,
    ) -> torch.Tensor:
        """Return v, shaped like x (b, 4, t, h, w).

        timestep: one number or (b,), 0..999, fractions allowed; low_res (b, 3, t, h, w): LR frames in -1..1, already
        noised to noise_level, an integer or (b,) in 0..350; text (b, L, cross_attention_dim).
        `progress(done, total)` is called after every level. `deep` is (b, c, t, h/2, w/2).
        """
        self._check(x, low_res, text, noise_level)
        temb = self._embed(timestep, noise_level, x)
        text, low_res = text.to(x), low_res.to(x)
        levels = len(self.down_blocks)
        report = progress or (lambda done, total: None)
        if _halves_alike(x, low_res, temb):  # a guided pair: until text enters, one half stands for both
            x, low_res = x[: len(x) // 2], low_res[: len(x) // 2]

        x = per_frame(self.conv_in, torch.cat((x, low_res), 1))
        skips, given = [x], levels > 1 and deep is not None and deep.given is not None
        for i, level in enumerate(self.down_blocks):
            for k, resnet in enumerate(level.resnets):
                x = resnet(x, temb[: len(x)])
                if level.attentions:
                    x = level.attentions[k](_as_many(x, text), text)
                skips.append(x)
            report(i + 1, 2 * levels + 1)
            if given:  # what is deeper is known from an earlier step
                break
            if i + 1 < levels:
                x = level.downsamplers[0](x)
                skips.append(x)
            # The frames after a level, once its skip is kept: the way up sees what the image model made.
            x = x if self.down_temp_blocks[i] is None else self.down_temp_blocks[i](x, temb[: len(x)])

        if given:
            x = deep.given
        else:
            x = self.mid_block.resnets[0](x, temb[: len(x)])
            x = self.mid_block.attentions[0](_as_many(x, text), text)
            x = self.mid_block.resnets[1](x, temb)
            x = x if self.mid_temp_block is None else self.mid_temp_block(x, temb)
            report(levels + 1, 2 * levels + 1)

        for i in range(levels - 1 if given else 0, levels):
            if i == levels - 1 and deep is not None:
                deep.kept = x
            if i:
                # Halving rounds up, so the double of an odd side is a cell too many; the skip has the size wanted.
                x = self.up_blocks[i - 1].upsamplers[0](x, *skips[-1].shape[-2:])
                x = x if self.up_temp_blocks[i - 1] is None else self.up_temp_blocks[i - 1](x, temb)
            for k, resnet in enumerate(self.up_blocks[i].resnets):
                x = resnet(torch.cat((x, _as_many(skips.pop(), x)), 1), temb)
                if self.up_blocks[i].attentions:
                    x = self.up_blocks[i].attentions[k](x, text)
            report(levels + 2 + i, 2 * levels + 1)
        x = x if self.up_temp_blocks[-1] is None else self.up_temp_blocks[-1](x, temb)
        return per_frame(self.conv_out, silu(self.conv_norm_out(x)))

    def _embed(self, timestep: torch.Tensor | float, noise_level: torch.Tensor | int, x: torch.Tensor) -> torch.Tensor:
        """Embed time step and noise level together: (b, 4 * first width), before the SiLU of its consumers."""
        time = torch.as_tensor(timestep, device=x.device).reshape(-1)
        level = torch.as_tensor(noise_level, device=x.device).reshape(-1).long()
        temb = self.time_embedding(timestep_features(time, self.config.block_out_channels[0]).to(x))
        temb = temb + self.class_embedding(level).to(x)
        return temb.expand(x.shape[0], -1)

    def _check(
        self, x: torch.Tensor, low_res: torch.Tensor, text: torch.Tensor, noise_level: torch.Tensor | int
    ) -> None:
        config = self.config
        colours = config.in_channels - LATENT_CHANNELS
        if x.ndim != 5 or x.shape[1] != LATENT_CHANNELS:
            raise ValueError(
                f"Upscale-A-Video UNet: latents must be (b, {LATENT_CHANNELS}, t, h, w); got {tuple(x.shape)}. "
                "Sample latents of this model."
            )
        if low_res.shape != (x.shape[0], colours, *x.shape[2:]):
            raise ValueError(
                f"Upscale-A-Video UNet: LR frames must be {(x.shape[0], colours, *x.shape[2:])}, one pixel a latent "
                f"cell; got {tuple(low_res.shape)}. Make both from the same clip."
            )
        if text.ndim != 3 or text.shape[0] != x.shape[0] or text.shape[2] != config.cross_attention_dim:
            raise ValueError(
                f"Upscale-A-Video UNet: text must be ({x.shape[0]}, tokens, {config.cross_attention_dim}); got "
                f"{tuple(text.shape)}. Encode it with the text encoder of this model."
            )
        level = torch.as_tensor(noise_level)
        if level.is_meta or torch.compiler.is_compiling():  # reading a value would cut a compiled graph
            return
        low, high = int(level.min()), int(level.max())
        if low < 0 or high > config.max_noise_level:
            raise ValueError(
                f"Upscale-A-Video UNet: the noise level must be 0 to {config.max_noise_level}; got {low} to {high}. "
                "Lower the noise level."
            )


def _halves_alike(*parts: torch.Tensor) -> bool:
    """Tell whether both halves of a batch are the same; on the meta device, which only counts, they are."""
    if len(parts[0]) % 2 or torch.compiler.is_compiling():  # compiled, the answer would cut the graph
        return False
    return parts[0].is_meta or all(torch.equal(*part.chunk(2)) for part in parts)


def _as_many(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Repeat one half of a batch where the other is wanted, too."""
    return x if len(x) == len(like) else x.repeat(2, 1, 1, 1, 1)
