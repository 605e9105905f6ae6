"""Clips through the VAE in bounded memory: chunks in time, tiles in space, exact sizes.

Group norms run over all frames of a chunk, so a chunk's frames shift a little with its content. The published
program cuts chunks of 3 without overlap; here chunks may overlap and are blended. Frames are (t, h, w, 3) in
0..1 as the host keeps them; only one chunk of one tile is on the device at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ..layout.geometry import ClipSize, pad_clip, resize_clip
from ..layout.tiles import Tile, tile_weight
from ..layout.windows import Window, plan_weights, plan_windows
from .config import DECODE_CHUNK, SCALE
from .sampling import decode_chunks

Progress = Callable[[int, int], None]
_RESIZED = 8  # frames resized together


def reference_chunks(frames: int) -> tuple[Window, ...]:
    """Cut a clip as the published program does: 3 frames each, the last one shorter."""
    return tuple(Window(start, stop) for start, stop in decode_chunks(frames, DECODE_CHUNK))


def blended_chunks(frames: int, chunk: int, overlap: int) -> tuple[Window, ...]:
    """Cut a clip into chunks of one length that share `overlap` frames."""
    return plan_windows(frames, chunk, min(overlap, chunk - 1))


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


@torch.no_grad()
def decode_clip(
    vae,
    latent: torch.Tensor,
    lr: torch.Tensor | None,
    size: ClipSize,
    *,
    chunks: Sequence[Window],
    tiles: Sequence[Tile],
    lr_weight: float = 1.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Decode (1, 4, t, h, w), already divided by the scaling factor, to frames (t, H, W, 3) float32 in 0..1.

    `lr` (1, 3, t, h, w) in -1..1 guides a decoder that has a place for it; without, that place is skipped. tiles
    are in latent cells. Raises a ValueError where a result is not finite, which half precision can cause.
    """
    output = torch.zeros(size.frames, size.height, size.width, 3)
    for span, fade, tile in _pieces(chunks, tiles, progress, check_cancelled):
        z = latent[:, :, span][tile.region].to(device, dtype)
        guide = None if lr is None else lr[:, :, span][tile.region].to(device, dtype)
        clip = vae.decode(z, guide, 0.0 if lr is None else lr_weight).float()
        if not torch.isfinite(clip).all():
            raise ValueError(
                f"VAE: frames must be finite numbers; got NaN or infinity in {dtype}. Set precision to fp32 in "
                "Load Video Restorer; if it is fp32, the latent is broken: use sampler ddim or euler."
            )
        frames = ((clip.clamp_(-1, 1)[0].permute(1, 2, 3, 0) + 1) / 2).cpu()
        _add_frames(output[span], frames, fade, tile, tiles)
    return output


@torch.no_grad()
def encode_clip(
    vae,
    frames: torch.Tensor,
    *,
    chunks: Sequence[Window],
    tiles: Sequence[Tile],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Encode frames (t, H, W, 3) in 0..1 to the mean (1, c, t, h, w) float32, not scaled; sides are padded."""
    count, height, width = frames.shape[:3]
    padded = (SCALE * -(-height // SCALE), SCALE * -(-width // SCALE))
    latent = None
    for span, fade, tile in _pieces(chunks, tiles, progress, check_cancelled):
        clip = frames[span, ..., :3].to(device, torch.float32).permute(3, 0, 1, 2).unsqueeze(0) * 2 - 1
        clip = pad_clip(clip, ClipSize(clip.shape[2], *padded))[_pixels(tile).region].to(dtype)
        mean = vae.encode(clip)[0].float().cpu()
        if latent is None:
            latent = mean.new_zeros(1, mean.shape[1], count, *(side // SCALE for side in padded))
        weight = tile_weight(tile, tiles) if len(tiles) > 1 else 1.0
        latent[:, :, span][tile.region] += mean * fade.view(-1, 1, 1) * weight
    return latent


def _pieces(chunks, tiles, progress, check_cancelled):
    """Yield (frames, their weights, tile) of every piece of work; a tick after each, a way out before each."""
    done, total = 0, len(chunks) * len(tiles)
    for window, fade in zip(chunks, plan_weights(chunks), strict=True):
        for tile in tiles:
            if check_cancelled is not None:
                check_cancelled()
            yield window.span, fade, tile
            done += 1
            if progress is not None:
                progress(done, total)


def _pixels(tile: Tile) -> Tile:
    return Tile(*(SCALE * side for side in (tile.top, tile.left, tile.height, tile.width)))


def _add_frames(target: torch.Tensor, frames: torch.Tensor, fade: torch.Tensor, tile: Tile, tiles) -> None:
    """Add one piece (n, H, W, 3) to the frames it belongs to, cropped to their exact size."""
    place = _pixels(tile)
    view = target[:, place.top : place.top + place.height, place.left : place.left + place.width]
    frames = frames[:, : view.shape[1], : view.shape[2]]
    weight = fade.view(-1, 1, 1, 1)
    if len(tiles) > 1:
        plan = [_pixels(each) for each in tiles]
        weight = weight * tile_weight(place, plan)[: view.shape[1], : view.shape[2], None]
    view += frames * weight
