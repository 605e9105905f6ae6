"""Any image upscaler over a film, and films that were upscaled elsewhere, by the command."""

import numpy as np
import pytest
from cascadevsr.media.errors import MediaError
from cascadevsr.media.reader import frames, probe
from cascadevsr.runner import cli, steady, upscale
from cascadevsr.runner.binding import bind_image_model
from cascadevsr.runner.errors import RunnerError
from cascadevsr.runner.workflow import Workflow
from cascadevsr.tests.image_model import write_upscaler
from cascadevsr.tests.media.films import assert_times, clip, film, seen

TIMES = [0, 0.04, 0.1, 0.3]


def options(*words):
    return cli.parser().parse_args([str(word) for word in words])


@pytest.fixture
def image_model(tmp_path):
    return write_upscaler(tmp_path / "Tiny.safetensors")


def test_a_film_through_an_image_model_and_made_steady(tmp_path, comfyui, image_model):
    small, large, out = (tmp_path / name for name in ("in.mkv", "large.mkv", "out.mkv"))
    film(small, clip(4), times=TIMES, sound_start=0.1, sounds=[("flac", "mono", "eng")])
    assert upscale.main(options("upscale", small, large, "--image-model", image_model, "--cpu"), comfyui) == 0
    assert (probe(large).height, probe(large).width) == (96, 128)
    assert_times(large, TIMES)
    assert abs(seen(large)[1][0] - seen(large)[0][0] - 0.1) < 0.025
    kept = options("steady", large, out, "--source", small, "--steadiness", 0, "--fidelity", 0, "--lossless", "--cpu")
    assert steady.main(kept, comfyui) == 0  # both 0: bit for bit
    assert all(np.array_equal(a, b) for a, b in zip(frames(probe(large)), frames(probe(out)), strict=True))
    assert_times(out, TIMES)


def test_another_size_than_the_models(tmp_path, comfyui, image_model):
    film(tmp_path / "in.mp4", clip(2, 24, 32))
    words = (
        "upscale",
        tmp_path / "in.mp4",
        tmp_path / "out.mp4",
        "--image-model",
        image_model,
        "--scale",
        2.7,
        "--cpu",
    )
    assert upscale.main(options(*words), comfyui) == 0
    assert (probe(tmp_path / "out.mp4").height, probe(tmp_path / "out.mp4").width) == (64, 86)


def test_sizes_are_bound_between_model_and_node():
    workflow = Workflow.load("Upscale-with-any-Model")
    bind_image_model(workflow, "a.pth", None)
    (node,) = (workflow.prompt[each]["inputs"] for each in workflow.of_type("VSRSteadyUpscaledVideo"))
    assert "upscale_model" in node and "images" not in node
    bind_image_model(workflow, "a.pth", (640, 360))
    fit = workflow.prompt[node["images"][0]]
    assert "upscale_model" not in node and (fit["inputs"]["width"], fit["inputs"]["height"]) == (640, 360)
    (loader,) = workflow.of_type("UpscaleModelLoader")
    assert workflow.prompt[loader]["inputs"]["model_name"] == "a.pth"


def test_what_does_not_belong_together_is_said_before_the_work(tmp_path, image_model):
    for name, pictures in (("small.mp4", clip(4)), ("short.mp4", clip(3)), ("wide.mp4", clip(4, 48, 96))):
        film(tmp_path / name, pictures)
    film(tmp_path / "large.mp4", clip(4, 96, 128))

    def run(source, *words):
        steady.main(options("steady", tmp_path / "large.mp4", tmp_path / "o.mp4", "--source", source, *words), None)

    with pytest.raises(RunnerError, match=r"--source: must have as many frames as UPSCALED \(4\); got 3"):
        run(tmp_path / "short.mp4")
    with pytest.raises(RunnerError, match="--source: upscaled and LR frames must have the same shape"):
        run(tmp_path / "wide.mp4")
    with pytest.raises(RunnerError, match="--source: .*does not exist"):
        run(tmp_path / "none.mp4")
    with pytest.raises(RunnerError, match=r"--fidelity: must be in 0..1; got 2"):
        run(tmp_path / "small.mp4", "--fidelity", 2)
    with pytest.raises(MediaError, match="must not be a file that is read"):
        run(tmp_path / "o.mp4" if film(tmp_path / "o.mp4", clip(4)) else None)
    words = ("upscale", tmp_path / "small.mp4", tmp_path / "p.mp4", "--image-model")
    with pytest.raises(RunnerError, match="--image-model: not found: .*none.pth does not exist"):
        upscale.main(options(*words, tmp_path / "none.pth"), None)
    with pytest.raises(RunnerError, match="--scale/--size: .*1 to 8 times"):
        upscale.main(options(*words, image_model, "--scale", 9), None)
