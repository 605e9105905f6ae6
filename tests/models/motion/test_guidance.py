"""Motion guidance: the pairs of both forms, gradients against finite differences, descent, cuts, inference mode."""

import pytest
import torch
from cascadevsr.models.motion import guidance
from cascadevsr.models.motion.flow import warp
from cascadevsr.models.motion.guidance import (
    Flows,
    _terms,
    guide_clean,
    motion_gradient,
    published_update,
    spans,
    with_seen,
)

HEIGHT, WIDTH = 6, 8


def clip(frames=4, seed=0, batch=1):
    return torch.randn(batch, 3, frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def uniform(frames=4, dx=0.0, dy=0.0):
    """Flows of a clip that moves by (dx, dy) cells a frame."""
    forward = torch.tensor([dx, dy]).view(1, 2, 1, 1, 1).expand(1, 2, frames - 1, HEIGHT, WIDTH)
    return Flows(forward, -forward)


def swirl(frames=4, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return Flows(*(0.7 * torch.randn(2, 1, 2, frames - 1, HEIGHT, WIDTH, generator=generator)))


def pairs(form, direction="both", stop=4):
    return [(t.target, t.source, t.flow_pair, t.seen_pair) for t in _terms(0, stop, form, direction)]


def test_the_pairs_of_both_forms():
    assert pairs("default") == [
        (2, 3, 2, 2),
        (1, 2, 1, 1),
        (0, 1, 0, 0),
        (1, 0, 0, 0),
        (2, 1, 1, 1),
        (3, 2, 2, 2),
    ]
    # One off: zeros first, then every neighbour along the flow of the pair before.
    backward = [(2, None, 2, 2), (1, 2, 2, 1), (0, 1, 1, 0)]
    forward = [(1, None, 0, 0), (2, 1, 0, 1), (3, 2, 1, 2)]
    assert pairs("published", "backward") == backward and pairs("published", "forward") == forward
    assert pairs("published") == backward + forward


def test_scenes_and_segments():
    assert spans(7) == [(0, 7)] and spans(7, (3,), 5) == [(0, 3), (3, 5), (5, 7)]
    assert spans(10, (0, 5, 10), 5) == [(0, 5), (5, 10)]


@pytest.mark.parametrize("form", ["default", "published"])
@pytest.mark.parametrize("knee", [None, 0.5])
def test_the_gradient_is_that_of_the_loss(form, knee):
    x, flows = clip(), with_seen(swirl())
    knee = None if knee is None else torch.tensor(knee)
    _, gradient = motion_gradient(x, flows, form=form, knee=knee)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    step = 1e-2
    ahead, behind = (motion_gradient(x + s * step * direction, flows, form=form, knee=knee)[0] for s in (1, -1))
    expected = float(ahead - behind) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=0.05, abs=1e-3)


def test_a_clip_that_moves_as_told_has_no_loss_but_in_the_published_form():
    wide = torch.randn(1, 3, HEIGHT, WIDTH + 4, generator=torch.Generator().manual_seed(1))
    x = torch.stack([wide[..., 3 - i : 3 - i + WIDTH] for i in range(4)], 2)  # one cell to the right a frame
    flows = uniform(dx=1.0)
    assert float(motion_gradient(x, flows)[0]) < 1e-6
    assert torch.allclose(guide_clean(x, flows), x, atol=1e-5)
    assert float(motion_gradient(x, flows, form="published")[0]) > 0.5


def test_guidance_brings_frames_together_and_never_past_each_other():
    x, flows = clip(6), uniform(6)
    losses = [float(motion_gradient(guide_clean(x, flows, s), flows)[0]) for s in (0.0, 0.5, 1.0, 10.0)]
    assert losses == sorted(losses, reverse=True) and losses[3] < 0.5 * losses[0]
    moved = guide_clean(x, flows, 10.0)
    assert moved.abs().max() <= x.abs().max()
    assert torch.allclose(moved.mean(2), x.mean(2), atol=0.05), "what one frame gains another loses"


def test_large_differences_lose_a_little_and_small_ones_all():
    x = torch.zeros(1, 1, 2, HEIGHT, WIDTH)
    x[:, :, 1, :, :4], x[:, :, 1, :, 4:] = 1.0, 0.02
    deviation = float(x.std(correction=0))
    moved = guide_clean(x, uniform(2))
    gap = moved[:, :, 1] - moved[:, :, 0]
    assert gap[..., 4:].max() < 0.01
    assert torch.allclose(gap[..., :4], torch.tensor(1 - 0.2 * deviation), atol=1e-4)


def test_the_strength_does_not_depend_on_size_or_scale():
    x, flows = clip(), uniform()
    wide = x.repeat_interleave(2, -1), Flows(*(f.repeat_interleave(2, -1) for f in flows[:2]))
    moved = guide_clean(x, flows)
    assert torch.allclose(guide_clean(wide[0], wide[1])[..., ::2], moved, atol=1e-5)
    assert torch.allclose(guide_clean(7 * x, flows), 7 * moved, atol=1e-4)


@pytest.mark.parametrize("form", ["default", "published"])
def test_nothing_crosses_a_cut(form):
    x, other, flows = clip(6), clip(6, seed=5), uniform(6)
    changed = torch.cat((x[:, :, :3], other[:, :, 3:]), 2)
    first, second = (motion_gradient(each, flows, form=form, cuts=(3,))[1] for each in (x, changed))
    assert torch.equal(first[:, :, :3], second[:, :, :3]) and not torch.equal(first, second)
    alone = motion_gradient(x[:, :, 3:], uniform(3), form=form)[1]
    assert torch.allclose(first[:, :, 3:], alone, atol=1e-7)
    assert torch.equal(motion_gradient(x, flows, form=form, segment=3)[1], first)


def test_hidden_places_stay():
    x, flows = clip(), uniform()
    seen = torch.ones(1, 1, 3, HEIGHT, WIDTH)
    seen[..., :3] = 0
    moved = guide_clean(x, Flows(*flows[:2], seen, seen))
    assert torch.equal(moved[..., :3], x[..., :3]) and not torch.equal(moved[..., 4:], x[..., 4:])


def test_it_works_inside_inference_mode_and_leaves_its_input_alone():
    x, flows = clip(), with_seen(swirl())
    expected = motion_gradient(x, flows)[1]
    with torch.inference_mode():
        inside, kept = x * 1.0, x * 1.0
        moved_flows = Flows(*(part * 1.0 for part in flows))
        gradient = motion_gradient(inside, moved_flows)[1]
        assert torch.equal(gradient, expected) and not gradient.requires_grad
        assert guide_clean(inside, moved_flows).isfinite().all() and torch.equal(inside, kept)


def test_half_precision_and_short_clips():
    x = clip().half()
    assert guide_clean(x, uniform()).dtype == torch.float16
    assert published_update(x, motion_gradient(x, uniform())[1], -3.0, 10.0).dtype == torch.float16
    one = clip(1)
    assert guide_clean(one, uniform(1)) is one
    loss, gradient = motion_gradient(one, with_seen(uniform(1)))
    assert loss == 0 and not gradient.any()
    constant = torch.ones(1, 3, 4, HEIGHT, WIDTH)
    assert guide_clean(constant, uniform()).isfinite().all()


def test_memory_does_not_grow_with_the_clip(monkeypatch):
    """Few frames at a time are compared, however long the clip is, with the same result."""
    largest, sample = 0, guidance.sample

    def count(source, grid, padding):
        nonlocal largest
        largest = max(largest, source.numel())
        return sample(source, grid, padding=padding)

    x, flows = clip(9, batch=2), with_seen(swirl(9))
    loss, gradient = motion_gradient(x, flows)
    guided = guide_clean(x, flows)
    monkeypatch.setattr(guidance, "_AT_ONCE", 1)
    monkeypatch.setattr(guidance, "_KEPT", 0)
    monkeypatch.setattr(guidance, "sample", count)
    found = motion_gradient(x, flows)
    assert 0 < largest <= 2 * x[:, :, 0].numel()
    assert torch.allclose(found[0], loss) and torch.allclose(found[1], gradient, atol=1e-7)
    assert torch.allclose(guide_clean(x, flows), guided, atol=1e-6)


def test_where_frames_meet_is_worked_out_once_a_run(monkeypatch):
    flows, kept, made = with_seen(swirl(6)), [], guidance._meeting
    first, second = clip(6), clip(6, seed=3)
    wanted = [guide_clean(x, flows) for x in (first, second)]
    assert torch.equal(guide_clean(first, flows, kept=kept), wanted[0]) and len(kept) == 1
    monkeypatch.setattr(guidance, "_meeting", None)
    assert torch.equal(guide_clean(second, flows, kept=kept), wanted[1])
    monkeypatch.setattr(guidance, "_meeting", made)
    monkeypatch.setattr(guidance, "_KEPT", 0)
    large: list = []
    assert torch.equal(guide_clean(second, flows, kept=large), wanted[1]) and not large


@pytest.mark.parametrize("knee", [None, 0.3])
def test_the_gradient_is_the_one_that_differentiation_gives(knee):
    flows = with_seen(swirl(6))
    x = clip(6).clone().requires_grad_()
    terms = [(i, i + 1, flows.forward, flows.forward_seen, i) for i in range(5)]
    terms += [(i + 1, i, flows.backward, flows.backward_seen, i) for i in range(5)]
    loss = 0.0
    for target, source, flow, seen, pair in terms:
        warped = warp(x[:, :, source], flow[:, :, pair].expand(len(x), -1, -1, -1), padding="zeros")
        size = (seen[:, :, pair] * (warped - x[:, :, target])).abs()
        if knee is not None:
            size = torch.where(size < knee, size.square() / (2 * knee), size - knee / 2)
        loss = loss + size.sum() / x[:, :, 0].numel()
    wanted = torch.autograd.grad(loss, x)[0]
    shape = None if knee is None else torch.full((1, x.shape[1], 1, 1), knee)
    found = motion_gradient(x.detach(), flows, knee=shape)
    assert torch.allclose(found[0], loss.detach(), rtol=1e-5)
    assert torch.allclose(found[1], wanted, atol=1e-7) and wanted.any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a clip .* needs flows"):
        motion_gradient(clip(5), uniform(4))
    with pytest.raises(ValueError, match="form must be one of default, published.*'late'"):
        motion_gradient(clip(), uniform(), form="late")
