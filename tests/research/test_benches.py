"""The benchmarks: those of graphs in a real ComfyUI at toy size, those of clips without it."""

import json
import shutil
from argparse import Namespace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from cascadevsr.media.reader import read_frames
from cascadevsr.media.writer import write_video
from cascadevsr.research import beside, graphs, looks, neighbours, pace, quality, reference_gains, restorers, steady
from cascadevsr.runner.bench import BENCHMARKS
from cascadevsr.runner.client import Progress
from cascadevsr.runner.errors import RunnerError
from cascadevsr.runner.pack import load
from PIL import Image


def options(**values):
    return Namespace(**{"frames": None, "size": None, "device": "cpu", "settings": []} | values)


def test_every_benchmark_says_what_it_measures():
    for module, function, _ in BENCHMARKS.values():
        assert getattr(load(module), function).__doc__


@pytest.fixture(autouse=True)
def every_stage(monkeypatch):
    """List quick stages, too: at this size decoding may take less than is worth a line."""
    monkeypatch.setattr(graphs, "_LEAST_SECONDS", 0.0)


def test_builtin_runs_the_graph_that_users_run(comfyui):
    result = graphs.builtin(options(frames=5, size="256x128"), comfyui)
    assert (result["frames"], result["width"], result["height"], result["network_calls"]) == (5, 256, 128, 1)
    assert result["seconds_per_frame"] > 0 and result["device"].startswith("cpu")
    # Stages are timed by the host's messages, which wait while a node computes: a quick one may seem to take no time.
    stages = {name: seconds for name, seconds in result.items() if name.endswith("_seconds")}
    assert "Temporal Decode_seconds" in stages and 0 < sum(stages.values()) < 60


@pytest.mark.parametrize("bench", [restorers.upscale_a_video, restorers.mgld_vsr])
def test_restorers_run_their_graphs_with_random_weights(bench, comfyui):
    result = bench(options(size="64x64", settings=["Refine Sigmas.steps=3"]), comfyui)
    assert (result["frames"], result["width"], result["height"], result["steps"]) == (5, 64, 64, 3)
    assert result["graph"].startswith("Restore-with-") and "random weights" in result["networks"]
    assert result["network_calls"] >= 3
    assert result["Sample_seconds"] > 0 and result["Temporal Decode_seconds"] > 0


def test_releases_of_published_size_have_the_published_numbers_of_weights(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(restorers, "save_state", lambda path, state: counted.append(len(state)))
    monkeypatch.setattr(restorers, "_draw", lambda key, shape, generator: torch.empty(shape, device="meta"))
    (tmp_path / "text_encoder").mkdir()
    upscale_a_video, mgld_vsr = (
        restorers.write_upscale_a_video(tmp_path, True),
        restorers.write_mgld_vsr(tmp_path, True),
    )
    assert 1.0e9 < upscale_a_video < 1.6e9 and 1.2e9 < mgld_vsr < 2.2e9
    assert len(counted) == 5


def clips(folder):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((80, 64))
    truth = np.stack([np.asarray(coarse)[8:56, 8 + i : 72 + i] for i in range(3)])
    low = np.stack([np.asarray(Image.fromarray(frame).resize((16, 12), Image.BICUBIC)) for frame in truth])
    for name, frames in (("a.mp4", truth), ("a_bicubic.mp4", low)):
        write_video(folder / name, frames, Fraction(24), codec="h264-rgb")
    chosen = {"only": None, "exclude": [], "settings": [], "image_models": [], "workflow": "Upscale-a-Video"}
    return Namespace(clips=folder, lr=folder, modes=["bicubic", "real"], **chosen)


def test_quality_gives_bicubic_no_gain_over_itself(tmp_path, monkeypatch):
    pytest.importorskip("cv2", reason="OpenCV's flow measures the warping error")

    def bicubic(small, rate, size, options, host, more=()):
        return np.stack([quality._bicubic(frame, size) for frame in small])

    def enlarged(x):
        sizes = [4 * side for side in x.shape[-2:]]
        return torch.nn.functional.interpolate(x, sizes, mode="bicubic", antialias=True) + 0.1

    monkeypatch.setattr(quality, "upscaled", bicubic)
    monkeypatch.setattr(quality, "load_upscaler", lambda file: enlarged)
    options = clips(tmp_path)
    options.image_models = ["brighter.pth"]
    result = quality.run(options, None)
    assert list(result["clips"]) == ["bicubic"] and list(result["clips"]["bicubic"]) == ["a"]
    means = result["means"]["bicubic"]
    assert means["gain"] == means["ssim_gain"] == means["neighbours"] == 0
    assert means["over_ibp"] < 0 < means["bicubic"]
    assert means["brighter_gain"] < -1 and means["colour"] < 2
    assert 0 < means["sharpness"] < 1
    assert means["warp_ratio"] == means["bicubic_warp_ratio"]


def test_quality_says_what_is_missing(tmp_path):
    options = clips(tmp_path)
    with pytest.raises(RunnerError, match="--clips"):
        quality.run(Namespace(**{**vars(options), "clips": None}), None)
    with pytest.raises(RunnerError, match="no clip"):
        quality.run(Namespace(**{**vars(options), "modes": ["none"]}), None)


def test_steady_measures_an_upscaler_alone_and_made_steady(tmp_path, monkeypatch):
    pytest.importorskip("cv2", reason="OpenCV's flow measures the warping error")
    calls = []

    def flickering(x):
        calls.append(x)
        return torch.nn.functional.interpolate(x, scale_factor=4, mode="bicubic") + 0.04 * (len(calls) % 2)

    monkeypatch.setattr(steady, "load_upscaler", lambda file: flickering)
    options = Namespace(**{**vars(clips(tmp_path)), "image_models": ["any.pth"], "frames": None})
    result = steady.run(options, None)
    means = result["means"]["any bicubic"]
    assert means["gain"] == means["least_gain"] > 1 and means["clean"] in (0, 1)
    assert means["steady_change"] < 0.5 * means["alone_change"] and means["cpu_seconds_per_frame"] > 0
    assert list(result["clips"]["any bicubic"]) == ["a"]
    with pytest.raises(RunnerError, match="needs --clips"):
        steady.run(Namespace(**{**vars(options), "image_models": []}), None)
    with pytest.raises(RunnerError, match="no clip"):
        steady.run(Namespace(**{**vars(options), "modes": ["none"]}), None)
    monkeypatch.setattr(steady, "load_upscaler", lambda file: lambda x: x)
    with pytest.raises(RunnerError, match="must have the size of a.mp4"):
        steady.run(options, None)


def test_references_are_measured_where_they_show_something(tmp_path, monkeypatch):
    options = clips(tmp_path)
    truth = np.stack(list(read_frames(tmp_path / "a.mp4")))
    edited = truth.copy()
    edited[:, :, 32:] = 255 - edited[:, :, 32:]
    write_video(tmp_path / "video.mp4", edited, Fraction(24), codec="h264-rgb")
    Image.fromarray(truth[0]).save(tmp_path / "face.png")
    entries = [
        {"name": "a", "file": "a.mp4", "role": "GT", "reference_video": {"file": "video.mp4"}},
        {"name": "b", "file": "a.mp4", "role": "GT", "reference_images": [{"file": "face.png"}]},
        {"name": "plain", "file": "a.mp4", "role": "GT"},
    ]
    (tmp_path / "manifest.json").write_text(json.dumps({"clips": entries}))
    (tmp_path / "b_bicubic.mp4").write_bytes((tmp_path / "a_bicubic.mp4").read_bytes())
    asked = []

    def better_on_the_left(small, rate, size, options, host, more=()):
        asked.append([Path(word).name for word in more])
        bicubic = np.stack([quality._bicubic(frame, size) for frame in small])
        if more and more[-1].endswith("video.mp4"):
            bicubic[:, :, :32] = truth[:, :, :32]
        return bicubic

    monkeypatch.setattr(reference_gains, "upscaled", better_on_the_left)
    options = Namespace(**vars(options), regions=["b=32,0,32,48"])
    rows = reference_gains.run(options, None)["bicubic"]
    model = ["--workflow", "Upscale-with-Identity-Images.json"]  # a copy without what pictures give as pixels
    settings = ["--set", "Reference Set.long_edge=1024", "--set", "Reference CFG Guider.s_ref=0"]
    assert asked[:3] == [
        [],
        [*model, *settings, "--reference-video", "video.mp4"],
        [*model, "--reference", "face.png"],
    ]
    assert rows["a"]["right"] > 20 and rows["a"]["wrong"] == 0 and rows["a"]["frames_better"] == 3
    assert rows["a"]["t right"] > 10 and rows["a"]["t wrong b"] == 0
    assert rows["b"]["right"] == 0 and rows["b"]["wrong"] == 0, "the video changes nothing in the region"
    with pytest.raises(RunnerError, match="--region"):
        reference_gains.parse_region("b=1,2")


def test_motion_is_what_makes_neighbours_worth_something(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "_SMALL", (16, 24))
    shutil.copy(Path(neighbours.__file__).parents[1] / "assets" / "photos" / "astronaut.jpg", tmp_path)
    rows = neighbours.run(options(frames=4, photos=str(tmp_path)), None)
    gain = rows["bicubic"]
    assert gain["2"] > gain["alone"] + 0.1 and gain["none"] < gain["exact"] - 0.1 and gain["steps 1"] < gain["steps 2"]
    assert gain["6"] > gain["alone"] + 0.5, "slow clips: far frames show most that is new"
    assert rows["real"]["2"] > 0 and rows["seconds"]["float32"] > 0
    with pytest.raises(RunnerError, match="--photos"):
        neighbours.run(options(photos=None), None)


def test_parts_are_timed_beside_another_checkout(monkeypatch):
    monkeypatch.setattr(beside, "_ROUNDS", 1)
    rows = beside.beside(options(old=str(beside.ROOT), only=["noise"]), None)
    assert len(rows) == 3 and all(name.startswith("noise") for name in rows)
    assert all(0.2 < row["ratio"] < 5 and row["new_ms"] > 0 for row in rows.values()), "one version, twice"
    with pytest.raises(RunnerError, match="git worktree add"):
        beside.beside(options(old=None, only=None), None)


def test_looks_are_measured_beside_bicubic(tmp_path, comfyui):
    options = Namespace(**vars(clips(tmp_path)), device="cpu")
    result = looks.run(options, comfyui)
    assert list(result) == ["built-in draft", "built-in standard", "built-in best"]
    assert len({row["psnr"] for row in result.values()}) == 3
    assert all(row["cpu_seconds_per_frame"] > 0 and row["sharpness"] > 0 for row in result.values())
    with pytest.raises(RunnerError, match="needs --clips"):
        looks.run(Namespace(**{**vars(options), "lr": None}), comfyui)


def test_the_time_left_is_compared_with_what_it_took(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    watch = pace.Watch()
    for now[0], text in (
        (1.0, "frame 1/40, 1 fps, 9:59 left"),
        (10.0, "frame 5/40, 1 fps, 1:25 left, 1.1 GB"),
        (50.0, "frame 20/40, 1 fps, 1:00:00 left"),
        (98.0, "frame 39/40, 1 fps, 0:01 left"),
    ):
        watch(Progress("1", "Output", text=text))
    now[0] = 100.0
    assert watch.gap == 48 and watch.errors() == pytest.approx([-5, 3550])
