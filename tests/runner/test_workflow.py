"""Workflows are found, filled and checked by title, with errors that name the way out."""

import json

import pytest
from cascadevsr.runner.binding import (
    CAPTURE_NODE,
    Target,
    bind_input,
    bind_output,
    bind_prompt,
    bind_references,
    bind_target,
    check_loaders,
    final_frames,
    parse_size,
    uses_sound,
)
from cascadevsr.runner.errors import RunnerError
from cascadevsr.runner.upscale import expected_size
from cascadevsr.runner.workflow import Workflow
from cascadevsr.tools.editor import shipped


def node(class_type, title, **inputs):
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}


def example():
    cascade = {"target": "scale", "target.scale": 4.0, "filter": "bilinear", "frames": ["2", 0]}
    return Workflow(
        {
            "1": node("LoadVideo", "Load Video", file="a.mp4"),
            "2": node("GetVideoComponents", "Get Video Components", video=["1", 0]),
            "3": node("VSRCascadeInput", "Cascade Input", **cascade),
            "4": node("KSampler", "K v1.5 Sampler", seed=1, cfg=1.0, add_noise=True, model=["9", 0]),
            "5": node("CreateVideo", "Create Video", images=["3", 1], fps=24.0),
            "6": node("SaveVideo", "Save Video", video=["5", 0]),
            "7": node("CLIPTextEncode", "Negative Prompt", text=""),
            "8": node("CLIPTextEncode", "Prompt", text=""),
        },
        "example",
    )


@pytest.mark.parametrize(
    "setting, node_id, name, value",
    [
        ("Cascade Input.filter=lanczos", "3", "filter", "lanczos"),
        ("cascade input.FILTER=bicubic", "3", "filter", "bicubic"),
        ("Cascade Input.target.scale=2", "3", "target.scale", 2.0),
        ("K v1.5 Sampler.cfg=3", "4", "cfg", 3.0),
        ("K v1.5 Sampler.seed=18446744073709551615", "4", "seed", 18446744073709551615),
        ("KSampler.add_noise=off", "4", "add_noise", False),
        ("#8.text=a cat = a star. yes", "8", "text", "a cat = a star. yes"),
    ],
)
def test_set_takes_titles_types_and_ids(setting, node_id, name, value):
    workflow = example()
    workflow.set(setting)
    found = workflow.prompt[node_id]["inputs"][name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "setting, words",
    [
        ("Cascade Imput.filter=x", ["no node titled", "Did you mean 'Cascade Input'?", "Load Video"]),
        ("Cascade Input.filtre=x", ["no input 'filtre'", "Did you mean 'filter'?", "target.scale"]),
        ("Cascade Input.frames=x", ["connected to Get Video Components"]),
        ("K v1.5 Sampler.cfg=high", ["must be a number", "'high'"]),
        ("KSampler.add_noise=maybe", ["must be true or false"]),
        ("CLIPTextEncode.text=x", ["names 2 nodes", "#7", "#8"]),
        ("nonsense", ["Node title.input=value"]),
    ],
)
def test_set_errors_name_the_remedy(setting, words):
    with pytest.raises(RunnerError) as error:
        example().set(setting)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_sockets_are_bound_by_convention():
    workflow = example()
    bind_input(workflow, "clip.mp4")
    bind_prompt(workflow, "a cat")
    bind_target(workflow, Target(size=(640, 360)))
    inputs = workflow.prompt["3"]["inputs"]
    assert workflow.prompt["1"]["inputs"]["file"] == "clip.mp4"
    assert workflow.prompt["8"]["inputs"]["text"] == "a cat" and workflow.prompt["7"]["inputs"]["text"] == ""
    assert inputs["target"] == "exact size" and (inputs["target.width"], inputs["target.height"]) == (
        640,
        360,
    )
    assert "target.scale" not in inputs


@pytest.mark.parametrize("name", sorted(shipped()))
def test_the_command_takes_all_of_in_whatever_a_template_tries_first(name):
    workflow = Workflow.load(name)
    node_id = bind_input(workflow, "clip.mp4")
    assert not workflow.prompt[node_id]["inputs"].get("first_seconds")


def test_an_exact_size_is_meant_exactly_and_a_scale_is_rounded_as_the_graph_says():
    workflow = example()
    inputs = workflow.prompt["3"]["inputs"]
    inputs["multiple"] = 2
    bind_target(workflow, Target(scale=1.5))
    assert inputs["multiple"] == 2 and expected_size(workflow, 480, 854) == (720, 1280)
    bind_target(workflow, Target(size=(853, 481)))
    assert inputs["multiple"] == 1 and expected_size(workflow, 480, 854) == (481, 853)


def test_restore_frames_says_the_size_where_no_cascade_input_does():
    workflow = Workflow.load("Upscale-a-Video-Fast")
    (restore,) = workflow.of_type("VSRRestoreFrames")
    bind_target(workflow, Target(scale=3))
    assert workflow.prompt[restore]["inputs"]["target.scale"] == 3 and expected_size(workflow, 90, 160) == (270, 480)
    bind_target(workflow, Target(size=(853, 481)))
    assert expected_size(workflow, 480, 854) == (481, 853)
    both = example()
    both.prompt["9"] = node("VSRRestoreFrames", "Restore Frames", target="scale", **{"target.scale": 4.0})
    bind_target(both, Target(scale=2))
    assert both.prompt["3"]["inputs"]["target.scale"] == 2 and both.prompt["9"]["inputs"]["target.scale"] == 4


def test_references_become_loaders_in_order():
    workflow = example()
    old = {"images.image_0": ["1", 0], "images.image_1": ["1", 0]}
    workflow.prompt["10"] = node("VSRReferenceSet", "Reference Set", vae=["9", 1], **old)
    bind_references(workflow, ["a.png"], ["v.mp4"])
    inputs = workflow.prompt["10"]["inputs"]
    assert set(inputs) == {"vae", "images.image_0", "videos.video_0"}
    loader = workflow.prompt[inputs["images.image_0"][0]]
    assert loader["class_type"] == "LoadImage" and loader["inputs"]["image"] == "a.png"
    assert workflow.prompt[inputs["videos.video_0"][0]]["class_type"] == "VSRLoadFilm"
    bind_input(workflow, "clip.mp4")  # the new Load Film is not mistaken for IN
    assert workflow.prompt["1"]["inputs"]["file"] == "clip.mp4"


def test_a_reference_video_is_the_original_too():
    workflow = Workflow.load("Upscale-an-Edited-Video")
    bind_references(workflow, ["a.png"], ["v.mp4", "w.mp4"])
    (steady,), (references,) = (workflow.of_type(kind) for kind in ("VSRSteadyUpscaledVideo", "VSRReferenceSet"))
    loader, output = workflow.prompt[steady]["inputs"]["original"]
    assert workflow.prompt[loader]["inputs"]["file"] == "v.mp4" and output == 1
    assert workflow.prompt[references]["inputs"]["videos.video_0"] == [loader, 1]
    alone = Workflow.load("Upscale-with-any-Model")
    bind_references(alone, [], ["v.mp4"])
    (steady,) = alone.of_type("VSRSteadyUpscaledVideo")
    assert alone.prompt[alone.prompt[steady]["inputs"]["original"][0]]["inputs"]["file"] == "v.mp4"
    with pytest.raises(RunnerError, match="Reference Set"):
        bind_references(alone, [], ["v.mp4", "w.mp4"])  # a second one has no place


def test_reference_images_are_the_pictures_too():
    alone = Workflow.load("Upscale-with-any-Model")
    (steady,) = alone.of_type("VSRSteadyUpscaledVideo")
    alone.prompt[steady]["inputs"]["pictures.picture_7"] = ["1", 0]  # a stand-in
    bind_references(alone, ["a.png", "b.png"], [])
    links = {name: link for name, link in alone.prompt[steady]["inputs"].items() if name.startswith("pictures.")}
    assert list(links) == ["pictures.picture_0", "pictures.picture_1"]
    assert [alone.prompt[id]["inputs"]["image"] for id, _ in links.values()] == ["a.png", "b.png"]
    both = Workflow.load("Upscale-an-Edited-Video")
    bind_references(both, ["a.png"], ["v.mp4"])
    (steady,), (references,) = (both.of_type(kind) for kind in ("VSRSteadyUpscaledVideo", "VSRReferenceSet"))
    inputs = both.prompt[references]["inputs"]
    assert both.prompt[steady]["inputs"]["pictures.picture_0"] == inputs["images.image_0"]


def test_pictures_of_the_sample_stand_for_no_other_clip():
    workflow = Workflow.load("Upscale-with-Identity-Images")
    bind_input(workflow, "clip.mp4")
    with pytest.raises(RunnerError, match="--reference.*'Large original of the sample'"):
        check_loaders(workflow, ["clip.mp4"])
    (steady,), (references,) = (workflow.of_type(kind) for kind in ("VSRSteadyUpscaledVideo", "VSRReferenceSet"))
    bind_references(workflow, ["a.png"], [])
    check_loaders(workflow, ["clip.mp4", "a.png"])
    inputs = workflow.prompt[steady]["inputs"]
    assert inputs["pictures.picture_0"] == workflow.prompt[references]["inputs"]["images.image_0"]
    bind_references(workflow, [], ["v.mp4"])  # a video of the same people is no original
    check_loaders(workflow, ["clip.mp4", "v.mp4"])
    assert "original" not in inputs and "pictures.picture_0" not in inputs


def test_a_stand_in_that_nobody_has_replaced_is_an_error():
    workflow = Workflow.load("Upscale-an-Edited-Video")
    bind_input(workflow, "clip.mp4")
    with pytest.raises(RunnerError, match=r"--reference-video.*'Reference \(unedited\)'.*got the stand-in"):
        check_loaders(workflow, ["clip.mp4"])
    bind_references(workflow, [], ["take.mp4"])  # the stand-in is still there, but nothing depends on it
    check_loaders(workflow, ["clip.mp4", "take.mp4"])


def test_sound_is_staged_only_where_frames_depend_on_it():
    workflow = example()
    workflow.prompt["5"]["inputs"]["audio"] = ["2", 1]  # Create Video is not before the frames
    assert not uses_sound(workflow)
    workflow.prompt["3"]["inputs"]["audio"] = ["2", 1]
    assert uses_sound(workflow)
    del workflow.prompt["3"]["inputs"]["audio"]
    workflow.prompt["3"]["inputs"]["video"] = ["1", 0]
    assert uses_sound(workflow)


def test_films_of_our_nodes_are_in_and_out():
    workflow = example()
    workflow.prompt["1"] = node("VSRLoadFilm", "Load Film", file="a.mp4")
    workflow.prompt["3"]["inputs"]["frames"] = ["1", 1]
    workflow.prompt["5"] = node("VSRSaveFilm", "Save Film", images=["3", 1], source=["1", 0])
    del workflow.prompt["2"], workflow.prompt["6"]
    assert bind_input(workflow, "b.mov") == "1" and workflow.prompt["1"]["inputs"]["file"] == "b.mov"
    assert final_frames(workflow) == ["3", 1] and not uses_sound(workflow)
    workflow.prompt["3"]["inputs"]["video"] = ["1", 0]
    assert uses_sound(workflow)
    bind_output(workflow, "frames")
    assert not workflow.of_type("VSRSaveFilm")


def test_output_is_captured_and_savers_go():
    workflow = example()
    capture = bind_output(workflow, "frames")
    assert workflow.prompt[capture] == {
        "class_type": CAPTURE_NODE,
        "inputs": {"images": ["3", 1], "name": "frames", "bits": 8},
        "_meta": {"title": "Write frames"},
    }
    assert not workflow.of_type("SaveVideo") and workflow.of_type("CreateVideo")


@pytest.mark.parametrize(
    "act, words",
    [
        (lambda w: bind_references(w, ["a.png"], []), ["Reference Set", "found none"]),
        (lambda w: bind_target(w, Target(scale=-1)), ["--scale", "-1"]),
        (lambda w: w.prompt.pop("5") and final_frames(w), ["Create Video"]),
        (lambda w: w.prompt.pop("1") and bind_input(w, "x"), ["Load Video", "found none"]),
        (
            lambda w: w.prompt.update(a=node("LoadVideo", "Other")) or bind_input(w, "x"),
            ["2 of them", '"Input"'],
        ),
    ],
)
def test_missing_sockets_are_clear_errors(act, words):
    with pytest.raises(RunnerError) as error:
        act(example())
    assert all(word in str(error.value) for word in words), str(error.value)


def test_size_text():
    assert parse_size("1920x1080") == (1920, 1080)
    for text in ("1920", "0x10", "axb", "-1x5"):
        with pytest.raises(RunnerError, match="--size"):
            parse_size(text)


def test_expected_size_follows_the_cascade():
    workflow = example()
    assert expected_size(workflow, 17, 31) == (68, 124)
    inputs = workflow.prompt["3"]["inputs"]
    inputs |= {"target.scale": 1.5}
    assert expected_size(workflow, 17, 31) == (26, 47)  # a graph of 0.1.0: nothing says to what multiple
    inputs |= {"target": "largest edge", "target.largest_edge": 1921, "multiple": 2}
    assert expected_size(workflow, 480, 854) == (1080, 1920)
    inputs["multiple"] = ["2", 0]
    assert expected_size(workflow, 17, 31) is None
    inputs |= {"target": "scale", "target.scale": ["2", 0], "multiple": 2}
    assert expected_size(workflow, 17, 31) is None


def test_an_odd_exact_size_of_a_graph_is_said_before_the_host_starts():
    workflow = example()
    workflow.prompt["3"]["inputs"] |= {"target": "exact size", "target.width": 853, "target.height": 480, "multiple": 2}
    with pytest.raises(RunnerError, match=r"\(Cascade Input\): .*multiples of 2 px; got 853x480. Ask for 852x480"):
        expected_size(workflow, 480, 854)


def test_files_are_resolved_or_explained(tmp_path):
    editor, api = tmp_path / "graph.json", tmp_path / "api" / "graph.json"
    editor.write_text(json.dumps({"nodes": [], "links": []}))
    with pytest.raises(RunnerError, match=r"Export \(API\)"):
        Workflow.load(str(editor))
    api.parent.mkdir()
    api.write_text(json.dumps(example().prompt))
    assert Workflow.load(str(editor)).titles() == example().titles()
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(RunnerError, match="not valid json"):
        Workflow.load(str(tmp_path / "bad.json"))
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(RunnerError, match="no API-format workflow"):
        Workflow.load(str(tmp_path / "list.json"))
    with pytest.raises(RunnerError, match="must be a json file or one of"):
        Workflow.load("No-Such-Workflow")
