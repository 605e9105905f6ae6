"""Temporal windows: coverage, full length, normalised weights, and nothing changed by one window."""

import pytest
import torch
from cascadevsr.models.layout.windows import (
    Window,
    WindowFuser,
    blend_weights,
    plan_weights,
    plan_windows,
    spread_windows,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st


@st.composite
def plans(draw):
    window = draw(st.integers(1, 20))
    return draw(st.integers(1, 97)), window, draw(st.integers(0, window - 1))


@given(plans())
@example((1, 1, 0))
@example((97, 13, 12))
@example((13, 8, 2))
@pytest.mark.parametrize("plan", [plan_windows, spread_windows])
def test_windows_cover_all_frames_at_full_length(plan, case):
    length, window, overlap = case
    windows = plan(length, window, overlap)
    assert {w.length for w in windows} == {min(window, length)}  # the last one included
    assert windows[0].start == 0 and windows[-1].stop == length
    for before, after in zip(windows, windows[1:], strict=False):
        assert before.start < after.start and before.stop - after.start >= overlap
    assert set().union(*(range(w.start, w.stop) for w in windows)) == set(range(length))


@given(plans())
def test_spread_windows_are_the_fewest_and_even(case):
    length, window, overlap = case
    windows = spread_windows(length, window, overlap)
    assert len(windows) == len(plan_windows(length, window, overlap))
    steps = [b.start - a.start for a, b in zip(windows, windows[1:], strict=False)]
    assert not steps or max(steps) - min(steps) <= 1


@given(plans())
@example((97, 13, 12))
def test_weights_are_positive_and_sum_to_one(case):
    windows = plan_windows(*case)
    total = torch.zeros(case[0])
    for window, weight in zip(windows, plan_weights(windows), strict=True):
        assert weight.shape == (window.length,) and weight.min() > 0
        total[window.span] += weight
    assert torch.allclose(total, torch.ones(case[0]), atol=1e-6)


def test_ramps_of_two_neighbours_mirror_each_other():
    first, second = Window(0, 8), Window(5, 13)
    fall, rise = blend_weights(first, None, second), blend_weights(second, first, None)
    assert torch.allclose(fall[5:] + rise[:3], torch.ones(3, dtype=torch.float64))
    assert torch.equal(fall[:5], torch.ones(5, dtype=torch.float64)) and (rise[:3].diff() > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_window_is_no_window(dtype):
    value = torch.randn(1, 2, 7, 3, 3).to(dtype)
    (window,) = plan = plan_windows(7, 7, 3)
    fuser = WindowFuser(plan, 2)
    fuser.add(0, value[:, :, window.span])
    assert torch.equal(fuser.result(), value) and fuser.result().dtype == dtype


@settings(max_examples=40)
@given(plans())
@example((97, 13, 12))
@example((13, 8, 0))
def test_fusing_cut_windows_gives_the_clip_back(case):
    clip = torch.randn(1, 2, case[0], 2, 3)
    plan = plan_windows(*case)
    fuser = WindowFuser(plan, 2)
    for index, window in enumerate(plan):
        fuser.add(index, clip[:, :, window.span])
    assert torch.allclose(fuser.result(), clip, atol=1e-5)
    if case[2] == 0 and case[0] % case[1] == 0:
        assert torch.equal(fuser.result(), clip)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 8, 8), r"smaller than the window \(8\); got 8"),
        ((10, 8, -1), "at least 0"),
        ((0, 8, 2), "at least 1"),
        ((5, 0, 0), "at least 1"),
    ],
)
def test_plan_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_windows(*arguments)


def test_fuser_refuses_missing_repeated_and_wrong_parts():
    fuser = WindowFuser(plan_windows(10, 6, 2), 0)
    with pytest.raises(ValueError, match="has 6 frames; got 5"):
        fuser.add(0, torch.zeros(5))
    fuser.add(0, torch.zeros(6))
    with pytest.raises(ValueError, match="window 0 again"):
        fuser.add(0, torch.zeros(6))
    with pytest.raises(ValueError, match=r"none for \[1\]"):
        fuser.result()
