"""What a film was, its larger copy is: times, tags, depth, transparency, shape."""

import time
import tracemalloc
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from cascadevsr.media import colour
from cascadevsr.media.errors import MediaError
from cascadevsr.media.plan import TAKES, plan
from cascadevsr.media.reader import Wish, frames, probe
from cascadevsr.media.writer import write, write_video
from PIL import Image

from .films import assert_times, clip, enlarged, film, seen


@pytest.mark.parametrize("size", [(30, 46), (17, 19), (18, 33)])
def test_lossless_video_is_exact(tmp_path, size):
    pictures = clip(5, *size)
    out = tmp_path / "a.mp4"
    assert write_video(out, iter(pictures), Fraction(24000, 1001), codec="h264-rgb") == 5
    timeline = probe(out)
    assert (timeline.frames, timeline.height, timeline.width) == (5, *size)
    assert timeline.rate == Fraction(24000, 1001)
    assert all(np.array_equal(a, b) for a, b in zip(frames(timeline), pictures, strict=True))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
@pytest.mark.parametrize("size", [(30, 46), (17, 19)])
def test_lossy_video_keeps_count_size_and_colours(tmp_path, name, size):
    pictures, out = clip(5, *size), tmp_path / name
    write_video(out, pictures, Fraction(25), crf=8)
    info = probe(out)
    assert (info.frames, info.height, info.width) == (5, *size)
    with av.open(str(out)) as container:
        found = [frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray() for frame in container.decode()]
    difference = np.stack(found).astype(float) - np.stack(pictures)  # 4:2:0 and the decoder's own rounding
    assert np.abs(difference).mean() < 4 and np.abs(difference.mean((0, 1, 2))).max() < 2


@pytest.mark.parametrize("halved", [True, False])
@pytest.mark.parametrize("bits", [8, 10])
def test_colours_are_bt709(halved, bits):
    for rgb, yuv in (
        ((255, 255, 255), (235, 128, 128)),
        ((255, 0, 0), (63, 102, 240)),
        ((0, 0, 255), (32, 240, 118)),
    ):
        found = colour.planes(np.full((4, 6, 3), rgb, np.uint8), bits, 1, halved, False)
        assert [plane.size for plane in found] == ([24, 6, 6] if halved else [24, 24, 24])
        assert all(
            np.abs(plane / 2 ** (bits - 8) - value).max() <= 0.5 for plane, value in zip(found, yuv, strict=True)
        )


def test_by_hand_there_and_back():
    frame = clip(1, depth=16)[0]
    for matrix, full in ((1, False), (9, False)):
        found = colour.planes(frame, 10, matrix, False, False)
        back = colour.from_planes([plane << 6 for plane in found], colour.Colour(1, 1, matrix, full))
        assert np.abs(back.astype(int) - frame).max() < 130  # about a code of 10 bits


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_same_frames_give_the_same_file(tmp_path, ending):
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.{ending}", clip(6, 30, 46), Fraction(25))
        time.sleep(0.6)  # across a full second: containers like to note the time of day
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm"])
def test_variable_times_are_kept(tmp_path, ending):
    times = [0, 0.033, 0.067, 0.2, 0.9, 0.95]
    source = film(tmp_path / "in.mp4", times=times, start=0.7)
    enlarged(source, tmp_path / f"out.{ending}")
    assert_times(tmp_path / f"out.{ending}", times)


def test_delays_of_an_animation_are_kept(tmp_path):
    pictures = [Image.fromarray(frame) for frame in clip(4)]
    pictures[0].save(tmp_path / "in.gif", save_all=True, append_images=pictures[1:], duration=[40, 100, 250, 60])
    enlarged(tmp_path / "in.gif", tmp_path / "out.mp4")
    assert_times(tmp_path / "out.mp4", [0, 0.04, 0.14, 0.39])
    for name in ("out.webp", "out.png"):
        enlarged(tmp_path / "in.gif", tmp_path / name)
        again = probe(tmp_path / name)
        assert again.kind == "animation" and np.allclose(again.times, [0, 0.04, 0.14, 0.39])
        assert np.array_equal(next(frames(again))[::2, ::2], next(frames(probe(tmp_path / "in.gif"))))


def test_pixels_keep_their_shape(tmp_path):
    def prepare(container, stream):
        stream.codec_context.sample_aspect_ratio = Fraction(64, 45)

    source = film(tmp_path / "in.mkv", prepare=prepare)
    for ending in ("mp4", "mkv"):
        enlarged(source, tmp_path / f"out.{ending}")
        assert probe(tmp_path / f"out.{ending}").sar == Fraction(64, 45)
    assert "pixels of 64:45 are shown square" in plan(tmp_path / "out.webm", probe(source)).notes[0]
    timeline = probe(source)
    how = plan(tmp_path / "wide.mkv", timeline)
    write(tmp_path / "wide.mkv", clip(6, 48, 96), how, timeline)  # other sides: the same shape on the screen
    assert probe(tmp_path / "wide.mkv").sar == Fraction(64, 45) * Fraction(64, 96)


MASTER = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"


def hdr(path, transfer=16):
    def prepare(container, stream):
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, transfer, 9, 1

    options = {"x265-params": f"log-level=none:bframes=0:hdr10=1:max-cll=1000,400:{MASTER}"}
    return film(path, clip(3, depth=16), codec="libx265", layout="yuv420p10le", options=options, prepare=prepare)


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_kept_or_tone_mapped_and_said(tmp_path, transfer):
    source = hdr(tmp_path / "in.mp4", transfer)
    timeline = probe(source)
    kept = enlarged(source, tmp_path / "kept.mp4")
    again = probe(tmp_path / "kept.mp4")
    assert set(again.light) == set(timeline.light) == {MASTER, "max-cll=1000,400"}
    assert again.colour == timeline.colour and again.depth == 10 and "is kept" in kept.notes[0]
    one, two = (next(frames(t, Wish(16))).astype(float) for t in (timeline, again))
    assert np.abs(two[::2, ::2] - one).mean() < 700  # 10-bit codes are 64 apart
    for name, wishes in (("a.mp4", {"tonemap": True}), ("b.mp4", {"codec": "h264"}), ("c.png", {})):
        mapped = enlarged(source, tmp_path / name, **wishes)
        assert "tone-mapped to BT.709, white at 203 nits" in mapped.notes[0]
        found = probe(tmp_path / name)
        assert not found.colour.hdr and found.colour.primaries in (1, 2)
        expected = next(frames(timeline, Wish(8, tonemap=True))).astype(float)
        assert abs(next(frames(found))[::2, ::2].mean() - expected.mean()) < 3


def test_deep_sources_give_deep_results(tmp_path):
    ramp = np.repeat(np.linspace(20000, 26000, 64).astype(np.uint16)[None, :, None], 48, 0).repeat(3, 2)
    film(tmp_path / "in.mkv", [ramp] * 2, codec="ffv1", layout="yuv420p10le")
    Image.fromarray(ramp[..., 0]).save(tmp_path / "in.png")
    for source, out in (("in.mkv", "a.mp4"), ("in.mkv", "a.webm"), ("in.mkv", "folder"), ("in.png", "a.png")):
        enlarged(tmp_path / source, tmp_path / out)
        again = probe(tmp_path / out)
        assert again.depth in (10, 16)
        assert np.abs(next(frames(again, Wish(16)))[::2, ::2].astype(int) - ramp).mean() < 200
    assert "10 bits a channel become 8" in enlarged(tmp_path / "in.mkv", tmp_path / "b.mp4", codec="h264").notes[0]


def test_lossless_of_deep_sources(tmp_path):
    Image.fromarray(clip(1, depth=16)[0][..., 0]).save(tmp_path / "in.png")
    source = next(frames(probe(tmp_path / "in.png"), Wish(16)))
    for name, error in (("a.mkv", 0), ("a.mp4", 8)):  # FFV1 of 16 bits, HEVC of 12
        enlarged(tmp_path / "in.png", tmp_path / name, lossless=True)
        found = next(frames(probe(tmp_path / name), Wish(16)))[::2, ::2].astype(int)
        assert np.abs(found - source).max() <= error


CODECS = [(ending, codec) for ending, codecs in TAKES.items() for codec in codecs]


@pytest.mark.parametrize("ending, codec", CODECS)
def test_every_codec_writes_every_kind_of_source(tmp_path, ending, codec):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(48, 0)
    film(tmp_path / "a.mov", clip(3), codec="png", layout="rgb24")
    film(tmp_path / "b.mov", [np.dstack([c, ramp]) for c in clip(3)], codec="png", layout="rgba")
    film(tmp_path / "c.mkv", clip(3, depth=16), codec="ffv1", layout="gbrp16le")
    for source in ("a.mov", "b.mov", "c.mkv"):
        for lossless in (False, True)[: 1 if codec == "av1" else 2]:
            out = tmp_path / f"out{ending}"
            how = enlarged(tmp_path / source, out, codec=codec, lossless=lossless)
            wish = Wish(8, alpha=how.encoding.alpha)
            pairs = zip(frames(probe(tmp_path / source), wish), frames(probe(out), wish), strict=True)
            error = np.abs(np.mean([small - large[::2, ::2].astype(float) for small, large in pairs], (0, 1, 2))).max()
            assert error < 1.5, (source, lossless, how.encoding)


def test_odd_sides_are_known_before_the_work(tmp_path):
    ramp = np.full((48, 64, 3), 20000, np.uint16)
    timeline = probe(film(tmp_path / "in.mkv", [ramp] * 2, codec="ffv1", layout="yuv420p10le"))
    with pytest.raises(MediaError, match="av1 needs even sides; got 67x50"):
        plan(tmp_path / "a.mkv", timeline, codec="av1", size=(50, 67))
    assert plan(tmp_path / "a.webm", timeline, size=(50, 67)).encoding.encoder == "libvpx-vp9"
    assert plan(tmp_path / "a.webm", timeline, size=(50, 68)).encoding.encoder == "libsvtav1"


def test_transparency_is_kept_where_it_can_be(tmp_path):
    pictures = [np.dstack([frame, np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(48, 0)]) for frame in clip(4)]
    for number, picture in enumerate(pictures):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "in" / f"{number}.png")
    for name, error in (("a.webm", 6), ("a.mov", 3), ("a.mkv", 6), ("a.png", 0), ("a.webp", 0), ("folder", 0)):
        enlarged(tmp_path / "in", tmp_path / name)
        again = probe(tmp_path / name)
        assert again.alpha, name
        found = next(frames(again, Wish(alpha=True)))[::2, ::2, 3].astype(int)
        assert np.abs(found - pictures[0][..., 3]).max() <= error, name
    dropped = enlarged(tmp_path / "in", tmp_path / "a.mp4")
    assert "transparency is dropped" in dropped.notes[0]
    assert next(frames(probe(tmp_path / "a.mp4")))[:, :8].max() < 40  # what was hidden stays so


def test_interlaced_films_get_a_line(tmp_path):
    combed = replace(probe(film(tmp_path / "in.mp4")), interlaced=True)
    assert "--deinterlace makes whole frames" in plan(tmp_path / "a.mp4", combed).notes[0]
    how = plan(tmp_path / "a.mp4", combed, deinterlace=True)
    assert how.wish.deinterlace and not how.notes


def test_a_codec_that_the_container_refuses(tmp_path):
    with pytest.raises(MediaError, match=r"--codec: \.webm takes vp9, av1; got h264"):
        plan(tmp_path / "a.webm", probe(film(tmp_path / "in.mp4")), codec="h264")


def test_another_number_of_frames_gets_even_times(tmp_path):
    timeline = probe(film(tmp_path / "in.mp4", sounds=[("aac", "mono", "eng")]))
    how = plan(tmp_path / "out.mp4", timeline)
    assert write(tmp_path / "out.mp4", clip(9), how, timeline, even=True) == 9
    assert_times(tmp_path / "out.mp4", [i / 24 for i in range(9)])
    assert not seen(tmp_path / "out.mp4")[1]


def peak(tmp_path, count):
    """Return the most memory that reading and writing a clip takes beyond what was there, in bytes."""
    path = film(tmp_path / f"{count}.mkv", clip(20, 32, 32) * (count // 20), options={"preset": "ultrafast"})
    tracemalloc.start()
    try:
        timeline = probe(path)
        how = plan(tmp_path / "out.mp4", timeline)
        write(tmp_path / "out.mp4", frames(timeline, how.wish), how, timeline)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_length(tmp_path):
    peak(tmp_path, 20)  # imports and caches
    short, long = peak(tmp_path, 100), peak(tmp_path, 2000)
    assert long - short < 2000 * 200  # a few numbers a frame; a frame has 3072 bytes
