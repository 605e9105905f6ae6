"""Clips come in whole or not at all, and go out whole or not at all."""

import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cascadevsr.runner import encode, paths, video
from cascadevsr.runner.errors import RunnerError
from cascadevsr.runner.upscale import check_sides
from PIL import Image

av = pytest.importorskip("av")


def clip(frames=6, height=30, width=46, seed=0):
    """Smooth moving colours: realistic for a codec, different in every frame."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        np.stack([np.sin((x + 2 * i + seed) / 7 + c) + np.cos(y / 5 - c) for c in range(3)], -1) for i in range(frames)
    ]
    return [np.rint(127.5 + 60 * wave).astype(np.uint8) for wave in waves]


def leftovers(folder: Path):
    return [file.name for file in folder.iterdir() if "partial" in file.name]


@pytest.mark.parametrize("size", [(30, 46), (17, 19), (18, 33)])
def test_lossless_video_is_exact(tmp_path, size):
    frames = clip(5, *size)
    out = tmp_path / "a.mp4"
    assert encode.write_video(out, iter(frames), Fraction(24000, 1001), codec="h264-rgb") == 5
    assert video.probe(out) == video.ClipInfo(5, *size, Fraction(24000, 1001))
    assert all(np.array_equal(a, b) for a, b in zip(video.read_frames(out), frames, strict=True))
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
@pytest.mark.parametrize("size", [(30, 46), (17, 19)])
def test_lossy_video_keeps_count_size_and_colours(tmp_path, name, size):
    frames, out = clip(5, *size), tmp_path / name
    encode.write_video(out, frames, Fraction(25), crf=8)
    info = video.probe(out)
    assert (info.frames, info.height, info.width) == (5, *size)
    with av.open(str(out)) as container:
        decoded = [frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray() for frame in container.decode()]
    difference = np.stack(decoded).astype(float) - np.stack(frames)  # 4:2:0 and the decoder's own rounding
    assert np.abs(difference).mean() < 4 and np.abs(difference.mean((0, 1, 2))).max() < 2


@pytest.mark.parametrize("size", [(30, 46), (34, 64)])
def test_reading_is_reproducible_at_any_width(tmp_path, size):
    out = tmp_path / "a.mp4"
    encode.write_video(out, clip(5, *size), Fraction(25))
    first, second = (np.stack(list(video.read_frames(out))) for _ in range(2))
    assert first.shape == (5, *size, 3) and np.array_equal(first, second)
    assert np.abs(first.astype(float) - np.stack(clip(5, *size))).mean() < 8


@pytest.mark.parametrize("layout", ["yuv420p", "yuv444p"])
def test_colours_are_bt709(layout):
    for rgb, yuv in (
        ((255, 255, 255), (235, 128, 128)),
        ((255, 0, 0), (63, 102, 240)),
        ((0, 0, 255), (32, 240, 118)),
    ):
        planes = encode._planes(np.full((4, 6, 3), rgb, np.uint8), layout)
        sizes = (24, 6, 6) if layout == "yuv420p" else (24, 24, 24)
        found = np.split(planes.reshape(-1), np.cumsum(sizes)[:2])
        assert [set(map(int, plane)) for plane in found] == [{value} for value in yuv]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_same_frames_give_the_same_file(tmp_path, ending):
    for name in ("a", "b"):
        encode.write_video(tmp_path / f"{name}.{ending}", clip(), Fraction(25))
        time.sleep(0.6)  # across a full second: containers like to note the time of day
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_png_folder_round_trip(tmp_path):
    frames, out = clip(12), tmp_path / "frames"
    assert encode.write_pngs(out, frames) == 12
    assert video.probe(out).frames == 12
    assert all(np.array_equal(a, b) for a, b in zip(video.read_frames(out), frames, strict=True))
    assert encode.write_pngs(out, frames[:3]) == 3 and len(list(out.iterdir())) == 3


def test_images_are_staged_as_a_lossless_video(tmp_path):
    for number, frame in enumerate(clip(11), 1):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    (tmp_path / "in").mkdir()
    name = video.stage(tmp_path, tmp_path / "in", "input")
    assert name == video.staged_name(tmp_path, "input") == "input.mov"
    assert all(np.array_equal(a, b) for a, b in zip(video.read_frames(tmp_path / "in" / name), clip(11), strict=True))


def sound(path: Path, codec: str):
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 46, 30, "yuv420p"
        track = container.add_stream(codec, rate=48000)
        for frame in clip(10):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(pictures.encode())
        wave = (np.sin(np.arange(19200) / 20) * 12000).astype(np.int16)
        block = av.AudioFrame.from_ndarray(wave.reshape(1, -1), format="s16", layout="mono")
        block.sample_rate, block.pts = 48000, 0
        for piece in [
            *av.AudioResampler(format=track.format, layout="mono", rate=48000).resample(block),
            None,
        ]:
            container.mux(track.encode(piece))


@pytest.mark.parametrize("codec", ["aac", "flac"])
def test_sound_follows(tmp_path, codec):
    source, out = tmp_path / "in.mkv", tmp_path / "out.mp4"
    sound(source, codec)
    assert video.probe(source).has_audio
    encode.write_video(out, clip(10), Fraction(25), audio_from=source)
    with av.open(str(out)) as container:
        track = container.streams.audio[0]
        assert track.codec_context.name == "aac"
        assert abs(float(track.duration * track.time_base) - 0.4) < 0.06
    assert video.probe(out).frames == 10


def broken_files(folder: Path):
    whole = folder / "whole.mkv"
    encode.write_video(whole, clip(40), Fraction(25), codec="h264-rgb")
    data = whole.read_bytes()
    (folder / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    encode.write_video(folder / "whole.mp4", clip(40), Fraction(25))
    (folder / "cut.mp4").write_bytes((folder / "whole.mp4").read_bytes()[:-400])
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
        "empty.mp4": "cannot be read",
        "text.mp4": "cannot be read",
        "silent.mp4": "must have a video stream",
        "none": "holds none",
        "mixed": "one size",
        "bad.png": "not a readable image",
    }
    for name, words in expected.items():
        with pytest.raises(RunnerError, match=words):
            video.probe(tmp_path / name)


def test_one_pixel_side_is_refused():
    with pytest.raises(RunnerError, match="at least 2 pixels; got 1x40"):
        check_sides(video.ClipInfo(3, 40, 1, Fraction(25)))


def failing():
    yield from clip(3)
    raise ValueError("the model failed")


def test_nothing_half_written(tmp_path):
    old = tmp_path / "old.mp4"
    old.write_bytes(b"precious")
    for write in (
        lambda: encode.write_video(old, failing(), Fraction(25)),
        lambda: encode.write_pngs(tmp_path / "f", failing()),
    ):
        with pytest.raises(ValueError, match="the model failed"):
            write()
    assert old.read_bytes() == b"precious"
    assert [file.name for file in tmp_path.iterdir()] == ["old.mp4"]
    with pytest.raises(RunnerError, match="at least one frame"):
        encode.write_video(tmp_path / "no.mp4", iter(()), Fraction(25))
    assert not (tmp_path / "no.mp4").exists() and not leftovers(tmp_path)


def test_output_place_is_checked_first(tmp_path, monkeypatch):
    info = video.ClipInfo(1000, 1080, 1920, Fraction(25))
    with pytest.raises(RunnerError, match="must be a video"):
        video.check_output(tmp_path / "a.webp", info)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "letter.txt").write_text("mine")
    with pytest.raises(RunnerError, match=r"holds letter\.txt"):
        video.check_output(tmp_path / "d", info)
    monkeypatch.setattr(paths, "free_bytes", lambda path: 10**6)
    with pytest.raises(RunnerError, match="GiB free"):
        video.check_output(tmp_path / "a.mp4", info)


@pytest.mark.skipif(sys.platform == "win32", reason="chmod does not protect folders there")
def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunnerError, match="cannot write"):
        video.check_output(tmp_path / "file" / "a.mp4")
