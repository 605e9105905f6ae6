"""The command's own checks and options, and a whole run of it in a real ComfyUI at toy cost."""

import hashlib
from argparse import Namespace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from cascadevsr.media import plan, tracks
from cascadevsr.media.errors import MediaError
from cascadevsr.media.reader import Wish, frames, probe, with_transparency
from cascadevsr.runner import cli, paths, upscale
from cascadevsr.runner.errors import RunnerError
from cascadevsr.runner.progress import Whole
from cascadevsr.runner.stage import stage
from cascadevsr.runner.workflow import Workflow
from cascadevsr.tests.media.films import assert_times, clip, film, seen
from PIL import Image


def options(*words):
    return cli.parser().parse_args(["upscale", *map(str, words)])


def test_one_pixel_side_is_refused():
    with pytest.raises(RunnerError, match="at least 2 pixels; got 1x40"):
        upscale.check_sides(40, 1)


@pytest.mark.parametrize("text, rate", [("24", 24), ("12.5", Fraction(25, 2)), ("29.97", Fraction(30000, 1001))])
def test_rate(text, rate):
    assert upscale.parse_rate(text) == rate and upscale.parse_rate(None) is None
    for wrong in ("0", "-3", "fast", "1/0"):
        with pytest.raises(RunnerError, match="--rate"):
            upscale.parse_rate(wrong)


def test_the_command_line_knows_what_media_knows():
    actions = {
        action.dest: action.choices for action in cli.parser()._subparsers._group_actions[0].choices["upscale"]._actions
    }
    assert actions["codec"] == plan.CODECS and actions["keep_tracks"] == tracks.KEEP


def test_names_that_begin_with_a_dash():
    given = options("--scale", 2, "--", "-in.mp4", "-out.mp4")
    assert (given.input, given.output, given.scale) == ("-in.mp4", "-out.mp4", 2)


def test_space_is_checked_first(tmp_path, monkeypatch):
    how = plan.plan(tmp_path / "a.mp4", probe(film(tmp_path / "in.mp4")))
    monkeypatch.setattr(paths, "free_bytes", lambda path: 10**6)
    with pytest.raises(RunnerError, match="GiB free"):
        upscale.check_space(tmp_path / "a.mp4", 1000, (1080, 1920), how)


@pytest.mark.parametrize(
    "words", [("in.mp4", "../{}/in.mp4"), ("in.mp4", "other.mp4", "--reference-video", "other.mp4")]
)
def test_nothing_is_written_over_a_source(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    for name in ("in.mp4", "other.mp4"):
        film(tmp_path / name)
    before = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in tmp_path.iterdir()}
    workflow = "Upscale-an-Edited-Video" if len(words) > 2 else "Upscale-a-Video"
    with pytest.raises(MediaError, match="must not be a file that is read"):
        upscale.main(options(*(word.format(tmp_path.name) for word in words), "--workflow", workflow), None)
    with pytest.raises(RunnerError, match="--json: must not be IN"):
        upscale.main(options("in.mp4", "new.mp4", "--json", f"../{tmp_path.name}/in.mp4"), None)
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((), "Upscale-a-Video"),
        (("--reference-video", "other.mp4"), "Upscale-an-Edited-Video"),
        (("--reference", "face.png"), "Upscale-with-Identity-Images"),
        (("--reference", "face.png", "--workflow", "Cascade-to-4K"), "Cascade-to-4K"),
    ],
)
def test_references_choose_the_workflow_that_is_made_for_them(tmp_path, monkeypatch, given, wanted):
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "in.mp4"), film(tmp_path / "other.mp4")
    Image.fromarray(clip(1)[0]).save(tmp_path / "face.png")
    chosen = []
    monkeypatch.setattr(upscale, "run", lambda *_: 0)
    monkeypatch.setattr(upscale, "fill", lambda *_: None)
    monkeypatch.setattr(upscale, "expected_size", lambda *_: None)
    load = Workflow.load
    monkeypatch.setattr(Workflow, "load", lambda name: chosen.append(name) or load(name))
    upscale.main(options("in.mp4", "out.mp4", *given), None)
    assert chosen == [wanted]


def test_images_are_staged_as_a_lossless_video(tmp_path):
    (tmp_path / "in").mkdir()
    for number, frame in enumerate(clip(11), 1):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    name = stage(probe(tmp_path), Wish(), tmp_path / "in", "input")
    assert name == "input.mov"
    assert all(np.array_equal(a, b) for a, b in zip(frames(probe(tmp_path / "in" / name)), clip(11), strict=True))


def test_sound_is_staged_where_a_graph_needs_it(tmp_path):
    timeline = probe(film(tmp_path / "in.mkv", start=0.4, sound_start=0.4, sounds=[("flac", "mono", "eng")]))
    for name, sound in (("a", False), ("b", True)):
        staged = tmp_path / stage(timeline, Wish(), tmp_path, name, sound)
        assert len(seen(staged)[1]) == int(sound)
    assert abs(seen(staged)[1][0]) < 0.025


def test_transparency_grows_with_the_picture(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(48, 0)
    Image.fromarray(np.dstack([clip(1)[0], ramp])).save(tmp_path / "a.png")
    large = clip(1, 96, 128)
    found = next(with_transparency(large, probe(tmp_path / "a.png"), Wish()))
    assert np.array_equal(found[..., :3], large[0]) and np.abs(found[::2, ::2, 3].astype(int) - ramp).max() <= 3


class Enlarging:
    """Stands for the host: every pixel of the staged clip twice."""

    def __init__(self, folder: Path) -> None:
        self.input_dir, self.runs, self.server = folder, [], Namespace(cpu=True)

    def run(self, workflow: Workflow, bits: int, whole: Whole):
        small = probe(self.input_dir / "input.mov")
        large = np.stack([frame.repeat(2, 0).repeat(2, 1) for frame in frames(small, Wish(bits))])
        assert large.dtype == (np.uint8 if bits == 8 else np.uint16)
        self.staged = small
        self.runs.append(small.frames)
        costs = dict.fromkeys(("peak_memory_mb", "seconds"), 0) | {"seconds_per_frame": 0.0, "network_calls": 0}
        costs |= {"frames": len(large), "height": large.shape[1], "width": large.shape[2]}
        return Namespace(frames=large, seconds=0.0, costs=lambda: costs)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command with that stand-in and return it."""
    (tmp_path / "staged").mkdir()
    job = Enlarging(tmp_path / "staged")

    class Opened:
        def __enter__(self):
            return job

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(upscale, "open_job", lambda *arguments: Opened())

    def call(*words):
        assert upscale.main(options(*words, "--scale", 2), None) == 0
        return job

    return call


def test_a_film_keeps_its_times_and_sound(tmp_path, run, capsys):
    times = [0, 0.033, 0.067, 0.2, 0.9, 0.95]
    source = film(
        tmp_path / "in.mkv", times=times, start=0.4, sounds=[("aac", "mono", "eng"), ("aac", "stereo", "deu")]
    )
    run(source, tmp_path / "out.mp4")
    assert_times(tmp_path / "out.mp4", times)
    (first, *_), starts = seen(tmp_path / "out.mp4")
    assert len(starts) == 2 and abs(starts[0] - first + 0.4) < 0.025
    assert "variable frame rate" in capsys.readouterr().out


def test_a_deep_film_is_staged_and_written_deep(tmp_path, run):
    ramp = np.repeat(np.linspace(20000, 26000, 64).astype(np.uint16)[None, :, None], 48, 0).repeat(3, 2)
    film(tmp_path / "in.mkv", [ramp] * 2, codec="ffv1", layout="yuv420p10le")
    assert run(tmp_path / "in.mkv", tmp_path / "out.mp4").staged.depth == 16
    assert run(tmp_path / "in.mkv", tmp_path / "shallow.mp4", "--codec", "h264").staged.depth == 8
    assert len(np.unique(next(frames(probe(tmp_path / "out.mp4"), Wish(16))))) > 50


def test_transparency_through_the_command(tmp_path, run):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(48, 0)
    Image.fromarray(np.dstack([clip(1)[0], ramp])).save(tmp_path / "in.png")
    run(tmp_path / "in.png", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (128, 96) and image.mode == "RGBA"
        assert np.array_equal(np.asarray(image)[::2, ::2, :3], clip(1)[0])  # what it hides is kept, too


def test_a_whole_run(tmp_path, comfyui):
    """The built-in model at the smallest size, in a real ComfyUI."""
    source = film(tmp_path / "in.ts", clip(3, 24, 32), start=1.4, sound_start=1.4, sounds=[("aac", "mono", "eng")])
    assert upscale.main(options(source, tmp_path / "out.mp4", "--scale", 2, "--cpu"), comfyui) == 0
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (64, 48)
    assert_times(tmp_path / "out.mp4", [i / 24 for i in range(3)])
    (first, *_), starts = seen(tmp_path / "out.mp4")
    assert abs(starts[0] - first) < 0.025


@pytest.mark.parametrize(
    "name, words", [("costs", "a folder"), ("a.png", "film or picture"), ("in.mp4/x", "cannot write")]
)
def test_costs_that_cannot_be_written_are_refused_before_the_work(tmp_path, name, words):
    film(tmp_path / "in.mp4")
    (tmp_path / "costs").mkdir()
    with pytest.raises((RunnerError, MediaError), match=f"--json: .*{words}"):
        upscale.main(options(tmp_path / "in.mp4", tmp_path / "out.mp4", "--json", tmp_path / name), None)


@pytest.mark.parametrize("names", [("", "out.mp4"), ("in.mp4", "")])
def test_empty_names_are_no_folders(names):
    with pytest.raises(RunnerError, match="got an empty one"):
        upscale.main(options(*names), None)


def test_a_full_scratch_disk_is_named_so(tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise MediaError("OUT: input.mov could not be written (No space left on device).")

    monkeypatch.setattr("cascadevsr.runner.stage.write_video", full)
    with pytest.raises(RunnerError, match=r"Scratch space: .* set CASCADEVSR_CACHE"):
        stage(probe(film(tmp_path / "in.mp4")), Wish(), tmp_path, "input")
