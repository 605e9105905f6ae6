"""The host's own VAEs in pieces, so that beside a result there is never more than one chunk of its frames.

1. `_plan` cuts a clip so that a piece and its copies cost no more than one chunk of full-size frames, and what the host
   says the VAE needs fits into the free memory: whole frames first, then tiles, then cuts in time, too.
2. The VAE begins anew with every span, so spans overlap and their warm-up is dropped (`restarting_spans`).
3. The engine of models/layout/pieces.py walks through the pieces and fuses them to the exact size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import comfy.sd
import torch

from ...models.layout.pieces import (
    SHORTEST,
    Cut,
    Pieces,
    Tile,
    Window,
    cuts_that_fit,
    decode_pieces,
    encode_pieces,
    list_cuts,
    plan_tiles,
    restarting_spans,
)
from ...models.layout.sizes import ClipSize, RegionReader, latent_size
from . import seedvr2, services
from .keys import PADDED_TO_KEY
from .progress import Progress, watched_layers

CHUNK = 16  # full-size frames that one piece and its copies cost at most
_COPIES = 6  # of a piece that the host's VAEs hold at once: parts, their sum, scaled ones, the first layers'
_LEAST_FRAME = 1 << 23  # px; of smaller frames a chunk holds more: as many bytes as of 4K
_SMALL_CLIP = 1 << 25  # px of all frames; a clip up to this (81 frames of 832x480) stays whole where it fits
_SIDES = (1024, 768, 512, 384, 256)  # px of tiles, tried where whole frames do not fit
_GOOD_SIDE = 512  # px; a tile below this is worth less than a cut in time
_OVERLAP = 64  # px
_PICTURES = 8  # frames a picture VAE takes together


def is_video(vae: comfy.sd.VAE) -> bool:
    """Tell whether a VAE has a time axis."""
    return vae.latent_dim == 3


def time_ratio(vae: comfy.sd.VAE) -> int:
    """Give the frames of a latent frame after the first."""
    return (vae.temporal_compression_decode() or 1) if is_video(vae) else 1


def is_regular(vae: comfy.sd.VAE) -> bool:
    """Tell whether n latent frames stand for 1 + time (n - 1) frames, as in all causal video VAEs but few."""
    if not is_video(vae):
        return True
    time, frames = time_ratio(vae), vae.upscale_ratio[0]
    return all(frames(count) == 1 + time * (count - 1) for count in (1, 2, 3, 8))


def decode(
    vae: comfy.sd.VAE, latent: torch.Tensor, size: ClipSize | None = None, tile: int = 0, chunk: int = CHUNK
) -> torch.Tensor:
    """Decode (1, c, T, h, w), or pictures (t, c, h, w), to frames (t, H, W, 3) of `size`, or all there are.

    `tile` is the side of tiles in px, 0 for whole frames where they fit; `chunk` frames bound the memory.
    """
    if latent.ndim == 4:
        return _decode_pictures(vae, latent)
    space, time, count = vae.spacial_compression_decode(), time_ratio(vae), latent.shape[2]
    if not is_regular(vae):
        frames = vae.decode(latent)[0]
        return frames if size is None else frames[: size.frames, : size.height, : size.width]
    size = size or ClipSize(1 + time * (count - 1), latent.shape[3] * space, latent.shape[4] * space)

    def memory(cut: Cut) -> float:
        shape = (1, latent.shape[1], cut.length, cut.rows, cut.columns)
        return vae.memory_used_decode(shape, vae.vae_dtype)

    def piece(window: Window, place: Tile) -> torch.Tensor:
        return vae.decode(latent[:, :, window.span][place.region])[0][..., :3]

    pieces = _plan(vae, ClipSize(*latent.shape[2:]), space, time, tile, chunk, memory)
    output = services.output_tensor((size.frames, size.height, size.width, 3))
    with watched_layers(*_watch(vae, "decoder", "Decoding", size.frames, pieces)) as show:
        show.follow(pieces)
        ready = show.shows(output, pieces, time)
        return decode_pieces(piece, output, pieces, space, time, ready, services.check_cancelled)


def encode_resized(
    vae: comfy.sd.VAE, frames: torch.Tensor, size: ClipSize, mode: str, tile: int = 0, chunk: int = CHUNK
) -> dict:
    """Resize frames (t, h, w, 3) to `size`, pad and encode them: LATENT of (1, c, T, h, w) or pictures (t, c, h, w)."""
    space, time = vae.spacial_compression_encode(), time_ratio(vae)
    cells = latent_size(size, space, time)
    grid = seedvr2.whole_patches(cells) if seedvr2.is_vae(vae) else cells
    padded_to = {} if grid == cells else {PADDED_TO_KEY: space * seedvr2.PATCH}
    padded = ClipSize(1 + time * (grid.frames - 1), space * grid.height, space * grid.width)
    read = RegionReader(frames, size, padded, mode, getattr(vae, "device", None))  # other packs' VAEs may name none
    if not is_video(vae):
        return {"samples": _encode_pictures(vae, read, padded)}

    def memory(cut: Cut) -> float:
        shape = (1, 3, 1 + time * (cut.length - 1), space * cut.rows, space * cut.columns)
        return vae.memory_used_encode(shape, vae.vae_dtype)

    def piece(window: Window, place: Tile) -> torch.Tensor:
        return vae.encode(read(window.start, window.stop, *place.scaled(space).region[1:]))

    pieces = _plan(vae, grid, space, time, tile, chunk, memory)
    with watched_layers(*_watch(vae, "encoder", "Encoding", size.frames, pieces)) as show:
        show.follow(pieces)
        latent = encode_pieces(piece, grid, pieces, time, show, services.check_cancelled)
    return {"samples": services.to_output(latent), **padded_to}


def _watch(vae: comfy.sd.VAE, part: str, what: str, frames: int, pieces: Pieces) -> tuple:
    """Give what `watched_layers` takes. Wan's autoencoders run once for every latent frame, others for all at once."""
    network = vae.first_stage_model
    rounds = max(span.window.length for span in pieces.spans) if type(network).__name__.startswith("WanVAE") else 1
    return network, what, frames, (), getattr(network, part, network), rounds


def _plan(
    vae: comfy.sd.VAE, grid: ClipSize, space: int, time: int, tile: int, chunk: int, memory: Callable[[Cut], float]
) -> Pieces:
    """Choose the pieces of a clip of (T, h, w): whole frames and whole time where they fit."""
    budget = max(_LEAST_FRAME, grid.height * grid.width * space**2) * chunk / _COPIES
    small = max(budget, _SMALL_CLIP * chunk / CHUNK)
    full = max(grid.height, grid.width)
    sides = [tile] if tile else [full * space, *(side for side in _SIDES if side < full * space)]
    lengths = [grid.frames]
    while lengths[-1] > SHORTEST:
        lengths.append(max(SHORTEST, lengths[-1] * 3 // 4))

    def need(cut: Cut) -> float:
        """Give the memory of a piece, or more than there is where it has more pixels than the budget."""
        pixels = cut.rows * cut.columns * space**2 * (1 + time * (cut.length - 1))
        whole = (cut.rows, cut.columns, cut.length) == (grid.height, grid.width, grid.frames)
        return float("inf") if pixels > (small if whole else budget) else memory(cut)

    cells = [max(1, side // space) for side in sides]
    cuts = list_cuts(grid, cells, lengths, _GOOD_SIDE // space)
    cut = cuts_that_fit(cuts, need, services.free_bytes(vae.device))[0]
    overlap = min(_OVERLAP // space or 1, min(cut.rows, cut.columns) // 4)
    tiles = plan_tiles(grid.height, grid.width, cut.rows, cut.columns, overlap)
    pieces = Pieces(restarting_spans(grid.frames, cut.length), tiles)
    if not pieces.whole:
        text = "%s in pieces: %d tiles of %d x %d px, %d spans of time"
        px = (cut.columns * space, cut.rows * space)
        logging.getLogger(__name__).info(text, type(vae).__name__, len(tiles), *px, len(pieces.spans))
    return pieces


def _decode_pictures(vae: comfy.sd.VAE, latent: torch.Tensor) -> torch.Tensor:
    space, show = vae.spacial_compression_decode(), Progress("Decoding", len(latent))
    output = services.output_tensor((len(latent), latent.shape[2] * space, latent.shape[3] * space, 3))
    for start in range(0, len(latent), _PICTURES):
        pictures = vae.decode(latent[start : start + _PICTURES])
        output[start : start + _PICTURES] = pictures[..., :3]
        show(min(start + _PICTURES, len(latent)), len(latent), output[start][None].movedim(-1, 1))
    return output


def _encode_pictures(vae: comfy.sd.VAE, read: RegionReader, size: ClipSize) -> torch.Tensor:
    parts, show = [], Progress("Encoding", size.frames)
    for start in range(0, size.frames, _PICTURES):
        stop = min(start + _PICTURES, size.frames)
        parts.append(vae.encode(read(start, stop, slice(size.height), slice(size.width))))
        show(stop, size.frames)
    return torch.cat(parts)
