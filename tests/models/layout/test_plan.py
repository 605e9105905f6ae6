"""The plan of a run: token counts worked out by hand, sums, words and warnings."""

from dataclasses import replace

import pytest
from cascadevsr.models.layout.pieces import Tile, plan_tiles
from cascadevsr.models.layout.plan import GIB, Memory, RunPlan, count_tokens
from cascadevsr.models.layout.sizes import ClipSize, latent_size
from hypothesis import given
from hypothesis import strategies as st

WAN = (1, 2, 2)
PLENTY = Memory(weights=2 * GIB, loaded=0, one=GIB, two=2 * GIB, free=20 * GIB, free_ram=64 * GIB, shared=False)


def plan(width=1280, height=720, frames=81, **changes):
    size = ClipSize(frames, height, width)
    cells = latent_size(size)
    made = RunPlan(
        model="WAN21",
        size=size,
        latent=(1, 16, cells.frames, cells.height, cells.width),
        space=8,
        time=4,
        patch=WAN,
        references=(),
        tiles=(Tile(0, 0, cells.height, cells.width),),
        windows=(cells.frames,),
        window=cells.frames,
        branches=(1,),
        memory=PLENTY,
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [(1280, 720, 75_600), (1920, 1088, 171_360), (3840, 2176, 685_440), (3840, 2160, 680_400)],
)
def test_tokens_of_81_frames_with_wan(width, height, tokens):
    made = plan(width, height)
    assert made.clip_tokens == tokens == 21 * made.frame_tokens


@given(st.tuples(*[st.integers(1, 40)] * 3), st.tuples(*[st.integers(1, 3)] * 3))
def test_a_grid_is_padded_to_whole_patches(grid, patch):
    tokens = count_tokens(grid, patch)
    assert tokens * patch[0] * patch[1] * patch[2] >= grid[0] * grid[1] * grid[2]
    assert count_tokens(tuple(-(-side // part) * part for side, part in zip(grid, patch, strict=True)), patch) == tokens


def test_81_frames_of_4k_in_tiles_and_windows():
    tiles = plan_tiles(270, 480, 90, 160, 12)
    made = plan(
        3840, 2160, tiles=tiles, windows=(9, 10, 10), window=9, branches=(3,) * 15 + (2,) * 35,
        references=((1, 64, 48), (1, 33, 21)),
    )  # fmt: skip
    assert len(tiles) == 16 and made.pass_tokens == 10 * 45 * 80
    assert made.reference_tokens == 32 * 24 + 17 * 11
    assert made.passes == 115 * 16 * 3
    assert made.frame_bytes == 12 * 81 * 3840 * 2160
    text = made.text()
    for words in (
        "WAN21: 81 frames of 3840x2160", "16 x 21 x 270 x 480, patch 1x2x2", "32,400 a latent frame, 680,400 the clip",
        "955 tokens in 2", "16 (4 x 4) of 1280x720 px", "3 of 9 latent frames (33 frames), later ones with one more",
        "36,000 + 955 tokens", "3 branches in 15, then 2 branches in 35 = 115", "115 x 16 x 3 = 5,520",
        "7.5 GiB of RAM", "nothing stands in the way",
    ):  # fmt: skip
        assert words in text, words


def test_what_does_not_fit_is_said_with_the_dial_that_helps():
    assert plan().warnings() == ()
    heavy = replace(PLENTY, one=30 * GIB)
    (warning,) = plan(memory=heavy).warnings()
    assert "30.0 GiB" not in warning and "needs 32.0 GiB, 20.0 GiB are free: use Spatial Tiles, or Temporal" in warning
    tiled = plan(memory=heavy, tiles=plan_tiles(90, 160, 45, 80, 8), windows=(9, 10), window=9).warnings()[0]
    assert "smaller tiles in Spatial Tiles, or a shorter window in Temporal Windows" in tiled
    many = plan(memory=heavy, references=((21, 90, 160),)).warnings()[0]
    assert "a smaller long_edge in Reference Set" in many
    assert "a part of the weights in RAM" in plan(memory=replace(PLENTY, weights=19 * GIB, one=2 * GIB)).warnings()[0]
    assert plan(memory=replace(PLENTY, weights=19 * GIB, loaded=19 * GIB, one=2 * GIB)).warnings() == ()
    (wide,) = plan(1920, 1088).warnings()
    assert "a pass sees 1920x1088 px at once" in wide and "use Spatial Tiles, auto" in wide
    (frames,) = plan(memory=replace(PLENTY, free_ram=GIB // 2)).warnings()
    assert "split the clip" in frames


def test_on_a_cpu_weights_activations_and_frames_share_one_memory():
    shared = replace(PLENTY, shared=True, free=4 * GIB, free_ram=4 * GIB)
    assert plan(memory=shared).warnings() == ()
    assert plan(memory=replace(shared, free=2 * GIB, free_ram=2 * GIB)).warnings()
    four = plan(3840, 2160, memory=shared, tiles=plan_tiles(270, 480, 90, 160, 12))
    assert any("split the clip" in warning for warning in four.warnings())
