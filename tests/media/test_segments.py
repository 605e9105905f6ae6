"""How a film is cut: every frame once, nothing over a cut, short tails together with what is before them."""

import random

import pytest
from cascadevsr.media.errors import MediaError
from cascadevsr.media.segments import Segment, cut_film, share


def test_a_film_by_hand():
    assert cut_film(10, (), 20, 4) == (Segment(0, 10),)
    assert cut_film(24, (), 20, 4) == (Segment(0, 24),)  # a tail shorter than the context
    assert cut_film(25, (), 20, 4) == (Segment(0, 12, 0, 4), Segment(12, 25, 4, 0))
    assert cut_film(30, (10,), 10, 3) == (Segment(0, 10), Segment(10, 20, 0, 3), Segment(20, 30, 3, 0))
    assert cut_film(3, (0, 1, 2, 3), 10, 3) == (Segment(0, 1), Segment(1, 2), Segment(2, 3))


def test_a_step_lengthens_the_context():
    segments = cut_film(130, (30,), 30, 5, step=4)
    assert all((s.first - (30 if s.start >= 30 else 0)) % 4 == 0 for s in segments)
    assert all(5 <= s.before < 9 for s in segments if s.start not in (0, 30))


def test_long_segments_begin_on_steps_and_waste_nothing():
    segments = cut_film(1030, (330,), 100, 8, step=8)
    assert all((s.start - (330 if s.start >= 330 else 0)) % 8 == 0 and s.before in (0, 8) for s in segments)
    assert all(s.frames < 108 for s in segments) and len(segments) == 4 + 7
    assert cut_film(200, (), 100, 8, step=8) == (Segment(0, 96, 0, 8), Segment(96, 200, 8, 0))


def test_rules_hold_for_any_film():
    draw = random.Random(1)
    for _ in range(300):
        frames, length, context = draw.randint(1, 400), draw.randint(1, 60), draw.randint(0, 20)
        cuts = sorted(draw.sample(range(frames), draw.randint(0, min(6, frames))))
        segments = cut_film(frames, cuts, length, context)
        assert segments == cut_film(frames, reversed(cuts), length, context)
        assert [s.start for s in segments] + [frames] == [0] + [s.stop for s in segments]
        borders = [0, *cuts, frames]
        for s in segments:
            assert 0 < s.frames <= length + context
            begin, end = max(b for b in borders if b <= s.start), min(b for b in borders if b >= s.stop)
            assert s.first == max(begin, s.start - context) and s.end == min(end, s.stop + context)


def test_fewer_frames_after_than_before():
    segments = cut_film(30, (), 10, 6, after=2)
    assert [(s.before, s.after) for s in segments] == [(0, 2), (6, 2), (6, 0)]


def test_parts_share_everything():
    for count in (1, 3, 10, 47):
        for parts in (1, 3, 10):
            assert [i for part in range(1, parts + 1) for i in share(count, part, parts)] == list(range(count))


@pytest.mark.parametrize("act", [lambda: cut_film(0, (), 5), lambda: cut_film(5, (), 0), lambda: cut_film(5, (9,), 3)])
def test_out_of_range(act):
    with pytest.raises(MediaError, match="got"):
        act()
    with pytest.raises(MediaError, match="--part: must be I/N"):
        share(5, 4, 3)
