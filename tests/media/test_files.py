"""No spelling of OUT destroys a source; long, odd and hidden names are right; kills leave nothing for long."""

import hashlib
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cascadevsr.media import files
from cascadevsr.media.errors import MediaError
from cascadevsr.media.plan import plan
from cascadevsr.media.reader import frames, probe
from cascadevsr.media.writer import write, write_pngs, write_video
from PIL import Image

from .films import clip, enlarged, film


def leftovers(folder: Path):
    return [file.name for file in folder.iterdir() if file.name.startswith(".cascadevsr-")]


def test_the_original_survives_every_spelling(tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    source = film(tmp_path / "videos" / "clip.mp4")
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    (tmp_path / "link.mp4").symlink_to(source)
    os.link(source, tmp_path / "hard.mp4")
    (tmp_path / "here").symlink_to(tmp_path / "videos", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "videos")
    for out in ("clip.mp4", "./clip.mp4", "../videos/clip.mp4", "../link.mp4", "../hard.mp4", "../here/clip.mp4"):
        with pytest.raises(MediaError, match="must not be a file that is read"):
            files.check_output(Path(out), [source])
        with pytest.raises(MediaError, match="must not be a file that is read"):
            files.check_output(source, [tmp_path / "other.mp4", Path(out)])  # a reference, by another name
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before


def test_a_folder_of_frames_is_not_its_own_result(tmp_path, monkeypatch):
    write_pngs(tmp_path / "frames", clip(3))
    (tmp_path / "again").symlink_to(tmp_path / "frames", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    for out in ("frames", "./frames/", "again", "frames/../frames"):
        with pytest.raises(MediaError, match="must not be a file that is read"):
            files.check_output(Path(out), [tmp_path / "frames"])
    with pytest.raises(MediaError, match="replaced as a whole"):
        files.check_output(Path("frames"), [tmp_path / "frames" / "frame_00002.png"])
    os.link(tmp_path / "frames" / "frame_00002.png", tmp_path / "hard.png")
    for out in ("frames/frame_00002.png", "again/new.png", "hard.png"):
        with pytest.raises(MediaError, match="must not lie among the pictures"):
            files.check_output(Path(out), [Path("frames")])
    assert len(list((tmp_path / "frames").iterdir())) == 3


@pytest.mark.parametrize("name", ["x" * 251 + ".mp4", "12:30.mp4", "-in.mp4", "100%d.mp4", "a b'ü.mp4"])
def test_odd_names_are_read_and_written(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "a.mp4").rename(tmp_path / name)
    (tmp_path / "out").mkdir()
    files.check_output(Path("out") / name, [Path(name)])
    enlarged(Path(name), Path("out") / name)
    assert probe(Path("out") / name).frames == 6 and not leftovers(tmp_path / "out")


def test_a_name_that_is_too_long_is_said_before_the_work(tmp_path):
    with pytest.raises(MediaError, match=r"longer than this file system takes \(304 bytes\)"):
        files.check_output(tmp_path / ("x" * 300 + ".mp4"), [])


def test_kinds_of_output(tmp_path):
    for name in ("a.mp4", "a.webm", "a.webp", "a.PNG", "new_folder"):
        files.check_output(tmp_path / name, [])
        assert not list(tmp_path.iterdir())
    with pytest.raises(MediaError, match="must be a film or picture"):
        files.check_output(tmp_path / "a.avi", [])
    (tmp_path / "d").mkdir()
    for name in (".DS_Store", "Thumbs.db", "._frame_00001.png", "desktop.ini"):
        (tmp_path / "d" / name).write_text("the system's")
    files.check_output(tmp_path / "d", [])
    write_pngs(tmp_path / "d", clip(2))
    assert (tmp_path / "d" / "Thumbs.db").exists() and probe(tmp_path / "d").frames == 2
    (tmp_path / "link").symlink_to(tmp_path / "d", target_is_directory=True)
    write_pngs(tmp_path / "link", clip(4))
    assert (tmp_path / "link").is_symlink() and probe(tmp_path / "d").frames == 4 and not leftovers(tmp_path)
    (tmp_path / "d" / "letter.txt").write_text("mine")
    with pytest.raises(MediaError, match=r"holds letter\.txt"):
        files.check_output(tmp_path / "d", [])


@pytest.mark.skipif(sys.platform == "win32", reason="chmod does not protect folders there")
def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError, match="cannot write"):
        files.check_output(tmp_path / "file" / "a.mp4", [])


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders there")
def test_devices_and_pipes_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="device or a pipe"):
        probe(tmp_path / "pipe.mp4")  # would wait for ever
    for out in (tmp_path / "pipe.mp4", Path("/dev/null")):
        with pytest.raises(MediaError, match="OUT: .*device or a pipe"):
            files.check_output(out, [])


def test_a_dot_at_the_end_is_no_folder(tmp_path):
    with pytest.raises(MediaError, match="must be a film or picture"):
        files.check_output(tmp_path / "a.mp4.", [])


def test_a_link_as_output_leaves_its_file_alone(tmp_path):
    (tmp_path / "precious.mp4").write_bytes(b"precious")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "precious.mp4")
    files.check_output(tmp_path / "link.mp4", [])
    write_video(tmp_path / "link.mp4", clip(2), Fraction(25))
    assert (tmp_path / "precious.mp4").read_bytes() == b"precious"
    assert probe(tmp_path / "link.mp4").frames == 2 and not (tmp_path / "link.mp4").is_symlink()


@pytest.mark.parametrize("name", ["%03d.png", "frame_%d.webp", "[x]*?.png"])
def test_names_that_are_patterns_to_others(tmp_path, name):
    Image.fromarray(clip(1, depth=16)[0][..., 0]).save(tmp_path / "%03d.png")
    (tmp_path / "out").mkdir()
    enlarged(tmp_path / "%03d.png", tmp_path / "out" / name)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [name] and probe(tmp_path / "out" / name).frames == 1


def failing():
    yield from clip(3)
    raise ValueError("the model failed")


def test_nothing_half_written(tmp_path):
    old = tmp_path / "old.mp4"
    old.write_bytes(b"precious")
    for attempt in (
        lambda: write_video(old, failing(), Fraction(25)),
        lambda: write_pngs(tmp_path / "f", failing()),
    ):
        with pytest.raises(ValueError, match="the model failed"):
            attempt()
    assert old.read_bytes() == b"precious"
    assert [file.name for file in tmp_path.iterdir()] == ["old.mp4"]
    with pytest.raises(MediaError, match="at least one frame"):
        write_video(tmp_path / "no.mp4", iter(()), Fraction(25))
    assert not (tmp_path / "no.mp4").exists() and not leftovers(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.png", "folder"])
def test_a_full_disk_leaves_nothing(tmp_path, name):
    import resource

    pictures = list(np.random.default_rng(0).integers(0, 256, (12, 96, 128, 3), np.uint8))
    how = plan(tmp_path / name, probe(film(tmp_path / "in.mp4", pictures)))
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, before[1]))
    try:
        with pytest.raises(MediaError, match="could not be written"):
            write(tmp_path / name, pictures, how, probe(tmp_path / "in.mp4"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [file.name for file in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be asked for by number there")
def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for number, name in ((dead.pid, "dead.mp4"), (os.getpid(), "alive.mp4")):
        (tmp_path / f"{files.signature()}{number}-{name}").write_text("half")
    (tmp_path / f"{files.signature()}{dead.pid}-folder").mkdir()
    files.check_output(tmp_path / "a.mp4", [])
    assert [name.rsplit("-")[-1] for name in leftovers(tmp_path)] == ["alive.mp4"]


def test_png_folder_round_trip(tmp_path):
    pictures, out = clip(12), tmp_path / "frames"
    assert write_pngs(out, pictures) == 12
    assert all(np.array_equal(a, b) for a, b in zip(frames(probe(out)), pictures, strict=True))
    assert write_pngs(out, pictures[:3]) == 3 and len(list(out.iterdir())) == 3
    with Image.open(out / "frame_00001.png") as image:
        assert image.mode == "RGB"
