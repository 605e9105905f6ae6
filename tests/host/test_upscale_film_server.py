"""Upscale Film in a ComfyUI of its own: killed, interrupted, closed; Run goes on to the same bytes. Flat memory."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from cascadevsr.runner.client import HostClient, Interrupted
from cascadevsr.runner.errors import RunnerError
from cascadevsr.runner.server import HostServer
from cascadevsr.tests.media.films import clip, film

GRAPH = Path(__file__).parents[2] / "workflows" / "api" / "Upscale-a-Film.json"
NODE = "VSRUpscaleFilm"


def prompt(**inputs):
    graph = json.loads(GRAPH.read_text(encoding="utf-8"))
    changes = {"VSRLoadVideoRestorer": {"restorer": "tiny.safetensors"}, "LoadVideo": {"file": "film.mkv"}}
    changes[NODE] = {"target.scale": 2, "segment": 8, "format": "mkv", **inputs}
    for node in graph.values():
        if node["class_type"] == "VSRSampleClip":
            node["class_type"], node["inputs"] = "LoadVideo", {}
        node["inputs"] |= changes.get(node["class_type"], {})
    return graph


@pytest.fixture
def start(comfyui, tiny_file, tmp_path):
    """Start a ComfyUI over one base folder, again and again: start() -> (server, client)."""
    servers = []

    def begin():
        server = HostServer(comfyui, tmp_path, cpu=True, capture=True)
        servers.append(server)
        folder = server.models_dir / "video_restorers"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tiny.safetensors").write_bytes(tiny_file.read_bytes())
        server.input_dir.mkdir(exist_ok=True)
        server.start()
        return server, HostClient(server.url, server)

    yield begin
    for server in servers:
        server.stop()


def finished(server):
    return len(list(server.output_dir.glob("video/.cascadevsr_film-*/0*.json")))


def results(server):
    return sorted(server.output_dir.glob("video/*.mkv"))


def when(condition, act):
    """Act, in another thread, as soon as a condition holds."""

    def wait():
        end = time.monotonic() + 60
        while not condition():
            if time.monotonic() > end:
                return
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_killed_interrupted_and_closed_films_go_on_to_the_same_bytes(start, tmp_path):
    server, client = start()
    film(server.input_dir / "film.mkv", clip(60, 24, 32), sounds=[("aac", "mono", "eng"), ("aac", "mono", "deu")])
    client.run(prompt(), timeout=120)
    (whole,) = results(server)

    begun = []

    def interrupt():
        begun.append(time.monotonic())
        client.interrupt()

    client.free()  # what is cached would not run again
    whole = whole.rename(tmp_path / "whole.mkv")
    thread = when(lambda: finished(server) >= 2, interrupt)
    with pytest.raises(Interrupted):
        client.run(prompt(), timeout=120)
    assert time.monotonic() - begun[0] < 3
    thread.join()
    assert 2 <= finished(server) < 8 and not results(server)

    thread = when(lambda: finished(server) >= 5, lambda: os.kill(server.process.pid, signal.SIGKILL))
    with pytest.raises(RunnerError):
        client.run(prompt(), timeout=120)
    thread.join()
    kept = finished(server)
    assert 5 <= kept < 8 and not results(server)

    server, client = start()
    said = client.run(prompt(), timeout=120).outputs["11"]["text"]
    assert f"{8 - kept} of 8 segments made now" in said[1]
    (out,) = results(server)
    assert out.read_bytes() == whole.read_bytes() and not list(server.output_dir.glob("video/.*"))


def test_memory_stays_where_it_is(start):
    """A longer run by hand is in docs/film.md."""
    server, client = start()
    noise = np.random.default_rng(0).integers(0, 256, (1, 24, 32, 3), np.uint8)[0]
    film(server.input_dir / "film.mkv", [np.roll(noise, i, 1) for i in range(800)], options={"crf": "30"})
    seen, process = {}, psutil.Process(server.process.pid)

    def look(step):
        seen[finished(server)] = process.memory_info().rss

    client.run(prompt(segment=40), look, timeout=240)
    early, late = max(seen[n] for n in seen if n <= 3), max(seen.values())
    assert max(seen) >= 18 and late < 1.03 * early
