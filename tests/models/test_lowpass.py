"""The low-pass and the tie: what passes, what is tied exactly, and what is left alone."""

import pytest
import torch
from cascadevsr.models.lowpass import axis_filter, cosines, lowpass, tie_low

CUTOFF = 8.0


def _latents():
    return torch.randn(2, 1, 4, 3, 17, 40, generator=torch.Generator().manual_seed(0))


def _spectrum(x):
    """Give the amplitudes of the cosine waves, and whether both periods have CUTOFF or more cells."""
    rows, columns = (cosines(side) for side in x.shape[-2:])
    low = [2 * side / torch.arange(side).clamp_min(1e-9) >= CUTOFF for side in x.shape[-2:]]
    return rows @ x.double() @ columns.T, low[0][:, None] & low[1][None]


def test_the_waves_are_orthonormal():
    for length in (1, 2, 17):
        assert torch.allclose(cosines(length) @ cosines(length).T, torch.eye(length).double(), atol=1e-12)


def test_strength_0_is_the_prediction_itself():
    clean, source = _latents()
    assert tie_low(clean, source, CUTOFF, 0.0) is clean


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_low_waves_are_moved_by_the_strength_and_no_other_more(strength):
    clean, source = _latents()
    (before, low), (wanted, _), (after, _) = map(_spectrum, (clean, source, tie_low(clean, source, CUTOFF, strength)))
    mixed = before + strength * (wanted - before)
    assert 0 < low.sum() < low.numel() / 4
    assert (after - mixed)[..., low].abs().max() < 1e-5, "every wave of the cutoff or longer, exactly"
    moved, distance = (after - before).abs(), (wanted - before).abs()
    assert (moved <= strength * distance + 1e-5).all() and moved[..., -1, -1].max() < 1e-5
    if strength == 1:
        assert torch.allclose(after[..., low], wanted[..., low], atol=1e-5)


def test_even_planes_pass_and_the_finest_wave_does_not():
    flat = torch.full((1, 1, 1, 12, 20), 3.0)
    assert torch.allclose(lowpass(flat, 4.0), flat, atol=1e-5)
    fine = cosines(40)[-1].float().expand(17, 40)
    assert lowpass(fine, CUTOFF).abs().max() < 1e-5 < fine.abs().max()
    assert torch.allclose(axis_filter(9, 1.0), torch.eye(9), atol=1e-6), "one cell passes everything"


def test_an_edge_does_not_ring():
    step = (torch.arange(64) >= 32).float().expand(8, 64)
    assert lowpass(step, CUTOFF).max() < 1.09 and lowpass(step, CUTOFF).min() > -0.09


def test_a_cutoff_must_be_positive():
    for cutoff in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="cutoff must be a positive number of cells"):
            axis_filter(8, cutoff)
