"""The client and the frame path against a real ComfyUI."""

import json
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cascadevsr.media.reader import Wish, probe
from cascadevsr.media.writer import write_pngs, write_video
from cascadevsr.runner.binding import CAPTURE_NODE
from cascadevsr.runner.client import ExecutionFailed, Interrupted, PromptRejected
from cascadevsr.runner.errors import RunnerError
from cascadevsr.runner.stage import stage


def frames(count=5, height=37, width=51):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def load(name):
    return {
        "1": {"class_type": "LoadVideo", "inputs": {"file": name}, "_meta": {"title": "My Clip"}},
        "2": {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}},
    }


def capture(link, name):
    return {"class_type": CAPTURE_NODE, "inputs": {"images": link, "name": name}}


def test_frames_go_through_the_host_bit_for_bit(host_server, client):
    source = host_server.base / "source.mp4"
    write_video(source, frames(), Fraction(25), codec="h264-rgb")
    name = stage(probe(source), Wish(), host_server.input_dir, "exact")
    steps = []
    result = client.run({**load(name), "3": capture(["2", 0], "exact")}, steps.append, timeout=60)
    path = host_server.output_dir / "exact.rgb"
    facts = json.loads(path.with_suffix(".rgb.json").read_text())
    assert facts["shape"] == list(frames().shape) and facts["frames_not_finite"] == 0
    assert np.array_equal(np.fromfile(path, np.uint8).reshape(facts["shape"]), frames())
    assert result.outputs["3"]["cascadevsr"] == [facts]
    assert [step.title for step in steps][:2] == ["My Clip", "GetVideoComponents"]


def test_sixteen_bits_go_through_the_host(host_server, client):
    deep = (frames().astype(np.uint16) << 8) + np.arange(51, dtype=np.uint16)[None, None, :, None]
    write_pngs(host_server.base / "deep", deep)
    name = stage(probe(host_server.base / "deep"), Wish(16), host_server.input_dir, "deep")
    client.run({**load(name), "3": {**capture(["2", 0], "deep")} | _with_bits(16)}, timeout=60)
    found = np.fromfile(host_server.output_dir / "deep.rgb", np.uint16).reshape(deep.shape)
    assert np.abs(found.astype(int) - deep).max() <= 64  # the host's own rounding; a step of 10 bits


def _with_bits(bits):
    return {"inputs": {**capture(["2", 0], "deep")["inputs"], "bits": bits}}


def test_rejection_names_node_and_rule(client):
    with pytest.raises(PromptRejected, match="(?s)refused.*My Clip: .*no-such.mp4") as error:
        client.run({**load("no-such.mp4"), "3": capture(["2", 0], "x")})
    assert "1" in error.value.node_errors
    video_file = load("exact.mov")
    half_bad = {**video_file, "3": capture(["2", 0], "x"), "4": {"class_type": "PreviewImage", "inputs": {}}}
    with pytest.raises(PromptRejected, match="(?s)cannot run.*PreviewImage: Required input is missing - images"):
        client.run(half_bad)
    with pytest.raises(RunnerError, match="NoSuchNode"):
        client.run({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_failure_names_node_type_and_message(host_server, client):
    (host_server.input_dir / "words.mp4").write_text("words")
    with pytest.raises(ExecutionFailed, match="Invalid data found") as error:
        client.run({**load("words.mp4"), "3": capture(["2", 0], "x")}, timeout=60)
    assert error.value.node_type == "GetVideoComponents" and error.value.traceback


def test_interrupt_and_run_again(host_server, client):
    write_video(host_server.input_dir / "long.mp4", frames(24), Fraction(25), codec="h264-rgb")
    scale = {"image": ["2", 0], "upscale_method": "lanczos", "scale_by": 8.0}
    blur = {"image": ["3", 0], "blur_radius": 31, "sigma": 10.0}
    slow = {
        **load("long.mp4"),
        "3": {"class_type": "ImageScaleBy", "inputs": scale},
        "4": {"class_type": "ImageBlur", "inputs": blur},
        "5": capture(["4", 0], "never"),
    }
    with pytest.raises(Interrupted):
        client.run(slow, lambda step: step.node_id == "3" and client.interrupt(), timeout=300)
    assert not list(host_server.output_dir.glob("never*"))
    test_frames_go_through_the_host_bit_for_bit(host_server, client)


ORPHAN = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from runner.pack import load
server = load("runner.server").HostServer(load("runner.host").find_host(), Path({base!r}), cpu=True, capture=True)
server.start()
print(server.process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_host_ends_when_its_run_py_is_killed(tmp_path, repository, comfyui):
    code = ORPHAN.format(root=str(repository), base=str(tmp_path))
    command = [sys.executable, "-c", code]
    environ = {**os.environ, "COMFYUI_PATH": str(comfyui.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as runner:
        pid = int(runner.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        runner.kill()
        end = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1][:3]:
            assert time.monotonic() < end, "ComfyUI lives on"
            time.sleep(0.1)
