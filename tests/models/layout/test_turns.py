"""Windows that take turns: every position once, none too long, joints never at the same place twice in a row."""

import pytest
from cascadevsr.models.layout.turns import alternating_windows, joint_weights, turn_at
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 9))
def test_every_position_is_covered_once(length, window, turn):
    plan = alternating_windows(length, window, turn)
    assert [p for each in plan for p in range(each.start, each.stop)] == list(range(length))
    assert all(1 <= each.length <= max(window, 1) for each in plan)


@given(st.integers(2, 300), st.integers(2, 40))
def test_joints_of_two_turns_lie_apart(length, window):
    joints = [{each.start for each in alternating_windows(length, window, turn)} - {0} for turn in (0, 1)]
    assert not joints[0] & joints[1]


def test_turns_by_hand():
    spans = [[(w.start, w.stop) for w in alternating_windows(33, 8, turn)] for turn in (0, 1, 2)]
    assert spans[0] == [(0, 6), (6, 13), (13, 19), (19, 26), (26, 33)] == spans[2]
    assert spans[1] == [(0, 3), (3, 9), (9, 16), (16, 23), (23, 29), (29, 33)]
    assert [(w.start, w.stop) for w in alternating_windows(8, 8, 1)] == [(0, 8)]
    with pytest.raises(ValueError, match="at least 1"):
        alternating_windows(0, 8, 0)


def test_turns_last_so_many_steps_and_the_last_step_is_one_of_its_own():
    assert [turn_at(step, 5, 1) for step in range(5)] == [0, 1, 2, 3, 4]
    assert [turn_at(step, 8, 3) for step in range(8)] == [0, 0, 0, 1, 1, 1, 2, 3]
    assert [turn_at(step, 7, 3) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2], "it is one already"
    assert [turn_at(step, 6, 3) for step in range(6)] == [0, 0, 0, 1, 1, 2]
    assert [turn_at(step, 2, 6) for step in range(2)] == [0, 1]


def test_what_is_mixed_in_at_joints():
    plan = alternating_windows(8, 4, 0)  # (0, 4), (4, 8)
    assert joint_weights(plan, 1).tolist() == pytest.approx([0, 0, 0, 0.5, 0.5, 0, 0, 0], abs=1e-6)
    outer, inner = 0.1464466, 0.8535534  # cos^2 of 3/8 and 1/8 of pi
    assert joint_weights(plan, 2).tolist() == pytest.approx([0, 0, outer, inner, inner, outer, 0, 0], abs=1e-6)
    assert not joint_weights(alternating_windows(4, 4, 0), 2).any(), "one window has no joint"
