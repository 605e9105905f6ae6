"""`run.py bench compare-video`: Compare Video in the real editor, with large clips: speed, exact steps, memory."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..runner.browser import ensure_browser
from ..runner.errors import RunnerError
from ..runner.host import Host
from ..runner.paths import scratch_folder
from ..runner.server import HostServer

FRAMES = 300
_SIZES = {"before": (1920, 1080), "after": (3840, 2160)}  # width, height
_BITS = 12  # of the frame number, as squares at the top
_PATIENCE = 900  # s that the small film may take


def run(options: argparse.Namespace, host: Host) -> dict:
    """Compare Video, 300 frames (--frames) of 1080p beside 4K: opening, wipes, steps, memory of the browser (minutes).

    Memory is told by kind of process, in MiB of PSS: *renderer* is the page.
    """
    count, result, tools = options.frames or FRAMES, {}, ensure_browser()
    with scratch_folder("compare-") as base:
        server = HostServer(host, base, cpu=True)
        server.input_dir.mkdir(parents=True)
        for name, (width, height) in _SIZES.items():
            _write(server.input_dir / f"{name}.mp4", width, height, count)
        clips = {
            str(number): {"class_type": "LoadVideo", "inputs": {"file": f"{name}.mp4"}}
            for number, name in enumerate(_SIZES, 1)
        }
        shown = {"before": ["1", 0], "after": ["2", 0], "fps": 0.0, "start": 0, "frames": 0, "size": 1280}
        prompt = {**clips, "3": {"class_type": "VSRCompareVideo", "inputs": shown}}
        with server:
            for name, modern in (("classic", False), ("nodes_2", True)):
                job = {"url": server.url, "modern": modern, "prompt": prompt, "seconds": _PATIENCE}
                done = subprocess.run(
                    [tools.node, str(Path(__file__).with_suffix(".cjs"))],
                    input=json.dumps(job),
                    capture_output=True,
                    text=True,
                    env=tools.environ(),
                    timeout=_PATIENCE + 600,
                )
                if done.returncode:
                    raise RunnerError(f"bench compare-video: the browser failed.\n{done.stderr[-3000:]}")
                found = json.loads(done.stdout)
                wrong = [step for step in found.pop("steps") if len(set(step)) > 1]
                result |= {f"{name}_{key}": value for key, value in found.items()} | {f"{name}_wrong_steps": wrong}
    return {"frames": count, **result, "bar": "opens < 3 s, 30 wipes a second, no wrong step, renderer < 500 MiB"}


def _write(out: Path, width: int, height: int, count: int) -> None:
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, picture in enumerate(_pictures(count)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(width, height, "yuv420p", interpolation="BILINEAR")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _pictures(count: int) -> Iterator[np.ndarray]:
    """Yield frames (540, 960, 3) uint8 that move, with grain, and with their numbers at the top."""
    y, x = np.mgrid[0:540, 0 : 960 + 2 * count].astype(np.float32) / 2
    waves = np.stack([50 * np.sin(x / 9 + c) + 40 * np.cos(y / 7 - c) + 30 * np.sin(x * y / 900) for c in range(3)], -1)
    grain = np.random.default_rng(0).normal(127, 6, waves.shape)
    whole = np.clip(waves + grain, 0, 255).astype(np.uint8)
    for number in range(count):
        picture = whole[:, 2 * number : 2 * number + 960].copy()
        for bit in range(_BITS):
            picture[:54, 60 * (bit + 2) : 60 * (bit + 3)] = 255 if number >> bit & 1 else 0
        yield picture
