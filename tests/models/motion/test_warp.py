"""Warping and consistency: direction, borders, one-pixel frames, and the published rules."""

import pytest
import torch
from cascadevsr.models.motion.warp import consistency, in_frame, occlusion, resize_flow, visible, warp


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
    flow = torch.zeros(1, 2, 5, 7)
    for error, consistent, occluded in ((0.45, True, False), (0.6, True, True), (0.75, False, True)):
        wrong = constant(error, 0)  # of squares, 0.5 allows an error of 0.71 px; of lengths, 0.5 px
        assert consistency(flow, wrong).all() == consistent and occlusion(flow, wrong).all() == occluded


def test_resize_flow_scales_each_component_by_its_own_ratio():
    resized = resize_flow(constant(4, 6, 6, 8), 3, 16)
    assert resized.shape == (1, 2, 3, 16)
    assert torch.allclose(resized, constant(8, 3, 3, 16)) and resize_flow(resized, 3, 16) is resized
    assert torch.allclose(resize_flow(constant(4, 6, 6, 8), 3, 4, "area"), constant(2, 3, 3, 4))


def test_a_flow_of_another_size_is_refused():
    with pytest.raises(ValueError, match="Warp: .*resize_flow"):
        warp(torch.zeros(1, 3, 5, 7), constant(0, 0, 5, 6))
