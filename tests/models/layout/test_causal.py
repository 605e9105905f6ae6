"""Pieces of a causal codec: what acts cell by cell comes out the same however it is cut."""

import pytest
import torch
from cascadevsr.models.layout import causal
from cascadevsr.models.layout.geometry import ClipSize, latent_size, pad_clip, resize_clip
from cascadevsr.models.layout.tiles import plan_tiles

SPACE = 4


def pointwise_decode(time):
    """Make frames of latents (1, 3, T, h, w): one of the first, `time` of every other, no cell sees another."""

    def decode(latent):
        frames = torch.cat((latent[:, :, :1], latent[:, :, 1:].repeat_interleave(time, 2)), 2)
        return frames.repeat_interleave(SPACE, 3).repeat_interleave(SPACE, 4)[0].movedim(0, -1).clone()

    return decode


def pointwise_encode(time):
    """Make latents of frames (n, H, W, 3): the last frame of every group, averaged over a cell."""

    def encode(frames):
        assert (len(frames) - 1) % time == 0
        cells = frames[::time].unflatten(2, (-1, SPACE)).unflatten(1, (-1, SPACE)).mean((2, 4))
        return cells.movedim(-1, 0)[None]

    return encode


@pytest.mark.parametrize("time", [1, 4, 8])
@pytest.mark.parametrize(("frames", "tile", "length"), [(3, 9, 3), (30, 4, 12), (31, 9, 13), (40, 5, 1)])
def test_a_pointwise_codec_does_not_see_the_cuts(time, frames, tile, length):
    size = ClipSize(1 + time * (frames - 1) - (time > 1), 9 * SPACE - 1, 7 * SPACE - 3)
    latent = torch.rand(1, 3, frames, 9, 7, generator=torch.Generator().manual_seed(0))
    pieces = {"tiles": plan_tiles(9, 7, tile, tile, tile // 4), "spans": causal.plan_spans(frames, length)}
    decode, output = pointwise_decode(time), torch.zeros(size.frames, size.height, size.width, 3)
    result = causal.decode_causal(decode, latent, output, SPACE, time, **pieces)
    assert torch.allclose(result, decode(latent)[: size.frames, : size.height, : size.width], atol=1e-5)

    clip = decode(latent)

    def read(start, stop, place):
        return clip[start:stop, place.top : place.top + place.height, place.left : place.left + place.width]

    encoded = causal.encode_causal(
        pointwise_encode(time), read, ClipSize(frames, 9, 7), SPACE, time, **pieces
    )
    assert torch.allclose(encoded, latent, atol=1e-5)


def test_one_piece_is_the_plain_call():
    latent = torch.rand(1, 3, 5, 4, 4)
    whole = {"tiles": plan_tiles(4, 4, 9, 9, 0), "spans": causal.plan_spans(5, 12)}
    decode = pointwise_decode(4)
    assert torch.equal(
        causal.decode_causal(decode, latent, torch.zeros(17, 16, 16, 3), 4, 4, **whole), decode(latent)
    )


def test_spans_drop_what_a_neighbour_knows_better_and_meet():
    spans = causal.plan_spans(40, 12)
    assert [len(causal.plan_spans(n, 12)) for n in (1, 12, 13)] == [1, 1, 2]
    assert spans[0].kept.start == 0 and spans[-1].kept.stop == 40
    for before, after in zip(spans[:-1], spans[1:], strict=True):
        assert after.kept.start >= after.window.start + causal.WARM
        assert before.kept.stop <= before.window.stop - causal.AHEAD
        assert before.kept.stop - after.kept.start >= 2, "frames fade into each other"


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("target", [(37, 53), (7, 11), (12, 20), (5, 9)])
def test_rectangles_of_a_resize_are_those_of_the_whole(mode, target):
    frames = torch.rand(4, 12, 20, 3, generator=torch.Generator().manual_seed(0))
    size = ClipSize(4, *target)
    grid = latent_size(size, 8, 4)
    padded = ClipSize(1 + 4 * (grid.frames - 1), 8 * grid.height, 8 * grid.width)
    clip = resize_clip(frames.movedim(-1, 0)[None], *target, mode).clamp(0, 1)
    whole = pad_clip(clip, padded)[0].movedim(0, -1)
    read = causal.RegionReader(frames, size, padded, mode)
    for tile in plan_tiles(padded.height, padded.width, 8, 8, 3):
        part = read(1, 5, tile)
        rows, columns = slice(tile.top, tile.top + tile.height), slice(tile.left, tile.left + tile.width)
        assert torch.allclose(part, whole[1:5, rows, columns], atol=2e-6)
    with pytest.raises(ValueError, match="mode must be bilinear, bicubic or lanczos; got 'area'"):
        causal.RegionReader(frames, size, padded, "area")
