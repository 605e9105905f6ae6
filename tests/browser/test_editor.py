"""The real editor in a headless Chromium: templates, workflows without a red node, help, Run, no errors."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cascadevsr.media.writer import write_video
from cascadevsr.runner.paths import PACK_NAME
from cascadevsr.tools.blueprints import BLUEPRINTS
from cascadevsr.tools.editor import api_text, drive, shipped

FILES = shipped()
TITLES = {name: file.stem for name, file in FILES.items()}
NAMES = list(FILES)
RUN = "Upscale-a-Video"
OLD = Path(__file__).parents[1] / "graphs_0_1_0"
OLD_NAMES = sorted(file.stem for file in (OLD / "editor").glob("*.json"))
RENDERERS = {"classic": False, "nodes 2.0": True}
MEASURE = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 48, "batch_size": 3, "color": 255},
    },
    "2": {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 48, "batch_size": 3, "color": 65280},
    },
    "3": {"class_type": "VSRCompareMeasure", "inputs": {"result": ["1", 0], "other": ["2", 0]}},
}


def old(*path):
    return json.loads(OLD.joinpath(*path).read_text(encoding="utf-8"))


def alone(kind, values):
    """Give the editor file of a node that 0.1.0 saved with these values."""
    node = {"id": 1, "type": kind, "pos": [0, 0], "size": [300, 300], "widgets_values": values}
    node |= {"flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [], "properties": {}}
    top = {"last_node_id": 1, "last_link_id": 0, "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4}
    return {"nodes": [node], **top}


NODES = [page.stem for page in (Path(__file__).parents[2] / "js" / "docs").glob("*.md")]
SDEDIT = [0.2, 0.5, 50, 1, 7, "fixed"]
ALONE = {  # what 0.1.0 saved, or an early Load Film -> inputs that must come back
    ("VSRCascadeInput", "scale"): ([1.5, "bicubic"], {"target.scale": 1.5, "filter": "bicubic"}),
    ("VSRCascadeInput", "short side"): ([481, "bicubic"], {"target.short_side": 481, "filter": "bicubic"}),
    ("VSRCascadeInput", "exact size"): (
        [853, 481, "lanczos"],
        {"target.width": 853, "target.height": 481, "filter": "lanczos"},
    ),
    ("VSRLoadFilm", "input.mp4"): ([0, 24, False, False, 25, "image"], {"frames": 24, "rate": 25, "first_seconds": 0}),
    ("VSRSDEditDegradation", "short side"): ([241, *SDEDIT], {"size.short_side": 241, "steps": 50, "seed": 7}),
    ("VSRSDEditDegradation", "exact size"): (
        [427, 241, *SDEDIT],
        {"size.width": 427, "size.height": 241, "max_strength": 0.5, "seed": 7},
    ),
}


@pytest.fixture(scope="module")
def report(host_server, browser_tools, tmp_path_factory):
    """Everything the tests look at, from one editor: (results by name, console, screenshots)."""
    clip = np.random.default_rng(0).integers(0, 256, (5, 24, 32, 3), np.uint8)
    write_video(host_server.input_dir / "input.mp4", clip, Fraction(24))
    steps = {
        "blueprints": {"do": "blueprints", "pack": PACK_NAME},
        "templates": {"do": "templates", "names": list(TITLES.values())},
        "link": {"do": "link", "name": RUN, "pack": PACK_NAME},
    }
    for name, title in TITLES.items():
        steps[f"open {name}"] = {"do": "open", "name": title}
        if name == RUN:
            steps["help"] = {"do": "help", "title": "Cascade Input", "expect": "Typical mistakes"}
            steps["run"] = {"do": "run", "seconds": 240}
    for name in OLD_NAMES:
        steps[f"saved {name}"] = {"do": "derive", "graph": old("editor", f"{name}.json")}
        steps[f"exported {name}"] = {"do": "reopen", "prompt": old(f"{name}.json")}
    for (kind, choice), (values, _) in ALONE.items():
        steps[f"alone {kind} {choice}"] = {"do": "derive", "graph": alone(kind, [choice, *values])}
    steps["saved blueprint"] = {"do": "derive", "graph": old("blueprint", "Cascade-to-1080p.json")}
    for kind, name in (("VSRCascadeInput", "target"), ("VSRSDEditDegradation", "size")):
        change = {name: "exact size", "multiple": 6}
        steps[f"fresh {kind}"] = {"do": "fresh", "type": kind, "values": change}
    for renderer, vue in RENDERERS.items():
        steps[f"live {renderer}"] = {"do": "live", "type": "VSRTemporalDecode", "vue": vue}
    steps["labels"] = {"do": "labels", "types": NODES}
    steps["measure"] = {"do": "show", "prompt": MEASURE, "type": "VSRCompareMeasure"}
    folder = tmp_path_factory.mktemp("screenshots")
    found = drive(browser_tools, host_server.url, list(steps.values()), screenshots=folder)
    return dict(zip(steps, found["results"], strict=True)), found["console"], folder


@pytest.fixture
def value(report):
    """Read the result of a step; a step that failed says why."""

    def read(step):
        result = report[0][step]
        assert "error" not in result, f"{result.get('error')} (screenshots: {report[2]})"
        return result["value"]

    return read


def test_templates_are_listed_with_their_thumbnails(value):
    assert {name: entry["width"] for name, entry in value("templates").items()} == dict.fromkeys(TITLES.values(), 512)


def test_a_link_with_the_old_name_opens_the_template(value):
    assert value("link") == value(f"open {RUN}")["nodes"]


@pytest.mark.parametrize("name", NAMES)
def test_workflow_opens_whole(value, name):
    graph = value(f"open {name}")
    assert graph["missing"] == [] and graph["overlaps"] == []
    titles = [node["title"] for node in graph["nodes"]]
    assert len(titles) == len(set(titles)), "titles must be unique: run.py addresses nodes by them"


OUTPUTS = {
    "Upscale a video (Cascade VSR)": ["VAE", "VIDEO"],
    "Upscale a video with any model (Cascade VSR)": ["VIDEO"],
}


@pytest.mark.parametrize("name", NAMES)
def test_api_form_is_what_the_editor_makes_of_it(value, repository, name):
    stored = (repository / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8")
    assert api_text(value(f"open {name}")["prompt"]) == stored, "run python3 tools/derive_api.py"


def test_blueprints_are_listed_without_a_message(value):
    found = value("blueprints")
    names = {blueprint.name for blueprint in BLUEPRINTS}
    assert found["messages"] == [] and set(found["served"]) == set(found["nodes"]) == names
    for name, node in found["nodes"].items():
        outputs = OUTPUTS.get(name, ["IMAGE"])
        assert node["missing"] == 0 and node["outputs"] == outputs and "Cascade VSR" in node["category"]
        assert node["labels"] and not [label for label in node["labels"] if "." in label or "_" in label], name
    cascade, pictures = (found["nodes"][name] for name in ("Cascade to 4K", "Upscale with identity images"))
    sockets = ["target_vae", "samples", "base_vae", "model", "positive", "negative"]
    assert [name for name in cascade["inputs"] if name in sockets] == sockets
    assert cascade["widgets"]["target.short_side"] == 2160 and cascade["widgets"]["steps"] == 4
    assert {"frames", "image_0"} <= set(pictures["inputs"]) and pictures["widgets"]["long_edge"] == 384


@pytest.mark.parametrize("name", OLD_NAMES)
@pytest.mark.parametrize("form", ["saved", "exported"])
def test_a_graph_of_0_1_0_comes_back_as_it_was(value, form, name):
    prompt, saved = value(f"{form} {name}"), old(f"{name}.json")
    assert set(prompt) == set(saved)
    for node_id, node in saved.items():
        now, inputs = prompt[node_id], prompt[node_id]["inputs"]
        if not node["class_type"].startswith("VSR"):  # hosts move inputs below a choice: Save Video's `format.codec`
            inputs = {**{name.rpartition(".")[2]: inputs[name] for name in inputs}, **inputs}
        assert now["class_type"] == node["class_type"] and inputs.items() >= node["inputs"].items()
        assert now["class_type"] != "VSRCascadeInput" or now["inputs"]["multiple"] == 1


@pytest.mark.parametrize("case", ALONE, ids=" ".join)
def test_values_that_were_saved_by_position_keep_their_places(value, case):
    (node,) = value(f"alone {' '.join(case)}").values()
    rounded = {"multiple": 1} if case[0] != "VSRLoadFilm" else {}
    assert node["inputs"].items() >= {**ALONE[case][1], **rounded}.items()
    assert case[1] in node["inputs"].values()


def test_a_blueprint_that_0_1_0_saved_is_not_rounded(value):
    nodes = [each for each in value("saved blueprint").values() if each["class_type"] == "VSRCascadeInput"]
    assert [each["inputs"]["multiple"] for each in nodes] == [1]


@pytest.mark.parametrize("kind", ["VSRCascadeInput", "VSRSDEditDegradation"])
def test_a_new_node_rounds_to_even_and_saves_what_is_set(value, kind):
    found = value(f"fresh {kind}")
    assert found["added"]["multiple"] == 2 and found["changed"]["multiple"] == 6
    assert list(found["changed"])[-1] == "multiple" and found["loaded"] == found["changed"]


def test_no_node_shows_an_id_for_a_name(value):
    found = value("labels")
    assert set(found) == set(NODES)
    raw = {kind: [label for label in node["labels"] if set(label) & set("_.")] for kind, node in found.items()}
    assert not any(raw.values()), "names are in locales/en/nodeDefs.json"
    assert {"text guidance", "reference guidance"} <= set(found["VSRReferenceGuider"]["labels"])
    assert "picture 1" in found["VSRReferenceSet"]["labels"]


def test_seeds_of_new_nodes_stay_as_they_are(value):
    kinds = ("VSRConditioning", "VSRSeededNoise", "VSRDegradeVideo", "VSRSDEditDegradation")
    assert [value("labels")[kind].get("seed") for kind in kinds] == ["fixed"] * len(kinds)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_live_picture_goes_when_its_node_is_done(value, renderer):
    before, live, after, late = value(f"live {renderer}")
    assert live["picture"] == 90 and live["height"] > before["height"] + 100
    assert after == before and late == before


def test_help_panel_shows_our_page(value):
    text = value("help")
    assert "Takes a low-resolution clip to the target size" in text and "short_side" in text


def test_run_button_runs_the_workflow(value, host_server):
    assert value("run")["status_str"] == "success", value("run")
    assert list(host_server.output_dir.glob("video/upscaled_*.mp4"))


def test_compare_and_measure_shows_its_table_and_stores_nothing(value):
    shown = value("measure")
    assert shown["status"] == "success" and shown["stored"] == []
    assert "PSNR-Y" in shown["text"] and "result" in shown["text"]


def test_no_console_error_from_our_extension(report):
    ours = [m for m in report[1] if "/extensions/ComfyUI-CascadeVSR" in m["url"] + m["text"]]
    assert [m for m in ours if m["type"] in ("error", "warning")] == []
