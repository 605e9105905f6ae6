"""Latent propagation: what it carries where, what stops it, and that nothing else changes."""

import pytest
import torch
from cascadevsr.models.motion import flow
from cascadevsr.models.motion.flow import propagate
from hypothesis import given
from hypothesis import strategies as st


def flows(dx, dy, frames=4, height=6, width=8):
    """Constant motion of (dx, dy) px a frame, and its opposite."""
    forward = torch.tensor([dx, dy]).float().view(1, 2, 1, 1, 1).expand(1, 2, frames - 1, height, width)
    return forward, -forward


def clip(frames=4, channels=3, height=6, width=8):
    return torch.randn(1, channels, frames, height, width, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_without_motion_equal_frames_stay(mode):
    still = clip(1).repeat(1, 1, 4, 1, 1)
    assert torch.allclose(propagate(still, *flows(0, 0), mode=mode), still, atol=1e-6)


def test_without_motion_each_direction_averages_its_neighbours():
    x = torch.tensor([0.0, 0.0, 8.0, 0.0]).view(1, 1, 4, 1, 1).expand(1, 1, 4, 6, 8)

    def values(**options):
        return propagate(x, *flows(0, 0), **options)[0, 0, :, 3, 3].tolist()

    assert values(direction="backward") == [1, 2, 4, 0]
    assert values(direction="forward") == [0, 0, 4, 2]
    assert values() == [1, 1.5, 2.75, 1.375]  # the second pass works on the result of the first
    assert values(direction="forward", weight=0.25) == [0, 0, 6, 1.5]
    assert values(weight=1.0, direction="forward") == [0, 0, 0, 0]
    assert values(weight=0.0) == [0, 0, 8, 0]


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_it_follows_the_motion(mode):
    """A picture that moves by whole cells: copying the first frame on gives the moving picture itself."""
    picture = clip(1, width=20)[:, :, 0]
    moving = torch.stack([picture[..., 2 * i : 2 * i + 8] for i in range(4)], 2)  # contents move left by 2
    noisy = moving + 0.1 * clip()
    out = propagate(noisy, *flows(-2, 0), mode=mode, weight=1.0, direction="forward")
    # The last column pair of each frame comes into view there: nothing to copy, so it keeps its own values.
    assert torch.allclose(out[..., 1, :, :6], noisy[..., 0, :, 2:], atol=1e-5)
    assert torch.allclose(out[..., 3, :, :2], noisy[..., 0, :, 6:], atol=1e-5)
    assert torch.equal(out[..., 1:, :, 6:], noisy[..., 1:, :, 6:])
    assert torch.equal(out[:, :, 0], noisy[:, :, 0])


def test_inconsistent_flow_leaves_everything_untouched():
    x, (forward, _) = clip(), flows(3, 2)
    assert torch.equal(propagate(x, forward, forward), x)
    assert torch.equal(propagate(x, forward * float("nan"), forward), x)


@given(st.integers(1, 5), st.integers(0, 5), st.sampled_from(["both", "backward", "forward"]))
def test_nothing_crosses_a_cut(frames, cut, direction):
    """Scenes propagated together are scenes propagated alone."""
    forward, backward = flows(0.25, -0.25, frames)
    x, options = clip(frames), {"direction": direction, "mode": "bilinear"}
    whole = propagate(x, forward, backward, cuts=(cut,), **options)
    cut = min(cut, frames)
    for span in (slice(0, cut), slice(cut, frames)):
        part = x[:, :, span]
        if part.shape[2]:
            pairs = slice(span.start, max(span.stop - 1, span.start))
            alone = propagate(part, forward[:, :, pairs], backward[:, :, pairs], **options)
            assert torch.equal(whole[:, :, span], alone)


def test_one_frame_passes_through_and_the_input_is_kept():
    x = clip(1)
    assert torch.equal(propagate(x, *flows(0, 0, 1)), x)
    x = clip()
    before = x.clone()
    assert not torch.equal(propagate(x, *flows(0, 0)), x) and torch.equal(x, before)


def test_flow_of_another_size_is_scaled_by_its_own_ratios():
    x = clip()
    exact = propagate(x, *flows(2, 1))
    assert torch.equal(propagate(x, *flows(4, 3, height=18, width=16)), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_close_values(dtype):
    x, (forward, backward) = clip(), flows(1, 0)
    out = propagate(x.to(dtype), forward.half(), backward.half())
    assert out.dtype == dtype
    assert torch.allclose(out.float(), propagate(x, forward, backward), atol=0.03)


def test_one_flow_serves_a_batch():
    pair = torch.cat((clip(), clip() + 1))
    out = propagate(pair, *flows(1, 1))
    assert torch.equal(out[:1], propagate(pair[:1], *flows(1, 1)))
    assert torch.equal(out[1:], propagate(pair[1:], *flows(1, 1)))


def test_memory_is_that_of_single_frames(monkeypatch):
    """Whatever is warped is one frame or one flow; the clip is copied once, for the output."""
    seen = []
    original = flow.sample
    monkeypatch.setattr(flow, "sample", lambda x, *rest, **how: seen.append(x.shape) or original(x, *rest, **how))
    propagate(clip(), *flows(1, 1))
    assert seen == [(1, 3, 6, 8), (1, 2, 6, 8)] * 6  # the neighbour, and its flow for the check


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "cubic"}, "got 'cubic'"),
        ({"direction": "up"}, "got 'up'"),
        ({"forward": torch.zeros(1, 2, 2, 6, 8)}, "Estimate the motion"),
        ({"forward": torch.zeros(2, 2, 3, 6, 8), "backward": torch.zeros(2, 2, 3, 6, 8)}, "t - 1"),
        ({"x": torch.zeros(3, 4, 6, 8)}, "needs forward and backward"),
    ],
)
def test_errors(changes, message):
    given = {"x": clip(), "forward": flows(0, 0)[0], "backward": flows(0, 0)[1]} | changes
    x, forward, backward = given.pop("x"), given.pop("forward"), given.pop("backward")
    with pytest.raises(ValueError, match=message):
        propagate(x, forward, backward, **given)
