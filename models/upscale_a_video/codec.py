"""Clips through the VAE in bounded memory: chunks in time, tiles in space, exact sizes.

Group norms run over all frames of a chunk, so a chunk's frames shift a little with its content. The published
program cuts chunks of 3 without overlap; here chunks may overlap and are blended. Frames are (t, h, w, 3) in
0..1 as the host keeps them; only one chunk of one tile is on the device at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..layout.geometry import ClipSize, pad_clip, resize_clip
from ..layout.pieces import decode_pieces
from ..layout.tiles import Tile
from .vae import SCALE

_RESIZED = 8  # frames resized together


def lr_grid(frames: torch.Tensor, size: ClipSize, mode: str = "bilinear") -> torch.Tensor:
    """Bring frames to the latent grid of an output of `size`: (1, 3, t, h, w) float32 in -1..1 on the CPU.

    Frames already at that grid stay as they are. Where the output is no multiple of 4 the frames fill its
    exact size first, so that the padding lies outside the picture.
    """
    rows, columns = -(-size.height // SCALE), -(-size.width // SCALE)
    exact = (size.height, size.width) == (SCALE * rows, SCALE * columns)
    parts = []
    for part in frames[..., :3].split(_RESIZED):
        clip = part.float().cpu().permute(3, 0, 1, 2).unsqueeze(0)
        if exact:
            clip = resize_clip(clip, rows, columns, mode)
        elif clip.shape[-2:] != (rows, columns):
            clip = resize_clip(clip, size.height, size.width, mode)
            clip = pad_clip(clip, ClipSize(clip.shape[2], SCALE * rows, SCALE * columns))
            clip = F.avg_pool3d(clip, (1, SCALE, SCALE))
        parts.append(clip.clamp(0, 1) * 2 - 1)
    return torch.cat(parts, 2)


def decode_clip(
    vae,
    latent: torch.Tensor,
    lr: torch.Tensor | None,
    size: ClipSize,
    *,
    lr_weight: float = 1.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **pieces,
) -> torch.Tensor:
    """Decode (1, 4, t, h, w), already divided by the scaling factor, to frames (t, H, W, 3) float32 in 0..1.

    `lr` (1, 3, t, h, w) in -1..1 guides a decoder that has a place for it; without, that place is skipped.
    `pieces` are the chunks, tiles and callbacks of decode_pieces.
    """

    def decode(span: slice, tile: Tile) -> torch.Tensor:
        z = latent[:, :, span][tile.region].to(device, dtype)
        guide = None if lr is None else lr[:, :, span][tile.region].to(device, dtype)
        return vae.decode(z, guide, 0.0 if lr is None else lr_weight)

    return decode_pieces(decode, size, SCALE, **pieces)
