"""Clips through an autoencoder in pieces: chunks in time times tiles in space, fused to exact sizes.

Frames are (t, H, W, 3) in 0..1 as the host keeps them; only one chunk of one tile is on the device at a time.
`space` is the px of a latent cell; tiles are in latent cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from .geometry import ClipSize, pad_clip
from .tiles import Tile, tile_weight
from .windows import Window, plan_weights, plan_windows

Progress = Callable[[int, int], None]


def blended_chunks(frames: int, chunk: int, overlap: int) -> tuple[Window, ...]:
    """Cut a clip into chunks of one length that share `overlap` frames."""
    return plan_windows(frames, chunk, min(overlap, chunk - 1))


def plain_chunks(frames: int, chunk: int) -> tuple[Window, ...]:
    """Cut a clip into chunks that share nothing; the last one is shorter."""
    return tuple(Window(start, min(start + chunk, frames)) for start in range(0, frames, chunk))


@torch.no_grad()
def decode_pieces(
    decode: Callable[[slice, Tile], torch.Tensor],
    size: ClipSize,
    space: int,
    *,
    chunks: Sequence[Window],
    tiles: Sequence[Tile],
    progress: Progress | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Fuse what `decode(frames, tile)` gives, (1, 3, n, H, W) in -1..1, to frames float32 in 0..1.

    Raises a ValueError where a result is not finite, which half precision can cause.
    """
    output = torch.zeros(size.frames, size.height, size.width, 3)
    for span, fade, tile in _pieces(chunks, tiles, progress, check_cancelled):
        raw = decode(span, tile)
        clip = raw.float()
        if not torch.isfinite(clip).all():
            raise ValueError(
                f"VAE: frames must be finite numbers; got NaN or infinity in {raw.dtype}. Set precision to fp32 "
                "in Load Video Restorer; if it is fp32, the latent is broken: use sampler ddim or euler."
            )
        frames = ((clip.clamp_(-1, 1)[0].permute(1, 2, 3, 0) + 1) / 2).cpu()
        _add_frames(output[span], frames, fade, tile, tiles, space)
    return output


@torch.no_grad()
def encode_pieces(
    encode: Callable[[torch.Tensor], torch.Tensor],
    read: Callable[[slice], torch.Tensor],
    size: ClipSize,
    space: int,
    *,
    chunks: Sequence[Window],
    tiles: Sequence[Tile],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Fuse what `encode(clip)` gives for clips (1, 3, n, H, W) in -1..1 to (1, c, t, h, w) float32 on the CPU.

    `read(frames)` gives (1, 3, n, H, W) in 0..1 of a clip of `size`; sides are padded to whole cells.
    """
    padded = (space * -(-size.height // space), space * -(-size.width // space))
    latent, held, clip = None, None, None
    for span, fade, tile in _pieces(chunks, tiles, progress, check_cancelled):
        if held != span:  # the tiles of one chunk come one after the other
            held, clip = span, pad_clip(read(span), ClipSize(span.stop - span.start, *padded))
        part = clip[in_pixels(tile, space).region].to(device, torch.float32) * 2 - 1
        part = encode(part.to(dtype)).float().cpu()
        if latent is None:
            latent = part.new_zeros(1, part.shape[1], size.frames, *(side // space for side in padded))
        weight = tile_weight(tile, tiles) if len(tiles) > 1 else 1.0
        latent[:, :, span][tile.region] += part * fade.view(-1, 1, 1) * weight
    return latent


def in_pixels(tile: Tile, space: int) -> Tile:
    """Give a tile of latent cells in px."""
    return Tile(*(space * side for side in (tile.top, tile.left, tile.height, tile.width)))


def _pieces(chunks, tiles, progress, check_cancelled) -> Iterator[tuple[slice, torch.Tensor, Tile]]:
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


def _add_frames(
    target: torch.Tensor, frames: torch.Tensor, fade: torch.Tensor, tile: Tile, tiles, space
) -> None:
    """Add one piece (n, H, W, 3) to the frames it belongs to, cropped to their exact size."""
    place = in_pixels(tile, space)
    view = target[:, place.top : place.top + place.height, place.left : place.left + place.width]
    frames = frames[:, : view.shape[1], : view.shape[2]]
    weight = fade.view(-1, 1, 1, 1)
    if len(tiles) > 1:
        plan = [in_pixels(each, space) for each in tiles]
        weight = weight * tile_weight(place, plan)[: view.shape[1], : view.shape[2], None]
    view += frames * weight
