"""Orders, mixes and lengths of the paper, as pure functions of step and seed."""

import pytest
from cascadevsr.training.curriculum import (
    DIFFICULT_FIRST,
    EASY_FIRST,
    FULL,
    IMAGES,
    ORDERS,
    TASKS,
    TEXT,
    VIDEO,
    Stage,
    rng_at,
    stage_at,
    stages,
    task_at,
)


def test_the_paper_s_order():
    plan = stages()
    assert [stage.shares for stage in plan] == [(1, 0, 0), (0.6, 0.4, 0), (0.5, 0.3, 0.2), (0.5, 0.3, 0.2)]
    assert [stage.frames for stage in plan] == [21, 21, 21, 77]
    assert plan[1].name == "2: 0.6 text-to-video + 0.4 multi-ID, 21 frames"


def test_the_orders_it_is_compared_with_end_alike():
    ends = {stages(order)[-1].shares for order in ORDERS}
    assert ends == {(0.5, 0.3, 0.2)}
    assert {stage.shares for stage in stages(FULL)} == ends
    assert stages(EASY_FIRST)[0].shares == (0, 0, 1)


def test_every_step_has_its_stage():
    plan = stages(short=5, long=9, parts=(0.5, 0.25, 0.25, 0.0))
    assert len(plan) == 3
    found = [plan.index(stage_at(step, 100, plan)) for step in range(100)]
    assert found == [0] * 50 + [1] * 25 + [2] * 25
    assert stage_at(1000, 100, plan) is plan[-1]


def test_tasks_come_in_their_shares_and_depend_on_nothing_else():
    plan = stages(DIFFICULT_FIRST)
    count = 4000

    def shares(step_range):
        drawn = [task_at(step, 4 * count, plan, 7, place) for step in step_range for place in range(2)]
        return [drawn.count(task) / len(drawn) for task in TASKS]

    assert shares(range(0, 200)) == [1, 0, 0]
    third = range(round(0.6 * 4 * count), round(0.6 * 4 * count) + 3000)
    assert shares(third) == [pytest.approx(s, abs=0.03) for s in (0.5, 0.3, 0.2)]
    steps = list(range(9000, 9100))
    forwards = [task_at(step, 4 * count, plan, 7) for step in steps]
    backwards = [task_at(step, 4 * count, plan, 7) for step in reversed(steps)]
    assert forwards == backwards[::-1]
    assert forwards != [task_at(step, 4 * count, plan, 8) for step in steps]
    assert {TEXT, IMAGES, VIDEO} >= set(forwards)


def test_generators_of_steps_and_streams_differ():
    drawn = {rng_at(*key).random() for key in ((1, 0), (1, 1), (2, 0), (1, 0, 1), (1, 1, 1))}
    assert len(drawn) == 5 and rng_at(1, 5, 2).random() == rng_at(1, 5, 2).random()


def test_errors():
    with pytest.raises(ValueError, match="order must be one of"):
        stages("random")
    with pytest.raises(ValueError, match="4n\\+1 frames; got 6"):
        stages(short=6)
    with pytest.raises(ValueError, match="add up to 1"):
        Stage("x", (0.5, 0.2, 0.2), 5, 1.0)
    with pytest.raises(ValueError, match="four parts"):
        stages(parts=(0.5, 0.5))
