"""Windows, tiles, spans, cuts and the engine: everything is covered, nothing shows where it was cut."""

import pytest
import torch
from cascadevsr.models.layout.pieces import (
    AHEAD,
    SHORTEST,
    WARM,
    Cut,
    NotFinite,
    Pieces,
    Span,
    Tile,
    TileFuser,
    Window,
    blend_weights,
    blended_spans,
    cuts_that_fit,
    decode_pieces,
    encode_pieces,
    frames_of,
    list_cuts,
    plain_spans,
    plan_tiles,
    plan_weights,
    plan_windows,
    restarting_spans,
    spread_windows,
    stream_spans,
    tile_weight,
)
from cascadevsr.models.layout.sizes import ClipSize, first_frame
from hypothesis import example, given, settings
from hypothesis import strategies as st

SPACE = 4

# Windows


@st.composite
def plans(draw):
    window = draw(st.integers(1, 20))
    return draw(st.integers(1, 97)), window, draw(st.integers(0, window - 1))


@given(plans())
@example((1, 1, 0))
@example((97, 13, 12))
@example((13, 8, 2))
@pytest.mark.parametrize("plan", [plan_windows, spread_windows])
def test_windows_cover_all_frames_at_full_length(plan, case):
    length, window, overlap = case
    windows = plan(length, window, overlap)
    assert {w.length for w in windows} == {min(window, length)}  # the last one included
    assert windows[0].start == 0 and windows[-1].stop == length
    for before, after in zip(windows, windows[1:], strict=False):
        assert before.start < after.start and before.stop - after.start >= overlap
    assert set().union(*(range(w.start, w.stop) for w in windows)) == set(range(length))


@given(plans())
def test_spread_windows_are_the_fewest_and_even(case):
    length, window, overlap = case
    windows = spread_windows(length, window, overlap)
    assert len(windows) == len(plan_windows(length, window, overlap))
    steps = [b.start - a.start for a, b in zip(windows, windows[1:], strict=False)]
    assert not steps or max(steps) - min(steps) <= 1


@given(plans())
@example((97, 13, 12))
def test_weights_are_positive_and_sum_to_one(case):
    windows = plan_windows(*case)
    total = torch.zeros(case[0])
    for window, weight in zip(windows, plan_weights(windows), strict=True):
        assert weight.shape == (window.length,) and weight.min() > 0
        total[window.span] += weight
    assert torch.allclose(total, torch.ones(case[0]), atol=1e-6)


def test_ramps_of_two_neighbours_mirror_each_other():
    first, second = Window(0, 8), Window(5, 13)
    fall, rise = blend_weights(first, None, second), blend_weights(second, first, None)
    assert torch.allclose(fall[5:] + rise[:3], torch.ones(3, dtype=torch.float64))
    assert torch.equal(fall[:5], torch.ones(5, dtype=torch.float64)) and (rise[:3].diff() > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 8, 8), r"smaller than the window \(8\); got 8"),
        ((10, 8, -1), "at least 0"),
        ((0, 8, 2), "at least 1"),
        ((5, 0, 0), "at least 1"),
    ],
)
def test_window_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_windows(*arguments)


# Tiles


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
def test_tile_errors(case):
    with pytest.raises(ValueError, match="must be .* got "):
        plan_tiles(*case)


def test_fuser_refuses_missing_repeated_and_wrong_parts():
    plan = plan_tiles(4, 6, 4, 4, 2)
    fuser = TileFuser(plan)
    with pytest.raises(ValueError, match="4x4; got 3x4"):
        fuser.add(plan[0], torch.zeros(4, 3))
    fuser.add(plan[0], torch.zeros(4, 4))
    with pytest.raises(ValueError, match="added once"):
        fuser.add(plan[0], torch.zeros(4, 4))
    with pytest.raises(ValueError, match="1 of 2 missing"):
        fuser.result()


# Spans


@given(st.integers(1, 60), st.integers(1, 20))
def test_streamed_and_plain_spans_share_nothing_and_cover_all(frames, length):
    for spans in (stream_spans(frames, length), plain_spans(frames, length)):
        assert spans[0].window.start == 0 and spans[-1].window.stop == frames
        for before, after in zip(spans[:-1], spans[1:], strict=True):
            assert before.window.stop == after.window.start and before.kept == before.window
    assert stream_spans(frames, length)[0].window.length == min(frames, length + 1), "the first frame stands alone"


def test_restarting_spans_drop_what_a_neighbour_knows_better_and_meet():
    spans = restarting_spans(40, 12)
    assert [len(restarting_spans(n, 12)) for n in (1, 12, 13)] == [1, 1, 2]
    assert spans[0].kept.start == 0 and spans[-1].kept.stop == 40
    for before, after in zip(spans[:-1], spans[1:], strict=True):
        assert after.kept.start >= after.window.start + WARM
        assert before.kept.stop <= before.window.stop - AHEAD
        assert before.kept.stop - after.kept.start >= 2, "frames fade into each other"


def test_latent_frames_stand_for_one_frame_then_time_each():
    assert [first_frame(n, 4) for n in range(4)] == [0, 1, 5, 9]
    assert [first_frame(n, 1) for n in range(4)] == [0, 1, 2, 3]


# Cuts


def test_cuts_come_best_first_and_the_law_picks_the_first_that_fits():
    grid = ClipSize(10, 6, 9)
    cuts = list_cuts(grid, (9, 4, 2), (8, 4))
    assert cuts[:2] == (Cut(6, 9, 8), Cut(6, 9, 4)), "whole frames first, with shorter spans"
    assert cuts[2:] == (Cut(4, 4, 8), Cut(4, 4, 4), Cut(2, 2, 8), Cut(2, 2, 4))
    tiles_first = list_cuts(grid, (9, 4, 2), (8, 4), good=4)
    assert tiles_first[:4] == (Cut(6, 9, 8), Cut(4, 4, 8), Cut(6, 9, 4), Cut(4, 4, 4))

    def need(cut):
        return cut.rows * cut.columns * cut.length

    assert cuts_that_fit(cuts, need, 1e9) == cuts
    assert cuts_that_fit(cuts, need, 4 * 4 * 4 + 1)[0] == Cut(4, 4, 4)
    assert cuts_that_fit(cuts, need, 0) == cuts[-1:], "the last is tried all the same"


# The engine


def pointwise_decode(time):
    """Make frames of latents (1, 3, T, h, w): one of the first, `time` of every other, no cell sees another."""

    def decode(latent, first=True):
        alone = 1 if first else 0
        frames = torch.cat((latent[:, :, :alone], latent[:, :, alone:].repeat_interleave(time, 2)), 2)
        return frames.repeat_interleave(SPACE, 3).repeat_interleave(SPACE, 4)[0].movedim(0, -1).clone()

    return decode


def pointwise_encode(time):
    """Make latents of frames (n, H, W, 3): the last frame of every group, averaged over a cell."""

    def encode(frames, first=True):
        assert (len(frames) - first) % time == 0
        cells = frames[:: time if first else 1][(0 if first else time - 1) :: 1 if first else time]
        cells = cells.unflatten(2, (-1, SPACE)).unflatten(1, (-1, SPACE)).mean((2, 4))
        return cells.movedim(-1, 0)[None]

    return encode


def all_pieces(frames, tile, length):
    tiles = plan_tiles(9, 7, tile, tile, tile // 4)
    yield Pieces(restarting_spans(frames, length), tiles)
    yield Pieces(stream_spans(frames, length), tiles, streamed=True)


@pytest.mark.parametrize("time", [1, 4, 8])
@pytest.mark.parametrize(("frames", "tile", "length"), [(3, 9, 3), (30, 4, 12), (31, 9, 13), (40, 5, 1)])
def test_a_pointwise_network_does_not_see_the_cuts(time, frames, tile, length):
    size = ClipSize(1 + time * (frames - 1) - (time > 1), 9 * SPACE - 1, 7 * SPACE - 3)
    latent = torch.rand(1, 3, frames, 9, 7, generator=torch.Generator().manual_seed(0))
    whole = pointwise_decode(time)(latent)
    for pieces in all_pieces(frames, tile, length):

        def anew(window, pieces=pieces):  # whether the network takes a window's first frame for a clip's first
            return window.start == 0 or not pieces.streamed

        def decode(window, place, anew=anew):
            return pointwise_decode(time)(latent[:, :, window.span][place.region], anew(window))

        def encode(window, place, anew=anew):
            rows, columns = place.scaled(SPACE).region[1:]
            return pointwise_encode(time)(whole[window.span, rows, columns], anew(window))

        output = torch.zeros(size.frames, size.height, size.width, 3)
        decode_pieces(decode, output, pieces, SPACE, time)
        assert torch.allclose(output, whole[: size.frames, : size.height, : size.width], atol=1e-5)
        assert torch.allclose(encode_pieces(encode, ClipSize(frames, 9, 7), pieces, time), latent, atol=1e-5)


def test_spans_that_share_frames_fade_into_each_other():
    """Two spans that say 0 and 1: their frames meet in a ramp, each pixel a mean of both."""
    pieces = Pieces(blended_spans(8, 5, 2), plan_tiles(2, 2, 2, 2, 0))
    values = {span.window: float(number) for number, span in enumerate(pieces.spans)}
    output = torch.zeros(8, 2, 2, 3)
    decode_pieces(lambda window, tile: torch.full((window.length, 2, 2, 3), values[window]), output, pieces, 1, 1)
    ramp = output[:, 0, 0, 0]
    assert ramp[0] == 0 and ramp[-1] == 1 and (ramp.diff() >= 0).all() and 0 < ramp[3] < ramp[4] < 1


def test_a_frame_of_three_spans_is_written_once_as_their_mean():
    """The last span is shifted back: frames 4 and 5 belong to three spans, and no frame shows a part of its sum."""
    pieces, written = Pieces(blended_spans(8, 5, 3), plan_tiles(2, 2, 2, 2, 0)), []
    assert [span.kept.start for span in pieces.spans] == [0, 2, 3]
    values = {span.window: 0.2 + 0.3 * number for number, span in enumerate(pieces.spans)}
    weights = plan_weights([span.kept for span in pieces.spans])
    wanted = torch.zeros(8)
    for (window, value), weight in zip(values.items(), weights, strict=True):
        wanted[window.span] += value * weight

    def shown(done, total):
        written.append(int((output.amax((1, 2, 3)) > 0).sum()))

    output = torch.zeros(8, 2, 2, 3)
    decode_pieces(lambda w, _: torch.full((w.length, 2, 2, 3), values[w]), output, pieces, 1, 1, shown)
    assert written == [0, 2, 3, 8]
    assert torch.allclose(output, wanted.view(-1, 1, 1, 1).expand_as(output), atol=1e-6)


def test_one_piece_is_the_plain_call():
    latent = torch.rand(1, 3, 5, 4, 4)
    pieces = Pieces(restarting_spans(5, SHORTEST), plan_tiles(4, 4, 9, 9, 0))
    decode = pointwise_decode(4)
    output = decode_pieces(lambda *_: decode(latent), torch.zeros(17, 16, 16, 3), pieces, 4, 4)
    assert pieces.whole and torch.equal(output, decode(latent))


def test_every_piece_ticks_and_is_a_place_to_stop():
    pieces, seen = Pieces(plain_spans(4, 2), plan_tiles(4, 2, 2, 2, 0)), []

    def decode(window, tile):
        return torch.zeros(window.length, tile.height, tile.width, 3)

    decode_pieces(decode, torch.zeros(4, 4, 2, 3), pieces, 1, 1, progress=lambda *tick: seen.append(tick))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]

    class Stopped(BaseException):
        pass

    def stop():
        raise Stopped

    with pytest.raises(Stopped):
        decode_pieces(decode, torch.zeros(4, 4, 2, 3), pieces, 1, 1, check_cancelled=stop)


def test_frames_that_are_not_finite_are_refused():
    clip = torch.zeros(1, 3, 2, 4, 4)
    assert torch.equal(frames_of(clip), torch.full((2, 4, 4, 3), 0.5))
    clip[0, 0, 1, 2, 2] = float("inf")
    with pytest.raises(NotFinite, match="must be finite numbers; got NaN or infinity in torch.float32"):
        frames_of(clip)
    assert Span(Window(0, 1), Window(0, 1)) == plain_spans(1, 1)[0]
