"""A run that is broken anywhere goes on, and the result is that of an unbroken one, byte for byte."""

import errno
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cascadevsr.media import journal as journals
from cascadevsr.media.errors import MediaError
from cascadevsr.media.files import check_output, signature, sweep
from cascadevsr.media.journal import Journal, folder_of, identity
from cascadevsr.media.segments import cut_film

from . import broken_run
from .films import clip, film

SCRIPT = Path(broken_run.__file__)


@pytest.fixture
def source(tmp_path):
    return film(tmp_path / "in.mkv", clip(40), sounds=[("aac", "mono", "eng")])


def started(source, out, *part):
    command = [sys.executable, str(SCRIPT), str(source), str(out), *part]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("name, wanted_kills", [("out.mp4", 12), ("frames", 2)])
def test_killed_at_any_moment(tmp_path, source, name, wanted_kills):
    """Up to twice a run, after any line that the run says and a moment more: during write, rename and join."""
    (tmp_path / "whole").mkdir()
    total = broken_run.main(source, tmp_path / "whole" / name, pause=0)
    wanted, out, draw, kills = content(tmp_path / "whole" / name), tmp_path / name, random.Random(3), 0
    for number in range(20):
        if kills >= wanted_kills:
            break
        made, over = 0, False
        for lines in (draw.randint(0, 4), draw.randint(0, 3) if number % 2 else 8):
            process = started(source, out)
            text = "".join(process.stdout.readline() for _ in range(lines))
            if lines == 0:
                time.sleep(draw.uniform(0.3, 1.5))  # the start of the interpreter is not what is to be broken
            time.sleep(draw.uniform(0, 0.06))
            process.kill()
            text += process.communicate()[0]
            kills += process.returncode != 0
            made += text.count("made")
            over = out.exists() and not (folder_of(out) / "journal.json").exists()
            if out.exists():
                assert content(out) == wanted  # whole as soon as it has its name
            if over:
                break
        left = 0 if over else broken_run.main(source, out, pause=0)
        assert made + left <= total  # none that was finished is made again
        assert content(out) == wanted
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    assert kills >= wanted_kills
    check_output(out, [])  # sweeps
    assert not list(tmp_path.glob(".cascadevsr-*"))


def content(path):
    return path.read_bytes() if path.is_file() else {p.name: p.read_bytes() for p in sorted(path.iterdir())}


@pytest.mark.parametrize("place", ["before the file", "file without record", "record", "join", "rename of OUT"])
def test_killed_there(tmp_path, source, monkeypatch, place):
    """The same at the moments between two steps, each by an exception that nothing catches."""
    (tmp_path / "whole").mkdir()
    broken_run.main(source, tmp_path / "whole" / "out.mp4", pause=0)
    out, real, seen = tmp_path / "out.mp4", os.replace, []

    class Killed(BaseException):
        pass

    def replace(old, new):
        name = Path(new).name
        seen.append(name)
        count = sum(other.endswith(".segment") for other in seen)
        dies = {
            "before the file": name.endswith(".segment") and count == 4,
            "file without record": name.endswith(".json") and count == 4,
            "rename of OUT": name == "out.mp4",
        }
        if dies.get(place):
            raise Killed
        real(old, new)
        if place == "record" and name.endswith(".json") and count == 4:
            raise Killed

    monkeypatch.setattr(os, "replace", replace)
    if place == "join":
        monkeypatch.setattr(Journal, "require_all", lambda self: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        broken_run.main(source, out, pause=0)
    monkeypatch.undo()
    assert not out.exists()
    left = {"before the file": 5, "file without record": 5, "record": 4, "join": 0, "rename of OUT": 0}[place]
    assert broken_run.main(source, out, pause=0) == left
    assert out.read_bytes() == (tmp_path / "whole" / "out.mp4").read_bytes()
    assert not folder_of(out).exists()


def test_three_machines_at_once(tmp_path, source):
    """They begin together, without a plan; one is killed, and its part begun again."""
    (tmp_path / "whole").mkdir()
    broken_run.main(source, tmp_path / "whole" / "out.mp4", pause=0)
    out = tmp_path / "out.mp4"
    machines = [started(source, out, f"{part}/3") for part in (3, 1, 2)]
    machines[1].stdout.readline()
    machines[1].kill()
    texts = [machine.communicate()[0] for machine in machines]
    assert texts[0].count("made") == 3 and texts[2].count("made") == 3
    with pytest.raises(MediaError, match="segments are missing or damaged"):
        Journal.of(out).require_all()
    assert started(source, out, "1/3").wait() == 0
    assert Journal.of(out).missing() == [] and not out.exists()
    assert broken_run.main(source, out, pause=0) == 0
    assert out.read_bytes() == (tmp_path / "whole" / "out.mp4").read_bytes()


def begun(tmp_path, key, **more):
    return Journal.begin(tmp_path / "out.mp4", key, lambda: cut_film(30, (), 10, 2), **more)


def finish(journal, *indices):
    for index in indices:
        with journal.writing(index, (0, 9)) as file:
            file.write_bytes(bytes([index]) * 1000)


def test_another_key_starts_anew_and_says_why(tmp_path):
    key = {"IN": {"size": 5, "hash": "a"}, "--crf": 12.0, "workflow": "f" * 64}
    journal, line = begun(tmp_path, key)
    assert line == "" and journal.missing() == [0, 1, 2]
    finish(journal, 0, 2)
    again, line = begun(tmp_path, key)
    assert line == "" and again.missing() == [1] and again.segments == journal.segments
    new = {"IN": {"size": 6, "hash": "b"}, "--crf": 14.0, "workflow": "e" * 64}
    again, line = begun(tmp_path, new)
    assert again.missing() == [0, 1, 2]
    assert line == (
        "starts anew (IN size was 5, is 6; IN hash was a, is b; --crf was 12.0, is 14.0; workflow has changed)"
    )
    finish(again, 1)
    again, line = begun(tmp_path, new, fresh=True)
    assert again.missing() == [0, 1, 2] and line == ""


def test_a_damaged_segment_does_not_count(tmp_path):
    journal, _ = begun(tmp_path, {})
    finish(journal, 0, 1, 2)
    data = bytearray(journal.file(1).read_bytes())
    data[500] ^= 1
    journal.file(1).write_bytes(data)
    journal.file(2).write_bytes(b"short")
    again, _ = begun(tmp_path, {})
    assert again.missing() == [1, 2]
    with pytest.raises(MediaError, match=r"2 of 3 segments are missing or damaged: 2 \(frames 11 to 20\), 3 \(f"):
        again.require_all()


def test_borders_are_decided_once(tmp_path):
    journal, _ = begun(tmp_path, {})
    again, _ = Journal.begin(tmp_path / "out.mp4", {}, lambda: pytest.fail("cut again"))
    assert again.segments == journal.segments
    assert Journal.of(tmp_path / "out.mp4").segments == journal.segments
    with pytest.raises(MediaError, match="no segments of other.mp4"):
        Journal.of(tmp_path / "other.mp4")


def test_two_that_begin_at_once_share_one(tmp_path):
    other = []

    def cut():
        other.append(begun(tmp_path, {})[0])
        finish(other[0], 0)
        return cut_film(30, (), 10, 2)

    journal, _ = Journal.begin(tmp_path / "out.mp4", {}, cut)
    assert journal.missing() == [1, 2]


def test_nothing_sweeps_or_refuses_it(tmp_path):
    out = tmp_path / ("long" * 60 + ".mp4")
    journal, _ = Journal.begin(out, {}, lambda: cut_film(30, (), 10, 2))
    finish(journal, 0)
    old = time.time() - 30 * 24 * 3600
    os.utime(journal.folder, (old, old))
    sweep(tmp_path)
    check_output(out, [])
    check_output(tmp_path, [])  # as a folder of frames
    assert Journal.of(out).missing() == [1, 2] and len(journal.folder.name) < 40


def test_what_a_killed_process_left_goes(tmp_path):
    journal, _ = begun(tmp_path, {})
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (journal.folder / f"{signature()}{dead.pid}-abc.segment").write_bytes(b"half")
    begun(tmp_path, {})
    assert [p.name for p in journal.folder.iterdir()] == ["journal.json"]


def test_a_full_disk_stops_clean_and_goes_on(tmp_path, source, monkeypatch):
    (tmp_path / "whole").mkdir()
    broken_run.main(source, tmp_path / "whole" / "out.mp4", pause=0)
    out, real, count = tmp_path / "out.mp4", os.fsync, []

    def full(handle):
        count.append(1)
        if len(count) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(journals.os, "fsync", full)
    with pytest.raises(MediaError, match=r"segment \d of 8 could not be written in .*free some space") as found:
        broken_run.main(source, out, pause=0)
    assert "\n" not in str(found.value) and not out.exists()
    assert not list(folder_of(out).glob(".cascadevsr-*"))
    monkeypatch.undo()
    assert 0 < broken_run.main(source, out, pause=0) < 8
    assert out.read_bytes() == (tmp_path / "whole" / "out.mp4").read_bytes()


def test_a_changed_source_is_noticed(tmp_path, capsys):
    path = tmp_path / "in.bin"
    data = np.random.default_rng(0).integers(0, 256, 40 << 20, np.uint8)
    path.write_bytes(data.tobytes())
    before = identity(path)
    assert identity(path) == before
    os.utime(path, ns=(1, 1))
    assert identity(path) != before
    data[-5] ^= 1
    path.write_bytes(data.tobytes())
    assert identity(path)["hash"] != before["hash"]
    source = film(tmp_path / "in.mkv", clip(20))
    with pytest.raises(ZeroDivisionError):
        broken_run.main(source, tmp_path / "out.mp4", pause=1 / 0)
    assert broken_run.main(source, tmp_path / "out.mp4", pause=0) == 4
