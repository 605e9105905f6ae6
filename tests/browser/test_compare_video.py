"""Compare Video in the real editor, classic and Nodes 2.0: exact steps, wipe, zoom, undo, copy and paste, reload."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cascadevsr.media.writer import write_video

SCRIPT = Path(__file__).with_name("compare.cjs")
FRAMES, CUT, BITS = 30, 15, 12


def numbered(scale):
    """Make frames whose number is in 12 squares at the top, from left to right the bits from the lowest on."""
    y, x = np.mgrid[0 : 96 * scale, 0 : 160 * scale] / scale
    rows, side = len(y) // 10, 10 * scale
    for number in range(FRAMES):
        scene = (x / 9, y / 7) if number < CUT else (y / 23 - 2, x / 31 + 1)
        wave = np.stack([np.sin(scene[0] + c + number / 9) + np.cos(scene[1] - c) for c in range(3)], -1)
        frame = np.rint(127.5 + 60 * wave).astype(np.uint8)
        for bit in range(BITS):
            frame[:rows, side * (bit + 2) : side * (bit + 3)] = 255 if number >> bit & 1 else 0
        yield frame


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "Nodes 2.0"])
def report(request, host_server, browser_tools, tmp_path_factory):
    """What was seen in one renderer."""
    files = {name: f"compare_{name}.mp4" for name in ("before", "after")}
    for scale, file in zip((5, 10), files.values(), strict=True):
        write_video(host_server.input_dir / file, numbered(scale), Fraction(24))
    prompt = {
        "1": {"class_type": "LoadVideo", "inputs": {"file": files["before"]}},
        "2": {"class_type": "LoadVideo", "inputs": {"file": files["after"]}},
        "3": {
            "class_type": "VSRCompareVideo",
            "inputs": {"before": ["1", 0], "after": ["2", 0], "fps": 0.0, "start": 0, "frames": 0, "size": 800},
        },
    }
    job = {"url": host_server.url, "modern": request.param, "prompt": prompt, "reload": True}
    job |= {"frames": [0, 7, 6, 29, CUT, CUT - 1, 1], "shots": str(tmp_path_factory.mktemp("shots"))}
    done = subprocess.run(
        [browser_tools.node, str(SCRIPT)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=browser_tools.environ(),
        timeout=900,
    )
    assert done.returncode == 0, f"{done.stderr[-3000:]} (screenshots: {job['shots']})"
    return json.loads(done.stdout)


def test_a_reload_while_it_is_made_loses_nothing(report):
    facts = report["seen"]["facts"]
    assert facts["times"] == FRAMES and facts["cuts"] == [CUT]
    assert [facts["sides"][side]["size"] for side in ("before", "after")] == [[800, 480], [1600, 960]]
    assert facts["sides"]["after"]["box"][2:] == [800, 480]


def test_every_step_lands_on_its_frame(report):
    seen = report["seen"]
    assert seen["steps"] == [[frame] * 3 for frame, *_ in seen["steps"]] and len(seen["steps"]) == 7
    assert seen["keys"]["ArrowRight"] == [3, 4] and seen["keys"]["ArrowLeft"] == [3]
    assert seen["keys"]["Shift+ArrowRight"] == [13]
    assert seen["keys"]["ArrowDown"] == [CUT] and seen["keys"]["ArrowUp"] == [0]
    assert seen["keys"]["End"] == [FRAMES - 1] and seen["keys"]["Home"] == [0]
    assert seen["burst"] == [25, 25]


def test_the_pointer_brings_keys_and_wheel_and_takes_them_away(report):
    assert report["seen"]["hovered"] == [True, False]


def test_it_plays_and_stands_still_on_the_frame_it_names(report):
    seen = report["seen"]
    assert seen["playing"] and len(set(seen["paused"])) == 1
    assert seen["wipes"] > 1 and seen["wipesPlaying"] > 1  # figures of a machine that does nothing else are elsewhere


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_frames_that_were_shown_are_not_kept(report):
    """Drawn from the <video>, each of 30 frames stayed: 800 x 960 px in RGBA."""
    before, after = (held["shared"] for held in report["seen"]["held"])
    assert after - before < FRAMES * 800 * 960 * 4 / 2**20 / 3


def test_the_difference_of_equal_clips_is_dark(report):
    means = report["seen"]["means"]
    assert means["difference"] < 0.25 * min(means[mode] for mode in ("split", "side", "blink"))


def test_zoom_stays_under_the_pointer_and_shows_full_size(report):
    seen = report["seen"]
    for axis in range(2):
        assert max(point[axis] for point in seen["pointed"]) - min(point[axis] for point in seen["pointed"]) < 0.01
    assert seen["zoom"] > 3 and seen["fitted"] == 1 and seen["graphStays"]
    assert list(seen["details"]) == ["after"] and seen["details"]["after"][0] is True


def test_undo_copy_paste_and_reload_keep_what_is_shown(report):
    seen = report["seen"]
    shown = [seen["facts"]["key"], True, ""]
    assert seen["undone"] == {"value": 0, "shown": [shown]}
    assert seen["pasted"] == [shown, [None, False, "Run to compare."]] == seen["reloaded"]
    assert seen["stored"] == [[0, 0, 0, 800]] * 2, "what is shown belongs into no file"
    assert seen["left"] == 0


def test_no_console_error(report):
    ours = [m for m in report["console"] if "compar" in m["url"] + m["text"] or "CascadeVSR" in m["url"] + m["text"]]
    assert [m for m in ours if m["type"] in ("error", "warning")] == []


def test_the_extension_is_small(repository):
    assert (repository / "js" / "compare_video.js").stat().st_size < 60_000
