"""Where references begin: ranges that meet neither the target nor each other, and the policies that choose them."""

import itertools

import pytest
import torch
from cascadevsr.models.unimmvsr.references import (
    AFTER,
    AFTER_RULE,
    IMAGE,
    LONGEST,
    MANUAL,
    MODEL,
    PAPER,
    PAPER_RULE,
    VIDEO,
    Reference,
    References,
    StartRule,
)

LENGTHS = [(1,), (1, 1, 1), (3, 1, 5), (21,), (1, 21, 2)]


def make(lengths, policy=MODEL, manual=()):
    items = (Reference(torch.zeros(1, 4, n, 2, 2), IMAGE if n == 1 else VIDEO) for n in lengths)
    return References(tuple(items), policy, manual)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("target", [1, 6, 20, 33])
@pytest.mark.parametrize(
    "rule", [PAPER_RULE, AFTER_RULE, StartRule(None, 16, 16), StartRule(7, 2, 0), StartRule(40, 0, 3)]
)
def test_ranges_are_disjoint_and_as_far_apart_as_the_rule_says(lengths, target, rule):
    starts = rule.starts(target, lengths)
    ranges = [(0, target), *((s, s + n) for s, n in zip(starts, lengths, strict=True))]
    gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(ranges)]
    assert gaps[0] >= rule.lead and all(gap == rule.gap for gap in gaps[1:])
    if rule.first is not None and rule.first >= target:
        assert starts[0] == rule.first + rule.lead


def test_the_papers_ranges():
    """n_0 is the longest training length, n_{i+1} = n_i + k_i + 1 with k_i frames in between (specified by us)."""
    assert PAPER_RULE.starts(6, [1, 3, 1]) == (LONGEST, LONGEST + 2, LONGEST + 6)
    assert PAPER_RULE.starts(30, [1]) == (30,), "a longer clip moves the references on"
    assert AFTER_RULE.starts(6, [2, 1]) == (6, 8)


def test_policies():
    rule = StartRule(None, 5, 1)
    assert make((2, 1)).starts(6, rule) == (11, 14)
    assert make((2, 1), PAPER).starts(6, rule) == (20, 23)
    assert make((2, 1), AFTER).starts(6, rule) == (6, 8)
    assert make((2, 1), MANUAL, (30, 9)).starts(6, rule) == (30, 9)
    assert make(()).starts(6, rule) == () and not make(()) and len(make((1, 1))) == 2


@pytest.mark.parametrize(
    ("manual", "rule"),
    [
        ((9,), "one time index for each of the 2 references; got 1"),
        ((5, 20), "the clip's own .0 to 5. included; got a reference that begins at 5, before 6"),
        ((9, 10), "got a reference that begins at 10, before 11"),
        ((10, 9, 30), "got 3"),
    ],
)
def test_manual_starts_that_cannot_be(manual, rule):
    with pytest.raises(ValueError, match=rule):
        make((2, 1), MANUAL, manual).starts(6, PAPER_RULE)


def test_manual_starts_may_stand_in_any_order():
    assert make((2, 1), MANUAL, (9, 8)).starts(6, PAPER_RULE) == (9, 8)
