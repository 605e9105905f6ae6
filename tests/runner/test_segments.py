"""A long film by segments: resumed, in parts, on several machines; the same file as without a break."""

import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from cascadevsr.media.errors import MediaError
from cascadevsr.media.journal import Journal, folder_of
from cascadevsr.media.reader import Wish, frames, probe
from cascadevsr.media.render import automatic_length
from cascadevsr.runner import cli, join, upscale
from cascadevsr.runner.binding import PLACE_NODE, begin_at
from cascadevsr.runner.errors import RunnerError
from cascadevsr.runner.progress import Whole
from cascadevsr.runner.workflow import Workflow
from cascadevsr.tests.media.films import clip, film, seen
from PIL import Image


class Enlarging:
    """Stands for the host: every pixel of the staged clip twice; ends in the middle of run `ends`."""

    def __init__(self, folder: Path) -> None:
        self.input_dir, self.staged, self.begins, self.said, self.ends = folder, [], [], [], None
        self.references = []
        self.server = Namespace(cpu=True)

    def run(self, workflow: Workflow, bits: int, whole: Whole):
        small = probe(self.input_dir / "input.mov")
        self.staged.append(small.frames)
        places = workflow.of_type(PLACE_NODE)
        references = [probe(file) for file in sorted(self.input_dir.glob("reference_video_*"))]
        self.references.append([(reference.frames, next(frames(reference)).mean()) for reference in references])
        self.begins.append(workflow.prompt[places[0]]["inputs"]["frame"] if places else 0)
        self.said.append(whole.pace.line())
        if len(self.staged) == self.ends:
            raise KeyboardInterrupt
        large = np.stack([frame.repeat(2, 0).repeat(2, 1) for frame in frames(small, Wish(bits))])
        costs = {"frames": len(large), "width": large.shape[2], "height": large.shape[1], "seconds": 1.0}
        costs |= {"seconds_per_frame": 0.0, "peak_memory_mb": 5, "network_calls": len(self.staged)}
        return Namespace(frames=large, seconds=1.0, costs=lambda: costs)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command with that stand-in and return it."""

    def call(*words, ends=None, result=0):
        staged = tmp_path / "staged"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        job = Enlarging(staged)
        job.ends = ends

        class Opened:
            def __enter__(self):
                return job

            def __exit__(self, *error):
                pass

        monkeypatch.setattr(upscale, "open_job", lambda *arguments: Opened())
        options = cli.parser().parse_args([str(word) for word in words])
        module = join if options.command == "join" else upscale
        assert module.main(options, None) == result
        return job

    return call


@pytest.fixture
def source(tmp_path):
    return film(tmp_path / "in.mkv", clip(40), sounds=[("aac", "mono", "eng")])


SCALE = ("--scale", 2, "--segment", 10, "--context", 3)


def test_segments_are_staged_one_at_a_time_with_their_context(tmp_path, run, source, capsys, monkeypatch):
    monkeypatch.setattr("cascadevsr.media.pace._SOON", 0.0)  # no time is told in the first second
    job = run("upscale", source, tmp_path / "out.mp4", *SCALE)
    assert job.staged == [12, 3 + 7 + 10 + 2, 3 + 1 + 10 + 2, 3 + 3 + 10]  # context grows to a multiple of 8
    assert [begin % 8 for begin in job.begins] == [0] * 4
    assert "frame 30/40" in job.said[-1] and "fps" in job.said[-1] and "left" in job.said[-1]
    out = capsys.readouterr().out
    assert "1 scene, 4 segments of 10 to 10 frames" in out and "40 frames 128x96" in out
    whole = run("upscale", source, tmp_path / "whole.mp4", "--scale", 2, "--segment", 0)
    assert whole.staged == [40] and seen(tmp_path / "whole.mp4") == seen(tmp_path / "out.mp4")
    assert not folder_of(tmp_path / "out.mp4").exists()


def test_reference_videos_as_long_as_the_film_go_with_it(tmp_path, run, source):
    brighter = [np.full((48, 64, 3), 5 * number, np.uint8) for number in range(40)]
    names = [film(tmp_path / f"{count}.mkv", brighter[:count]) for count in (40, 12)]
    Image.fromarray(clip(1)[0]).save(tmp_path / "face.png")
    words = ["--workflow", "Upscale-an-Edited-Video", "--reference-video", names[0], "--reference-video", names[1]]
    words += ["--reference", tmp_path / "face.png"]
    job = run("upscale", source, tmp_path / "out.mp4", *SCALE, *words)
    for staged, begin, (first, second) in zip(job.staged, job.begins, job.references, strict=True):
        assert first[0] == staged and abs(first[1] - 5 * begin) < 3
        assert second[0] == 12 and second[1] < 3
    job = run("upscale", source, tmp_path / "out.mp4", "--scale", 2, "--first", 20, *words)
    assert [first[0] for first, _ in job.references] == [20]


def test_a_short_film_is_made_at_once(tmp_path, run, source):
    run("upscale", source, tmp_path / "a.mp4", "--scale", 2)
    run("upscale", source, tmp_path / "b.mp4", "--scale", 2, "--segment", 0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_broken_run_goes_on(tmp_path, run, source, capsys):
    run("upscale", source, tmp_path / "whole.mp4", *SCALE)
    with pytest.raises(KeyboardInterrupt):
        run("upscale", source, tmp_path / "out.mp4", *SCALE, ends=3)
    assert "the same command goes on" in capsys.readouterr().out
    job = run("upscale", source, tmp_path / "out.mp4", *SCALE)
    assert len(job.staged) == 2 and "2 of 4 segments are finished already" in capsys.readouterr().out
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


@pytest.mark.parametrize(
    "more, words",
    [
        (("--crf", 20), "--crf was 12.0, is 20.0"),
        (("--set", "Cascade Input.filter=bicubic"), "workflow has changed"),
        (("--first", "35"), "frames was [0, 40], is [0, 35]"),
    ],
)
def test_other_settings_start_anew(tmp_path, run, source, capsys, more, words):
    with pytest.raises(KeyboardInterrupt):
        run("upscale", source, tmp_path / "out.mp4", *SCALE, ends=3)
    assert len(run("upscale", source, tmp_path / "out.mp4", *SCALE, *more).staged) == 4
    assert f"starts anew ({words})" in capsys.readouterr().out


def test_fresh_and_changed_sources_start_anew(tmp_path, run, source, capsys):
    for change in (False, True):
        with pytest.raises(KeyboardInterrupt):
            run("upscale", source, tmp_path / "out.mp4", *SCALE, ends=3)
        if change:
            film(source, clip(40, seed=5))
        words = () if change else ("--fresh",)
        assert len(run("upscale", source, tmp_path / "out.mp4", *SCALE, *words).staged) == 4
        assert ("starts anew (IN " in capsys.readouterr().out) == change


def test_parts_in_any_order_are_one_film(tmp_path, run, source, capsys):
    run("upscale", source, tmp_path / "whole.mp4", *SCALE)
    out = tmp_path / "out.mp4"
    assert run("plan-film", source, out, *SCALE).staged == []
    with pytest.raises(MediaError, match="4 of 4 segments are missing"):
        run("join", out)
    for part in ("3/3", "1/3"):
        run("upscale", source, out, *SCALE, "--part", part)
    with pytest.raises(MediaError, match=r"1 of 4 segments are missing or damaged: 2 \(frames 11 to 20\)"):
        run("join", out)
    run("upscale", source, out, *SCALE, "--part", "2/3")
    assert not out.exists() and "part 2/3 is finished; 0 of 4 segments are left" in capsys.readouterr().out
    run("join", out)
    assert out.read_bytes() == (tmp_path / "whole.mp4").read_bytes() and not folder_of(out).exists()


def test_a_moved_source_is_named(tmp_path, run, source):
    out = tmp_path / "out.mp4"
    run("upscale", source, out, *SCALE, "--part", "1/1")
    moved = source.rename(tmp_path / "moved.mkv")
    with pytest.raises(RunnerError, match="does not exist. Name it with --input"):
        run("join", out)
    film(source, clip(40, seed=1))
    with pytest.raises(MediaError, match="has changed since"):
        run("join", out)
    run("join", out, "--input", moved)
    assert probe(out).frames == 40


def test_scenes_are_apart(tmp_path, run):
    draw = np.random.default_rng(0)
    scenes = [draw.integers(0, 256, (6, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(3)]
    pictures = [scenes[i // 8] for i in range(24)]
    job = run("upscale", film(tmp_path / "in.mkv", pictures, options={"crf": "4"}), tmp_path / "out.mp4", "--scale", 2)
    assert job.staged == [8, 8, 8] and job.begins == [0, 8, 16]


def test_the_beginning_is_tried(tmp_path, run, source):
    run("upscale", source, tmp_path / "a.mp4", "--scale", 2, "--first", "0.5s")
    assert probe(tmp_path / "a.mp4").frames == 12
    run("upscale", source, tmp_path / "b.mp4", "--scale", 2, "--first", "12")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with pytest.raises(RunnerError, match="--first: must be"):
        run("upscale", source, tmp_path / "b.mp4", "--scale", 2, "--first", "soon")


def test_pictures_and_transparency(tmp_path, run):
    ramp = np.linspace(0, 255, 64)[None, :, None].repeat(48, 0).astype(np.uint8)
    pictures = [np.dstack([frame, np.roll(ramp, 4 * i, 1)]) for i, frame in enumerate(clip(25))]
    source = film(tmp_path / "in.mkv", pictures, codec="ffv1", layout="bgra")
    for name in ("a", "b"):
        words = SCALE if name == "a" else ("--scale", 2, "--segment", 0)
        run("upscale", source, tmp_path / name, *words)
    assert len(list((tmp_path / "a").iterdir())) == 25
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_wrong_options_are_said(tmp_path, run, source):
    out = tmp_path / "out.mp4"
    for words, found in (
        (("--part", "4/3"), "--part: must be I/N with I from 1"),
        (("--part", "x"), "--part: must be I/N, such as"),
        (("--part", "1/2", "--fresh"), "--fresh: would remove"),
        (("--part", "1/2", "--segment", 0), "--segment: 0 makes"),
        (("--segment", -1), "must be frames, 0 or more"),
    ):
        with pytest.raises((RunnerError, MediaError), match=found):
            run("upscale", source, out, "--scale", 2, *words)


def test_memory_decides_the_length(monkeypatch):
    import psutil

    for free, size, wanted in ((8 << 30, (1080, 1920), 48), (1 << 30, (1080, 1920), 32), (8 << 30, (192, 256), 480)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: Namespace(available=free))
        assert automatic_length(size) == wanted


def test_the_place_of_a_segment_enters_the_latent():
    workflow = Workflow.load("Upscale-a-Video")
    cascade = workflow.of_type("VSRCascadeInput")[0]
    assert begin_at(workflow, 0).prompt == workflow.prompt
    moved = begin_at(workflow, 24)
    (place,) = moved.of_type(PLACE_NODE)
    assert moved.prompt[place]["inputs"]["latent"] == [cascade, 0] and moved.prompt[place]["inputs"]["frame"] == 24
    assert [i for i, name in moved.consumers(cascade) if moved.prompt[i]["inputs"][name][1] == 0] == [place]
    assert len(moved.consumers(place)) == len(
        [1 for i, name in workflow.consumers(cascade) if workflow.prompt[i]["inputs"][name][1] == 0]
    )


def test_parts_must_be_made_alike(tmp_path, run, source):
    out = tmp_path / "out.mp4"
    run("upscale", source, out, *SCALE, "--part", "1/2")
    with pytest.raises(MediaError, match="--part: all parts must be made alike; .* --crf was 12.0, is 3.0"):
        run("upscale", source, out, *SCALE, "--crf", 3, "--part", "2/2")
    assert Journal.of(out).missing() == [2, 3]


def released(folder):
    """Put a release of Upscale-A-Video, of tiny networks, where the command finds models."""
    from cascadevsr.tests.host.uav_release import recorded, write_release

    write_release(recorded("pipeline_short_3d"), folder / "serve" / "models" / "video_restorers" / "upscale_a_video")


UAV = ("--workflow", "Restore-with-Upscale-A-Video", "--set", "Refine Sigmas.steps=2")
UAV += ("--set", "Latent Propagation.steps.step_list=1")


@pytest.mark.parametrize("words", [("--scale", "2"), UAV], ids=["built-in", "upscale_a_video"])
def test_segments_in_the_real_host(tmp_path, comfyui, monkeypatch, words):
    """The smallest size; joints differ from an unbroken run by less than 8 bits show."""
    if words is UAV:
        released(tmp_path / "cache")
        monkeypatch.setenv("CASCADEVSR_CACHE", str(tmp_path / "cache"))
    source = film(tmp_path / "in.mkv", clip(26, 24, 32), sounds=[("aac", "mono", "eng")])
    for name, segment in (("whole.mkv", 0), ("out.mkv", 9)):
        options = ["upscale", source, tmp_path / name, *words, "--cpu", "--lossless", "--segment", segment]
        assert upscale.main(cli.parser().parse_args([str(word) for word in options]), comfyui) == 0
    whole, joined = (np.stack(list(frames(probe(tmp_path / name)))).astype(float) for name in ("whole.mkv", "out.mkv"))
    assert joined.shape == (26, 96, 128, 3) if words is UAV else (26, 48, 64, 3)
    steps, wanted = (np.abs(np.diff(film, axis=0)).mean((1, 2, 3)) for film in (joined, whole))
    ratio, joints = steps / wanted, np.isin(np.arange(25), (8, 16))
    assert ratio[joints].mean() / ratio[~joints].mean() < 1.05
