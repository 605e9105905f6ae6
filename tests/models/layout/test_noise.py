"""Noise: identical under any tiling, windowing and order; another value at every other address."""

import pytest
import torch
from cascadevsr.models.layout.noise import addressed_noise
from cascadevsr.models.layout.pieces import plan_tiles, plan_windows
from cascadevsr.models.layout.sizes import ClipSize
from hypothesis import example, given, settings
from hypothesis import strategies as st

SMALL = st.integers(1, 9)
SEEDS = st.integers(0, 2**64 - 1)


@settings(max_examples=30)
@given(SEEDS, st.tuples(SMALL, SMALL, SMALL), st.integers(1, 6), st.integers(1, 6), st.data())
@example(0, (1, 1, 1), 1, 1, None)
def test_noise_is_identical_under_any_tiling_and_windowing(seed, size, window, tile, data):
    frames, height, width = size
    overlap = data.draw(st.integers(0, min(window, tile) - 1)) if data else 0
    whole = addressed_noise(seed, (3, ClipSize(*size)))
    for w in plan_windows(frames, window, overlap):
        for t in plan_tiles(height, width, tile, tile, overlap):
            grid = ClipSize(w.length, t.height, t.width)
            part = addressed_noise(seed, (3, grid), frame0=w.start, row0=t.top, col0=t.left)
            assert torch.equal(part, whole[:, w.span][t.region])


def test_noise_is_standard_normal_and_uncorrelated():
    noise = addressed_noise(7, (16, ClipSize(3, 40, 40)))
    assert noise.shape == (16, 3, 40, 40) and noise.dtype == torch.float32
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    for dim in range(4):
        count = noise.shape[dim] - 1
        assert abs((noise.narrow(dim, 1, count) * noise.narrow(dim, 0, count)).mean()) < 0.015
    assert noise.unique().numel() > 0.98 * noise.numel()  # nothing repeats from row to row


@pytest.mark.parametrize("other", [{"frame0": 1}, {"row0": 1}, {"col0": 1}])
def test_every_address_has_its_own_noise(other):
    size = (4, ClipSize(1, 1, 1))
    assert not torch.equal(addressed_noise(1, size), addressed_noise(1, size, **other))
    assert not torch.equal(addressed_noise(1, size), addressed_noise(2, size))


def test_the_values_of_a_seed_are_frozen():
    """A saved workflow must give the same picture after an update."""
    noise = addressed_noise(42, (2, ClipSize(2, 1, 2)), frame0=3, row0=5, col0=1).flatten()
    expected = [-1.296794, 0.142848, -0.232921, 2.055545, 1.041996, 0.299624, 0.958685, 1.541421]
    torch.testing.assert_close(noise, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_noise_is_drawn_in_float32_and_then_cast(dtype):
    size = (2, ClipSize(1, 3, 3))
    assert torch.equal(addressed_noise(5, size, dtype=dtype), addressed_noise(5, size).to(dtype))


@pytest.mark.parametrize(("seed", "channels", "offset"), [(-1, 4, 0), (2**64, 4, 0), (0, 0, 0), (0, 4, -1)])
def test_errors(seed, channels, offset):
    with pytest.raises(ValueError, match=" got "):
        addressed_noise(seed, (channels, ClipSize(1, 1, 1)), row0=offset)
