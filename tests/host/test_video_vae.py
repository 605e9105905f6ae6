"""The restorer's VAE in the host's own nodes and in ours: sizes, tiles, chunks, LR frames."""

import pytest
import torch

SIZES = [(1, 17, 17), (1, 2, 2), (2, 17, 31), (5, 19, 23), (6, 24, 40), (7, 13, 97), (9, 8, 8)]


@pytest.mark.parametrize(("count", "height", "width"), SIZES)
def test_native_encode_and_decode_pad_and_keep_everything(core, vae, noise, count, height, width):
    pixels = noise(count, height, width)
    latent = core.nodes.VAEEncode().encode(vae, pixels)[0]["samples"]
    grid = 1 + -(-(count - 1) // 4), -(-height // 8), -(-width // 8)
    assert latent.shape == (1, 16, *grid)
    frames = core.nodes.VAEDecode().decode(vae, {"samples": latent})[0]
    assert frames.shape == (4 * grid[0] - 3, 8 * grid[1], 8 * grid[2], 3)
    assert frames.min() >= 0 and frames.max() <= 1 and torch.isfinite(frames).all()


def test_native_tiled_forms_give_the_same_sizes_and_nearly_the_same_picture(core, vae, noise):
    pixels = noise(6, 150, 200)
    whole = core.nodes.VAEEncode().encode(vae, pixels)[0]
    tiled = core.nodes.VAEEncodeTiled().encode(vae, pixels, 96, 48, 8, 4)[0]
    assert tiled["samples"].shape == whole["samples"].shape == (1, 16, 3, 19, 25)
    assert (tiled["samples"] - whole["samples"]).abs().mean() < 0.05
    frames = core.nodes.VAEDecode().decode(vae, whole)[0]
    parts = core.nodes.VAEDecodeTiled().decode(vae, whole, 96, 48, 8, 4)[0]
    assert parts.shape == frames.shape
    assert (parts - frames).abs().mean() < 0.02


def test_a_whole_tile_changes_nothing(core, vae, noise):
    latent = core.nodes.VAEEncode().encode(vae, noise(6, 40, 56))[0]
    assert torch.equal(
        core.nodes.VAEEncodeTiled().encode(vae, noise(6, 40, 56), 512, 64)[0]["samples"], latent["samples"]
    )
    decode, tiled = core.nodes.VAEDecode(), core.nodes.VAEDecodeTiled()
    assert torch.equal(tiled.decode(vae, latent, 512, 64)[0], decode.decode(vae, latent)[0])


@pytest.mark.parametrize("with_lr", [False, True])
def test_temporal_decode_does_not_depend_on_the_chunk(vae, clip, with_lr):
    from cascadevsr.nodes.frames import TemporalDecode

    lr = clip.frames if with_lr else None
    frames = [TemporalDecode.execute(clip.latent, vae, 1.0, chunk, 0, lr).args[0] for chunk in (4, 8, 1024)]
    assert frames[0].shape == (9, 48, 80, 3)
    for other in frames[1:]:
        assert torch.allclose(frames[0], other, atol=1e-5)
    tiled = TemporalDecode.execute(clip.latent, vae, 1.0, 1024, 4096, lr).args[0]
    assert torch.equal(tiled, frames[2]), "a whole-frame tile is no tile"


def test_lr_frames_and_their_weight_matter(vae, clip):
    from cascadevsr.nodes.frames import TemporalDecode

    guess, zero, half, full = (
        TemporalDecode.execute(clip.latent, vae, weight, 16, 0, lr).args[0]
        for weight, lr in ((1.0, None), (0.0, clip.frames), (0.5, clip.frames), (1.0, clip.frames))
    )
    assert torch.allclose(guess, zero, atol=1e-6)
    assert not torch.allclose(half, full, atol=1e-3) and not torch.allclose(half, guess, atol=1e-3)


@pytest.mark.parametrize("cut", [4, 5, 6, 7])
def test_a_scene_starts_as_if_alone_in_every_tile_and_chunk(core, vae, caplog, cut):
    from cascadevsr.nodes.frames import CascadeInput, TemporalDecode

    def decode(frames, chunk=16, tile=0, weight=1.0):
        size = {"target": "exact size", "width": 160, "height": 96}
        latent, low = CascadeInput.execute(vae, size, "bicubic", frames).args[:2]
        return TemporalDecode.execute(latent, vae, weight, chunk, tile, low).args[0]

    generator = torch.Generator().manual_seed(0)
    small = torch.rand(2, 3, 6, 10, generator=generator)
    before, after = torch.nn.functional.interpolate(small, (24, 40), mode="bicubic").clamp(0, 1).movedim(1, -1)
    joined = torch.stack([before] * cut + [after] * (13 - cut))
    alone = decode(torch.stack([after] * (13 - cut)))
    with caplog.at_level("INFO"):
        whole = decode(joined)
        assert torch.allclose(whole[cut], alone[0], atol=1e-5)
        assert caplog.messages.count(f"Scene cuts before frames {cut}") == 1
        caplog.clear()
        tiled = decode(joined, chunk=4, tile=64)
        assert caplog.messages.count(f"Scene cuts before frames {cut}") == 1
        caplog.clear()
        decode(joined, weight=0.0)
        decode(joined[:cut])
        assert not any("Scene cuts" in message for message in caplog.messages)
    assert torch.allclose(decode(joined, chunk=4), whole, atol=1e-5)
    # nearly: a tile encodes of the scene's first frame what lies inside of it
    assert (tiled[cut] - decode(torch.stack([after] * (13 - cut)), tile=64)[0]).abs().mean() < 1e-3


def test_decode_of_a_sampled_batch_keeps_every_clip(core, vae, noise):
    one = vae.encode(noise(5, 16, 24))
    both = torch.cat([one, vae.encode(noise(5, 16, 24, seed=1))])
    frames = vae.decode(both)
    assert frames.shape == (2, 5, 16, 24, 3)
    assert torch.equal(frames[:1], vae.decode(one))
    assert vae.encode(torch.stack([noise(5, 16, 24)] * 2)).shape == (2, 16, 2, 2, 3)


def test_nothing_is_written_into_inputs(core, vae, noise):
    pixels = noise(5, 20, 20)
    kept = pixels.clone()
    latent = vae.encode(pixels)
    latent_kept = latent.clone()
    vae.decode(latent, vae_options={"lr": pixels})
    assert torch.equal(pixels, kept) and torch.equal(latent, latent_kept)


def test_alpha_is_left_out(core, vae, noise):
    pixels = noise(1, 16, 16)
    assert torch.equal(vae.encode(torch.cat([pixels, pixels[..., :1]], -1)), vae.encode(pixels))


def test_out_of_memory_leads_to_tiles(vae, noise, monkeypatch):
    from cascadevsr.nodes.host import vae as native

    tiles_seen, real = [], native.encode_pieces

    def short_of_memory(encode, grid, pieces, *rest):
        tiles_seen.append(len(pieces.tiles))
        if len(pieces.tiles) == 1:
            raise torch.cuda.OutOfMemoryError("pretended")
        return real(encode, grid, pieces, *rest)

    monkeypatch.setattr(native, "encode_pieces", short_of_memory)
    assert vae.encode(noise(1, 8, 300)).shape == (1, 16, 1, 1, 38)
    assert tiles_seen == [1, 2]


def test_the_host_knows_the_compression(vae):
    assert (vae.spacial_compression_encode(), vae.spacial_compression_decode()) == (8, 8)
    assert vae.temporal_compression_decode() == 4
    assert [vae.downscale_ratio[0](n) for n in (1, 2, 5, 6, 9)] == [1, 2, 2, 3, 3]
    assert [vae.upscale_ratio[0](n) for n in (1, 2, 3)] == [1, 5, 9]


def test_no_warning_of_the_host_about_our_vae(core, tiny_file, caplog):
    from cascadevsr.nodes.loaders import load_restorer

    load_restorer(tiny_file, "auto")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_only_auto_convolves_in_what_the_cpu_is_fast_at(core, tiny_file, monkeypatch, precision):
    from cascadevsr.nodes.loaders import load_restorer
    from cascadevsr.nodes.systems import unimmvsr

    asked = []
    monkeypatch.setattr(unimmvsr, "cpu_convolutions", lambda: asked.append(True) or torch.bfloat16)
    vae = load_restorer(tiny_file, precision)[1]
    dtype = torch.bfloat16 if precision == "auto" else None
    assert vae._convolutions is dtype and bool(asked) == (precision == "auto")
