"""The host's own VAEs in pieces, so that beside a result there is never more than one chunk of its frames."""

import logging

import torch

from ..models.layout import causal
from ..models.layout.geometry import ClipSize, latent_size
from ..models.layout.tiles import plan_tiles
from . import host

CHUNK = 16  # full-size frames that one piece and its copies cost at most
_COPIES = 6  # of a piece that the host's VAEs hold at once: parts, their sum, scaled ones, the first layers'
_LEAST_FRAME = 1 << 23  # px; of smaller frames a chunk holds more: as many bytes as of 4K
_SMALL_CLIP = 1 << 25  # px of all frames; a clip up to this (81 frames of 832x480) stays whole where it fits
_SIDES = (1024, 768, 512, 384, 256)  # px of tiles, tried where whole frames do not fit
_GOOD_SIDE = 512  # px; a tile below this is worth less than a cut in time
_OVERLAP = 64  # px
_PICTURES = 8  # frames a picture VAE takes together


def is_video(vae) -> bool:
    """Say whether a VAE has a time axis."""
    return vae.latent_dim == 3


def time_ratio(vae) -> int:
    """Give the frames of a latent frame after the first."""
    return (vae.temporal_compression_decode() or 1) if is_video(vae) else 1


def is_regular(vae) -> bool:
    """Say whether n latent frames stand for 1 + time (n - 1) frames, as in all causal video VAEs but few."""
    if not is_video(vae):
        return True
    time, frames = time_ratio(vae), vae.upscale_ratio[0]
    return all(frames(count) == 1 + time * (count - 1) for count in (1, 2, 3, 8))


def decode(vae, latent: torch.Tensor, size: ClipSize | None = None, tile: int = 0, chunk: int = CHUNK):
    """Decode (1, c, T, h, w), or pictures (t, c, h, w), to frames (t, H, W, 3) of `size`, or all there are.

    `tile` is the side of tiles in px, 0 for whole frames where they fit; `chunk` bounds the memory.
    """
    if latent.ndim == 4:
        return _decode_pictures(vae, latent)
    space, time, count = vae.spacial_compression_decode(), time_ratio(vae), latent.shape[2]
    if not is_regular(vae):
        frames = vae.decode(latent)[0]
        return frames if size is None else frames[: size.frames, : size.height, : size.width]
    size = size or ClipSize(1 + time * (count - 1), latent.shape[3] * space, latent.shape[4] * space)

    def memory(rows: int, columns: int, length: int) -> float:
        return vae.memory_used_decode((1, latent.shape[1], length, rows, columns), vae.vae_dtype)

    tiles, spans = _plan(vae, count, latent.shape[-2:], space, time, tile, chunk, memory)
    output = host.output_tensor((size.frames, size.height, size.width, 3)).zero_()
    steps = {"progress": host.Progress(), "check_cancelled": host.check_cancelled}
    return causal.decode_causal(
        lambda piece: vae.decode(piece)[0][..., :3],
        latent,
        output,
        space,
        time,
        tiles=tiles,
        spans=spans,
        **steps,
    )


def encode_resized(vae, frames: torch.Tensor, size: ClipSize, mode: str, tile: int = 0, chunk: int = CHUNK):
    """Resize frames (t, h, w, 3) to `size`, pad and encode them: (1, c, T, h, w), or pictures (t, c, h, w)."""
    space, time = vae.spacial_compression_encode(), time_ratio(vae)
    grid = latent_size(size, space, time)
    padded = ClipSize(1 + time * (grid.frames - 1), space * grid.height, space * grid.width)
    read = causal.RegionReader(frames, size, padded, mode)
    steps = {"progress": host.Progress(), "check_cancelled": host.check_cancelled}
    if not is_video(vae):
        return _encode_pictures(vae, read, padded)

    def memory(rows: int, columns: int, length: int) -> float:
        shape = (1, 3, 1 + time * (length - 1), space * rows, space * columns)
        return vae.memory_used_encode(shape, vae.vae_dtype)

    tiles, spans = _plan(vae, grid.frames, (grid.height, grid.width), space, time, tile, chunk, memory)
    latent = causal.encode_causal(vae.encode, read, grid, space, time, tiles=tiles, spans=spans, **steps)
    return host.to_output(latent)


def frame_rule(vae) -> str:
    """Say which frame counts a VAE takes, such as "1 + 8 n (1, 9, 17, ...)"."""
    time = time_ratio(vae)
    return f"1 + {time} n ({', '.join(str(1 + time * n) for n in range(3))}, ...)"


def _plan(vae, count: int, cells, space: int, time: int, tile: int, chunk: int, memory):
    """Choose (tiles, spans): whole frames and whole time where they fit, then tiles, then cuts in time, too."""
    rows, columns = cells
    budget = max(_LEAST_FRAME, rows * columns * space**2) * chunk / _COPIES
    free = host.free_bytes(vae.device)
    full, small = max(rows, columns) * space, _SMALL_CLIP * chunk / CHUNK
    sides = [tile] if tile else [full, *(side for side in _SIDES if side < full)]
    lengths = [count]
    while lengths[-1] > causal.SHORTEST:
        lengths.append(max(causal.SHORTEST, lengths[-1] * 3 // 4))

    def shape(side: int) -> tuple[int, int]:
        return tuple(min(full, max(1, side // space)) for full in cells)

    def fits(side: int, length: int) -> bool:
        high, wide = shape(side)
        pixels = high * wide * space**2 * (1 + time * (length - 1))
        whole = (high, wide, length) == (rows, columns, count)
        return pixels <= (max(budget, small) if whole else budget) and memory(high, wide, length) < free

    good = [side for side in sides if side >= min(_GOOD_SIDE, sides[0])]
    choices = [(side, length) for length in lengths for side in good]
    choices += [(side, length) for side in sides[len(good) :] for length in lengths]
    side, length = next((choice for choice in choices if fits(*choice)), choices[-1])
    overlap = min(_OVERLAP // space or 1, min(shape(side)) // 4)
    tiles, spans = plan_tiles(rows, columns, *shape(side), overlap), causal.plan_spans(count, length)
    if len(tiles) * len(spans) > 1:
        text = "%s in pieces: %d tiles of %d x %d px, %d spans of time"
        high, wide = (space * cell for cell in shape(side))
        logging.getLogger(__name__).info(text, type(vae).__name__, len(tiles), wide, high, len(spans))
    return tiles, spans


def _decode_pictures(vae, latent: torch.Tensor) -> torch.Tensor:
    space, show = vae.spacial_compression_decode(), host.Progress()
    output = host.output_tensor((len(latent), latent.shape[2] * space, latent.shape[3] * space, 3))
    for start in range(0, len(latent), _PICTURES):
        pictures = vae.decode(latent[start : start + _PICTURES])
        output[start : start + _PICTURES] = pictures[..., :3]
        show(min(start + _PICTURES, len(latent)), len(latent))
    return output


def _encode_pictures(vae, read, size: ClipSize) -> torch.Tensor:
    parts, show, whole = (
        [],
        host.Progress(),
        plan_tiles(size.height, size.width, size.height, size.width, 0)[0],
    )
    for start in range(0, size.frames, _PICTURES):
        stop = min(start + _PICTURES, size.frames)
        parts.append(vae.encode(read(start, stop, whole)))
        show(stop, size.frames)
    return torch.cat(parts)
