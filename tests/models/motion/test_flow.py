"""Flow at work: warping, borders, the published rules of consistency, block matching, and pictures of flow."""

import pytest
import torch
import torch.nn.functional as F
from cascadevsr.models.motion import flow
from cascadevsr.models.motion.flow import (
    block_means,
    compose,
    consistency,
    flow_picture,
    in_frame,
    match_blocks,
    occlusion,
    resize_flow,
    visible,
    warp,
)


def constant(dx, dy, height=5, width=7):
    return torch.tensor([dx, dy], dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, height, width)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (1, 1), (1, 9), (131, 127)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_zero_flow_changes_nothing(height, width, mode):
    x = torch.randn(2, 3, height, width)
    assert torch.allclose(warp(x, torch.zeros(2, 2, height, width), mode), x, atol=1e-4)


def test_out_is_in_at_p_plus_flow():
    x = torch.arange(35.0).view(1, 1, 5, 7)
    moved = warp(x, constant(2, 1))
    assert torch.allclose(moved[0, 0, :4, :5], x[0, 0, 1:, 2:], atol=1e-4)
    assert torch.allclose(moved[0, 0, 4, 6], x[0, 0, 4, 6])  # the border repeats
    assert warp(x + 1, constant(2, 1), padding="zeros")[0, 0, 4, 6] == 0
    assert torch.allclose(warp(x, constant(0.25, 0))[0, 0, 0, :6], x[0, 0, 0, :6] + 0.25, atol=1e-4)


def test_a_frame_of_one_pixel_has_a_border_too():
    x = torch.ones(1, 1, 1, 1)
    assert warp(x, constant(3, 0, 1, 1), padding="zeros") == 0
    assert warp(x, constant(3, 0, 1, 1)) == 1


def test_half_precision_keeps_its_dtype_and_exact_coordinates():
    x = torch.arange(4000).remainder(256).half().view(1, 1, 1, 4000)
    moved = warp(x, constant(1, 0, 1, 4000).half(), "nearest")
    assert moved.dtype == torch.float16 and torch.equal(moved[..., :-1], x[..., 1:])


def test_opposite_motion_is_consistent_and_visible_inside_only():
    there, back = constant(2, 1), constant(-2, -1)
    assert consistency(there, back, padding="border").all()
    seen = visible(there, back)[0, 0]
    assert seen[:4, :5].all() and not seen[4].any() and not seen[:, 5:].any()
    assert torch.equal(seen, in_frame(there)[0, 0])
    assert not visible(there, there)[0, 0].any() and occlusion(there, there).all()
    assert not consistency(there * float("nan"), back).any()


def test_consistency_compares_squares_and_occlusion_lengths():
    motion = torch.zeros(1, 2, 5, 7)
    for error, consistent, occluded in ((0.45, True, False), (0.6, True, True), (0.75, False, True)):
        wrong = constant(error, 0)  # of squares, 0.5 allows an error of 0.71 px; of lengths, 0.5 px
        assert consistency(motion, wrong).all() == consistent and occlusion(motion, wrong).all() == occluded


def test_resize_flow_scales_each_component_by_its_own_ratio():
    resized = resize_flow(constant(4, 6, 6, 8), 3, 16)
    assert resized.shape == (1, 2, 3, 16)
    assert torch.allclose(resized, constant(8, 3, 3, 16)) and resize_flow(resized, 3, 16) is resized
    assert torch.allclose(resize_flow(constant(4, 6, 6, 8), 3, 4, "area"), constant(2, 3, 3, 4))


def test_a_flow_of_another_size_is_refused():
    with pytest.raises(ValueError, match="warp: .*resize_flow"):
        warp(torch.zeros(1, 3, 5, 7), constant(0, 0, 5, 6))


def test_chained_flows_lead_where_both_lead():
    assert torch.equal(compose(constant(2, 1), constant(-3, 4)), constant(-1, 5))


# Block matching


def noise(height, width, seed=0):
    """Make texture of about the contrast of a photograph in -1..1."""
    drawn = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(drawn, 3, 1, 1) * 4 - 2


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, -2), (-6, 7), (7, 0)])
def test_whole_shifts_are_found(dx, dy):
    big = noise(110, 140)
    previous, current = big[..., 20:84, 20:100], big[..., 20 + dy : 84 + dy, 20 + dx : 100 + dx]
    found = match_blocks(current, previous).shift[..., 18:-18, 18:-18]
    right = ((found[:, 0] == dx) & (found[:, 1] == dy)).float().mean()
    assert right > 0.97


def test_fractions_point_the_right_way():
    previous = F.interpolate(noise(24, 24), scale_factor=2, mode="bicubic")
    motion = torch.zeros(1, 2, 48, 48)
    motion[:, 0], motion[:, 1] = 0.3, -1.25
    current = warp(previous, motion)
    error = (match_blocks(current, previous).flow - motion)[..., 6:-6, 6:-6].abs().median()
    assert error < 0.15


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (17, 16)])
def test_tiny_frames_are_matched(size):
    frame = noise(*size)
    match = match_blocks(frame, frame)
    assert match.shift.shape == (1, 2, *size)
    assert not match.flow.isnan().any()


def test_flat_areas_stand_still():
    flat = torch.full((1, 3, 20, 20), 0.5)
    match = match_blocks(flat, flat)
    assert match.shift.abs().max() == 0 and match.fraction.abs().max() == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 9), (17, 16)])
def test_blocks_are_averaged_inside_the_frame(size):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block_means(x), F.avg_pool2d(x, 5, 1, 2, count_include_pad=False))


def test_bands_change_nothing(monkeypatch):
    a, b = noise(40, 24), noise(40, 24, seed=1)
    whole = match_blocks(a, b)
    monkeypatch.setattr(flow, "_BAND", 1)
    banded = match_blocks(a, b)
    assert torch.equal(whole.shift, banded.shift)
    torch.testing.assert_close(whole.error, banded.error)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="same shape"):
        match_blocks(noise(8, 8), noise(8, 9))


# Pictures


def test_the_picture_shows_direction_and_speed():
    motion = torch.zeros(1, 2, 1, 6)
    motion[0, 0, 0, :3] = torch.tensor([2.0, -2.0, 1.0])
    motion[0, 1, 0, 3:5] = torch.tensor([2.0, -2.0])
    right, left, slow, down, up, still = flow_picture(motion)[0, 0]
    expected = {
        "red": (right, (1, 0, 0)),
        "light blue": (left, (0, 0.82, 1)),
        "pale red": (slow, (1, 0.5, 0.5)),
    }
    expected |= {"yellow": (down, (1, 0.9, 0)), "violet": (up, (0.34, 0, 1)), "white": (still, (1, 1, 1))}
    for name, (found, colour) in expected.items():
        assert torch.allclose(found, torch.tensor(colour).float(), atol=0.01), name
    assert (flow_picture(torch.zeros(2, 2, 3, 3)) == 1).all()


def test_an_outlier_leaves_the_colours_of_the_rest():
    motion = torch.zeros(1, 2, 20, 20)
    motion[:, 0] = 3.0
    plain = flow_picture(motion)
    motion[0, 0, 0, 0] = 300.0
    assert torch.equal(flow_picture(motion), plain) and plain[..., 0].min() == 1 and plain[..., 1].max() == 0


def test_noise_of_the_estimate_is_white():
    assert (flow_picture(1e-4 * torch.randn(1, 2, 9, 9)) == 1).all()
    motion = torch.zeros(1, 2, 20, 20)
    motion[0, 0, 0, 0] = 1.0  # a small object in a still clip has its full colour
    assert torch.equal(flow_picture(motion)[0, 0, 0], torch.tensor([1.0, 0, 0]))
