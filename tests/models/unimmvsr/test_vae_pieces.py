"""Whole clips through the VAE: exact sizes, chunks, tiles, progress, cancellation."""

import gc
import weakref

import pytest
import torch
from cascadevsr.models.layout.pieces import Tile, plan_tiles
from cascadevsr.models.layout.sizes import ClipSize, latent_size
from cascadevsr.models.unimmvsr.restorer import NEIGHBOURS
from cascadevsr.models.unimmvsr.vae import CausalVideoVAE, RestoredFrames, VAEConfig
from cascadevsr.tests.models.unimmvsr.clips import decode_clip, encode_clip


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return CausalVideoVAE(VAEConfig(4, 8, 12, 10, 1)).eval().requires_grad_(False)


def frames(count, height=9, width=7):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(count))


def round_trip(vae, source, size, **options):
    return decode_clip(vae, encode_clip(vae, source, size), source, size, **options)


@pytest.mark.parametrize("size", [(1, 17, 17), (2, 17, 31), (6, 1, 1), (13, 37, 23)])
def test_exact_size_and_count(vae, size):
    out = round_trip(vae, frames(size[0]), ClipSize(*size))
    assert out.shape == (*size, 3)
    assert out.min() >= 0 and out.max() <= 1


def test_chunks_equal_the_whole(vae):
    source, size = frames(19), ClipSize(19, 33, 41)
    whole = encode_clip(vae, source, size, chunk=400)
    torch.testing.assert_close(encode_clip(vae, source, size, chunk=4), whole, rtol=0, atol=1e-5)
    a, b = (decode_clip(vae, whole, source, size, chunk=chunk) for chunk in (400, 4))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_tile_that_covers_everything_changes_nothing(vae):
    source, size = frames(5), ClipSize(5, 33, 41)
    grid = latent_size(size)
    tile = (Tile(0, 0, grid.height, grid.width),)
    z = encode_clip(vae, source, size)
    assert torch.equal(encode_clip(vae, source, size, tiles=tile), z)
    assert torch.equal(decode_clip(vae, z, source, size, tiles=tile), decode_clip(vae, z, source, size))


def test_tiles_come_close_to_the_whole(vae):
    source, size = frames(5, 20, 30), ClipSize(5, 117, 157)
    grid = latent_size(size)
    tiles = plan_tiles(grid.height, grid.width, 12, 14, 8)
    assert len(tiles) > 3
    z = encode_clip(vae, source, size)
    error = decode_clip(vae, z, source, size, tiles=tiles) - decode_clip(vae, z, source, size)
    assert error.abs().mean() < 0.01


def test_without_lr_frames_the_guess_is_used(vae):
    size = ClipSize(5, 32, 32)
    z = encode_clip(vae, frames(5), size)
    guess = decode_clip(vae, z, None, size)
    assert not torch.equal(guess, decode_clip(vae, z, frames(5), size))
    torch.testing.assert_close(decode_clip(vae, z, frames(5), size, lr_weight=0.0), guess, rtol=0, atol=1e-5)


# Scene cuts


@pytest.mark.parametrize("cut", range(4, 9))
def test_the_first_frame_of_a_scene_is_that_of_the_scene_alone(vae, cut):
    """At every place within a latent frame, and whatever came before."""
    scene, size = frames(9), ClipSize(9, 33, 41)
    alone = decode_clip(vae, encode_clip(vae, scene, size, mode="bicubic"), scene, size)
    joined, size = torch.cat((frames(8)[:cut] * 0.3, scene)), ClipSize(cut + 9, 33, 41)
    latent = encode_clip(vae, joined, size)
    result = decode_clip(vae, latent, joined, size, cuts=(cut,))
    torch.testing.assert_close(result[cut], alone[0], rtol=0, atol=1e-5)
    unaware = decode_clip(vae, latent, joined, size)
    untouched = max(0, cut - max(NEIGHBOURS))
    assert torch.equal(result[:untouched], unaware[:untouched])
    assert not torch.allclose(unaware[cut], alone[0], atol=1e-3)


@pytest.mark.parametrize("cuts", [(4,), (5,), (7, 8), (6, 12)])
def test_chunks_and_tiles_agree_on_cuts(vae, cuts):
    source, size = frames(15, 20, 30), ClipSize(15, 117, 157)
    z, tiles = encode_clip(vae, source, size), plan_tiles(15, 20, 12, 14, 8)
    whole = decode_clip(vae, z, source, size, cuts=cuts)
    torch.testing.assert_close(decode_clip(vae, z, source, size, cuts=cuts, chunk=4), whole, rtol=0, atol=1e-5)
    tiled = decode_clip(vae, z, source, size, cuts=cuts, tiles=tiles)
    assert (tiled - whole).abs().mean() < 0.01
    again = decode_clip(vae, z, source, size, cuts=cuts, tiles=tiles, chunk=4)
    torch.testing.assert_close(again, tiled, rtol=0, atol=1e-5)


def test_without_weight_the_lr_frames_around_a_cut_have_none(vae):
    source, size = frames(9), ClipSize(9, 32, 32)
    z, other = encode_clip(vae, source, size), 1 - source
    a, b = (decode_clip(vae, z, lr, size, lr_weight=0.0, cuts=(5,)) for lr in (source, other))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_progress_and_cancellation(vae):
    seen = []
    source, size = frames(17), ClipSize(17, 16, 16)
    encode_clip(vae, source, size, chunk=8, progress=lambda *p: seen.append(p))
    assert seen == [(0, 2), (1, 2), (2, 2)]

    class Cancelled(BaseException):
        pass

    def cancel():
        raise Cancelled

    with pytest.raises(Cancelled):
        encode_clip(vae, source, size, check_cancelled=cancel)


def test_a_latent_of_another_size_is_refused(vae):
    with pytest.raises(ValueError, match="a clip of 9 frames.*needs a latent of 3x2x2"):
        decode_clip(vae, torch.zeros(1, 4, 2, 2, 2), None, ClipSize(9, 16, 16))


def test_what_was_restored_is_freed_at_once(vae):
    """A film is many of these, each with frames of the full size: none may wait for Python's garbage collector."""
    gc.disable()
    try:
        lr = RestoredFrames(frames(9), ClipSize(9, 32, 48), vae.decoder.restore, torch.device("cpu"), torch.float32)
        lr.frame(4)
        left = [weakref.ref(part) for part in (lr, lr._flows)]
        del lr
        assert [ref() for ref in left] == [None, None]
    finally:
        gc.enable()
