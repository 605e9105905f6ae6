"""How far, how fast, how long: with a stand-in clock, so that what is shown can be compared with what came."""

import random
import re

import pytest
from cascadevsr.media.pace import Pace, Speeds, Stages, countdown

FRAMES = 200
STAGES = {"Reading": 0.2, "Encoding": 9.0, "Sampling": 40.0, "Decoding": 95.0, "Writing": 3.0}  # seconds


class Clock:
    """A clock that stands still between two looks."""

    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


def shown_left(line: str) -> float | None:
    found = re.search(r"(?:(\d+):)?(\d+):(\d\d) left$", line)
    return found and sum(int(part or 0) * 60**power for power, part in enumerate(reversed(found.groups())))


def check_left(shown: list[tuple[float, str]], end: float) -> None:
    """After the first tenth of a run every time left that was shown is right within a quarter (or a second)."""
    began = shown[0][0]
    late = [(end - moment, shown_left(line)) for moment, line in shown if moment - began >= 0.1 * (end - began)]
    told = [(true, said) for true, said in late if said is not None]
    assert len(told) > 50
    assert all(abs(said - true) <= max(1.0, 0.25 * true) for true, said in told)


def test_the_line():
    clock = Clock()
    pace = Pace(81, now=clock)
    assert pace.line() == "frame 0/81"
    clock.time += 8
    pace.made = 17
    assert pace.line() == "frame 17/81, 2.1 fps, 0:30 left"
    assert pace.line(certain=False) == "frame 17/81"
    assert Pace(1200, before=1200).line() == "frame 1,200/1,200"
    steps = Pace(4, unit="step", now=clock)
    clock.time += 10
    assert steps.line(2.5) == "step 2/4, 0:06 left"


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (34.4, "0:34"), (600, "10:00"), (3723, "1:02:03")])
def test_countdown(seconds, text):
    assert countdown(seconds) == text


def test_frames_of_uneven_speed_are_counted_right_after_a_tenth():
    clock, dice, shown = Clock(), random.Random(1), []
    pace = Pace(FRAMES, now=clock)
    for _ in range(FRAMES):
        shown.append((clock.time, pace.line()))
        clock.time += dice.uniform(0.3, 1.0)
        pace.made += 1
    check_left(shown, clock.time)


@pytest.mark.parametrize("speed", [0.5, 1.0, 3.0])
def test_one_segment_whose_stages_are_known_from_another_device(speed):
    """The ratios count: a device `speed` times as fast as remembered is told right all the same."""
    clock, dice, shown = Clock(), random.Random(2), []
    pace = Pace(FRAMES, now=clock)
    stages = Stages(list(STAGES), STAGES, now=clock, measured=False)
    stages.begin()
    for name, seconds in STAGES.items():
        stages.enter(name)
        seconds *= dice.uniform(0.9, 1.1) / speed
        for tick in range(100):
            shown.append((clock.time, pace.line(FRAMES * stages.share(tick / 100), stages.certain)))
            clock.time += seconds / 100
    check_left(shown, clock.time)


def test_stages_that_nobody_knows_are_told_after_the_first_round():
    clock, shown, length = Clock(), [], FRAMES // 20
    pace = Pace(FRAMES, now=clock)
    stages = Stages(list(STAGES), {}, now=clock)
    for _ in range(20):
        stages.begin()
        for name, seconds in STAGES.items():
            stages.enter(name)
            for tick in range(10):
                certain = stages.certain or pace.made > 0
                shown.append((clock.time, pace.line(length * stages.share(tick / 10), certain)))
                clock.time += seconds / 200
        stages.end()
        pace.made += length
    first = [line for _, line in shown[: 10 * (len(STAGES) - 1) + 2]]
    assert all(shown_left(line) is None for line in first), "a guess is not shown"
    check_left(shown, clock.time)


def test_a_stage_that_takes_twice_as_long_as_expected_is_noticed_while_it_runs():
    clock = Clock()
    stages = Stages(list(STAGES), {**STAGES, "Decoding": STAGES["Decoding"] / 2}, now=clock, measured=False)
    stages.begin()
    for name, seconds in STAGES.items():
        stages.enter(name)
        for tick in range(100):
            if name == "Decoding" and tick >= 25:
                left = seconds * (1 - tick / 100) + STAGES["Writing"]
                assert stages.left(tick / 100) == pytest.approx(left, rel=0.1, abs=2)
            clock.time += seconds / 100


def test_a_stage_that_prepares_before_its_first_sign_is_not_thought_slow():
    """Finding the motion around a first frame takes as long as restoring five."""
    clock = Clock()
    stages = Stages(["Decoding"], {}, now=clock)
    stages.begin()
    stages.enter("Decoding")
    clock.time += 5.0
    for frame in range(1, 41):
        clock.time += 1.0
        left = stages.left(frame / 40)
        assert frame < 2 or left == pytest.approx(40 - frame, abs=1e-6)


def test_time_is_told_as_soon_as_no_unknown_stage_is_to_come():
    clock, took = Clock(), {"Reading": 0.2, "Upscaling": 30.0, "Steadying": 60.0, "Writing": 3.0}
    stages = Stages(list(took), {"Reading": 0.2, "Writing": 3.0}, now=clock, measured=False)
    stages.begin()
    for name, seconds in took.items():
        stages.enter(name)
        for tick in range(100):
            left = stages.left(tick / 100)
            assert stages.certain == (name == "Writing" or (name == "Steadying" and tick >= 25))
            true = seconds * (1 - tick / 100) + sum(list(took.values())[list(took).index(name) + 1 :])
            assert not stages.certain or left == pytest.approx(true, rel=0.1, abs=0.5)
            clock.time += seconds / 100


def test_shares_never_run_back_and_end_full():
    clock = Clock()
    stages = Stages(list(STAGES), STAGES, now=clock)
    for _ in range(2):
        stages.begin()
        shares = []
        for name, seconds in STAGES.items():
            stages.enter(name)
            for tick in range(11):
                shares.append(stages.share(tick / 10))
                clock.time += seconds / 11
        assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == pytest.approx(1)


def test_speeds_are_remembered_and_corrected(tmp_path):
    speeds = Speeds(tmp_path / "speeds.json", most=3)
    assert speeds.known("a") is None
    speeds.learn("a", 20.0, 10)
    assert Speeds(tmp_path / "speeds.json").known("a") == 2
    speeds.learn("a", 4.0)
    assert speeds.known("a") == 3
    for name in "bcd":
        speeds.learn(name, 1.0)
    assert speeds.known("a") is None and speeds.known("d") == 1, "the oldest go"
    speeds.learn("d", 0.0)
    assert speeds.known("d") == 1


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"a": "fast"}', '{"a": -1}', "\0"])
def test_a_broken_file_is_as_good_as_none(tmp_path, text):
    (tmp_path / "speeds.json").write_text(text)
    speeds = Speeds(tmp_path / "speeds.json")
    assert speeds.known("a") is None
    speeds.learn("a", 1.0)
    assert speeds.known("a") == 1


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_memory(tmp_path):
    speeds = Speeds(tmp_path / "missing" / "speeds.json")
    speeds.learn("a", 1.0)
    assert speeds.known("a") is None
