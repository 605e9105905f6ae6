"""Block matching finds known shifts and fractions, at any size."""

import pytest
import torch
from cascadevsr.models.motion import matching
from cascadevsr.models.motion.matching import gather_shift, match_blocks
from cascadevsr.models.motion.warp import warp


def texture(height, width, seed=0):
    noise = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed))
    return (
        torch.nn.functional.avg_pool2d(noise, 3, 1, 1) * 4 - 2
    )  # about the contrast of a photograph in -1..1


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, -2), (-6, 7), (7, 0)])
def test_whole_shifts_are_found(dx, dy):
    big = texture(110, 140)
    previous, current = big[..., 20:84, 20:100], big[..., 20 + dy : 84 + dy, 20 + dx : 100 + dx]
    found = match_blocks(current, previous).shift[..., 18:-18, 18:-18]
    right = ((found[:, 0] == dx) & (found[:, 1] == dy)).float().mean()
    assert right > 0.97


def test_fractions_point_the_right_way():
    previous = torch.nn.functional.interpolate(texture(24, 24), scale_factor=2, mode="bicubic")
    flow = torch.zeros(1, 2, 48, 48)
    flow[:, 0], flow[:, 1] = 0.3, -1.25
    current = warp(previous, flow)
    error = (match_blocks(current, previous).flow - flow)[..., 6:-6, 6:-6].abs().median()
    assert error < 0.15


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (17, 16)])
def test_tiny_frames_work(size):
    frame = texture(*size)
    match = match_blocks(frame, frame)
    assert match.shift.shape == (1, 2, *size)
    assert not match.flow.isnan().any()


def test_flat_areas_stand_still():
    flat = torch.full((1, 3, 20, 20), 0.5)
    match = match_blocks(flat, flat)
    assert match.shift.abs().max() == 0 and match.fraction.abs().max() == 0


def test_gather_shift_takes_the_border_outside():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    shift = torch.full((1, 2, 3, 4), 9)
    assert (gather_shift(x, shift) == x[..., -1, -1]).all()


def test_bands_change_nothing(monkeypatch):
    a, b = texture(40, 24), texture(40, 24, seed=1)
    whole = match_blocks(a, b)
    monkeypatch.setattr(matching, "_BAND", 1)
    banded = match_blocks(a, b)
    assert torch.equal(whole.shift, banded.shift)
    torch.testing.assert_close(whole.error, banded.error)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="same shape"):
        match_blocks(texture(8, 8), texture(8, 9))
