"""Every node has a help page that the host serves, and the page is true to the node's schema."""

import json
import re
import urllib.error
import urllib.request

import pytest

NODES = (
    "VSRLoadVideoRestorer VSRCascadeInput VSRReferenceSet VSRConditioning VSRSeededNoise VSRRestorerSampler "
    "VSRRefineSigmas VSRLoadFlowModel VSREstimateMotion VSRLatentPropagation VSRMotionGuidance VSRSpatialTiles "
    "VSRTemporalWindows VSRTemporalDecode VSRColourMatch VSRDegradeVideo VSRCompareMeasure "
    "VSRReferenceGuider VSRReferenceCFG VSRLowFrequencyTie VSRPlan VSRLoadAdapter VSRReferenceTokens "
    "VSRSDEditDegradation VSRLoadFilm VSRSaveFilm VSRSteadyUpscaledVideo VSRUpscaleFilm VSRSampleClip "
    "VSRRestoreFrames VSRCompareVideo VSRFasterSampling"
).split()


def flat_inputs(inputs):
    """Yield (name, type or options, facts) of all inputs, those below a choice included."""
    for name, (kind, *rest) in {**inputs.get("required", {}), **inputs.get("optional", {})}.items():
        facts = rest[0] if rest else {}
        yield name, kind, facts
        for option in facts.get("options", []):
            if isinstance(option, dict):
                yield from flat_inputs(option["inputs"])


def row_of(page, name):
    rows = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    return rows[0] if rows else ""


def wrong_facts(page, name, kind, facts):
    """Yield what the row of an input does not say: that it exists, its choices, range and default."""
    row = row_of(page, name)
    options = kind if isinstance(kind, list) else facts.get("options", [])
    words = [str(option["key"] if isinstance(option, dict) else option) for option in options]
    if words and name in ("restorer", "flow_model"):
        words = ["built-in"]  # the others are the user's files
    words = [] if name == "file" else words
    if kind in ("INT", "FLOAT"):
        words.append(f"default {facts['default']}")
        if name != "seed":
            words.append(f"{facts['min']} to {facts['max']}")
    elif kind == "COMBO" and "default" in facts:
        words.append(f"default {facts['default']}")
    if not row:
        yield f"{name}: no row"
    yield from (f"{name}: {word!r}" for word in words if row and word not in row)


@pytest.fixture(scope="module")
def info(host_server):
    from cascadevsr.runner.client import HostClient

    everything = HostClient(host_server.url, host_server).object_info()
    return {name: node for name, node in everything.items() if node["python_module"].endswith("CascadeVSR")}


def test_all_nodes_are_here(info):
    assert sorted(info) == sorted(NODES)


@pytest.mark.parametrize("node", NODES)
def test_page_is_true_to_the_schema(info, repository, node):
    page = (repository / "js" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {info[node]['display_name']}\n")
    for chapter in ("## Inputs", "## Outputs", "## Tips", "## Typical mistakes", "## Limits"):
        assert chapter in page
    inputs = list(flat_inputs(info[node]["input"]))
    assert inputs
    wrong = [each for entry in inputs for each in wrong_facts(page, *entry)]
    outputs = page.split("## Outputs")[1]
    wrong += [f"output {name}" for name in info[node]["output_name"] if f"| `{name}` |" not in outputs]
    assert not wrong, f"{node}: the help page does not say {', '.join(wrong)}"


@pytest.mark.parametrize("node", NODES)
def test_page_says_nothing_of_inputs_that_are_not_there(info, repository, node):
    page = (repository / "js" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    table = page.split("## Inputs")[1].split("\n\n")[1]
    named = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(named) == sorted(name for name, *_ in flat_inputs(info[node]["input"]))


@pytest.mark.parametrize("node", NODES)
def test_the_host_serves_the_page(host_server, repository, node):
    address = f"{host_server.url}/extensions/ComfyUI-CascadeVSR/docs/{node}.md"
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert answer.read() == (repository / "js" / "docs" / f"{node}.md").read_bytes()


@pytest.mark.parametrize("language", ["en", "fr", "ja", "pt-BR", "xx"])
def test_the_page_is_found_in_every_language(host_server, repository, language):
    """The editor asks for the language's page first: a lost one would be an error in the browser's console."""
    english = (repository / "js" / "docs" / "VSRColourMatch.md").read_text(encoding="utf-8")
    address = f"{host_server.url}/extensions/ComfyUI-CascadeVSR/docs/VSRColourMatch/{language}.md"
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/markdown")
        text = answer.read().decode()
    assert text.endswith(english)
    file = repository / "locales" / language / "nodeDefs.json"
    known = json.loads(file.read_text(encoding="utf-8"))["VSRColourMatch"] if language in ("fr", "ja", "pt-BR") else {}
    said = [
        part["tooltip"] for key in ("inputs", "outputs") for part in known.get(key, {}).values() if "tooltip" in part
    ]
    assert bool(known) == (text != english) and all(each in text for each in said)
    assert not known or text.startswith(f"# {known['display_name']}\n\n{known['description']}\n")


@pytest.mark.parametrize("language", ["fr", "zh-TW"])
def test_a_page_that_is_translated_whole_is_served_as_it_is(host_server, repository, language):
    address = f"{host_server.url}/extensions/ComfyUI-CascadeVSR/docs/VSRCompareVideo/{language}.md"
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/markdown")
        assert answer.read() == (repository / "js" / "docs" / "VSRCompareVideo" / f"{language}.md").read_bytes()


@pytest.mark.parametrize("path", ["VSRNothing/fr.md", "..%2F..%2Fpyproject/fr.md"])
def test_no_other_page_is_found(host_server, path):
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{host_server.url}/extensions/ComfyUI-CascadeVSR/docs/{path}", timeout=60)


def test_the_host_serves_pictures_where_the_editor_looks_for_them(host_server, repository):
    pages = (repository / "js" / "docs").glob("*.md")
    pictures = {link for page in pages for link in re.findall(r"!\[.*?\]\((.*?)\)", page.read_text(encoding="utf-8"))}
    assert pictures
    for picture in pictures:
        with urllib.request.urlopen(f"{host_server.url}/extensions/ComfyUI-CascadeVSR/docs/{picture}") as answer:
            assert answer.headers["Content-Type"] == "image/jpeg"
            assert answer.read() == (repository / "js" / "docs" / picture).read_bytes()
