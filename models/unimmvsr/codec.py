"""Clips through the causal VAE in bounded memory: chunks in time, optional tiles in space, exact sizes.

Frames are (t, h, w, 3) in 0..1 as the host keeps them; only one chunk at a time is resized, padded and on the
device. The peak beyond input and output depends on the frame's size and the chunk, not on the clip's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from ..layout.geometry import ClipSize, crop_clip, latent_size, pad_clip, padded_size, resize_clip
from ..layout.tiles import Tile, tile_weight
from .config import SPACE, TIME
from .vae import CausalVideoVAE

Progress = Callable[[int, int], None]


def frames_to_clip(frames: torch.Tensor) -> torch.Tensor:
    """(t, h, w, 3) in 0..1 -> (1, 3, t, h, w) in -1..1."""
    return frames[..., :3].permute(3, 0, 1, 2).unsqueeze(0) * 2 - 1


def clip_to_frames(clip: torch.Tensor) -> torch.Tensor:
    """(1, 3, t, h, w) in about -1..1 -> (t, h, w, 3) clamped to 0..1."""
    return ((clip[0].permute(1, 2, 3, 0) + 1) / 2).clamp(0, 1)


def chunk_spans(frames: int, chunk: int) -> list[tuple[int, int]]:
    """Cut 4n+1 frames into spans whose ends fall between latent frames, about `chunk` frames each (at least 4)."""
    step = max(TIME, chunk // TIME * TIME)
    ends = [*range(1 + step, frames, step), frames]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _whole(size: ClipSize) -> tuple[Tile, ...]:
    return (Tile(0, 0, size.height, size.width),)


class _Ticker:
    """Counts pieces of work: checks for cancellation before each, reports after."""

    def __init__(self, total: int, progress: Progress | None, check_cancelled: Callable[[], None] | None):
        self.done, self.total = 0, total
        self.progress, self.check_cancelled = progress, check_cancelled

    def __call__(self, pieces: Sequence) -> Iterator:
        for piece in pieces:
            if self.check_cancelled is not None:
                self.check_cancelled()
            yield piece
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)


def _place(vae: CausalVideoVAE, device, dtype) -> tuple[torch.device, torch.dtype]:
    weight = vae.decoder.latent.conv_in.weight
    return torch.device(device or weight.device), dtype or weight.dtype


def _load_chunk(
    frames: torch.Tensor, span: tuple[int, int], size: ClipSize, mode: str, device: torch.device
) -> torch.Tensor:
    """Frames span[0]..span[1] (the last one repeated past the end), resized to `size` and padded: (1,3,n,H,W)."""
    start, stop = span
    chunk = frames[min(start, len(frames) - 1) : stop].to(device, torch.float32)
    clip = resize_clip(frames_to_clip(chunk), size.height, size.width, mode)
    padded = padded_size(size, SPACE, TIME)
    return pad_clip(clip, ClipSize(stop - start, padded.height, padded.width))


@torch.no_grad()
def encode_clip(
    vae: CausalVideoVAE,
    frames: torch.Tensor,
    size: ClipSize,
    *,
    mode: str = "bilinear",
    chunk: int = 16,
    tiles: Sequence[Tile] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Resize frames (t, h, w, 3) to `size`, pad, and encode: (1, 16, T, h/8, w/8) float32 on the CPU.

    `tiles` (in latent cells) bound the memory at large sizes; `mode` is the resizing filter.
    """
    device, dtype = _place(vae, device, dtype)
    grid = latent_size(size, SPACE, TIME)
    tiles = tiles or _whole(grid)
    spans = chunk_spans(padded_size(size, SPACE, TIME).frames, chunk)
    latent = torch.zeros(1, vae.config.latent_channels, grid.frames, grid.height, grid.width)
    streams = [vae.encoder_stream() for _ in tiles]
    tick = _Ticker(len(spans) * len(tiles), progress, check_cancelled)
    for start, stop in spans:
        clip = _load_chunk(frames, (start, stop), size, mode, device).to(dtype)
        cells = slice((start + TIME - 1) // TIME, (stop + TIME - 1) // TIME)
        for tile, stream in tick(list(zip(tiles, streams, strict=True))):
            z = stream.push(clip[_pixels(tile)]).float().cpu()
            _add(latent[:, :, cells], z, tile, tiles)
    return latent


@torch.no_grad()
def decode_clip(
    vae: CausalVideoVAE,
    latent: torch.Tensor,
    lr_frames: torch.Tensor | None,
    size: ClipSize,
    *,
    lr_weight: float = 1.0,
    chunk: int = 16,
    tiles: Sequence[Tile] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Decode (1, 16, T, h, w) to exactly `size`: frames (t, H, W, 3) float32 in 0..1 on the CPU.

    `lr_frames` (t, h', w', 3) of any size, or None for the decoder's own guess; `lr_weight` 0..1 blends between
    guess (0) and frames (1). Raises ValueError when the latent does not have the grid that `size` needs.
    """
    device, dtype = _place(vae, device, dtype)
    grid = latent_size(size, SPACE, TIME)
    if tuple(latent.shape[2:]) != (grid.frames, grid.height, grid.width):
        raise ValueError(
            f"Temporal Decode: a clip of {size.frames} frames, {size.width}x{size.height} px, needs a latent of "
            f"{grid.frames}x{grid.height}x{grid.width} cells (t, h, w); got {tuple(latent.shape[2:])}. "
            "Decode the latent that was sampled for this size."
        )
    tiles = tiles or _whole(grid)
    spans = chunk_spans(padded_size(size, SPACE, TIME).frames, chunk)
    output = torch.zeros(size.frames, size.height, size.width, 3)
    streams = [vae.decoder_stream(lr_weight) for _ in tiles]
    tick = _Ticker(len(spans) * len(tiles), progress, check_cancelled)
    for start, stop in spans:
        base = None
        if lr_frames is not None:
            base = _load_chunk(lr_frames, (start, stop), size, "bicubic", device).to(dtype)
        z = latent[:, :, (start + TIME - 1) // TIME : (stop + TIME - 1) // TIME].to(device, dtype)
        for tile, stream in tick(list(zip(tiles, streams, strict=True))):
            clip = stream.push(z[tile.region], None if base is None else base[_pixels(tile)])
            _add_frames(output[start:stop], clip, tile, tiles)
    return output if len(tiles) == 1 else output.clamp_(0, 1)


def _pixels(tile: Tile) -> tuple:
    return Tile(*(SPACE * side for side in (tile.top, tile.left, tile.height, tile.width))).region


def _add(target: torch.Tensor, value: torch.Tensor, tile: Tile, tiles: Sequence[Tile]) -> None:
    if len(tiles) == 1:
        target.copy_(value)
    else:
        target[tile.region] += value * tile_weight(tile, tiles)


def _add_frames(target: torch.Tensor, clip: torch.Tensor, tile: Tile, tiles: Sequence[Tile]) -> None:
    """Add one tile's pixels (1,3,n,h,w) to the frames they belong to, cropped to the frames' exact size."""
    top, left = SPACE * tile.top, SPACE * tile.left
    count, height, width = target.shape[0], target.shape[1] - top, target.shape[2] - left
    cropped = ClipSize(count, min(clip.shape[3], height), min(clip.shape[4], width))
    frames = clip_to_frames(crop_clip(clip, cropped)).float().cpu()
    if len(tiles) == 1:
        target.copy_(frames)
        return
    plan = [Tile(*(SPACE * side for side in (t.top, t.left, t.height, t.width))) for t in tiles]
    weight = tile_weight(plan[list(tiles).index(tile)], plan)[: cropped.height, : cropped.width, None]
    target[:, top : top + cropped.height, left : left + cropped.width] += frames * weight
