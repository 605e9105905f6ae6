"""The MGLD-VSR sequence decoder: latents -> frames, mixed over time, with detail of the LR clip.

It is the decoder of the first stage with two additions: a convolution over three frames after every residual block,
and on the middle levels a fusion of features that its own encoder finds in the LR clip. With the published sizes:

1. `features`: the LR clip at the target size (b, 3, t, H, W) -> the encoder's features of level 1 (b, 256, t, H/2,
   W/2) and level 2 (b, 512, t, H/4, W/4).
2. Latent (b, 4, t, h, w), unscaled, frames folded into the batch -> two convolutions (b*t, 512, h, w).
3. Middle: residual block, convolution over frames, attention within the frame, residual block.
4. Levels of width 512, 512, 256, 128: three times a residual block and a convolution over frames; on level 2 and
   level 1 the fusion adds to the features what a network makes of them and of the LR features, times `weight`; height
   and width double after the first three.
5. Norm, SiLU, convolution -> frames (b, 3, t, 8h, 8w).

Frames are large here, so what sees one frame takes them in turn. Module names are those of the published weights.
docs/systems/mgld_vsr.md describes the system.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..transformer import Attention, silu
from .blocks import GROUPS, TemporalConv, at_once, fold, in_turn, unfold
from .vae import EPS, Encoder, Middle, ResnetBlock, VAEConfig, check_clip, check_latent, encode, up_levels

DENSE_GROWTH = 32  # channels that each layer of a dense block adds
DENSE_BLOCKS = 2


class DenseBlock(nn.Module):
    """Five convolutions, each seeing the results of all before it; a fifth of the last is added to the input."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.conv1 = ops.Conv2d(width, DENSE_GROWTH, 3, padding=1)
        self.conv2 = ops.Conv2d(width + DENSE_GROWTH, DENSE_GROWTH, 3, padding=1)
        self.conv3 = ops.Conv2d(width + 2 * DENSE_GROWTH, DENSE_GROWTH, 3, padding=1)
        self.conv4 = ops.Conv2d(width + 3 * DENSE_GROWTH, DENSE_GROWTH, 3, padding=1)
        self.conv5 = ops.Conv2d(width + 4 * DENSE_GROWTH, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat((seen, F.leaky_relu(conv(seen), 0.2)), 1)
        return x + 0.2 * self.conv5(seen)


class FuseBlock(nn.Module):
    """What to add to decoder features, seen together with the encoder's of the LR frames ("CFW")."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.encode_enc_1 = ResnetBlock(2 * width, width, ops, shortcut="conv_out")
        self.encode_enc_2 = nn.ModuleList(DenseBlock(width, ops) for _ in range(DENSE_BLOCKS))
        self.encode_enc_3 = ResnetBlock(width, width, ops)

    def forward(self, encoded: torch.Tensor, x: torch.Tensor, weight: float) -> torch.Tensor:
        y = self.encode_enc_1(torch.cat((encoded, x), 1))
        for block in self.encode_enc_2:
            y = block(y)
        return x + weight * self.encode_enc_3(y)


class SequenceDecoder(nn.Module):
    """Latent frames and features of the LR frames -> frames eight times as large."""

    def __init__(self, config: VAEConfig, ops: ModuleType, attention: Attention):
        super().__init__()
        widths = config.widths
        self.conv_in = ops.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], ops, attention)
        self.temporal_mixing = TemporalConv(widths[-1], ops)  # within the middle, though not named so
        self.up = up_levels(config, ops)
        for level, width in zip(self.up, widths, strict=True):
            level.temporal_mixing = nn.ModuleList(TemporalConv(width, ops) for _ in level.block)
        for i in fused_levels(config):
            self.add_module(f"fusion_layer_{i}", FuseBlock(widths[i], ops))
        self.norm_out = ops.GroupNorm(GROUPS, widths[0], eps=EPS)
        self.conv_out = ops.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z: torch.Tensor, batch: int, features: dict[int, torch.Tensor], weight: float) -> torch.Tensor:
        """z (b*t, 4, h, w), features by level (b*t, c, h_k, w_k) -> (b*t, 3, 8h, 8w)."""
        x = self.mid.block_1(self.conv_in(z))
        x = self.temporal_mixing(x, batch)
        x = in_turn(lambda part: self.mid.block_2(self.mid.attn_1(part)), x)
        enlarge = None
        for i in reversed(range(len(self.up))):
            level = self.up[i]
            for block, mix in zip(level.block, level.temporal_mixing, strict=True):
                if enlarge is None:
                    x = in_turn(block, x)
                else:  # together: the enlarged features are the largest tensor, and one frame of them will do
                    x = in_turn(lambda part, up=enlarge, block=block: block(up(part)), x, growth=4)
                    enlarge = None
                x = mix(x, batch)
            if i in features:
                fuse = partial(self.get_submodule(f"fusion_layer_{i}"), weight=weight)
                x = in_turn(fuse, features[i], x, growth=2)
            enlarge = level.upsample
        return in_turn(lambda part: self.conv_out(silu(self.norm_out(part))), x)

    def each(
        self, given: Iterator[tuple[torch.Tensor, dict[int, torch.Tensor]]], weight: float
    ) -> Iterator[torch.Tensor]:
        """Decode (z, features) of one frame after the other: the same frames, each computed once.

        What waits for its neighbours is kept, two frames of every convolution over frames: a frame leaves when its
        13th successor has come, or the clip has ended.
        """
        waiting: dict[int, deque[torch.Tensor]] = {i: deque() for i in range(len(self.up))}

        def entering() -> Iterator[torch.Tensor]:
            for z, features in given:
                for i, part in features.items():
                    waiting[i].append(part)
                yield self.mid.block_1(self.conv_in(z))

        def fused(fuse: FuseBlock, queue: deque[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
            return fuse(queue.popleft(), x, weight) if queue else x

        frames = self.temporal_mixing.each(entering())
        frames = map(self.mid.block_2, map(self.mid.attn_1, frames))
        for i in reversed(range(len(self.up))):
            level = self.up[i]
            for block, mix in zip(level.block, level.temporal_mixing, strict=True):
                frames = mix.each(map(block, frames))
            if hasattr(self, f"fusion_layer_{i}"):
                frames = map(partial(fused, self.get_submodule(f"fusion_layer_{i}"), waiting[i]), frames)
            if level.upsample is not None:
                frames = map(level.upsample, frames)
        return map(lambda x: self.conv_out(silu(self.norm_out(x))), frames)


def fused_levels(config: VAEConfig) -> range:
    """Number the levels that take features of the LR clip: all but the finest and the deepest."""
    return range(1, len(config.ch_mult) - 1)


class SequenceVAE(nn.Module):
    """Encoder and sequence decoder; latents here are unscaled: the sampler's latents divided by LATENT_SCALE."""

    def __init__(self, config: VAEConfig, ops: ModuleType = nn, attention: Attention = F.scaled_dot_product_attention):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, ops, attention)
        self.decoder = SequenceDecoder(config, ops, attention)
        self.quant_conv = ops.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = ops.Conv2d(config.z_channels, config.z_channels, 1)

    def encode(self, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip (b, 3, t, H, W) in -1..1 -> mean and log-variance; restoring takes the first stage's instead."""
        return encode(self.encoder, self.quant_conv, clip, self.config)

    def features(self, clip: torch.Tensor) -> list[torch.Tensor]:
        """Find in the LR clip (b, 3, t, H, W), in -1..1 at the target size, what decoding fuses in.

        Gives [level 1 (b, 2 ch, t, H/2, W/2), level 2 (b, 4 ch, t, H/4, W/4)] for the published weights.
        """
        check_clip(clip, self.config)
        levels = fused_levels(self.config)
        frames = fold(clip)
        parts = []
        for part in frames.split(at_once(frames, self.config.ch / self.config.in_channels)):
            found = islice(self.encoder.levels(part), levels.start, levels.stop)  # deeper ones are not computed
            parts.append(list(found))
        return [unfold(torch.cat(each), clip.shape[0]) for each in zip(*parts, strict=True)]

    def decode(
        self, z: torch.Tensor, features: Sequence[torch.Tensor] | None = None, weight: float = 1.0
    ) -> torch.Tensor:
        """Latent (b, 4, t, h, w) and what `features` gave of the LR clip -> clip (b, 3, t, 8h, 8w), unclamped.

        `weight` is how much of the features enters: 0 (then they may be missing) leaves all to the latents.
        """
        self._check(z, features, weight)
        folded = {}
        if weight and features is not None:
            folded = {i: fold(each.to(z)) for i, each in zip(fused_levels(self.config), features, strict=True)}
        frames = self.decoder(self.post_quant_conv(fold(z)), z.shape[0], folded, weight)
        return unfold(frames, z.shape[0])

    def decode_each(
        self, given: Iterable[tuple[torch.Tensor, torch.Tensor | None]], weight: float = 1.0
    ) -> Iterator[torch.Tensor]:
        """Decode frames (1, 4, 1, h, w), each with that of the LR clip (1, 3, 1, 8h, 8w), as `decode` does all of them.

        Gives frames (1, 3, 1, 8h, 8w), each computed once; without LR frames, or at weight 0, latents do it alone.
        """

        def parts() -> Iterator[tuple[torch.Tensor, dict[int, torch.Tensor]]]:
            for z, lr in given:
                check_latent(z, self.config)
                found = [] if lr is None or not weight else self.features(lr)
                features = {i: fold(each) for i, each in zip(fused_levels(self.config), found, strict=False)}
                yield self.post_quant_conv(fold(z)), features

        return (unfold(frame, 1) for frame in self.decoder.each(parts(), weight))

    def _check(self, z: torch.Tensor, features: Sequence[torch.Tensor] | None, weight: float) -> None:
        check_latent(z, self.config)
        if not weight:
            return
        batch, _, frames, height, width = z.shape
        deepest = len(self.config.ch_mult) - 1
        wanted = []
        for i in fused_levels(self.config):
            scale = 2 ** (deepest - i)
            wanted.append((batch, self.config.widths[i], frames, height * scale, width * scale))
        got = None if features is None else [tuple(each.shape) for each in features]
        if got != wanted:
            raise ValueError(
                f"MGLD-VSR VAE: this decoder needs features of the LR clip as {wanted}; got {got or 'none'}. "
                "Pass the features of the LR clip at the target size, or weight 0."
            )
