"""Damaged files end in a result or a sentence, long ones take no more memory, and a kill leaves nothing half done."""

import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cascadevsr.media.files import check_output
from PIL import Image

from .films import clip, film

PROGRAM = Path(__file__).with_name("fuzzing.py")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and counts memory as Linux does")


def program(*words):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def of_all_kinds(folder):
    folder.mkdir()
    sound = {"sounds": [("aac", "stereo", "eng")]}
    film(folder / "a.mp4", clip(12), **sound)
    film(folder / "b.mkv", clip(12), times=[i * i / 60 for i in range(12)], **sound)
    film(folder / "c.ts", clip(12), start=1.4, sound_start=1.4, **sound)
    film(folder / "d.avi", clip(12), codec="mpeg4", base=Fraction(1, 24), sounds=[("pcm_s16le", "mono", "und")])
    film(folder / "e.mov", clip(4, depth=16), codec="prores_ks", layout="yuv422p10le")
    film(
        folder / "f.mkv",
        clip(4, depth=16),
        codec="libx265",
        layout="yuv420p10le",
        options={"x265-params": "log-level=none"},
    )
    film(folder / "g.webm", clip(8), codec="libvpx-vp9", sounds=[("libopus", "stereo", "eng")])
    film(folder / "h.avi", clip(6), codec="mjpeg", layout="yuvj420p", base=Fraction(1, 24))
    pictures = [Image.fromarray(frame) for frame in clip(4)]
    for name in ("i.gif", "j.webp", "k.png"):
        pictures[0].save(folder / name, save_all=True, append_images=pictures[1:], duration=[40, 90, 60, 100])
    for name in ("l.jpg", "m.tif", "n.bmp"):
        pictures[0].save(folder / name)
    Image.fromarray(clip(1, depth=16)[0][..., 0]).save(folder / "o.png")
    return folder


def test_damaged_files_end_in_a_result_or_a_sentence(tmp_path):
    lines = [line.split("\t") for line in program("fuzz", of_all_kinds(tmp_path / "in"), 60)]
    assert len(lines) == 60
    for seed, name, how, seconds, memory, healthy, usual, room in lines:
        case = f"seed {seed}: {name}: {how}"
        assert healthy == "whole", case
        assert how in ("whole", "refused"), case
        assert float(seconds) <= 3 * float(usual) + 5, case
        assert int(memory) <= 2 * int(room), case
    assert {"whole", "refused"} == {line[2] for line in lines}


def test_memory_is_that_of_a_short_film(tmp_path):
    peaks = []
    for count in (100, 2500):
        path = film(
            tmp_path / f"{count}.mkv",
            clip(20, 64, 96) * (count // 20),
            options={"preset": "ultrafast", "bf": "2"},
            sounds=[("aac", "stereo", "eng")],
        )
        peaks.append(int(program("measure", path, tmp_path / "out.mp4")[-1]))
    assert peaks[1] <= 1.05 * peaks[0], peaks


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    old = tmp_path / "out.mp4"
    old.write_bytes(b"precious")
    child = subprocess.Popen([sys.executable, str(PROGRAM), "endless", str(old)])
    end = time.monotonic() + 120
    while not any(file.stat().st_size for file in tmp_path.glob(".cascadevsr-*")):
        assert time.monotonic() < end
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert old.read_bytes() == b"precious" and len(list(tmp_path.iterdir())) == 2
    check_output(old, [])  # the next start
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


def test_noise_is_no_film(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, 20000, np.uint8).tobytes()
    for name in ("a.mp4", "b.png", "c.gif", "d.tif", "e.avif", "f.ts", "g"):
        (tmp_path / name).write_bytes(noise)
    assert program("try", tmp_path) == ["refused"] * 7
