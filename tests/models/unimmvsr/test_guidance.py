"""The three-way formula, its threshold and its cost."""

import pytest
import torch
from cascadevsr.models.unimmvsr.references import ReferenceGuidance
from cascadevsr.tests.published.unimmvsr import guide


def _predictions():
    return torch.randn(3, 2, 4, 3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_formula_and_its_threshold():
    full, no_text, no_references = _predictions()
    guidance = ReferenceGuidance(3.0, 1.5, 15)
    text = full + 3 * (full - no_text)
    assert torch.allclose(
        guide(full, no_text, no_references, guidance, 14), text + 1.5 * (full - no_references), atol=1e-12
    )
    assert torch.equal(guide(full, no_text, no_references, guidance, 15), text)


def test_the_published_run_costs_115_predictions():
    branches = ReferenceGuidance().branches(50, has_references=True)
    assert branches == (3,) * 15 + (2,) * 35 and sum(branches) == 115
    assert ReferenceGuidance().branches(50, has_references=False) == (2,) * 50
    assert ReferenceGuidance(0.0, 1.0, 99).branches(4, has_references=True) == (2,) * 4
    assert ReferenceGuidance(0.0, 0.0, 15).branches(4, has_references=True) == (1,) * 4
    assert ReferenceGuidance(3.0).cfg == 4.0


@pytest.mark.parametrize("values", [(-0.1, 1.0, 15), (3.0, -1.0, 15), (3.0, 1.0, -1)])
def test_negative_strengths_are_refused(values):
    with pytest.raises(ValueError, match="must not be negative; got"):
        ReferenceGuidance(*values)
