"""The MGLD-VSR UNet: Stable Diffusion 2.1 with SPADE, and three layers over time in the middle. It predicts the noise.

It takes noisy latents x (b, 4, t, h, w), the maps of the structure encoder, and the text (b, L, 1024), which is
always the empty prompt. Frames are folded into the batch. In order, with the published sizes:

1. Time step -> sinusoids -> two layers: (1 or b*t, 1280).
2. Convolution -> (b*t, 320, h, w), the first skip.
3. Down, levels of width 320, 640, 1280, 1280: twice a residual block with SPADE and (not on the last level) a
   transformer; then height and width are halved, rounding up (not on the last level). Every result is kept as a skip.
4. Middle (b*t, 1280, h/8, w/8): residual block, convolution over frames, transformer, attention over frames, residual
   block, convolution over frames.
5. Up, the levels in reverse: three times the last skip is joined on the channels, then residual block and
   transformer; the last of a level doubles height and width, cut to those of the next skip (not on the finest level).
6. Norm, SiLU, convolution -> noise (b, 4, t, h, w).

Module names are those of the published weights. docs/systems/mgld_vsr.md describes the system.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..transformer import TRANSFORMER_EPS, Attention, CrossAttention, Deep, FeedForward, silu
from .blocks import GROUPS, Downsample, ResBlock, TemporalAttention, TemporalConv, embed_time, fold, time_layers, unfold
from .vae import LATENT_CHANNELS


@dataclass(frozen=True)
class UNetConfig:
    """Shape of :class:`MGLDUNet`; levels count from full resolution down."""

    in_channels: int = LATENT_CHANNELS
    out_channels: int = LATENT_CHANNELS
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (1, 2, 4)  # down-sampling factors, not sizes
    num_head_channels: int = 64  # in no weight
    context_dim: int = 1024
    semb_channels: int = 256  # of the structure maps


class TransformerBlock(nn.Module):
    """Attention within each frame, attention to the text, feed-forward."""

    def __init__(self, width: int, heads: int, text_width: int, ops: ModuleType, attention: Attention):
        super().__init__()
        self.attn1 = CrossAttention(width, width, heads, ops, attention)
        self.norm1 = ops.LayerNorm(width)
        self.attn2 = CrossAttention(width, text_width, heads, ops, attention)
        self.norm2 = ops.LayerNorm(width)
        self.ff = FeedForward(width, ops)
        self.norm3 = ops.LayerNorm(width)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Tokens x (b*t, n, c), text (b, L, d)."""
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        # All frames share their clip's text and tokens do not see each other: one sequence serves all frames.
        y = self.norm2(x).view(text.shape[0], -1, x.shape[-1])
        x = x + self.attn2(y, text).view(x.shape)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """One transformer block over the cells of each frame, with residual."""

    def __init__(self, width: int, heads: int, text_width: int, ops: ModuleType, attention: Attention):
        super().__init__()
        self.norm = ops.GroupNorm(GROUPS, width, eps=TRANSFORMER_EPS)
        self.proj_in = ops.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, heads, text_width, ops, attention)])
        self.proj_out = ops.Linear(width, width)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Frames x (b*t, c, h, w), text (b, L, d)."""
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        tokens = self.proj_out(self.transformer_blocks[0](tokens, text))
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[-2:])


class Upsample(nn.Module):
    """Doubles height and width by repetition, then smoothes by a convolution."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        # Halving rounds up, so the double of a side may be one cell too many.
        return self.conv(F.interpolate(x, scale_factor=2.0)[..., :height, :width])


class MGLDUNet(nn.Module):
    """Predicts the noise in latents from time step, structure maps and text."""

    def __init__(self, config: UNetConfig, ops: ModuleType = nn, attention: Attention = F.scaled_dot_product_attention):
        super().__init__()
        self.config = config
        time_width = 4 * config.model_channels
        widths = [config.model_channels * mult for mult in config.channel_mult]
        levels = list(enumerate(widths))

        def residual(width_in: int, width: int) -> ResBlock:
            return ResBlock(width_in, width, time_width, ops, config.semb_channels)

        def transformer(width: int) -> Transformer:
            return Transformer(width, _heads(width, config), config.context_dim, ops, attention)

        def block(level: int, width_in: int, width: int) -> nn.ModuleList:
            layers = [residual(width_in, width)]
            if 2**level in config.attention_resolutions:
                layers.append(transformer(width))
            return nn.ModuleList(layers)

        self.time_embed = time_layers(config.model_channels, ops)
        first = ops.Conv2d(config.in_channels, config.model_channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        width_in, skips = config.model_channels, [config.model_channels]
        for level, width in levels:
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(block(level, width_in, width))
                width_in = width
                skips.append(width)
            if level + 1 < len(levels):
                self.input_blocks.append(nn.ModuleList([Downsample(width, ops)]))
                skips.append(width)

        self.middle_block = nn.ModuleList(
            [
                residual(width_in, width_in),
                TemporalConv(width_in, ops),
                transformer(width_in),
                TemporalAttention(width_in, _heads(width_in, config), ops),
                residual(width_in, width_in),
                TemporalConv(width_in, ops),
            ]
        )

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(levels):
            for _ in range(config.num_res_blocks + 1):
                self.output_blocks.append(block(level, width_in + skips.pop(), width))
                width_in = width
            if level > 0:
                self.output_blocks[-1].append(Upsample(width, ops))
        self.out = nn.ModuleList(
            [ops.GroupNorm(GROUPS, width_in), nn.Identity(), ops.Conv2d(width_in, config.out_channels, 3, padding=1)]
        )

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor | float,
        structure: Sequence[torch.Tensor],
        text: torch.Tensor,
        progress: Callable[[int, int], None] | None = None,
        deep: Deep | None = None,
    ) -> torch.Tensor:
        """Return the noise, shaped like the latents x (b, 4, t, h, w).

        timestep: of the 1000 trained ones; one number, one a clip (b,) or one a frame (b*t,). structure: the maps that
        the structure encoder gives, finest first. text: (b or 1, L, context_dim).
        `progress(done, total)` is called after every block. `deep` is (b*t, c, h/2, w/2); where it is given, the first
        map is enough.
        """
        given = deep is not None and deep.given is not None
        self._check(x, structure[:1] if given else structure, text, 1 if given else len(self.config.channel_mult))
        batch = x.shape[0]
        emb = embed_time(self.time_embed, timestep, x, self.config.model_channels)
        text = text.to(x).expand(batch, -1, -1)
        maps = [fold(each.to(x)) for each in structure]
        total = len(self.input_blocks) + 1 + len(self.output_blocks)
        report = progress or (lambda done, total: None)

        outer = self.config.num_res_blocks + 1  # blocks of the outermost level, each way
        x, skips = fold(x), []
        for number, block in enumerate(self.input_blocks[:outer], 1):
            for layer in block:
                x = _run(layer, x, emb, maps[0], text)
            skips.append(x)
            report(number, total)
        if len(self.config.channel_mult) == 1:
            x = self._middle(x, emb, maps[0], text)
        else:
            x = deep.given if given else self._deeper(x, emb, maps, text, report)
            if deep is not None:
                deep.kept = x
            x = self.output_blocks[-outer - 1][-1](x, *skips[-1].shape[-2:])
        for number, block in enumerate(self.output_blocks[-outer:], total - outer + 1):
            x = torch.cat((x, skips.pop()), 1)
            for layer in block:
                x = _run(layer, x, emb, maps[0], text)
            report(number, total)
        return unfold(self.out[2](silu(self.out[0](x))), batch)

    def _deeper(
        self,
        x: torch.Tensor,
        emb: torch.Tensor,
        maps: Sequence[torch.Tensor],
        text: torch.Tensor,
        report: Callable[[int, int], None],
    ) -> torch.Tensor:
        """Run all but the outermost level: its features (b*t, c, h, w) -> (b*t, c, h/2, w/2)."""
        outer, level, skips = self.config.num_res_blocks + 1, 0, []
        first_up = len(self.input_blocks) + 2
        total = len(self.input_blocks) + 1 + len(self.output_blocks)
        for number, block in enumerate(self.input_blocks[outer:], outer + 1):
            for layer in block:
                x = _run(layer, x, emb, maps[level], text)
                level += isinstance(layer, Downsample)
            skips.append(x)
            report(number, total)
        x = self._middle(x, emb, maps[level], text)
        report(first_up - 1, total)
        for number, block in enumerate(self.output_blocks[:-outer], first_up):
            x = torch.cat((x, skips.pop()), 1)
            for layer in block:
                if not isinstance(layer, Upsample):
                    x = _run(layer, x, emb, maps[level], text)
                elif skips:  # the last one belongs to the outermost level
                    x = layer(x, *skips[-1].shape[-2:])
                    level -= 1
            report(number, total)
        return x

    def _middle(self, x: torch.Tensor, emb: torch.Tensor, structure: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        first, mix_first, transformer, attend, second, mix_second = self.middle_block
        batch = text.shape[0]
        x = mix_first(first(x, emb, structure), batch)
        x = attend(transformer(x, text), batch)
        return mix_second(second(x, emb, structure), batch)

    def _check(self, x: torch.Tensor, structure: Sequence[torch.Tensor], text: torch.Tensor, maps: int) -> None:
        config = self.config
        if x.ndim != 5 or x.shape[1] != config.in_channels:
            raise ValueError(
                f"MGLD-VSR UNet: latents must be (b, {config.in_channels}, t, h, w); got {tuple(x.shape)}. "
                "Sample latents of this model."
            )
        if text.ndim != 3 or text.shape[0] not in (1, x.shape[0]) or text.shape[2] != config.context_dim:
            raise ValueError(
                f"MGLD-VSR UNet: text must be ({x.shape[0]} or 1, tokens, {config.context_dim}); got "
                f"{tuple(text.shape)}. Use the empty prompt of this model's text encoder."
            )
        batch, _, frames, height, width = x.shape
        wanted = [(batch, config.semb_channels, frames, -(-height // 2**k), -(-width // 2**k)) for k in range(maps)]
        got = [tuple(each.shape) for each in structure]
        if got != wanted:
            raise ValueError(
                f"MGLD-VSR UNet: structure maps must be {wanted}; got {got}. Make them of an LR latent of that size."
            )


def _run(
    layer: nn.Module, x: torch.Tensor, emb: torch.Tensor, structure: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """Hand a layer of the way down or up what its kind takes."""
    if isinstance(layer, ResBlock):
        return layer(x, emb, structure)
    return layer(x, text) if isinstance(layer, Transformer) else layer(x)


def _heads(width: int, config: UNetConfig) -> int:
    if width % config.num_head_channels:
        raise ValueError(
            f"MGLD-VSR UNet: {config.num_head_channels} channels a head must divide the width; got {width}. Use the "
            "published number of channels a head."
        )
    return width // config.num_head_channels
