"""The UniMMVSR transformer at tiny size with random weights."""

import pytest
import torch
from cascadevsr.models.unimmvsr.checkpoint import dit_config
from cascadevsr.models.unimmvsr.dit import (
    DiTConfig,
    UniMMVSRDiT,
    patchify,
    positions,
    rotate,
    rotation,
    unpatchify,
)
from cascadevsr.models.unimmvsr.references import BUILT_IN_RULE


def make(text_width=0):
    torch.manual_seed(0)
    net = UniMMVSRDiT(DiTConfig(4, 48, 2, 2, 2, text_width)).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.15)
    return net


def latent(frames=3, height=6, width=8, seed=0):
    return torch.randn(1, 4, frames, height, width, generator=torch.Generator().manual_seed(seed))


def run(net, z=None, t=0.5, level=0.0, lr=None, references=(), text=None):
    z = latent() if z is None else z
    lr = latent(*z.shape[2:], seed=1) if lr is None else lr
    return net(z, torch.tensor([t]), lr, torch.tensor([level]), references, text)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 5), (3, 6, 8)])
def test_any_latent_size_is_accepted(size):
    assert run(make(), latent(*size)).shape == (1, 4, *size)


def test_patches_come_back():
    z = latent(2, 5, 7)
    tokens, grid = patchify(z)
    assert tokens.shape == (1, 2 * 3 * 4, 16)
    assert torch.equal(unpatchify(tokens, grid, 5, 7), z)


def test_one_step_does_not_depend_on_the_noise():
    net = make()
    cleans = [z + run(net, z, t=1.0) for z in (latent(seed=5), latent(seed=6))]
    torch.testing.assert_close(*cleans, rtol=0, atol=1e-5)


def test_every_condition_matters():
    net = make()
    plain = run(net)
    assert not torch.allclose(run(net, t=0.6), plain)
    assert not torch.allclose(run(net, level=0.4), plain)
    assert not torch.allclose(run(net, lr=latent(seed=9)), plain)
    image, video = latent(1, 4, 4, seed=3), latent(2, 4, 6, seed=4)
    with_image = run(net, references=[image])
    assert not torch.allclose(with_image, plain)
    assert not torch.allclose(run(net, references=[image, video]), with_image)


def test_references_keep_out_of_the_target_time_range():
    starts = BUILT_IN_RULE.starts(5, [1, 3, 1])
    ranges = [set(range(5))] + [set(range(s, s + n)) for s, n in zip(starts, (1, 3, 1), strict=True)]
    assert sum(len(r) for r in ranges) == len(set().union(*ranges))


def test_rotation_depends_on_differences_only():
    x = torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(0))
    near = rotation(positions(1, 2, 3, 0, torch.device("cpu")), 24)
    far = rotation(positions(1, 2, 3, 7, torch.device("cpu")), 24)
    score = [(rotate(x, *p) @ rotate(x, *p).transpose(1, 2)) for p in (near, far)]
    torch.testing.assert_close(*score, rtol=1e-4, atol=1e-4)


def test_text_reaches_weights_that_have_a_place_for_it():
    net = make(text_width=10)
    text = torch.randn(1, 3, 10, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(run(net, text=text), run(net))
    assert run(make(), text=text).shape == (1, 4, 3, 6, 8)


def test_injected_attention_is_used():
    calls = []

    def attention(q, k, v):
        calls.append(q.shape)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    net = UniMMVSRDiT(DiTConfig(4, 48, 2, 2, 2), attention=attention)
    net(latent(), torch.ones(1), latent(), torch.zeros(1))
    assert len(calls) == 4


def test_progress_counts_blocks():
    seen = []
    make()(latent(), torch.ones(1), latent(), torch.zeros(1), progress=lambda *p: seen.append(p))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("text_width", [0, 10])
def test_config_comes_back_from_the_weights(text_width):
    net = make(text_width)
    assert dit_config(net.state_dict()) == net.config


def test_wrong_inputs_are_named():
    net = make()
    with pytest.raises(ValueError, match="LR latent must have the shape"):
        run(net, lr=latent(2))
    with pytest.raises(ValueError, match="reference 2 must be a latent of 4 channels"):
        run(net, references=[latent(1), torch.zeros(1, 5, 1, 4, 4)])
