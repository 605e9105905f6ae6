"""Sizes: exact in, exact out, for any side from 1 px and any count from 1 frame."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cascadevsr.models.layout import sizes
from cascadevsr.models.layout.pieces import plan_tiles
from cascadevsr.models.layout.sizes import (
    ClipSize,
    RegionReader,
    clip_size,
    crop_clip,
    latent_frames,
    latent_size,
    pad_clip,
    padded_size,
    resize_clip,
    resized,
    target_size,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

SIDES = st.integers(1, 131)
FRAMES = st.integers(1, 23)


def test_latent_frames_first_alone_then_four_each():
    assert [latent_frames(n) for n in (1, 2, 5, 6, 9, 17, 81)] == [1, 2, 2, 3, 3, 5, 21]


@given(FRAMES, SIDES, SIDES)
@example(1, 1, 1)
@example(23, 127, 131)
@example(17, 17, 17)
def test_padded_size_is_the_smallest_legal_one(frames, height, width):
    size = ClipSize(frames, height, width)
    padded, grid = padded_size(size), latent_size(size)
    assert padded.frames % 4 == 1 and padded.height % 8 == 0 and padded.width % 8 == 0
    assert 0 <= padded.frames - frames < 4
    assert 0 <= padded.height - height < 8 and 0 <= padded.width - width < 8
    assert ClipSize(1 + 4 * (grid.frames - 1), 8 * grid.height, 8 * grid.width) == padded
    assert padded_size(padded) == padded and latent_size(padded) == grid


@settings(max_examples=25)
@given(st.integers(1, 7), st.integers(1, 37), st.integers(1, 37))
@example(1, 1, 1)
@example(5, 17, 31)
def test_crop_undoes_pad(frames, height, width):
    clip = torch.rand(1, 3, frames, height, width)
    size = clip_size(clip)
    padded = pad_clip(clip, padded_size(size))
    assert clip_size(padded) == padded_size(size)
    assert torch.equal(crop_clip(padded, size), clip)
    assert torch.equal(padded[:, :, -1, -1, -1], clip[:, :, -1, -1, -1])  # the corner repeats


def test_nothing_to_pad_or_resize_returns_the_clip_itself():
    clip = torch.rand(1, 3, 5, 16, 8)
    assert pad_clip(clip, clip_size(clip)) is clip
    assert resize_clip(clip, 16, 8) is clip


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"scale": 4}, (68, 124)),
        ({"scale": 1.5}, (26, 47)),
        ({"short_side": 1080}, (1080, 1969)),
        ({"long_side": 1920}, (1053, 1920)),
        ({"exact": (1081, 1919)}, (1081, 1919)),
        ({"scale": 1, "multiple": 2}, (16, 30)),
        ({"scale": 1.5, "multiple": 2}, (26, 46)),
        ({"scale": 1.5, "multiple": 16}, (32, 48)),
        ({"scale": 0.1, "multiple": 16}, (16, 16)),
        ({"long_side": 1920, "multiple": 2}, (1052, 1920)),
        ({"exact": (1080, 1920), "multiple": 8}, (1080, 1920)),
    ],
)
def test_target_size(rule, expected):
    assert target_size(17, 31, **rule) == expected


@pytest.mark.parametrize(
    ("height", "width", "rule", "whole", "even"),
    [
        (480, 854, {"short_side": 720}, (720, 1281), (720, 1280)),
        (480, 854, {"short_side": 1080}, (1080, 1922), (1080, 1922)),
        (360, 854, {"short_side": 480}, (480, 1139), (480, 1138)),
        (480, 640, {"long_side": 1281}, (961, 1281), (960, 1280)),
        (1080, 1919, {"scale": 0.5}, (540, 960), (540, 960)),
        (576, 719, {"scale": 1}, (576, 719), (576, 718)),
    ],
)
def test_ordinary_sources_become_even(height, width, rule, whole, even):
    assert target_size(height, width, **rule) == whole
    assert target_size(height, width, multiple=2, **rule) == even


@given(SIDES, SIDES, st.integers(1, 2000))
def test_short_and_long_side_are_met_exactly(height, width, side):
    assert min(target_size(height, width, short_side=side)) == side
    assert max(target_size(height, width, long_side=max(side, 131))) == max(side, 131)


@given(SIDES, SIDES, st.integers(2, 2000), st.integers(1, 64))
@example(240, 320, 721, 2)  # 721 / 240 * 240 is 721.0000000000001
def test_sides_are_the_nearest_multiples(height, width, short, multiple):
    size, whole = (target_size(height, width, short_side=short, multiple=m) for m in (multiple, 1))
    assert all(side % multiple == 0 and side >= multiple for side in size)
    assert all(abs(a - b) <= max(multiple / 2 + 0.5, multiple - b) for a, b in zip(size, whole, strict=True))
    assert multiple > short or min(size) <= short + multiple / 2 - 0.5  # halves go down


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"scale": 0.01}, "at least 1 px"),
        ({"scale": float("nan")}, "finite"),
        ({"scale": -1}, "at least 1 px"),
        ({"exact": (0, 5)}, "at least 1 px"),
        ({"exact": (4.5, 5)}, "whole sides"),
        (
            {"exact": (1080, 853), "multiple": 2},
            "multiples of 2 px; got 853x1080. Ask for 852x1080, or set multiple to 1",
        ),
        ({"exact": (5, 1), "multiple": 4}, "Ask for 4x4, or"),
        ({"scale": -1, "multiple": 2}, "at least 1 px"),
        ({"scale": 0.01, "multiple": 2}, "at least 1 px"),
        ({"scale": 2, "multiple": 0}, "multiple must be a whole number of at least 1 px; got 0"),
        ({"scale": 2, "multiple": 1.5}, "multiple must be a whole number"),
        ({}, "exactly one"),
        ({"long_side": 2, "short_side": 5}, "exactly one"),
        ({"scale": 2, "short_side": 5}, "exactly one"),
    ],
)
def test_target_size_errors(rule, message):
    with pytest.raises(ValueError, match=message):
        target_size(17, 31, **rule)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ClipSize(0, 4, 4), "at least 1"),
        (lambda: clip_size(torch.zeros(3, 4, 4)), "five dimensions"),
        (lambda: pad_clip(torch.zeros(1, 3, 5, 8, 8), ClipSize(1, 8, 8)), "must not be smaller"),
        (lambda: crop_clip(torch.zeros(1, 3, 1, 8, 8), ClipSize(2, 8, 8)), "must not be larger"),
        (lambda: resize_clip(torch.zeros(1, 3, 1, 8, 8), 4, 4, "nearest"), "must be one of"),
    ],
)
def test_errors_name_the_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("height", "width"), [(9, 7), (40, 53), (1, 1)])
def test_resize_equals_pillow(mode, height, width):
    image = pytest.importorskip("PIL.Image")
    plane = np.random.default_rng(0).random((19, 23), np.float32)
    kernel = image.Resampling[mode.upper()]
    expected = np.asarray(image.fromarray(plane, "F").resize((width, height), kernel))
    clip = torch.from_numpy(plane).expand(1, 3, 1, -1, -1)
    resized = resize_clip(clip, height, width, mode)
    np.testing.assert_allclose(resized[0, 1, 0].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("mode", sizes.RESIZE_MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_resize_in_parts_equals_the_whole(mode, dtype, monkeypatch):
    clip = torch.rand(2, 3, 5, 6, 7).to(dtype)
    whole = resize_clip(clip, 13, 5, mode)
    monkeypatch.setattr(sizes, "_RESIZE_PIXELS", 1)
    parts = resize_clip(clip, 13, 5, mode)
    assert parts.dtype == dtype
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6 if dtype is torch.float32 else 1e-3)


@pytest.mark.parametrize("mode", sizes.RESIZE_MODES)
def test_resize_keeps_a_flat_clip_flat(mode):
    flat = resize_clip(torch.full((1, 3, 2, 5, 7), 0.3), 11, 3, mode)
    assert torch.allclose(flat, torch.tensor(0.3), atol=1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("target", [(37, 53), (7, 11), (12, 20), (5, 9)])
def test_rectangles_of_a_resize_are_those_of_the_whole(mode, target):
    frames = torch.rand(4, 12, 20, 3, generator=torch.Generator().manual_seed(0))
    size = ClipSize(4, *target)
    padded = padded_size(size, 8, 4)
    clip = resize_clip(frames.movedim(-1, 0)[None], *target, mode).clamp(0, 1)
    whole = pad_clip(clip, padded)[0].movedim(0, -1)
    read = RegionReader(frames, size, padded, mode)
    for tile in plan_tiles(padded.height, padded.width, 8, 8, 3):
        rows, columns = tile.region[1:]
        assert torch.allclose(read(1, 5, rows, columns), whole[1:5, rows, columns], atol=2e-6)
    with pytest.raises(ValueError, match="mode must be bilinear, bicubic or lanczos; got 'area'"):
        RegionReader(frames, size, padded, "area")


@pytest.mark.parametrize("size", [(36, 52), (72, 104), (27, 39), (13, 17), (18, 104), (18, 26), (1, 1)])
def test_resizing_by_matrices_is_torchs(size):
    x = torch.rand(2, 3, 18, 26, generator=torch.Generator().manual_seed(0))
    right = F.interpolate(x, size, mode="bicubic", antialias=True)
    torch.testing.assert_close(resized(x, size), right, rtol=0, atol=3e-6)
