"""Flow schedules: ends exact, strictly descending, shift and its inverse."""

import pytest
import torch
from cascadevsr.models.schedules import flow_sigmas, shift_sigma, unshift_sigma
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 60), st.floats(0.05, 1.0), st.floats(0.2, 12.0))
def test_sigmas_run_from_start_to_zero(steps, start, shift):
    sigmas = flow_sigmas(steps, start, shift)
    assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32
    assert sigmas[0] == torch.tensor(start) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


@given(st.floats(0.0, 1.0), st.floats(0.2, 12.0))
def test_shift_has_an_inverse(sigma, shift):
    assert unshift_sigma(shift_sigma(sigma, shift), shift) == pytest.approx(sigma, abs=1e-9)
    assert shift_sigma(sigma, 1.0) == sigma


def test_one_step_and_no_shift():
    assert flow_sigmas(1).tolist() == [1.0, 0.0]
    assert flow_sigmas(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert flow_sigmas(2, shift=3.0).tolist() == [1.0, 0.75, 0.0]


@pytest.mark.parametrize("arguments", [(0,), (3, 0.0), (3, 1.1), (3, 1.0, 0.0), (3, float("nan"))])
def test_errors(arguments):
    with pytest.raises(ValueError, match="Refine Sigmas: .* got "):
        flow_sigmas(*arguments)
