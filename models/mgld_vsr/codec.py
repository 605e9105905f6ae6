"""Clips through the first stage and the sequence decoder in bounded memory: chunks in time, tiles in space.

Frames are (t, H, W, 3) in 0..1 as the host keeps them; LR frames are enlarged chunk by chunk. The published program
works on segments of 5 frames; here the decoder's chunks may overlap and are blended.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..layout.geometry import ClipSize, pad_clip, resize_clip, target_size
from ..layout.pieces import decode_pieces, encode_pieces, in_pixels
from ..layout.tiles import Tile
from .published import SHORTEST
from .vae import LATENT_CHANNELS, SPACE

_MOST = 8  # times that a small picture is enlarged to work on it


class Autoencoder(nn.Module):
    """The first stage, which encodes, and the sequence decoder with its own encoder; without it, the first's."""

    latent_channels = LATENT_CHANNELS

    def __init__(self, first_stage: nn.Module, sequence: nn.Module | None):
        super().__init__()
        self.first_stage = first_stage
        if sequence is not None:
            self.sequence = sequence
            del first_stage.decoder, first_stage.post_quant_conv  # 50 million numbers without a use

    @property
    def config(self):
        """Give what says how many channels a latent has."""
        return self

    @property
    def takes_lr_frames(self) -> bool:
        """Tell whether the decoder fuses in features of LR frames."""
        return hasattr(self, "sequence")


def work_size(size: ClipSize, shortest: int = SHORTEST) -> ClipSize:
    """Give the size to restore at: small pictures grow to what the model was trained on, and are reduced again."""
    short = min(size.height, size.width)
    if short >= shortest:
        return size
    return ClipSize(size.frames, *target_size(size.height, size.width, scale=min(shortest / short, _MOST)))


class EnlargedClip:
    """LR frames (t, h, w, 3) in 0..1, enlarged when asked for; `published` is PyTorch's bicubic, not Pillow's."""

    def __init__(self, frames: torch.Tensor, size: ClipSize, mode: str = "bicubic", published: bool = False):
        self._frames, self.size, self._mode, self._published = frames, size, mode, published
        self._held: tuple[slice, torch.Tensor] | None = None

    def read(self, span: slice) -> torch.Tensor:
        """Give frames of the clip as (1, 3, n, H, W) float32 in 0..1 on the CPU, padded to whole cells."""
        if self._held is None or self._held[0] != span:  # the tiles of one chunk come one after the other
            frames = self._frames[span, ..., :3].float().cpu()
            clip = self._enlarge(frames.permute(3, 0, 1, 2).unsqueeze(0)).clamp(0, 1)
            rows, columns = (SPACE * -(-side // SPACE) for side in (self.size.height, self.size.width))
            self._held = span, pad_clip(clip, ClipSize(clip.shape[2], rows, columns))
        return self._held[1]

    def _enlarge(self, clip: torch.Tensor) -> torch.Tensor:
        target = (self.size.height, self.size.width)
        if not self._published or self._mode != "bicubic" or clip.shape[-2:] == target:
            return resize_clip(clip, *target, self._mode)
        frames = F.interpolate(clip[0].transpose(0, 1), target, mode="bicubic", align_corners=False)
        return frames.transpose(0, 1)[None]


def encode_clip(
    vae: Autoencoder, read: Callable[[slice], torch.Tensor], size: ClipSize, deviation: bool = False, **pieces
) -> torch.Tensor:
    """Encode a clip that `read` gives to the mean (1, 4, t, h, w) float32, unscaled; on request with its spread."""

    def encode(clip: torch.Tensor) -> torch.Tensor:
        mean, log_variance = vae.first_stage.encode(clip)
        return torch.cat((mean, (log_variance.float() / 2).exp().to(mean)), 1) if deviation else mean

    return encode_pieces(encode, read, size, SPACE, **pieces)


def decode_clip(
    vae: Autoencoder,
    latent: torch.Tensor,
    lr: EnlargedClip | None,
    size: ClipSize,
    *,
    lr_weight: float = 1.0,
    least: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **pieces,
) -> torch.Tensor:
    """Decode (1, 4, t, h, w), unscaled, to frames (t, H, W, 3) float32 in 0..1.

    `lr` are the LR frames at `size`; without them the decoder works from the latent alone. Chunks shorter than
    `least` are filled up with their last frame.
    """

    def decode(span: slice, tile: Tile) -> torch.Tensor:
        z = _filled(latent[:, :, span][tile.region], least).to(device, dtype)
        if not vae.takes_lr_frames:
            return vae.first_stage.decode(z)[:, :, : span.stop - span.start]
        features = None
        if lr is not None and lr_weight > 0:
            clip = _filled(lr.read(span)[in_pixels(tile, SPACE).region], least)
            features = vae.sequence.features((clip.to(device) * 2 - 1).to(dtype))
        clip = vae.sequence.decode(z, features, 0.0 if features is None else lr_weight)
        return clip[:, :, : span.stop - span.start]

    return decode_pieces(decode, size, SPACE, **pieces)


def _filled(clip: torch.Tensor, least: int) -> torch.Tensor:
    frames, height, width = clip.shape[2:]
    return pad_clip(clip, ClipSize(max(frames, least), height, width))
