"""Whole clips through the built-in VAE without a host: what the nodes do, in plain calls."""

import torch
from cascadevsr.models.layout.pieces import Pieces, Tile, Window, decode_pieces, encode_pieces, stream_spans
from cascadevsr.models.layout.sizes import latent_size
from cascadevsr.models.unimmvsr.vae import (
    SPACE,
    TIME,
    ResizedFrames,
    RestoredFrames,
    piece_decoder,
    piece_encoder,
)

PLACE = (torch.device("cpu"), torch.float32)


def cut(size, chunk, tiles):
    grid = latent_size(size, SPACE, TIME)
    tiles = tiles or (Tile(0, 0, grid.height, grid.width),)
    return grid, Pieces(stream_spans(grid.frames, max(1, chunk // TIME)), tiles, streamed=True)


def encode_clip(vae, source, size, mode="bilinear", chunk=16, tiles=None, **watch):
    grid, pieces = cut(size, chunk, tiles)
    encode = piece_encoder(vae, ResizedFrames(source, size, mode, *PLACE))
    return encode_pieces(encode, grid, pieces, TIME, **watch)


def restored(vae, lr, size, cuts=()):
    return RestoredFrames(lr, size, vae.decoder.restore, *PLACE, cuts)


def seen(vae, lr, size, cuts=()):
    """What LR frames (t, h, w, 3) show of a whole clip."""
    grid = latent_size(size, SPACE, TIME)
    window = Window(0, TIME * (grid.frames - 1) + 1)
    return restored(vae, lr, size, cuts).read(window, Tile(0, 0, grid.height, grid.width))


def decode_clip(vae, latent, lr, size, lr_weight=1.0, chunk=16, tiles=None, cuts=()):
    clip = None if lr is None else restored(vae, lr, size, cuts)
    decode = piece_decoder(vae, latent, clip, size, lr_weight, *PLACE, cuts)
    output = torch.zeros(size.frames, size.height, size.width, 3)
    return decode_pieces(decode, output, cut(size, chunk, tiles)[1], SPACE, TIME)
