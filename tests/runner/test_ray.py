"""Segments on a Ray cluster: two workers, some killed, the head lost, a machine without the weights."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from cascadevsr.media.journal import folder_of
from cascadevsr.runner.browser import in_ci
from cascadevsr.runner.environment import INSIDE
from cascadevsr.tests.media.films import clip, film

ROOT = Path(__file__).parents[2]
WORDS = ("--scale", "2", "--cpu", "--lossless", "--segment", "9", "--context", "3")


@pytest.fixture(scope="module", autouse=True)
def ray():
    """Ray, which no other command needs: run.py setup --ray."""
    try:
        import ray
    except ImportError:
        if in_ci():
            pytest.fail("Ray is missing: python3 run.py setup --ray")
        pytest.skip("needs Ray: python3 run.py setup --ray")
    return ray


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return film(tmp_path_factory.mktemp("ray") / "in.mkv", clip(90, 24, 32), sounds=[("aac", "mono", "eng")])


@pytest.fixture(scope="module")
def upscale(comfyui):
    """Run the command in a process of its own: upscale(source, out, *words) -> process.

    With one thread, as Ray's workers have: torch's sums differ in their last bits between numbers of threads.
    """

    def run(source, out, *words):
        environ = {**os.environ, INSIDE: str(comfyui.path), "PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "disabled"}
        environ["OMP_NUM_THREADS"] = "1"
        command = [sys.executable, "run.py", "upscale", str(source), str(out), *WORDS, *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environ, **pipes)

    return run


@pytest.fixture(scope="module")
def whole(upscale, source):
    """The film made without Ray."""
    out = source.with_name("whole.mkv")
    process = upscale(source, out)
    assert process.wait(240) == 0, process.stdout.read()
    return out.read_bytes()


def finished(out):
    return len(list(folder_of(out).glob("0*.json")))


def wait(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


def workers(process):
    """The processes of Ray that make a segment now."""
    found = []
    with contextlib.suppress(psutil.Error):
        for each in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if each.name().startswith("ray::Worker.ren") or "ray::Worker.render" in " ".join(each.cmdline()):
                    found.append(each)
    return found


def test_two_workers_of_which_two_are_killed_make_the_same_film(upscale, source, whole, tmp_path):
    out = tmp_path / "out.mkv"
    process, killed = upscale(source, out, "--ray", "local:2"), []

    def kill():
        for count in (1, 2):
            wait(lambda count=count: finished(out) >= count and workers(process), process)
            for worker in workers(process)[:1]:
                worker.kill()
                killed.append(worker.pid)
                time.sleep(0.5)

    thread = threading.Thread(target=kill)
    thread.start()
    said = process.communicate(timeout=300)[0]
    thread.join()
    assert process.returncode == 0, said
    assert len(killed) == 2 and said.count("a worker was lost; segment") == 2, said
    assert out.read_bytes() == whole and not folder_of(out).exists()


@pytest.fixture
def cluster(ray, monkeypatch, comfyui):
    """A cluster on this machine: cluster(variables of the second machine) -> (address, it)."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv(INSIDE, str(comfyui.path))
    begun = []

    def begin(variables):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        begun.append(cluster)
        cluster.add_node(num_cpus=1, env_vars=variables)
        cluster.wait_for_nodes()
        return cluster.address, cluster

    yield begin
    for each in begun:
        each.shutdown()


def test_a_machine_without_the_weights_takes_no_part(upscale, source, whole, tmp_path, cluster, monkeypatch):
    """Its ComfyUI has other model folders; the others make the film."""
    folder = tmp_path / "here" / "serve" / "models" / "video_restorers"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "models" / "weights" / "unimmvsr-tiny.safetensors", folder / "own.safetensors")
    monkeypatch.setenv("CASCADEVSR_CACHE", str(tmp_path / "here"))
    address, _ = cluster({"CASCADEVSR_CACHE": str(tmp_path / "there")})
    out = tmp_path / "out.mkv"
    process = upscale(source, out, "--set", "Load Video Restorer.restorer=own.safetensors", "--ray", address)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "takes no part: weights own.safetensors is missing" in said and out.exists()


def test_a_lost_head_is_said_and_the_same_command_goes_on(upscale, source, whole, tmp_path, cluster):
    address, it = cluster({})
    out = tmp_path / "out.mkv"
    process = upscale(source, out, "--ray", address)
    wait(lambda: finished(out) >= 1, process)
    it.head_node.kill_gcs_server(check_alive=False)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "--ray: the cluster was lost (its head at" in said, said
    kept = finished(out)
    assert 1 <= kept < 10
    process = upscale(source, out)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0 and f"{kept} of 10 segments are finished already" in said
    assert out.read_bytes() == whole


def test_no_cluster_is_a_sentence(upscale, source, tmp_path):
    process = upscale(source, tmp_path / "out.mkv", "--ray", "127.0.0.1:1")
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 1 and "--ray: no cluster that fits answers at 127.0.0.1:1" in said
