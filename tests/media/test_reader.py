"""Any source is read whole, upright, in its own colours and times, or refused in a sentence."""

import re
from fractions import Fraction

import av
import numpy as np
import pytest
from cascadevsr.media import colour, reader
from cascadevsr.media.errors import MediaError
from cascadevsr.media.reader import Wish, frames, probe
from cascadevsr.media.writer import write_video
from PIL import Image

from .films import clip, film


def stack(path, wish=None, **part):
    return np.stack(list(frames(probe(path), wish, **part)))


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def test_every_frame_has_its_time(tmp_path):
    times = [0, 0.033, 0.067, 0.2, 0.9, 0.95]
    timeline = probe(film(tmp_path / "a.mp4", times=times, start=1.5))
    assert np.abs(timeline.times - times).max() < 0.002 and not timeline.constant
    assert timeline.rate > 5 and "every frame keeps its time" in timeline.notes()[0]
    steady = probe(film(tmp_path / "b.mkv"))
    assert steady.constant and steady.rate == 24 and not steady.notes()


def test_a_transport_stream_starts_late(tmp_path):
    timeline = probe(film(tmp_path / "a.ts", start=1.4))
    assert timeline.start > 0.5 and timeline.times[0] == 0


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_segment_is_what_the_whole_holds_there(tmp_path, name):
    film(tmp_path / name, clip(40), options={"g": "10"})
    whole = stack(tmp_path / name)
    for start, stop in ((0, 3), (7, 12), (25, 26), (39, 40), (12, 99)):
        assert np.array_equal(stack(tmp_path / name, start=start, stop=stop), whole[start:stop])


@pytest.mark.parametrize("size", [(30, 46), (34, 64)])
def test_reading_is_reproducible_at_any_width(tmp_path, size):
    write_video(tmp_path / "a.mp4", clip(5, *size), Fraction(25))
    first, second = stack(tmp_path / "a.mp4"), stack(tmp_path / "a.mp4")
    assert first.shape == (5, *size, 3) and np.array_equal(first, second)
    assert psnr(first, np.stack(clip(5, *size))) > 28


def test_rotation_and_shape_of_pixels(tmp_path):
    def prepare(container, stream):
        stream.codec_context.sample_aspect_ratio = Fraction(64, 45)

    film(tmp_path / "a.mp4", prepare=prepare)
    assert probe(tmp_path / "a.mp4").sar == Fraction(64, 45)
    data = (tmp_path / "a.mp4").read_bytes()
    upright = b"\0\1\0\0" + bytes(12) + b"\0\1\0\0" + bytes(12) + b"\x40\0\0\0"
    turned = bytes(4) + b"\0\1\0\0" + bytes(4) + b"\xff\xff\0\0" + bytes(16) + b"\x40\0\0\0"
    place = data.rindex(upright)  # the track's display matrix comes after the film's
    (tmp_path / "b.mp4").write_bytes(data[:place] + turned + data[place + len(upright) :])
    timeline = probe(tmp_path / "b.mp4")
    assert (timeline.height, timeline.width, timeline.sar) == (64, 48, Fraction(45, 64)) and timeline.turn in (1, 3)
    expected = np.rot90(stack(tmp_path / "a.mp4"), timeline.turn, axes=(1, 2))
    assert np.array_equal(stack(tmp_path / "b.mp4"), expected)


def test_untagged_films_mean_what_players_show(tmp_path):
    red = [np.full((720, 1280, 3), (200, 40, 40), np.uint8)]
    write_video(tmp_path / "a.mp4", red, Fraction(25))  # tagged 709
    film(tmp_path / "b.mp4", [np.full((48, 64, 3), (200, 40, 40), np.uint8)])  # untagged 601
    for name in ("a.mp4", "b.mp4"):
        assert np.abs(stack(tmp_path / name).mean((0, 1, 2)) - (200, 40, 40)).max() < 2
    untagged = colour.Colour()
    assert colour.resolved(untagged, 720, 1280).matrix == 1 and colour.resolved(untagged, 576, 720).matrix == 6


def test_ten_bits_stay_ten_bits(tmp_path):
    ramp = np.repeat(np.linspace(20000, 26000, 64).astype(np.uint16)[None, :, None], 48, 0).repeat(3, 2)
    path = film(tmp_path / "a.mkv", [ramp] * 2, codec="ffv1", layout="yuv420p10le")
    assert probe(path).depth == 10
    deep, shallow = stack(path, Wish(depth=16)), stack(path)
    assert len(np.unique(deep)) == 64 > 2 * len(np.unique(shallow)) and np.abs(deep[0].astype(int) - ramp).max() < 200
    assert np.abs(deep / 257 - shallow).max() < 1.5


def test_a_damaged_frame_is_skipped_and_named(tmp_path):
    data = bytearray(film(tmp_path / "a.mp4", clip(20), options={"bf": "0", "g": "5"}).read_bytes())
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [(p.pos, p.size, float(p.pts * p.time_base)) for p in container.demux(video=0) if p.size]
    place, size, time = packets[7]
    data[place : place + size] = b"\xff" * size
    (tmp_path / "b.mp4").write_bytes(data)
    timeline = probe(tmp_path / "b.mp4")
    assert timeline.damaged == ((7, pytest.approx(time, abs=0.002)),)
    assert "1 of 20 frames could not be decoded (frame 8, at 0.29 s)" in timeline.notes()[0]
    whole = list(frames(timeline))
    assert len(whole) == 19 and timeline.times[7] - timeline.times[6] > 0.08  # the frame before is shown longer


def test_null_frames_are_no_damage(tmp_path):
    kept = [0, 1, 2, 5, 6, 7, 8]
    film(tmp_path / "a.avi", clip(7), times=[i / 24 for i in kept], base=Fraction(1, 24), codec="mpeg4")
    timeline = probe(tmp_path / "a.avi")
    assert not timeline.damaged and np.allclose(timeline.times * 24, kept)
    assert len(list(frames(timeline))) == 7


def test_a_changing_size_is_refused_at_the_start(tmp_path):
    with open(tmp_path / "a.ts", "wb") as joined:
        for size in ((48, 64), (64, 96)):
            joined.write(film(tmp_path / "part.ts", clip(6, *size)).read_bytes())
    with pytest.raises(MediaError, match=r"must have one size; .* 64x48, then 96x64 from frame 7. .*scale=64:48"):
        probe(tmp_path / "a.ts")


@pytest.mark.parametrize("ending, alpha", [("webp", True), ("png", True), ("gif", False)])
def test_animated_pictures_are_films(tmp_path, ending, alpha):
    pictures = [Image.fromarray(frame) for frame in clip(4)]
    if alpha:
        for picture in pictures:
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    delays = [40, 100, 250, 60]
    path = tmp_path / f"a.{ending}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=delays, lossless=True)
    timeline = probe(path)
    assert (timeline.kind, timeline.frames, timeline.alpha) == ("animation", 4, alpha)
    assert np.allclose(timeline.times, [0, 0.04, 0.14, 0.39]) and timeline.last == 0.06
    found = stack(path, Wish(alpha=alpha))
    if alpha:
        assert np.array_equal(found[2], np.asarray(pictures[2]))


def test_sixteen_bit_pictures_keep_their_bits(tmp_path):
    ramp = np.linspace(2000, 60000, 64).astype(np.uint16)[None].repeat(48, 0)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    timeline = probe(tmp_path / "grey.png")
    assert timeline.depth == 16
    assert np.array_equal(next(frames(timeline, Wish(16)))[..., 1], ramp)
    assert np.abs(next(frames(timeline))[..., 0] - ramp / 257).max() <= 0.5


def test_orientation_of_photographs(tmp_path):
    frame = clip(1)[0]
    exif = Image.Exif()
    for orientation, turns in ((1, 0), (3, 2), (6, 3), (8, 1)):
        exif[274] = orientation
        Image.fromarray(frame).save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(stack(tmp_path / "a.png")[0], np.rot90(frame, turns))


def test_a_folder_has_the_rate_that_is_asked_for(tmp_path):
    for number, frame in enumerate(clip(11), 1):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    assert probe(tmp_path).rate == 25 and probe(tmp_path, Fraction(12)).times[-1] == pytest.approx(10 / 12)
    assert np.array_equal(stack(tmp_path), np.stack(clip(11)))
    with pytest.raises(MediaError, match="--rate: is for a folder"):
        probe(tmp_path / "1.png", Fraction(12))


def test_deinterlacing_keeps_count_and_removes_combs(tmp_path):
    still = np.zeros((64, 64, 3), np.uint8)
    fields = []
    for i in range(8):
        frame = still.copy()
        frame[0::2, 4 * i : 4 * i + 12], frame[1::2, 4 * i + 6 : 4 * i + 18] = 200, 200
        fields.append(frame)
    path = film(tmp_path / "a.mkv", fields, codec="ffv1", layout="yuv420p")
    combs = [np.abs(np.diff(stack(path, Wish(deinterlace=on)).astype(float), axis=1)).mean() for on in (False, True)]
    assert combs[1] < 0.5 * combs[0] and len(stack(path, Wish(deinterlace=True))) == 8


def test_tone_mapping_keeps_white_and_hue():
    def code(nits):
        power = (nits / 10000) ** (2610 / 16384)
        return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32) * 65535

    grey = np.array([[[code(n)] * 3 for n in (0, 20, 100, 203, 1000)]]).astype(np.uint16)
    found = colour.tone_mapped(grey, colour.PQ)[0] / 257
    assert np.ptp(found, axis=-1).max() < 0.5 and (np.diff(found[:, 0]) > 0).all()
    expected = 255 * (np.array([20, 100]) / 203) ** (1 / 2.4)
    assert np.abs(found[1:3, 0] - expected).max() < 1 and 240 < found[3, 0] < 252 and found[4, 0] > 254
    assert colour.tone_mapped(np.full((1, 1, 3), 0.75 * 65535, np.uint16), colour.HLG)[0, 0, 0] / 257 > 235


def broken_files(folder):
    whole = folder / "whole.mkv"
    write_video(whole, clip(40), Fraction(25), codec="h264-rgb")
    data = whole.read_bytes()
    (folder / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    write_video(folder / "whole.mp4", clip(40), Fraction(25))
    (folder / "cut.mp4").write_bytes((folder / "whole.mp4").read_bytes()[:-400])
    data = film(folder / "whole.avi", clip(40), codec="mpeg4", base=Fraction(1, 24)).read_bytes()
    (folder / "cut.avi").write_bytes(data[: len(data) * 2 // 3])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video at all, only words " * 40)
    with av.open(str(folder / "silent.mp4"), "w") as container:
        track = container.add_stream("aac", rate=48000)
        block = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        block.sample_rate = 48000
        container.mux([*track.encode(block), *track.encode()])
    (folder / "none").mkdir()
    (folder / "mixed").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "mixed" / "1.png")
    Image.new("RGB", (9, 8)).save(folder / "mixed" / "2.png")
    (folder / "bad.png").write_bytes(b"\x89PNG nothing")


def test_bad_input_is_a_sentence(tmp_path):
    broken_files(tmp_path)
    expected = {
        "missing.mp4": "does not exist",
        "cut.mkv": "truncated",
        "cut.mp4": "truncated",
        "cut.avi": "truncated",
        "empty.mp4": "cannot be read",
        "text.mp4": "cannot be read",
        "silent.mp4": "must have a video stream",
        "none": "holds none",
        "mixed": "one size",
        "bad.png": "not a readable image",
    }
    for name, words in expected.items():
        with pytest.raises(MediaError, match=words):
            probe(tmp_path / name)


def test_the_remedy_for_a_cut_film_is_true(tmp_path):
    broken_files(tmp_path)
    with pytest.raises(MediaError) as error:
        probe(tmp_path / "cut.mkv")
    count = int(re.search(r"-frames:v (\d+)", str(error.value)).group(1))
    with av.open(str(tmp_path / "cut.mkv")) as container:  # what that command does
        kept = [f.to_ndarray(format="rgb24") for f, _ in zip(container.decode(video=0), range(count), strict=False)]
    write_video(tmp_path / "kept.mkv", kept, Fraction(25))
    assert probe(tmp_path / "kept.mkv").frames == count


def test_spans_go_forward_and_decode_once(tmp_path, monkeypatch):
    timeline = probe(film(tmp_path / "a.mkv", clip(30)))
    wanted, started = list(frames(timeline)), []
    real = reader.frames
    monkeypatch.setattr(reader, "frames", lambda *words: started.append(words[2]) or real(*words))
    forward = reader.Forward(timeline, Wish())
    for start, stop, again in ((2, 9, 6), (6, 12, 11), (11, 12, None), (20, 24, 24), (3, 5, None), (29, 30, None)):
        found = list(forward.span(start, stop, again))
        assert len(found) == stop - start
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted[start:stop], strict=True))
    assert started == [2, 3] and len(forward.kept) == 0
