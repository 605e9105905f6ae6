"""Segments become the film that an unbroken run gives: frames, times, tracks, tags, transparency."""

from fractions import Fraction

import av
import numpy as np
import pytest
from cascadevsr.media.errors import MediaError
from cascadevsr.media.join import join, write_segment
from cascadevsr.media.plan import TAKES, plan
from cascadevsr.media.reader import frames, probe
from cascadevsr.media.segments import Segment, cut_film
from cascadevsr.media.writer import write
from PIL import Image

from .films import assert_times, clip, film, seen

VARIABLE = [0, 0.033, 0.067, 0.2, 0.9, 0.95, 1.0, 1.04, 1.3, 1.31, 1.5, 1.52, 1.56, 1.9, 2.0, 2.1, 2.15, 2.2]


def enlarge(pictures):
    return (frame.repeat(2, 0).repeat(2, 1) for frame in pictures)


def by_segments(source, out, cuts=(), length=7, order=None, **wishes):
    """Write the segments of OUT, twice as large as the source, then join them; return (plan, files)."""
    timeline = probe(source)
    how = plan(out, timeline, **wishes)
    folder = out.parent / f"{out.name}.segments"
    folder.mkdir()
    segments = cut_film(timeline.frames, cuts, length)
    files = [folder / str(number) for number in range(len(segments))]
    for number in order or range(len(segments)):
        segment = segments[number]
        pictures = enlarge(frames(timeline, how.wish, segment.start, segment.stop))
        write_segment(files[number], pictures, out, how, timeline, segment)
    assert join(out, files, how, timeline, wishes.get("keep", "all")) == timeline.frames
    return how, files


def whole(source, out, **wishes):
    timeline = probe(source)
    how = plan(out, timeline, **wishes)
    write(out, enlarge(frames(timeline, how.wish)), how, timeline, wishes.get("keep", "all"))
    return out


def packets(path):
    """Return (kind, pts, dts, duration, bytes) of all packets, in order, times in units of their tracks."""
    with av.open(str(path)) as container:
        return [(p.stream.type, p.pts, p.dts, p.duration, bytes(p)) for p in container.demux() if p.size]


CASES = [(ending, codec, False) for ending, codecs in TAKES.items() for codec in codecs]
CASES += [(".mp4", "h264", True), (".mkv", "hevc", True), (".webm", "vp9", True), (".mov", "prores", True)]


@pytest.mark.parametrize("ending, codec, lossless", CASES)
def test_every_codec_joins(tmp_path, ending, codec, lossless):
    source = film(tmp_path / "in.mkv", clip(24), sounds=[("aac", "mono", "eng")])
    wishes = {"codec": codec, "lossless": lossless}
    _, files = by_segments(source, tmp_path / f"out{ending}", cuts=(9, 10), **wishes)
    assert len(files) == 5
    reference = whole(source, tmp_path / f"whole{ending}", **wishes)
    ours, theirs = probe(tmp_path / f"out{ending}"), probe(reference)
    assert ours.frames == 24 and np.array_equal(ours.times, theirs.times)
    assert (ours.rate, ours.colour, ours.depth, ours.sar) == (theirs.rate, theirs.colour, theirs.depth, theirs.sar)
    assert ours.start == pytest.approx(theirs.start, abs=0.002)
    found, wanted = (np.stack(list(frames(timeline))).astype(int) for timeline in (ours, theirs))
    assert np.abs(found - wanted).max() == 0 if lossless else np.abs(found - wanted).mean() < 2
    sound = [[p for p in packets(path) if p[0] == "audio"] for path in (tmp_path / f"out{ending}", reference)]
    assert sound[0] == sound[1]
    with av.open(str(tmp_path / f"out{ending}")) as container:
        keys = [p.pts * p.time_base * 24 for p in container.demux(video=0) if p.size and p.is_keyframe]
    assert {0, 9, 10} <= {round(float(key - keys[0])) for key in keys}


@pytest.mark.parametrize("ending, codec", [(e, c) for e, c, lossless in CASES if not lossless])
def test_one_segment_is_the_unbroken_film(tmp_path, ending, codec):
    source = film(tmp_path / "in.mkv", clip(len(VARIABLE)), times=VARIABLE, sounds=[("aac", "mono", "eng")])
    by_segments(source, tmp_path / f"out{ending}", length=99, codec=codec)
    assert packets(tmp_path / f"out{ending}") == packets(whole(source, tmp_path / f"whole{ending}", codec=codec))


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm"])
def test_variable_times_are_kept_over_joints(tmp_path, ending):
    source = film(tmp_path / "in.mp4", clip(len(VARIABLE)), times=VARIABLE, start=0.7)
    by_segments(source, tmp_path / f"out.{ending}", length=5)
    assert_times(tmp_path / f"out.{ending}", VARIABLE)


def test_order_changes_nothing(tmp_path):
    source = film(tmp_path / "in.mkv", clip(24), sounds=[("flac", "stereo", "eng"), ("aac", "mono", "deu")])
    results = []
    for name, order in (("a", None), ("b", (3, 0, 2, 1))):
        (tmp_path / name).mkdir()
        by_segments(source, tmp_path / name / "out.mkv", order=order)
        results.append((tmp_path / name / "out.mkv").read_bytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("ending", ["ts", "mkv"])
def test_offset_of_sound_is_kept(tmp_path, ending):
    source = film(tmp_path / f"in.{ending}", clip(24), start=1.4, sound_start=1.1, sounds=[("mp2", "stereo", "eng")])
    by_segments(source, tmp_path / "out.mkv")
    (first, *_), (sound,) = seen(tmp_path / "out.mkv")
    assert sound - first == pytest.approx(-0.3, abs=0.025)
    reference = seen(whole(source, tmp_path / "whole.mkv"))
    assert seen(tmp_path / "out.mkv") == reference


def hdr(container, stream):
    context = stream.codec_context
    context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, 16, 9, 1


def test_hdr_stays_hdr(tmp_path):
    light = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400"
    source = film(
        tmp_path / "in.mkv",
        clip(16, depth=16),
        codec="libx265",
        layout="yuv420p10le",
        options={"x265-params": f"log-level=none:{light}"},
        prepare=hdr,
    )
    by_segments(source, tmp_path / "out.mp4", length=5)
    ours, was = probe(tmp_path / "out.mp4"), probe(source)
    assert ours.colour.hdr == "PQ" and ours.depth == 10 and ours.light == was.light and len(ours.light) == 2


@pytest.mark.parametrize("ending, depth", [(".webm", 8), (".mov", 8), (".mkv", 8), (".mov", 16)])
def test_transparency_is_kept(tmp_path, ending, depth):
    full = 255 if depth == 8 else 65535
    ramp = np.linspace(0, full, 64)[None, :, None].repeat(48, 0).astype(f"uint{depth}")
    pictures = [np.dstack([frame, np.roll(ramp, 4 * i, 1)]) for i, frame in enumerate(clip(18, depth=depth))]
    layout, codec = ("bgra", "ffv1") if depth == 8 else ("gbrap16le", "ffv1")
    source = film(tmp_path / "in.mkv", pictures, codec=codec, layout=layout)
    how, _ = by_segments(source, tmp_path / f"out{ending}", length=7)
    assert how.wish.alpha
    wanted, found = (
        np.stack([f[..., 3] for f in frames(probe(path), how.wish)]).astype(float)
        for path in (whole(source, tmp_path / f"whole{ending}"), tmp_path / f"out{ending}")
    )
    assert np.abs(wanted - found).mean() < 0.01 * full


@pytest.mark.parametrize("name", ["frames", "out.png", "out.webp"])
def test_pictures_are_those_of_an_unbroken_run(tmp_path, name):
    source = film(tmp_path / "in.mkv", clip(11))
    by_segments(source, tmp_path / name, length=4)
    reference = whole(source, tmp_path / f"whole-{name}" if "." in name else tmp_path / "whole")
    if name == "frames":
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == [f"frame_{i:05d}.png" for i in range(1, 12)]
        for file in reference.iterdir():
            assert file.read_bytes() == (tmp_path / name / file.name).read_bytes()
    else:
        assert (tmp_path / name).read_bytes() == reference.read_bytes()


def test_one_picture(tmp_path):
    Image.fromarray(clip(1)[0]).save(tmp_path / "in.png")
    by_segments(tmp_path / "in.png", tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == whole(tmp_path / "in.png", tmp_path / "whole.png").read_bytes()


def test_what_does_not_fit_is_said(tmp_path):
    source = film(tmp_path / "in.mkv", clip(12))
    timeline, out = probe(source), tmp_path / "out.mp4"
    how, files = by_segments(source, out, length=4)
    out.unlink()
    for chosen, words in (
        (files[:2], "got 8 of 12"),
        (files[::-1], "begins with frame 8, after 0"),
        ([*files[:2], source], "no finished segment"),
    ):
        with pytest.raises(MediaError, match=words):
            join(out, chosen, how, timeline)
    write_segment(files[1], iter(clip(4)), out, how, timeline, Segment(4, 8))
    with pytest.raises(MediaError, match="64x48 and begins with frame 4"):
        join(out, files, how, timeline)
    other = plan(out, timeline, codec="hevc")
    write_segment(files[1], enlarge(clip(4)), out, other, timeline, Segment(4, 8))
    with pytest.raises(MediaError, match="one version of libx264"):
        join(out, files, how, timeline)
    for count in (3, 5):
        with pytest.raises(MediaError, match="must give 4 pictures; got"):
            write_segment(tmp_path / "x", iter(clip(count)), out, how, timeline, Segment(4, 8))
    assert not out.exists() and not list(tmp_path.glob(".cascadevsr-*"))


def test_many_short_scenes(tmp_path):
    source = film(tmp_path / "in.mkv", clip(16))
    for codec in ("h264", "hevc", "vp9", "av1"):
        out = tmp_path / f"{codec}.mkv"
        by_segments(source, out, cuts=range(16), codec=codec)
        assert_times(out, [i / 24 for i in range(16)])
        found = np.stack([f.astype(int) for f in frames(probe(out))])
        wanted = np.stack(list(enlarge(frames(probe(source))))).astype(int)
        assert np.abs(found - wanted).mean((1, 2, 3)).max() < 4
        assert probe(out).rate == Fraction(24)
