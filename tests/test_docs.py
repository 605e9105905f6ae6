"""The README, the help pages and the templates, as far as files alone can tell."""

import json
import re
from pathlib import Path

import pytest
from cascadevsr.tools.blueprints import BLUEPRINTS, blueprint_text
from cascadevsr.tools.editor import shipped

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("js/docs/*.md"))]
WORKFLOWS = shipped()
LINK = re.compile(r"\[[^\]]*\]\((?:<([^>]+)>|([^)#\s<]+))")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_resolve(page):
    links = [spaced or plain for spaced, plain in LINK.findall(page.read_text(encoding="utf-8"))]
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_readme_begins_with_the_two_commands_and_lists_every_node():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.startswith(("python", "git", "cd"))]
    assert commands[0].startswith("python3 run.py demo") and commands[1].startswith("python3 run.py test")
    listed = set(re.findall(r"js/docs/(\w+)\.md", text))
    assert listed == {page.stem for page in PAGES[1:]} and len(listed) > 20


def test_help_pages_give_the_names_that_nodes_show():
    shown = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    lost = []
    for node, parts in shown.items():
        inputs, outputs = (ROOT / "js" / "docs" / f"{node}.md").read_text(encoding="utf-8").split("## Outputs")
        for key, entry in parts.get("inputs", {}).items():
            ends = [key[place:] for place in range(len(key)) if place == 0 or key[place - 1] == "_"]
            row = next((line for end in ends for line in inputs.splitlines() if line.startswith(f"| `{end}` |")), "")
            grows = re.search(r"_(image|video|picture)_\d+$", key)
            plain = row.startswith(f"| `{entry['name']}` |")
            if not (grows or plain or f"| **{entry['name']}**, " in row):
                lost.append((node, key))
        names = [entry["name"] for entry in parts.get("outputs", {}).values()]
        lost += [(node, name) for name in names if f"| **{name}**, " not in outputs]
    assert lost == []


def test_readme_examples_are_understood_by_run_py():
    from cascadevsr.runner import cli

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"^python3 run\.py ([^#`\n]*)", text, re.M)
    assert len(examples) >= 7
    for example in examples:
        words = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', example)]
        cli.parser().parse_args(words)


def test_pictures_are_small():
    assert (ROOT / "assets" / "readme.jpg").stat().st_size <= 200_000
    for workflow in WORKFLOWS.values():
        assert workflow.with_suffix(".jpg").stat().st_size <= 80_000


def test_the_starter_is_the_first_of_the_names_for_people():
    names = [file.stem for file in WORKFLOWS.values()]
    assert names == sorted(names) and next(iter(WORKFLOWS)) == "Upscale-a-Video"
    assert all(name.startswith("Upscale ") and name.endswith(" - Cascade VSR") for name in names)
    assert not any(set(name) & set('<>:"/\\|?*#%&') for name in names), "files of Windows, and addresses"


def test_every_picture_shows_something_else():
    pictures = {file.with_suffix(".jpg").read_bytes() for file in WORKFLOWS.values()}
    assert len(pictures) == len(WORKFLOWS) > 5


@pytest.mark.parametrize("name", WORKFLOWS)
def test_notes_speak_plainly(name):
    graph = json.loads(WORKFLOWS[name].read_text(encoding="utf-8"))
    notes = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    assert notes and "Run" in notes[0]
    jargon = ("`", "lr_", "s_ref", "s_txt", "_level", "plausible results", "network call", "all that would")
    assert not [word for word in jargon for note in notes if word in note]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_template(name):
    file = WORKFLOWS[name]
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", name), "deep links take no other characters"
    graph = json.loads(file.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in graph["nodes"]}
    for _, source, output, target, slot, _ in graph["links"]:
        assert nodes[source]["outputs"][output]["links"] and nodes[target]["inputs"][slot]["link"]
    types = [node["type"] for node in nodes.values()]
    published = {
        "Restore-with-Upscale-A-Video": "VSRLatentPropagation",
        "Restore-with-MGLD-VSR": "VSRMotionGuidance",
        "Cascade-to-1080p": "VSRLowFrequencyTie",
        "Cascade-to-4K": "VSRPlan",
        "Upscale-with-SeedVR2": "VSRTemporalWindows",
    }
    own = published.get(name, "VSRReferenceSet")
    long = name in ("Upscale-a-Film", "Upscale-with-SeedVR2")  # nothing of it is decoded before
    loader, saver = ("VSRSampleClip", "VSRUpscaleFilm") if long else ("VSRLoadFilm", "VSRSaveFilm")
    inputs = [n for n in nodes.values() if n["type"] == loader and n.get("title") == "Input"]
    others = [n for n in nodes.values() if n["type"] == loader and n not in inputs]
    assert len(inputs) == 1 and all(node["title"].startswith("Reference") for node in others)
    parts = (own, saver) if long else ("VSRCascadeInput", own, "VSRTemporalDecode", saver)
    frame_by_frame = {"Upscale-with-any-Model": "VSRSteadyUpscaledVideo", "Upscale-a-Video-Fast": "VSRRestoreFrames"}
    for only in (frame_by_frame[name], saver) if name in frame_by_frame else parts:
        assert types.count(only) == 1, f"run.py looks for one {only}"
    titles = {node["type"]: node.get("title") for node in nodes.values()}
    assert titles[saver] == "Output"
    assert "MarkdownNote" in types
    assert name in frame_by_frame or "fixed" in str(
        [n.get("widgets_values") for n in nodes.values() if n["type"] in ("VSRSeededNoise", "KSampler")]
    )


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda blueprint: blueprint.workflow)
def test_blueprint_is_what_its_workflow_makes(blueprint):
    graph = json.loads(WORKFLOWS[blueprint.workflow].read_text(encoding="utf-8"))
    stored = (ROOT / "subgraphs" / f"{blueprint.name}.json").read_text(encoding="utf-8")
    assert blueprint_text(blueprint, graph) == stored, "run python3 tools/derive_api.py"
    file = json.loads(stored)
    (outer,), (inner,) = file["nodes"], file["definitions"]["subgraphs"]
    assert outer["type"] == inner["id"] and [i["name"] for i in outer["inputs"]] == [i["name"] for i in inner["inputs"]]
    nodes = {node["id"]: node for node in inner["nodes"]}
    assert not {"VSRLoadFilm", "LoadVideo", "VSRSaveFilm", "MarkdownNote"} & {node["type"] for node in nodes.values()}
    for link in inner["links"]:
        if link["origin_id"] in nodes:
            assert link["id"] in nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
        else:
            assert link["id"] in inner["inputs"][link["origin_slot"]]["linkIds"]
        if link["target_id"] in nodes:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
        else:
            assert link["id"] in inner["outputs"][link["target_slot"]]["linkIds"]
    known = {link["id"] for link in inner["links"]}
    assert all(i["link"] in known for node in nodes.values() for i in node["inputs"] if i.get("link") is not None)
    for node, widget in outer["properties"]["proxyWidgets"]:
        assert widget in [i["name"] for i in nodes[int(node)]["inputs"] if i.get("widget")]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_api_form_has_the_nodes_of_the_template(name):
    graph = json.loads(WORKFLOWS[name].read_text(encoding="utf-8"))
    prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    active = {str(n["id"]): n["type"] for n in graph["nodes"] if n["mode"] == 0 and n["type"] != "MarkdownNote"}
    assert {key: node["class_type"] for key, node in prompt.items()} == active
    for node in prompt.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or str(value[0]) in prompt
