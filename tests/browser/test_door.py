"""The artist's door in the real editor: few actions to a result, and nothing is lost on the way."""

import base64
import json
import subprocess
from pathlib import Path

import pytest
from cascadevsr.media.reader import probe
from cascadevsr.tools.editor import shipped

SCRIPT = Path(__file__).with_name("door.cjs")
ROOT = Path(__file__).parents[2]
FILM, BLUEPRINT = "VSRUpscaleFilm", "Upscale a video (Cascade VSR)"


@pytest.fixture(scope="module")
def report(host_server, browser_tools, tmp_path_factory):
    """What was seen, by play; files lie in the server's output folder."""
    files = shipped()
    graphs = {"graph": files["Upscale-a-Film"], "pictures": files["Upscale-with-Identity-Images"]}
    job = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in graphs.items()}
    clip = (ROOT / "assets" / "samples" / "bunny_160x90.mp4").read_bytes()
    job |= {"url": host_server.url, "clip": base64.b64encode(clip).decode()}
    job |= {"shots": str(tmp_path_factory.mktemp("shots"))}
    done = subprocess.run(
        [browser_tools.node, str(SCRIPT)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=browser_tools.environ(),
        timeout=1200,
    )
    assert done.returncode == 0, f"{done.stderr[-3000:]} (screenshots: {job['shots']})"
    return json.loads(done.stdout) | {"shots": job["shots"], "output": host_server.output_dir}


@pytest.fixture
def seen(report):
    """Read what a play saw; one that failed says why."""

    def read(play):
        found = report["seen"][play]
        assert "error" not in found, f"{found['error']} (screenshots: {report['shots']})"
        return found

    return read


def size_of(report, run):
    """Check that a run ended well and give width, height and frames of its one film."""
    assert run["status"] == "success", run
    ((subfolder, name),) = run["files"]
    film = probe(report["output"] / subfolder / name)
    return film.width, film.height, film.frames


def lean(nodes):
    """What a graph says: types, linked inputs and values, by id."""
    return {node["id"]: (node["type"], node["links"], node["values"]) for node in nodes}


def film_nodes(nodes):
    return [node for node in nodes if node["type"] == FILM]


def test_from_an_empty_canvas_to_a_result_in_four_actions(report, seen):
    found = seen("sample")
    assert found["actions"] <= 4 and size_of(report, found["run"]) == (640, 360, 32)
    assert [node["title"] for node in found["nodes"]] == [BLUEPRINT]
    top, height = found["place"]
    assert 0 < top < height, "the blueprint must be seen among the first found"


def test_the_same_with_an_own_clip_in_five(report, seen):
    found = seen("own")
    assert found["actions"] <= 5 and size_of(report, found["run"]) == (640, 360, 32)
    assert [(node["title"], node["links"]) for node in found["nodes"]] == [("Load Video", []), (BLUEPRINT, ["video"])]


def test_a_reload_in_the_middle_of_a_run_loses_nothing(report, seen):
    found = seen("reload")
    assert found["stillBusy"] and size_of(report, found["run"])[:2] == (640, 360)
    assert lean(found["nodes"]) == lean(found["before"])
    assert found["shown"] == [found["run"]["files"][0][1]], "the node shows the result of the run that began before"


def test_an_interrupted_run_leaves_no_message_and_goes_on(report, seen):
    found = seen("interrupt")
    assert "execution_interrupted" in found["stopped"]["kinds"] and not found["stopped"]["files"]
    assert found["messages"] == 0 and size_of(report, found["run"])[:2] == (640, 360)


def test_two_queued_runs_have_their_own_settings(report, seen):
    first, second = (size_of(report, run) for run in seen("queue"))
    assert first[:2] == (640, 360) and second[:2] == (320, 180) and first[2] == second[2]


def test_undo_copy_and_paste(seen):
    found = seen("edit")
    assert [node["values"]["look"] for node in film_nodes(found["changed"])] == ["best"]
    assert lean(found["undone"]) == lean(found["before"])
    first, copy = film_nodes(found["pasted"])
    assert copy["values"] == first["values"] and copy["values"]["first_seconds"] == 1.5 and not copy["links"]
    assert len(film_nodes(found["removed"])) == 1 and lean(found["restored"]) == lean(found["pasted"])


def test_the_template_for_pictures_does_not_run_without_one(seen):
    found = seen("refused")
    assert found["queue"] == [0, 0] and found["more"] == 0
    said = [text for kind, texts in found["found"] for text in texts if kind == "VSRReferenceSet"]
    assert said and "at least one picture or video must be linked" in said[0]


def test_a_result_that_is_dropped_opens_its_graph(seen):
    found = seen("back")
    assert lean(found["nodes"]) == lean(found["before"])


def test_no_console_error_from_our_extension(report):
    ours = [m for m in report["console"] if "/extensions/ComfyUI-CascadeVSR" in m["url"] + m["text"]]
    assert [m for m in ours if m["type"] in ("error", "warning")] == []
