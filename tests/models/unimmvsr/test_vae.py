"""The causal VAE at tiny size with random weights: causality, streaming, shapes, errors."""

import pytest
import torch
from cascadevsr.models.unimmvsr.checkpoint import vae_config
from cascadevsr.models.unimmvsr.vae import CausalVideoVAE, VAEConfig


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return CausalVideoVAE(VAEConfig(4, 8, 12, 10, 2)).eval().requires_grad_(False)


def clip(frames=9, height=32, width=48, seed=1):
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_shapes_follow_the_4n_plus_1_rule(vae):
    for frames, latent in ((1, 1), (5, 2), (9, 3)):
        z = vae.encode(clip(frames))[0]
        assert z.shape == (1, 4, latent, 4, 6)
        assert vae.decode(z, clip(frames)).shape == (1, 3, frames, 32, 48)
        assert vae.decode(z).shape == (1, 3, frames, 32, 48)


def test_encoder_is_causal(vae):
    before, after = clip(), clip()
    after[:, :, 5:] += 0.5
    a, b = vae.encode(before)[0], vae.encode(after)[0]
    assert torch.equal(a[:, :, :2], b[:, :, :2])
    assert not torch.allclose(a[:, :, 2], b[:, :, 2])


def test_decoder_is_causal(vae):
    z, base = vae.encode(clip())[0], clip(seed=2)
    z2, base2 = z.clone(), base.clone()
    z2[:, :, 2:] += 1
    base2[:, :, 5:] -= 0.3
    a, b = vae.decode(z, base), vae.decode(z2, base2)
    assert torch.equal(a[:, :, :5], b[:, :, :5])
    assert not torch.allclose(a[:, :, 5:], b[:, :, 5:])


def test_chunks_with_a_memory_equal_the_whole(vae):
    x, base = clip(17), clip(17, seed=3)
    z = vae.encode(x)[0]
    past, memory = {}, {}
    parts = [vae.encode_chunk(x[:, :, a:b], past)[0] for a, b in ((0, 1), (1, 9), (9, 17))]
    torch.testing.assert_close(torch.cat(parts, 2), z, rtol=0, atol=1e-5)
    spans = ((0, 2, 0, 5), (2, 3, 5, 9), (3, 5, 9, 17))
    parts = [vae.decode_chunk(z[:, :, a:b], base[:, :, c:d], memory) for a, b, c, d in spans]
    torch.testing.assert_close(torch.cat(parts, 2), vae.decode(z, base), rtol=0, atol=1e-5)


def test_the_past_and_the_latent_reach_the_output(vae):
    z, base = vae.encode(clip())[0], clip(seed=2)
    reference = vae.decode(z, base)
    changed = base.clone()
    changed[:, :, 0] = changed[:, :, 0].flip(-1)
    assert not torch.equal(vae.decode(z, changed)[:, :, 1:], reference[:, :, 1:])
    assert not torch.equal(vae.decode(z + 1, base), reference)


def test_weight_blends_frames_and_guess(vae):
    z, base = vae.encode(clip())[0], clip(seed=2)
    assert torch.equal(vae.decode_chunk(z, base, {}, 1.0), vae.decode(z, base))
    torch.testing.assert_close(vae.decode_chunk(z, base, {}, 0.0), vae.decode(z), rtol=0, atol=1e-5)


def test_latent_statistics_cancel(vae):
    torch.manual_seed(0)
    other = CausalVideoVAE(vae.config).eval().requires_grad_(False)
    other.load_state_dict(vae.state_dict())
    other.latent_mean.fill_(0.3)
    other.latent_std.fill_(2.0)
    x = clip()
    torch.testing.assert_close(other.encode(x)[0], (vae.encode(x)[0] - 0.3) / 2)
    torch.testing.assert_close(other.decode(other.encode(x)[0], x), vae.decode(vae.encode(x)[0], x), rtol=0, atol=1e-5)


def test_config_comes_back_from_the_weights(vae):
    assert vae_config(vae.state_dict()) == vae.config


def test_wrong_sizes_are_named(vae):
    with pytest.raises(ValueError, match=r"4n\+1 frames.*got 8 frames of 48x32"):
        vae.encode(clip(8))
    with pytest.raises(ValueError, match="upscaled LR frames must be"):
        vae.decode(torch.zeros(1, 4, 2, 4, 6), clip(4))
