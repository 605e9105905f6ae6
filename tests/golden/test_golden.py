"""Recorded numbers: our functions reproduce them, within the tolerance each case states."""

from collections import defaultdict

import pytest
import torch
from cascadevsr.tests.golden import cases
from cascadevsr.tests.golden.runners import RUNNERS

CASES = cases.find_cases()
RUNNABLE = [case for case in CASES if (case.family, case.kind) in RUNNERS]


@pytest.mark.parametrize("case", RUNNABLE, ids=lambda case: f"{case.family}/{case.name}")
def test_case_is_reproduced(case):
    with torch.no_grad():
        produced = RUNNERS[case.family, case.kind](case)
    if case.group("out"):
        cases.compare(case, produced)


def test_cases_without_a_runner_are_listed(capsys):
    waiting = defaultdict(list)
    for case in CASES:
        if (case.family, case.kind) not in RUNNERS:
            waiting[case.family].append(case.name)
    with capsys.disabled():
        for family, names in waiting.items():
            print(f"\nno runner yet (issue: network not built): {family}: {len(names)}: {', '.join(names)}")
    assert len(RUNNABLE) + sum(map(len, waiting.values())) == len(CASES)


def test_every_case_can_be_read():
    """Shapes and dtypes as the json says, weights finite, the tolerance of every output understood."""
    assert CASES, "at least the committed cases must be found"
    for case in CASES:
        label = f"{case.family}/{case.name}"
        described = dict(case.meta.get("tensors", {}))
        for group in ("inputs", "outputs"):
            prefix = "in." if group == "inputs" else "out."
            described |= {prefix + name: entry for name, entry in case.meta.get(group, {}).items()}
        for name, (shape, dtype, *_) in described.items():
            tensor = case.tensors[name]
            assert list(tensor.shape) == shape and str(tensor.dtype) == f"torch.{dtype}", f"{label} {name}"
        for name in case.group("out"):
            case.tolerance(name)
        if "weights_from" not in case.meta:
            assert all(value.isfinite().all() for value in case.weights().values()), label


@pytest.mark.parametrize("case", RUNNABLE, ids=lambda case: f"{case.family}/{case.name}")
def test_a_wrong_number_is_noticed(case):
    recorded = case.group("out")
    if not recorded:
        return  # a plan in json: the runner itself compares
    cases.compare(case, recorded)
    for name, tensor in recorded.items():
        # Half of the values: more than any mismatch fraction a case allows.
        wrong = tensor.clone().flatten()
        whole = 1 + int(case.tolerance(name).atol)
        wrong[::2] += (0.01 * tensor.abs().max() + 1e-6) if tensor.is_floating_point() else whole
        with pytest.raises(AssertionError, match=name):
            cases.compare(case, recorded | {name: wrong.view_as(tensor)})
