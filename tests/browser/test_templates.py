"""How templates look in the real editor: text is drawn at usual window sizes, and nothing lies over anything else."""

import itertools
from collections import ChainMap
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from cascadevsr.runner.paths import scratch_folder
from cascadevsr.runner.server import HostServer
from cascadevsr.tools.editor import drive, shipped

from ..host.mgld_release import write_checkpoints
from ..host.uav_release import recorded, write_release
from ..image_model import write_upscaler

TITLES = {name: file.stem for name, file in shipped().items()}
SIZES = ((1440, 900), (1600, 1000))
RENDERERS = {"classic": False, "nodes 2.0": True}
SAMPLED = tuple(name for name in TITLES if "-with-" not in name) + ("Upscale-with-Identity-Images",)  # no other files
WEIGHTS = ("Upscale-with-any-Model", "Restore-with-Upscale-A-Video", "Restore-with-MGLD-VSR")  # with tiny networks
RUNS = SAMPLED + WEIGHTS  # previews on
FEWER = {"Restore-with-MGLD-VSR": {"VSRRefineSigmas.steps": 2}}  # the other one names steps of its 30
SHORT = {
    "VSRCascadeInput.target.scale": 2,
    "VSRCascadeInput.target.short_side": 180,
    "VSRRestoreFrames.target.scale": 2,
}
# px that a node grows by while it works, in Nodes 2.0: a line of text, and a live picture of 16:9
LINE, PICTURE = 64, 312
GROWTH = {
    "VSRCascadeInput": LINE,
    "VSREstimateMotion": LINE,
    "SamplerCustomAdvanced": LINE,
    "VSRTemporalDecode": LINE + PICTURE,
    "VSRRestoreFrames": LINE + PICTURE,
    "VSRSteadyUpscaledVideo": LINE + PICTURE,
}
SECONDS = 0.1  # of a film


@pytest.fixture(scope="module")
def looks(comfyui, browser_tools, tmp_path_factory):
    """What every template looks like: (name, renderer, size) -> step, and the console; the renderers side by side."""

    def look(renderer, server):
        steps = {}
        for (name, title), size in itertools.product(TITLES.items(), SIZES):
            seconds = {f"{kind}.first_seconds": SECONDS for kind in ("VSRLoadFilm", "VSRUpscaleFilm")}
            values = {**SHORT, **seconds, **FEWER.get(name, {})}
            step = {"do": "look", "name": title, "vue": RENDERERS[renderer], "size": size, "values": values}
            steps[name, renderer, size] = {**step, "seconds": 400 if name in RUNS and size == SIZES[0] else 0}
        found = drive(browser_tools, server.url, list(steps.values()), tmp_path_factory.mktemp("screenshots"))
        return dict(zip(steps, found["results"], strict=True)), found["console"]

    with ExitStack() as stack, ThreadPoolExecutor() as pool:  # a browser and a ComfyUI each
        servers = []
        for _ in RENDERERS:
            base = stack.enter_context(scratch_folder("test-"))
            servers.append(stack.enter_context(HostServer(comfyui, base, cpu=True)))
            restorers = servers[-1].models_dir / "video_restorers"
            with torch.inference_mode():
                write_release(recorded("pipeline_short_3d"), restorers / "upscale_a_video")
                write_checkpoints(restorers / "mgld_vsr")
            write_upscaler(servers[-1].models_dir / "upscale_models" / "4x-model.safetensors")
        results, consoles = zip(*pool.map(look, RENDERERS, servers), strict=True)
    return dict(ChainMap(*results)), list(itertools.chain(*consoles))


def seen(looks, *key):
    result = looks[0][key]
    assert "error" not in result, result.get("error")
    return result["value"]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", TITLES)
def test_text_is_drawn_and_nothing_overlaps(looks, name, renderer, size):
    found = seen(looks, name, renderer, size)
    assert found["drawn"], f"the whole fits at a scale of {found['scale']:.3f}, where the editor draws no text"
    assert found["overlaps"] == []
    kinds = {place["drawn"] for place in found["before"]}
    assert kinds == {"element" if RENDERERS[renderer] else "canvas"}


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", TITLES)
def test_there_is_room_for_what_nodes_show_while_they_work(looks, name, renderer):
    """Whether a live picture comes depends on the machine: quick work shows none."""
    places = seen(looks, name, renderer, SIZES[0])["before"]
    growth = {**GROWTH, "VSRCascadeInput": LINE + PICTURE} if name.startswith("Cascade-") else GROWTH  # decodes
    grown = [(each["title"], *each["box"][:3], each["box"][3] + growth.get(each["type"], 0)) for each in places]
    over = [
        (one[0], other[0])
        for one, other in itertools.combinations(grown, 2)
        if one[1] < other[3] and other[1] < one[3] and one[2] < other[4] and other[2] < one[4]
    ]
    assert over == []


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", TITLES)
def test_notes_show_all_their_text(looks, name, renderer):
    notes = [place for place in seen(looks, name, renderer, SIZES[0])["before"] if place["type"] == "MarkdownNote"]
    assert notes and not [(note["title"], note["hidden"]) for note in notes if note["hidden"] > 12]


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", RUNS)
def test_the_first_run_needs_no_clip_and_moves_nothing_over_anything(looks, name, renderer):
    found = seen(looks, name, renderer, SIZES[0])
    assert found["status"]["status_str"] == "success", found["status"]
    assert found["failed"] == 0, "a node shows no film where its result should be"
    assert found["overlaps"] == []
    assert found["fitted"]["drawn"], f"with its results it fits at a scale of {found['fitted']['scale']:.3f}: no text"


def test_no_console_error_from_what_we_serve(looks):
    ours = ("CascadeVSR", "bunny", "/view")
    assert [m for m in looks[1] if m["type"] == "error" and any(word in m["url"] + m["text"] for word in ours)] == []
