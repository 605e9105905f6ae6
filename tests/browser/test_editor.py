"""The real editor in a headless Chromium: templates, workflows without a red node, help, Run, no errors."""

from fractions import Fraction

import numpy as np
import pytest
from cascadevsr.media.writer import write_video
from cascadevsr.runner.paths import PACK_NAME
from cascadevsr.tools.blueprints import BLUEPRINTS
from cascadevsr.tools.editor import api_text, drive, shipped

FILES = shipped()
NAMES = [file.stem for file in FILES]
RUN = "Upscale-a-Video"
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


@pytest.fixture(scope="module")
def report(host_server, browser_tools, tmp_path_factory):
    """Everything the tests look at, from one editor: (results by name, console, screenshots)."""
    clip = np.random.default_rng(0).integers(0, 256, (5, 24, 32, 3), np.uint8)
    write_video(host_server.input_dir / "input.mp4", clip, Fraction(24))
    steps = {
        "blueprints": {"do": "blueprints", "pack": PACK_NAME},
        "templates": {"do": "templates", "names": NAMES},
    }
    for file in FILES:
        steps[f"open {file.stem}"] = {"do": "open", "name": file.stem}
        if file.stem == RUN:
            steps["help"] = {"do": "help", "title": "Cascade Input", "expect": "Typical mistakes"}
            steps["run"] = {"do": "run", "seconds": 240}
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
    assert {name: entry["width"] for name, entry in value("templates").items()} == dict.fromkeys(NAMES, 512)


@pytest.mark.parametrize("name", NAMES)
def test_workflow_opens_whole(value, name):
    graph = value(f"open {name}")
    assert graph["missing"] == [] and graph["overlaps"] == []
    titles = [node["title"] for node in graph["nodes"]]
    assert len(titles) == len(set(titles)), "titles must be unique: run.py addresses nodes by them"


@pytest.mark.parametrize("name", NAMES)
def test_api_form_is_what_the_editor_makes_of_it(value, repository, name):
    stored = (repository / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8")
    assert api_text(value(f"open {name}")["prompt"]) == stored, "run python3 tools/derive_api.py"


def test_blueprints_are_listed_without_a_message(value):
    found = value("blueprints")
    names = {blueprint.name for blueprint in BLUEPRINTS}
    assert found["messages"] == [] and set(found["served"]) == set(found["nodes"]) == names
    for node in found["nodes"].values():
        assert node["missing"] == 0 and node["outputs"] == ["IMAGE"] and "Cascade VSR" in node["category"]
    cascade, pictures = (found["nodes"][name] for name in ("Cascade to 4K", "Upscale with identity images"))
    sockets = ["target_vae", "samples", "base_vae", "model", "positive", "negative"]
    assert [name for name in cascade["inputs"] if name in sockets] == sockets
    assert cascade["widgets"]["target.short_side"] == 2160 and cascade["widgets"]["steps"] == 4
    assert {"frames", "image_0"} <= set(pictures["inputs"]) and pictures["widgets"]["long_edge"] == 384


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
