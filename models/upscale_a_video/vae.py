"""The Upscale-A-Video autoencoder: latents at LR resolution, pictures four times as large.

Two published forms share one class: "3d", the autoencoder of the image upscaler, in which frames meet only in the
joint norms; and "video", which adds a 3x3x3 convolution to every residual block of the decoder and sees the LR
frames.
Decoding, with the published sizes:

1. Latent (b, 4, t, h, w), unscaled -> two convolutions (b, 512, t, h, w).
2. "video" only: LR frames (b, 3, t, h, w) -> two residual blocks (b, 128, t, h, w); together with the features they
   give a scale and a shift for the features.
3. Middle: residual block, attention within each frame, residual block.
4. Levels of width 512, 256, 128: three residual blocks each; height and width double after the first two.
5. Norm, SiLU, convolution -> frames (b, 3, t, 4h, 4w).

Encoding goes the other way: frames (b, 3, t, H, W) -> levels of width 128, 256, 512, two blocks each -> middle ->
mean and log-variance (b, 4, t, H/4, W/4). Restoring a clip does not need it.

Module names are those of the published weights. float32 is the published precision. docs/systems/upscale_a_video.md
describes the system.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..layout.pieces import Tile, Window, frames_of
from ..layout.sizes import ClipSize, pad_clip, resize_clip
from ..transformer import Attention, silu
from .temporal import Resnet, per_frame

SCALE = 4  # output pixels per LR pixel, and per latent cell
LATENT_CHANNELS = 4
LATENT_SCALE = 0.08333  # the sampler's latents are the autoencoder's times this
EPS = 1e-6  # of every norm here
_RESIZED = 8  # frames resized together


@dataclass(frozen=True)
class VAEConfig:
    """Shape of :class:`UpscaleVAE`; `condition` distinguishes the "video" form from the "3d" one."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = LATENT_CHANNELS
    block_out_channels: tuple[int, ...] = (128, 256, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    condition: bool = False
    condition_channels: int = 128
    scaling_factor: float = LATENT_SCALE


class PlusResnet(Resnet):
    """A residual block followed by a 3x3x3 convolution; zeros stand around the clip, in time too."""

    def __init__(self, width_in: int, width: int, groups: int, ops: ModuleType):
        super().__init__(width_in, width, 0, groups, EPS, ops)
        self.norm_3d = ops.GroupNorm(groups, width, eps=EPS)
        self.conv_3d = ops.Conv3d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        x = super().forward(x, temb)
        y = self.conv_3d(silu(self.norm_3d(x)))
        y += x
        return y


class FrameAttention(nn.Module):
    """Single-head self-attention over the cells of each frame, with residual."""

    def __init__(self, width: int, groups: int, ops: ModuleType, attention: Attention):
        super().__init__()
        self.group_norm = ops.GroupNorm(groups, width, eps=EPS)
        self.query = ops.Linear(width, width)
        self.key = ops.Linear(width, width)
        self.value = ops.Linear(width, width)
        self.proj_attn = ops.Linear(width, width)
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = per_frame(self.group_norm, x)
        tokens = y.permute(0, 2, 3, 4, 1).flatten(0, 1).flatten(1, 2)  # (b*t, n, c)
        q, k, v = (layer(tokens).unsqueeze(1) for layer in (self.query, self.key, self.value))
        y = self.proj_attn(self.attention(q, k, v).squeeze(1))
        y = y.unflatten(0, (x.shape[0], x.shape[2])).unflatten(2, x.shape[-2:]).permute(0, 4, 1, 2, 3)
        return x + y


class Middle(nn.Module):
    """Residual block, attention, residual block at the smallest resolution."""

    def __init__(self, resnets: list[Resnet], attention: FrameAttention):
        super().__init__()
        self.attentions = nn.ModuleList([attention])
        self.resnets = nn.ModuleList(resnets)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.resnets[0](x)
        x = self.attentions[0](x)
        return self.resnets[1](x)


class Halve(nn.Module):
    """Stride-2 convolution per frame; zeros stand right and below only."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return per_frame(lambda frames: self.conv(F.pad(frames, (0, 1, 0, 1))), x)


class Double(nn.Module):
    """Twice the height and width, then a convolution per frame."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return per_frame(lambda frames: self.conv(F.interpolate(frames, scale_factor=2.0)), x)


class Level(nn.Module):
    """Residual blocks of one resolution, then the way to the next one where there is any."""

    def __init__(self, resnets: list[Resnet], down: Halve | None = None, up: Double | None = None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        if down is not None:
            self.downsamplers = nn.ModuleList([down])
        if up is not None:
            self.upsamplers = nn.ModuleList([up])


class Encoder(nn.Module):
    """Frames -> moments of the latent."""

    def __init__(self, config: VAEConfig, ops: ModuleType, attention: Attention):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = ops.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            widths_in = [widths[max(i - 1, 0)]] + [width] * (config.layers_per_block - 1)
            resnets = [Resnet(each, width, 0, groups, EPS, ops) for each in widths_in]
            self.down_blocks.append(Level(resnets, down=Halve(width, ops) if i + 1 < len(widths) else None))
        self.mid_block = Middle(
            [Resnet(widths[-1], widths[-1], 0, groups, EPS, ops) for _ in range(2)],
            FrameAttention(widths[-1], groups, ops, attention),
        )
        self.conv_norm_out = ops.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = ops.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = per_frame(self.conv_in, x)
        for level in self.down_blocks:
            for resnet in level.resnets:
                x = resnet(x)
            if level is not self.down_blocks[-1]:
                x = level.downsamplers[0](x)
        x = self.mid_block(x)
        return per_frame(self.conv_out, silu(self.conv_norm_out(x)))


class ConditionFuse(nn.Module):
    """Scale and shift decoder features by what they and the LR features say together."""

    def __init__(self, condition_width: int, width: int, groups: int, ops: ModuleType):
        super().__init__()
        self.shared = nn.ModuleList(
            [Resnet(condition_width + width, width, 0, groups, EPS, ops), Resnet(width, width, 0, groups, EPS, ops)]
        )
        self.scale = ops.Conv2d(width, width, 3, padding=1)
        self.shift = ops.Conv2d(width, width, 3, padding=1)

    def forward(self, condition: torch.Tensor, x: torch.Tensor, weight: float) -> torch.Tensor:
        y = self.shared[0](torch.cat((condition, x), 1))
        y = self.shared[1](y)
        return x + weight * (x * per_frame(self.scale, y) + per_frame(self.shift, y))


class Decoder(nn.Module):
    """Latent, and LR frames where the weights take them -> frames four times as large."""

    def __init__(self, config: VAEConfig, ops: ModuleType, attention: Attention):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups

        def resnet(width_in: int, width: int) -> Resnet:
            if config.condition:
                return PlusResnet(width_in, width, groups, ops)
            return Resnet(width_in, width, 0, groups, EPS, ops)

        self.conv_in = ops.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.condition = config.condition
        if config.condition:
            wide = config.condition_channels
            self.condition_in = nn.ModuleList([resnet(config.in_channels, wide), resnet(wide, wide)])
            self.condition_fuse = ConditionFuse(wide, widths[0], groups, ops)
        self.mid_block = Middle(
            [resnet(widths[0], widths[0]) for _ in range(2)], FrameAttention(widths[0], groups, ops, attention)
        )
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            widths_in = [widths[max(i - 1, 0)]] + [width] * config.layers_per_block
            resnets = [resnet(each, width) for each in widths_in]
            self.up_blocks.append(Level(resnets, up=Double(width, ops) if i + 1 < len(widths) else None))
        self.conv_norm_out = ops.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = ops.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: torch.Tensor, lr: torch.Tensor | None, lr_weight: float) -> torch.Tensor:
        x = per_frame(self.conv_in, z)
        if self.condition and lr_weight:  # at weight 0 the fusion returns x
            condition = self.condition_in[0](lr)
            condition = self.condition_in[1](condition)
            x = self.condition_fuse(condition, x, lr_weight)
            del condition
        x = self.mid_block(x)
        for level in self.up_blocks:
            for resnet in level.resnets:
                x = resnet(x)
            if level is not self.up_blocks[-1]:
                x = level.upsamplers[0](x)
        return per_frame(self.conv_out, silu(self.conv_norm_out(x)))


class UpscaleVAE(nn.Module):
    """Encoder and decoder; latents here are unscaled: the sampler's latents divided by `config.scaling_factor`."""

    def __init__(self, config: VAEConfig, ops: ModuleType = nn, attention: Attention = F.scaled_dot_product_attention):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, ops, attention)
        self.decoder = Decoder(config, ops, attention)
        self.quant_conv = ops.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = ops.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames (b, 3, t, H, W) in -1..1 -> mean and log-variance (b, 4, t, H/4, W/4); the mean is the mode."""
        if clip.ndim != 5 or clip.shape[1] != self.config.in_channels:
            raise ValueError(
                f"Upscale-A-Video VAE: a clip must be (b, {self.config.in_channels}, t, h, w); got "
                f"{tuple(clip.shape)}. Pass frames of {self.config.in_channels} channels."
            )
        mean, logvar = per_frame(self.quant_conv, self.encoder(clip)).chunk(2, 1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: torch.Tensor, lr: torch.Tensor | None = None, lr_weight: float = 1.0) -> torch.Tensor:
        """Latent (b, 4, t, h, w) and clean LR frames (b, 3, t, h, w) in -1..1 -> frames (b, 3, t, 4h, 4w), unclamped.

        Weights without condition ignore `lr`; the others need it unless `lr_weight` (1 = published) is 0.
        """
        self._check(z, lr, lr_weight)
        return self.decoder(per_frame(self.post_quant_conv, z), None if lr is None else lr.to(z), lr_weight)

    def _check(self, z: torch.Tensor, lr: torch.Tensor | None, lr_weight: float) -> None:
        config = self.config
        if z.ndim != 5 or z.shape[1] != config.latent_channels:
            raise ValueError(
                f"Upscale-A-Video VAE: a latent must be (b, {config.latent_channels}, t, h, w); got {tuple(z.shape)}. "
                "Decode latents of the Upscale-A-Video model."
            )
        wanted = (z.shape[0], config.in_channels, *z.shape[2:])
        if config.condition and lr_weight and (lr is None or tuple(lr.shape) != wanted):
            raise ValueError(
                f"Upscale-A-Video VAE: this decoder needs the LR frames as {wanted}; got "
                f"{'none' if lr is None else tuple(lr.shape)}. Pass the LR frames, or lr_weight 0."
            )


# Clips in pieces: what models/layout/pieces.py walks through. Group norms run over all frames of a span, so its frames
# shift a little with its content; spans may overlap and are blended.


def lr_grid(
    frames: torch.Tensor, size: ClipSize, mode: str = "bilinear", device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Bring frames (t, h, w, 3) in 0..1 to the latent grid of an output of `size`: (1, 3, t, h, w) in -1..1, on CPU.

    They are resized on `device`. Frames already at that grid stay as they are. Where the output is no multiple of 4 the
    frames fill its exact size first, so that the padding lies outside the picture.
    """
    rows, columns = -(-size.height // SCALE), -(-size.width // SCALE)
    exact = (size.height, size.width) == (SCALE * rows, SCALE * columns)
    parts = []
    for part in frames[..., :3].split(_RESIZED):
        clip = part.to(device, torch.float32).permute(3, 0, 1, 2).unsqueeze(0)
        if exact:
            clip = resize_clip(clip, rows, columns, mode)
        elif clip.shape[-2:] != (rows, columns):
            clip = resize_clip(clip, size.height, size.width, mode)
            clip = pad_clip(clip, ClipSize(clip.shape[2], SCALE * rows, SCALE * columns))
            clip = F.avg_pool3d(clip, (1, SCALE, SCALE))
        parts.append((clip.clamp(0, 1) * 2 - 1).cpu())
    return torch.cat(parts, 2)


def piece_encoder(
    vae: UpscaleVAE, frames: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> Callable[[Window, Tile], torch.Tensor]:
    """Make what encodes one piece of frames (t, H, W, 3) in 0..1, padded to whole cells, for `encode_pieces`."""
    sides = [SCALE * -(-side // SCALE) for side in frames.shape[1:3]]

    def encode(window: Window, tile: Tile) -> torch.Tensor:
        clip = frames[window.span, ..., :3].permute(3, 0, 1, 2).unsqueeze(0)
        clip = pad_clip(clip, ClipSize(window.length, *sides))[tile.scaled(SCALE).region]
        return vae.encode((clip.to(device, torch.float32) * 2 - 1).to(dtype))[0]

    return encode


def piece_decoder(
    vae: UpscaleVAE,
    latent: torch.Tensor,
    lr: torch.Tensor | None,
    lr_weight: float,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[Window, Tile], torch.Tensor]:
    """Make what decodes one piece of (1, 4, t, h, w), already divided by the scaling factor, for `decode_pieces`.

    `lr` (1, 3, t, h, w) in -1..1 guides a decoder that has a place for it; without, that place is skipped.
    """

    def decode(window: Window, tile: Tile) -> torch.Tensor:
        z = latent[:, :, window.span][tile.region].to(device, dtype)
        guide = None if lr is None else lr[:, :, window.span][tile.region].to(device, dtype)
        return frames_of(vae.decode(z, guide, 0.0 if lr is None else lr_weight))

    return decode
