"""The MGLD-VSR first stage: the autoencoder of Stable Diffusion, which encodes the LR clip.

Every frame is taken by itself: frames are (n, c, h, w). Encoding, with the published sizes:

1. Convolution: frames (n, 3, H, W) -> (n, 128, H, W).
2. Levels of width 128, 256, 512, 512: two residual blocks each; height and width are halved after the first three.
3. Middle: residual block, attention within the frame, residual block.
4. Norm, SiLU, two convolutions -> mean and log-variance (n, 4, H/8, W/8).

Decoding goes the other way, with three blocks a level: latent (n, 4, h, w), unscaled -> frames (n, 3, 8h, 8w).

Its blocks serve the sequence decoder too. Module names are those of the published weights; `down` and `up` are
numbered by level, 0 the finest. docs/systems/mgld_vsr.md describes the system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..layout.pieces import Tile, Window, frames_of
from ..layout.sizes import ClipSize, pad_clip, resize_clip, target_size
from ..transformer import Attention, from_tokens, over_tokens, silu
from .blocks import GROUPS, fold, in_turn, unfold

SPACE = 8  # output pixels per latent cell
LATENT_CHANNELS = 4
LATENT_SCALE = 0.18215  # the sampler's latents are the autoencoder's times this
EPS = 1e-6  # of every norm here
_MOST = 8  # times that a small picture is enlarged to work on it
_HELD = 1 << 28  # bytes of enlarged LR frames that stay on the device


@dataclass(frozen=True)
class VAEConfig:
    """Shape of :class:`FirstStage`, or with `sequence` of :class:`~.decoder.SequenceVAE`."""

    in_channels: int = 3
    out_ch: int = 3
    z_channels: int = LATENT_CHANNELS
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    sequence: bool = False  # the decoder mixes frames and fuses in features of the LR clip

    @property
    def widths(self) -> tuple[int, ...]:
        """Give the channels of every level, from full resolution down."""
        return tuple(self.ch * mult for mult in self.ch_mult)


class ResnetBlock(nn.Module):
    """Residual block; `shortcut` is the published name of the convolution where the width changes."""

    def __init__(self, width_in: int, width: int, ops: ModuleType, shortcut: str = "nin_shortcut"):
        super().__init__()
        self.norm1 = ops.GroupNorm(GROUPS, width_in, eps=EPS)
        self.conv1 = ops.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = ops.GroupNorm(GROUPS, width, eps=EPS)
        self.conv2 = ops.Conv2d(width, width, 3, padding=1)
        self.shortcut = shortcut if width_in != width else None
        if self.shortcut:
            self.add_module(shortcut, ops.Conv2d(width_in, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(silu(self.norm1(x)))
        y = silu(self.norm2(y))  # a line of its own: what entered the norm is free before the convolution
        y = self.conv2(y)
        y += self.get_submodule(self.shortcut)(x) if self.shortcut else x
        return y


class AttnBlock(nn.Module):
    """Single-head self-attention over the cells of each frame, with residual."""

    def __init__(self, width: int, ops: ModuleType, attention: Attention):
        super().__init__()
        self.norm = ops.GroupNorm(GROUPS, width, eps=EPS)
        self.q = over_tokens(ops.Conv2d(width, width, 1))
        self.k = over_tokens(ops.Conv2d(width, width, 1))
        self.v = over_tokens(ops.Conv2d(width, width, 1))
        self.proj_out = from_tokens(ops.Conv2d(width, width, 1))
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(x).flatten(2).mT
        q, k, v = (layer(tokens).unsqueeze(1) for layer in (self.q, self.k, self.v))
        y = self.proj_out(self.attention(q, k, v).squeeze(1))
        return x + y.unflatten(2, x.shape[-2:])


class Middle(nn.Module):
    """Residual block, attention, residual block at the smallest resolution."""

    def __init__(self, width: int, ops: ModuleType, attention: Attention):
        super().__init__()
        self.block_1 = ResnetBlock(width, width, ops)
        self.attn_1 = AttnBlock(width, ops, attention)
        self.block_2 = ResnetBlock(width, width, ops)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Halve(nn.Module):
    """Stride-2 convolution; zeros stand right and below only."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Twice the height and width, then a convolution."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Level(nn.Module):
    """Residual blocks of one resolution, then the way to the next one where there is any."""

    def __init__(
        self,
        width_in: int,
        width: int,
        count: int,
        ops: ModuleType,
        down: Halve | None = None,
        up: Double | None = None,
    ):
        super().__init__()
        widths_in = [width_in] + [width] * (count - 1)
        self.block = nn.ModuleList(ResnetBlock(each, width, ops) for each in widths_in)
        self.downsample = down
        self.upsample = up


def up_levels(config: VAEConfig, ops: ModuleType) -> nn.ModuleList:
    """Make the levels of a decoder, numbered from the finest; the deepest runs first."""
    widths, count = config.widths, config.num_res_blocks + 1
    deeper = [*widths[1:], widths[-1]]
    return nn.ModuleList(
        Level(deeper[i], width, count, ops, up=Double(width, ops) if i else None) for i, width in enumerate(widths)
    )


class Encoder(nn.Module):
    """Frames -> moments of the latent."""

    def __init__(self, config: VAEConfig, ops: ModuleType, attention: Attention):
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        finer = [config.ch, *widths]
        self.conv_in = ops.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(finer[i], width, config.num_res_blocks, ops, down=Halve(width, ops) if i < last else None)
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1], ops, attention)
        self.norm_out = ops.GroupNorm(GROUPS, widths[-1], eps=EPS)
        self.conv_out = ops.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the features of every level before they are halved; only what is asked for is computed."""
        x = self.conv_in(x)
        for level in self.down:
            for block in level.block:
                x = block(x)
            yield x
            if level.downsample is not None:
                x = level.downsample(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for each in self.levels(x):
            x = each
        return self.conv_out(silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latent -> frames eight times as large."""

    def __init__(self, config: VAEConfig, ops: ModuleType, attention: Attention):
        super().__init__()
        widths = config.widths
        self.conv_in = ops.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], ops, attention)
        self.up = up_levels(config, ops)
        self.norm_out = ops.GroupNorm(GROUPS, widths[0], eps=EPS)
        self.conv_out = ops.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            for block in level.block:
                x = block(x)
            if level.upsample is not None:
                x = level.upsample(x)
        return self.conv_out(silu(self.norm_out(x)))


def encode(
    encoder: Encoder, quant_conv: nn.Module, clip: torch.Tensor, config: VAEConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip (b, 3, t, H, W) in -1..1 -> mean and log-variance (b, 4, t, H/8, W/8), unscaled; the mean is the mode."""
    check_clip(clip, config)
    moments = in_turn(lambda frames: quant_conv(encoder(frames)), fold(clip), growth=config.ch / config.in_channels)
    mean, logvar = unfold(moments, clip.shape[0]).chunk(2, 1)
    return mean, logvar.clamp(-30, 20)


def check_clip(clip: torch.Tensor, config: VAEConfig) -> None:
    """Refuse anything but a clip whose sides the levels halve without a rest."""
    space = 2 ** (len(config.ch_mult) - 1)
    if clip.ndim != 5 or clip.shape[1] != config.in_channels or clip.shape[3] % space or clip.shape[4] % space:
        raise ValueError(
            f"MGLD-VSR VAE: a clip must be (b, {config.in_channels}, t, h, w) with sides that {space} divides; "
            f"got {tuple(clip.shape)}. Pad or resize the frames."
        )


def check_latent(z: torch.Tensor, config: VAEConfig) -> None:
    """Refuse anything but latents of this autoencoder."""
    if z.ndim != 5 or z.shape[1] != config.z_channels:
        raise ValueError(
            f"MGLD-VSR VAE: a latent must be (b, {config.z_channels}, t, h, w); got {tuple(z.shape)}. "
            "Decode latents of the MGLD-VSR model."
        )


class FirstStage(nn.Module):
    """Encoder and decoder; latents here are unscaled: the sampler's latents divided by LATENT_SCALE."""

    def __init__(self, config: VAEConfig, ops: ModuleType = nn, attention: Attention = F.scaled_dot_product_attention):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, ops, attention)
        self.decoder = Decoder(config, ops, attention)
        self.quant_conv = ops.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = ops.Conv2d(config.z_channels, config.z_channels, 1)

    def encode(self, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip (b, 3, t, H, W) in -1..1 -> mean and log-variance (b, 4, t, H/8, W/8); the mean is the mode."""
        return encode(self.encoder, self.quant_conv, clip, self.config)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latent (b, 4, t, h, w) -> clip (b, 3, t, 8h, 8w), unclamped; restoring takes the sequence decoder instead."""
        check_latent(z, self.config)
        space = 2 ** (len(self.config.ch_mult) - 1)
        growth = space**2 * self.config.widths[min(1, len(self.config.widths) - 1)] / self.config.z_channels
        frames = in_turn(lambda part: self.decoder(self.post_quant_conv(part)), fold(z), growth=growth)
        return unfold(frames, z.shape[0])


# Clips in pieces: what models/layout/pieces.py walks through. LR frames are enlarged span by span.


class Autoencoder(nn.Module):
    """The first stage, which encodes, and the sequence decoder with its own encoder; without it, the first's."""

    def __init__(self, first_stage: FirstStage, sequence: nn.Module | None):
        super().__init__()
        self.first_stage = first_stage
        if sequence is not None:
            self.sequence = sequence
            del first_stage.decoder, first_stage.post_quant_conv  # 50 million numbers without a use

    @property
    def takes_lr_frames(self) -> bool:
        """Tell whether the decoder fuses in features of LR frames."""
        return hasattr(self, "sequence")


def work_size(size: ClipSize, shortest: int) -> ClipSize:
    """Give the size to restore at: small pictures grow to what the model was trained on, and are reduced again."""
    short = min(size.height, size.width)
    if short >= shortest:
        return size
    return ClipSize(size.frames, *target_size(size.height, size.width, scale=min(shortest / short, _MOST)))


class EnlargedClip:
    """LR frames (t, h, w, 3) in 0..1, enlarged when asked for; `published` is PyTorch's bicubic, not Pillow's.

    They are enlarged on `device`, each frame once: of the span before, what the next one shares is kept.
    """

    def __init__(
        self,
        frames: torch.Tensor,
        size: ClipSize,
        mode: str = "bicubic",
        published: bool = False,
        device: torch.device | str = "cpu",
    ):
        self._frames, self._size, self._mode, self._device = frames, size, mode, torch.device(device)
        self._published = published and mode == "bicubic"
        self._held: tuple[Window, torch.Tensor] | None = None

    def read(self, window: Window, tile: Tile) -> torch.Tensor:
        """Give frames (1, 3, n, 8h, 8w) float32 in -1..1 of a tile in cells, padded to whole cells; only to be read.

        They lie on the device, or on the CPU where a span of them is large.
        """
        if self._held is None or self._held[0] != window:  # the tiles of one span come one after the other
            self._held = window, self._enlarged(window)
        return self._held[1][tile.scaled(SPACE).region]

    def _enlarged(self, window: Window) -> torch.Tensor:
        target = self._size.height, self._size.width
        rows, columns = (SPACE * -(-side // SPACE) for side in target)
        large = 12 * window.length * rows * columns > _HELD
        clip = torch.empty((1, 3, window.length, rows, columns), device="cpu" if large else self._device)
        first = window.start
        if self._held is not None and self._held[0].start <= first < self._held[0].stop:
            before, kept = self._held
            first = min(before.stop, window.stop)
            clip[:, :, : first - window.start] = kept[:, :, window.start - before.start : first - before.start]
        for number in range(first, window.stop):
            frame = self._frames[number : number + 1, ..., :3].to(self._device, torch.float32).permute(3, 0, 1, 2)[None]
            if self._published and frame.shape[-2:] != target:
                frame = F.interpolate(frame[:, :, 0], target, mode="bicubic", align_corners=False)[:, :, None]
            else:
                frame = resize_clip(frame, *target, self._mode)
            frame = pad_clip(frame.clamp(0, 1), ClipSize(1, rows, columns))
            clip[:, :, number - window.start] = frame.mul(2).sub_(1)[:, :, 0]
        return clip


def piece_encoder(
    vae: Autoencoder, clip: EnlargedClip, deviation: bool, device: torch.device, dtype: torch.dtype
) -> Callable[[Window, Tile], torch.Tensor]:
    """Make what encodes one piece of a clip to its mean (4 channels), on request with its spread (4 more)."""

    def encode(window: Window, tile: Tile) -> torch.Tensor:
        mean, log_variance = vae.first_stage.encode(clip.read(window, tile).to(device).to(dtype))
        return torch.cat((mean, (log_variance.float() / 2).exp().to(mean)), 1) if deviation else mean

    return encode


def piece_decoder(
    vae: Autoencoder,
    latent: torch.Tensor,
    lr: EnlargedClip | None,
    lr_weight: float,
    least: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[Window, Tile], torch.Tensor]:
    """Make what decodes one piece of (1, 4, t, h, w), unscaled, for `decode_pieces`.

    `lr` are the LR frames at the output's size; without them the decoder works from the latent alone. Spans shorter
    than `least` are filled up with their last frame.
    """

    def filled(clip: torch.Tensor) -> torch.Tensor:
        frames, height, width = clip.shape[2:]
        return pad_clip(clip, ClipSize(max(frames, least), height, width))

    def decode(window: Window, tile: Tile) -> torch.Tensor:
        z = filled(latent[:, :, window.span][tile.region]).to(device, dtype)
        if not vae.takes_lr_frames:
            return frames_of(vae.first_stage.decode(z)[:, :, : window.length])
        features = None
        if lr is not None and lr_weight > 0:
            features = vae.sequence.features(filled(lr.read(window, tile)).to(device).to(dtype))
        clip = vae.sequence.decode(z, features, 0.0 if features is None else lr_weight)
        return frames_of(clip[:, :, : window.length])

    return decode


def frame_decoder(
    vae: Autoencoder,
    latent: torch.Tensor,
    lr: EnlargedClip | None,
    lr_weight: float,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[Tile], Iterator[torch.Tensor]]:
    """Make what decodes a tile of (1, 4, t, h, w), unscaled, frame by frame, for `decode_frames`.

    Frames are those of a span as long as the clip, but each is decoded once.
    """

    def given(tile: Tile) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        for window in (Window(number, number + 1) for number in range(latent.shape[2])):
            z = latent[:, :, window.span][tile.region].to(device, dtype)
            yield z, None if lr is None else lr.read(window, tile).to(device, dtype)

    def decode(tile: Tile) -> Iterator[torch.Tensor]:
        if not vae.takes_lr_frames:
            return (vae.first_stage.decode(z) for z, _ in given(tile))
        return vae.sequence.decode_each(given(tile), lr_weight)

    return decode
