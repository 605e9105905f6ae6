"""The real editor in French and Japanese: names, tooltips, help pages, no errors."""

import json

import pytest
from cascadevsr.tools import pages
from cascadevsr.tools.editor import drive

NODE = "VSRCascadeInput"
ALONE = {"id": 1, "type": NODE, "title": "Here", "pos": [300, 200], "size": [300, 300], "widgets_values": ["scale", 4]}
ALONE |= {"flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [], "properties": {}}
GRAPH = {"nodes": [ALONE], "last_node_id": 1, "last_link_id": 0, "links": [], "groups": [], "config": {}, "extra": {}}
GRAPH |= {"version": 0.4}


@pytest.fixture(scope="module", params=["fr", "ja"])
def language(request):
    return request.param


@pytest.fixture(scope="module")
def editor(language, host_server, browser_tools, repository, tmp_path_factory):
    """(what locales/ says, what the steps found, console) of an editor in a language."""
    known = json.loads((repository / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    steps = [{"do": "texts", "type": node} for node in known]
    steps += [
        {"do": "derive", "graph": GRAPH},
        {"do": "help", "title": "Here", "expect": known[NODE]["inputs"]["target_short_side"]["tooltip"]},
    ]
    folder = tmp_path_factory.mktemp("screenshots")
    found = drive(browser_tools, host_server.url, steps, screenshots=folder, language=language)
    assert not [result for result in found["results"] if "error" in result], (found["results"], folder)
    return known, [result["value"] for result in found["results"]], found["console"]


def test_every_name_is_in_the_language(editor):
    known, found, _ = editor
    for (node, said), shown in zip(known.items(), found, strict=False):
        assert shown["title"] == said["display_name"]
        inputs = {key: part["name"] for key, part in said["inputs"].items()}
        for name, (label, tooltip) in shown["widgets"].items():
            key = name.replace(".", "_")
            assert label == inputs.get(key, label), (node, name)
            if "." in name and key in inputs:
                assert tooltip == said["inputs"][key]["tooltip"], (node, name)
        grown = {name for name in inputs.values() if name[-1:].isdigit()}
        assert set(shown["inputs"]) <= set(inputs.values()) | grown, node
        assert {part["name"] for part in said.get("outputs", {}).values() if "name" in part} <= set(shown["outputs"])


def test_every_choice_is_in_the_language(editor, repository, language):
    said = json.loads((repository / "locales" / language / "main.json").read_text(encoding="utf-8"))[
        "cascadevsrChoices"
    ]
    shown = {value: label for texts in editor[1][:-2] for value, label in texts["choices"].items()}
    assert {value: shown[value] for value in said if value in shown} == {v: said[v] for v in said if v in shown}
    assert len([value for value in said if value in shown]) > 30 and shown["bilinear"] == "bilinear"


def test_the_help_page_is_shown_whole(editor, language):
    mistakes = pages.read_source(language)["Typical mistakes"]
    assert mistakes in editor[1][-1] and "Typical mistakes" not in editor[1][-1]


def test_no_console_error(editor):
    ours = [each for each in editor[2] if "CascadeVSR" in each["url"] + each["text"] or "VSR" in each["text"]]
    assert [each for each in ours if each["type"] in ("error", "warning")] == []
