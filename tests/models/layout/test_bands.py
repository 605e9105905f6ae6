"""Resizing in bands of rows is resizing the whole."""

import pytest
import torch
from cascadevsr.models.layout import bands
from cascadevsr.models.layout.bands import BandedResize, warp_band
from cascadevsr.models.layout.sizes import resize_clip
from cascadevsr.models.motion.flow import warp

SIZES = [((12, 20), (48, 80)), ((13, 21), (31, 47)), ((9, 11), (9, 11)), ((10, 16), (15, 24))]


@pytest.fixture(params=[1 << 19, 300])
def grid(request, monkeypatch):
    monkeypatch.setattr(bands, "_BAND", request.param)
    return lambda small, large: BandedResize(torch.zeros(*small), torch.zeros(*large))


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_both_ways_are_the_resizes_of_clips(grid, small, large):
    generator = torch.Generator().manual_seed(0)
    low, high = (torch.rand(1, 3, *size, generator=generator) for size in (small, large))
    resizes = grid(small, large)
    for mode in ("bicubic", "bilinear"):
        up = torch.cat([resizes.up(low, band, mode) for band in resizes.bands], -2)
        assert torch.allclose(up, resize_clip(low[:, :, None], *large, mode)[:, :, 0], atol=2e-6)
    down = resizes.down(high)
    assert torch.allclose(down, resize_clip(high[:, :, None], *small)[:, :, 0], atol=2e-6)
    up = torch.cat([resizes.up(low, band) for band in resizes.bands], -2)
    assert torch.allclose(resizes.there_and_back(low), resizes.down(up), atol=2e-6)


def test_a_flow_grows_with_the_picture(grid):
    resizes = grid((10, 16), (15, 32))
    flow = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).expand(-1, -1, 10, 16)
    large = torch.cat([resizes.up_flow(flow, band) for band in resizes.bands], -2)
    assert torch.allclose(large, torch.tensor([2.0, 3.0]).view(1, 2, 1, 1).expand(-1, -1, 15, 32))


def test_a_band_is_warped_as_the_whole():
    generator = torch.Generator().manual_seed(0)
    x, flow = torch.rand(1, 3, 20, 30, generator=generator), 4 * torch.randn(1, 2, 20, 30, generator=generator)
    inside = warp_band(x, flow[..., 5:13, :], 5)
    assert torch.equal(inside, warp_band(x, flow, 0)[..., 5:13, :])
    assert torch.allclose(inside, warp(x, flow, "bicubic")[..., 5:13, :], atol=1e-4)
