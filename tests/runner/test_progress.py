"""The line on the terminal: the whole run where it is known, else that of the running node."""

import io
import json
from types import SimpleNamespace

import pytest
from cascadevsr.media.pace import Pace
from cascadevsr.runner import progress
from cascadevsr.runner.client import Progress, _is_over, _step
from cascadevsr.runner.progress import Display, Whole, counted

PROMPT = {"1": {"class_type": "VSRCascadeInput"}, "2": {"class_type": "KSampler", "_meta": {"title": "Sample"}}}


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """A clock that stands still: clock.time."""
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.time)
    monkeypatch.setattr(progress, "cache_root", lambda: tmp_path)
    return now


def run(clock, whole, seconds):
    """Run the two nodes, which take `seconds`, and give the lines."""
    stream = io.StringIO()
    display = Display(stream, every=0.0, whole=whole)
    whole.begin(40)
    for node, title, taken in (("1", "Cascade Input", seconds[0]), ("2", "Sample", seconds[1])):
        display(Progress(node, title))
        for tick in range(1, 11):
            clock.time += taken / 10
            display(Progress(node, title, tick, 10, f"frame {4 * tick}/40, 2.1 fps"))
    display.close()
    whole.end(1e6)
    return stream.getvalue().splitlines()


def test_the_first_run_shows_the_nodes_own_lines_the_second_the_whole(clock):
    lines = run(clock, Whole(Pace(40, now=lambda: clock.time), PROMPT, "CPU, graph", lambda: clock.time), (10.0, 30.0))
    assert lines[4] == "[4 s]  Cascade Input  frame 16/40, 2.1 fps"
    lines = run(clock, Whole(Pace(40, now=lambda: clock.time), PROMPT, "CPU, graph", lambda: clock.time), (10.0, 30.0))
    assert lines[4] == "[4 s]  frame 4/40, 1 fps, 0:36 left  Cascade Input  40 %"
    assert lines[-1].startswith("[40 s]  frame 40/40, 1 fps  Sample")


def test_parts_add_up(clock):
    pace = Pace(80, now=lambda: clock.time)
    whole = Whole(pace, PROMPT, "CPU, graph", lambda: clock.time)
    run(clock, whole, (10.0, 30.0))
    pace.made += 40
    lines = run(clock, whole, (10.0, 30.0))
    assert lines[4].startswith("[4 s]  frame 44/80, 1 fps, 0:36 left")


def message(kind, data):
    return SimpleNamespace(type=SimpleNamespace(name=kind), data=data)


def test_lines_of_nodes_are_read_from_the_socket():
    def event(kind, **data):
        return message("TEXT", json.dumps({"type": kind, "data": {"prompt_id": "p", **data}}))

    step = _step(PROMPT, "p", event("executing", node="2"), Progress("", ""))
    assert step == Progress("2", "Sample")
    step = _step(PROMPT, "p", event("progress", node="2", value=3, max=9), step)
    line = "frame 17/81, 2.1 fps, 0:34 left"
    binary = (3).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"2" + line.encode()
    step = _step(PROMPT, "p", message("BINARY", binary), step)
    assert step == Progress("2", "Sample", 3, 9, line)
    assert _step(PROMPT, "p", event("progress", node="2", value=4, max=9), step).text == line
    assert _step(PROMPT, "p", message("BINARY", binary.replace(b"2frame", b"7frame")), step) is None
    assert _step(PROMPT, "p", message("BINARY", (1).to_bytes(4, "big") + bytes(20)), step) is None
    assert _step(PROMPT, "other", event("executing", node="2"), step) is None
    assert _is_over("p", event("execution_success")) and _is_over("p", event("executing", node=None))
    assert not _is_over("p", event("executing", node="2")) and not _is_over("p", message("BINARY", binary))


def test_reading_and_writing_say_how_far_they_are_when_they_take_long(monkeypatch, capsys):
    assert list(counted(range(3), "Reading IN", 3)) == [0, 1, 2]
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    list(counted(range(3), "Reading IN", 3))
    assert "Reading IN  frame 1/3" in capsys.readouterr().out
