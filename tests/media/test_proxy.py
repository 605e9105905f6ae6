"""The small film of two clips: which frames are shown together, where they lie, their times, key frames."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from cascadevsr.media.errors import MediaError
from cascadevsr.media.proxy import Sheet, pair, write_pairs
from cascadevsr.media.reader import Wish, frames, probe
from cascadevsr.media.timeline import Timeline

from .films import clip, film


def even(count, rate=24, height=48, width=64, **more):
    steps = np.arange(count, dtype=np.int64)
    base = 1 / Fraction(rate)
    return Timeline("x", "frames", height, width, steps, base, Fraction(rate), last=float(base), **more)


def numbers(before, after):
    found = pair(before, after)
    return found.before.tolist(), found.after.tolist()


def test_as_many_frames_are_paired_by_number_whatever_their_times():
    assert numbers(even(5, 24), even(5, 30)) == ([0, 1, 2, 3, 4],) * 2
    assert pair(even(5, 24), even(5, 30)).times[4] == pytest.approx(4 / 30)


def test_other_rates_are_paired_by_time_while_the_shorter_one_lasts():
    assert numbers(even(4, 24), even(8, 48)) == ([0, 0, 1, 1, 2, 2, 3, 3], list(range(8)))
    assert numbers(even(6, 30), even(4, 24)) == ([0, 1, 2, 3, 4], [0, 0, 1, 2, 3])
    assert numbers(even(100), even(97)) == (list(range(97)),) * 2
    assert numbers(even(97), even(100)) == (list(range(97)),) * 2


def test_times_that_a_container_has_rounded_change_no_pair():
    exact = even(50)
    rounded = replace(exact, pts=np.rint(np.arange(53) * 1000 / 24).astype(np.int64), time_base=Fraction(1, 1000))
    for one, two in ((exact, rounded), (rounded, exact)):
        assert numbers(one, two) == (list(range(50)),) * 2


def test_a_picture_stays():
    assert numbers(even(1), even(4)) == ([0] * 4, [0, 1, 2, 3])
    assert numbers(even(4), even(1)) == ([0, 1, 2, 3], [0] * 4)


def test_a_part_begins_at_zero_and_must_hold_a_frame():
    part = pair(even(10), even(10)).part(4, 3)
    assert part.after.tolist() == [4, 5, 6] and part.times[0] == 0 and part.last == pytest.approx(1 / 24)
    assert len(pair(even(10), even(10)).part(8, 100).times) == 2
    with pytest.raises(MediaError, match="must leave a frame of the 10 that are compared; got 10"):
        pair(even(10), even(10)).part(10, 5)


def test_clips_are_no_larger_than_they_are_and_share_no_block():
    sheet = Sheet.of(even(1, height=270, width=480), even(1, height=2160, width=3840), 1280)
    assert sheet.before == (0, 0, 480, 270) and sheet.after == (0, 272, 1280, 720)
    assert (sheet.width, sheet.height) == (1280, 992)
    tall = Sheet.of(even(1, height=480, width=270), even(1, height=1920, width=1080), 1280)
    assert tall.after == (272, 0, 720, 1280) and (tall.width, tall.height) == (992, 1280)
    assert Sheet.of(even(1), even(1, height=576, width=720, sar=Fraction(16, 15)), 1280).after[2:] == (768, 576)


@pytest.mark.parametrize("times", [None, [0, 0.033, 0.067, 0.2, 0.9, 0.95]])
def test_every_frame_is_there_at_its_time(tmp_path, times):
    small, large = clip(height=46, width=62), clip(height=96, width=128, seed=3)
    before = probe(film(tmp_path / "a.mp4", small, times=times))
    after = probe(film(tmp_path / "b.mp4", large, times=times, options={"bf": "2"}))
    pairs, sheet, out = pair(before, after), Sheet.of(before, after, 100), tmp_path / "p.mp4"
    boxes = sheet.before, sheet.after
    walks = [frames(side, Wish(size=box[:1:-1])) for side, box in zip((before, after), boxes, strict=True)]
    sheets = [sheet.fill(*both) for both in zip(*walks, strict=True)]
    assert list(write_pairs(out, sheets, pairs, 1 << 20)) == [1, 2, 3, 4, 5, 6]
    with av.open(str(out)) as container:
        found = list(container.decode(video=0))
    assert np.abs(np.array([frame.time for frame in found]) - pairs.times).max() < 1e-4
    for frame, wanted in zip(frames(probe(out)), sheets, strict=True):
        assert np.abs(frame.astype(int) - wanted).mean() < 6  # 4:2:0 of tiny, colourful frames
        for x, y, width, height in boxes:
            part = np.s_[y : y + height, x : x + width]
            assert np.abs(frame[part].astype(int).mean((0, 1)) - wanted[part].mean((0, 1))).max() < 2


def test_a_step_decodes_a_dozen_frames_at_most(tmp_path):
    """A browser decodes from the key frame before the one it goes to, and none refers to a later one."""
    grey = even(30, height=64, width=64), even(30, height=64, width=64)
    pairs, out = pair(*grey), tmp_path / "p.mp4"
    list(write_pairs(out, np.full((30, 128, 64, 3), 90, np.uint8), pairs, 1 << 20))
    with av.open(str(out)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    assert keys[0] == 0 and max(np.diff([*keys, len(packets)])) <= 12
    assert all(packet.pts == packet.dts for packet in packets)


def test_its_size_is_bounded(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 128, 128, 3), np.uint8)
    clips = even(24, height=128, width=128), even(24, height=128, width=128)
    pairs, out = pair(*clips), tmp_path / "p.mp4"
    list(write_pairs(out, noise, pairs, 60_000))
    assert out.stat().st_size < 120_000
    list(write_pairs(out, noise, pairs, 1 << 30))
    assert out.stat().st_size > 200_000


@pytest.mark.parametrize("size", [(24, 32), (30, 50)])
def test_frames_can_come_smaller(tmp_path, size):
    source = probe(film(tmp_path / "a.mp4", clip(height=96, width=128)))
    large = next(frames(source))
    small = next(frames(source, Wish(size=size)))
    assert small.shape == (*size, 3) and np.abs(small.mean((0, 1)) - large.mean((0, 1))).max() < 1.5
