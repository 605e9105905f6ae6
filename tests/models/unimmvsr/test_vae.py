"""The causal VAE at tiny size with random weights: causality, streaming, shapes, errors."""

import pytest
import torch
from cascadevsr.models.layout.sizes import ClipSize
from cascadevsr.models.unimmvsr.checkpoint import vae_config
from cascadevsr.models.unimmvsr.vae import CausalVideoVAE, Seen, VAEConfig
from cascadevsr.tests.models.unimmvsr.clips import seen


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return CausalVideoVAE(VAEConfig(4, 8, 12, 10, 8, 1, 2)).eval().requires_grad_(False)


def clip(frames=9, height=32, width=48, seed=1):
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def look(vae, frames=9, seed=2, brighter=None):
    """What LR frames a quarter the size show; `brighter` frames are brighter."""
    lr = torch.rand(frames, 8, 12, 3, generator=torch.Generator().manual_seed(seed))
    if brighter is not None:
        lr[brighter] += 0.2
    return seen(vae, lr, ClipSize(frames, 32, 48))


def part(shown, frames):
    return Seen(shown.base[:, :, frames], shown.restored[:, :, frames], shown.hidden[:, frames])


def test_shapes_follow_the_4n_plus_1_rule(vae):
    for frames, latent in ((1, 1), (5, 2), (9, 3)):
        z = vae.encode(clip(frames))[0]
        assert z.shape == (1, 4, latent, 4, 6)
        assert vae.decode(z, look(vae, frames)).shape == (1, 3, frames, 32, 48)
        assert vae.decode(z).shape == (1, 3, frames, 32, 48)


def test_encoder_is_causal(vae):
    before, after = clip(), clip()
    after[:, :, 5:] += 0.5
    a, b = vae.encode(before)[0], vae.encode(after)[0]
    assert torch.equal(a[:, :, :2], b[:, :, :2])
    assert not torch.allclose(a[:, :, 2], b[:, :, 2])


def test_the_latent_is_decoded_causally(vae):
    z, shown = vae.encode(clip())[0], look(vae)
    later = z.clone()
    later[:, :, 2:] += 1
    a, b = vae.decode(z, shown), vae.decode(later, shown)
    assert torch.equal(a[:, :, :5], b[:, :, :5])
    assert not torch.allclose(a[:, :, 5:], b[:, :, 5:])


def test_lr_frames_reach_four_frames_to_each_side_and_no_scene_beyond_a_cut(vae):
    lr = torch.rand(1, 8, 12, 3, generator=torch.Generator().manual_seed(5)).expand(9, -1, -1, -1).clone()
    other, size = lr.clone(), ClipSize(9, 32, 48)
    other[4] += 0.01 * torch.rand(8, 12, 3, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        for cuts, reached in (((), [*range(9)]), ((4,), [4, 5, 6, 7, 8]), ((3, 5), [3, 4])):
            one, two = (seen(vae, frames, size, cuts).restored for frames in (lr, other))
            changed = [k for k in range(9) if not torch.equal(one[:, :, k], two[:, :, k])]
            assert changed == reached, cuts


def test_chunks_with_a_memory_equal_the_whole(vae):
    x, shown = clip(17), look(vae, 17)
    z = vae.encode(x)[0]
    past, memory = {}, {}
    parts = [vae.encode_chunk(x[:, :, a:b], past)[0] for a, b in ((0, 1), (1, 9), (9, 17))]
    torch.testing.assert_close(torch.cat(parts, 2), z, rtol=0, atol=1e-5)
    spans = ((0, 2, 0, 5), (2, 3, 5, 9), (3, 5, 9, 17))
    parts = [vae.decode_chunk(z[:, :, a:b], part(shown, slice(c, d)), memory) for a, b, c, d in spans]
    torch.testing.assert_close(torch.cat(parts, 2), vae.decode(z, shown), rtol=0, atol=1e-5)


def test_neighbours_and_the_latent_reach_the_output(vae):
    z = vae.encode(clip())[0]
    reference = vae.decode(z, look(vae))
    assert not torch.equal(vae.decode(z, look(vae, brighter=0))[:, :, 1:3], reference[:, :, 1:3])
    assert not torch.equal(vae.decode(z + 1, look(vae)), reference)


def test_weight_blends_frames_and_guess(vae):
    z, shown = vae.encode(clip())[0], look(vae)
    assert torch.equal(vae.decode_chunk(z, shown, {}, 1.0), vae.decode(z, shown))
    torch.testing.assert_close(vae.decode_chunk(z, shown, {}, 0.0), vae.decode(z), rtol=0, atol=1e-5)


def test_latent_statistics_cancel(vae):
    torch.manual_seed(0)
    other = CausalVideoVAE(vae.config).eval().requires_grad_(False)
    other.load_state_dict(vae.state_dict())
    other.latent_mean.fill_(0.3)
    other.latent_std.fill_(2.0)
    x, shown = clip(), look(vae)
    torch.testing.assert_close(other.encode(x)[0], (vae.encode(x)[0] - 0.3) / 2)
    a, b = (each.decode(each.encode(x)[0], shown) for each in (other, vae))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_config_comes_back_from_the_weights(vae):
    assert vae_config(vae.state_dict()) == vae.config


def test_wrong_sizes_are_named(vae):
    with pytest.raises(ValueError, match=r"4n\+1 frames.*got 8 frames of 48x32"):
        vae.encode(clip(8))
    with pytest.raises(ValueError, match="LR frames must be resized to"):
        vae.decode(torch.zeros(1, 4, 2, 4, 6), part(look(vae), slice(0, 4)))
