"""Spatial tiles: coverage, even spread, normalised smooth weights, and nothing changed by one tile."""

import pytest
import torch
from cascadevsr.models.layout.tiles import Tile, TileFuser, plan_tiles, tile_weight
from hypothesis import example, given, settings
from hypothesis import strategies as st


@st.composite
def cases(draw):
    tile = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    return draw(st.integers(1, 53)), draw(st.integers(1, 53)), *tile, draw(st.integers(0, min(tile) - 1))


@settings(max_examples=30)
@given(cases())
@example((1, 1, 1, 1, 0))
@example((53, 47, 13, 11, 10))
@example((17, 31, 16, 16, 4))
def test_tiles_cover_with_weights_that_sum_to_one(case):
    height, width, tile_height, tile_width, _ = case
    plan = plan_tiles(*case)
    total = torch.zeros(height, width)
    for tile in plan:
        assert (tile.height, tile.width) == (min(height, tile_height), min(width, tile_width))
        assert 0 <= tile.top <= height - tile.height and 0 <= tile.left <= width - tile.width
        weight = tile_weight(tile, plan)
        assert weight.shape == (tile.height, tile.width) and weight.min() > 0
        total[tile.region] += weight
    assert torch.allclose(total, torch.ones(height, width), atol=1e-5)


@settings(max_examples=40)
@given(cases())
def test_fusing_cut_tiles_gives_the_frame_back(case):
    frame = torch.randn(1, 2, 2, *case[:2])
    plan = plan_tiles(*case)
    fuser = TileFuser(plan)
    for tile in reversed(plan):
        fuser.add(tile, frame[tile.region])
    assert torch.allclose(fuser.result(), frame, atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_one_tile_is_no_tile(height, width, overlap):
    plan = plan_tiles(height, width, height, width + 3, overlap)
    assert plan == (Tile(0, 0, height, width),)
    frame = torch.randn(1, 2, height, width)
    fuser = TileFuser(plan)
    fuser.add(plan[0], frame[plan[0].region])
    assert torch.equal(fuser.result(), frame)


def test_half_precision_parts_come_back_in_half_precision():
    frame = torch.rand(1, 9, 9).half()
    plan = plan_tiles(9, 9, 5, 5, 2)
    fuser = TileFuser(plan)
    for tile in plan:
        fuser.add(tile, frame[tile.region])
    assert fuser.result().dtype == torch.float16 and torch.allclose(fuser.result(), frame, atol=1e-3)


def test_a_step_between_tiles_becomes_a_smooth_ramp():
    plan = plan_tiles(4, 20, 4, 12, 4)
    fuser = TileFuser(plan)
    for value, tile in enumerate(plan):
        fuser.add(tile, torch.full((tile.height, tile.width), float(value)))
    row = fuser.result()[0]
    assert row[0] == 0 and row[-1] == 1 and (row.diff() >= 0).all() and row.diff().max() < 0.4


@pytest.mark.parametrize("case", [(0, 4, 4, 4, 0), (9, 9, 4, 4, 4), (9, 9, 0, 4, 0), (9, 9, 4, 4, -1)])
def test_plan_errors(case):
    with pytest.raises(ValueError, match="Spatial Tiles: .* got "):
        plan_tiles(*case)


def test_fuser_refuses_missing_repeated_and_wrong_parts():
    plan = plan_tiles(4, 6, 4, 4, 2)
    fuser = TileFuser(plan)
    with pytest.raises(ValueError, match="4x4; got a result of 3x4"):
        fuser.add(plan[0], torch.zeros(4, 3))
    fuser.add(plan[0], torch.zeros(4, 4))
    with pytest.raises(ValueError, match="added once"):
        fuser.add(plan[0], torch.zeros(4, 4))
    with pytest.raises(ValueError, match="1 of 2 missing"):
        fuser.result()
