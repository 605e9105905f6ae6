"""`run.py bench pace`: does the shown time left hold, and does a run ever stand still?"""

from __future__ import annotations

import argparse
import itertools
import re
import time
from fractions import Fraction
from pathlib import Path

from ..media.reader import read_frames
from ..media.writer import write_video
from ..runner.client import HostClient, Progress
from ..runner.errors import RunnerError
from ..runner.host import Host
from ..runner.paths import scratch_folder
from ..runner.server import HostServer
from ..runner.workflow import Workflow
from .graphs import runs_on_cpu

FRAMES = 200
_LEFT = re.compile(r"(\d+)/(\d+).* ((?:\d+:)?\d+:\d\d) left")
_RUNS = ("first", "second")  # the first knows no speeds of this machine, the second those of the first


class Watch:
    """Note when a run says something, and what time it says is left."""

    def __init__(self) -> None:
        self.began = self._last = time.monotonic()
        self.gap, self.where, self._step = 0.0, "", ""  # s, the longest time without a sign; the signs around it
        self.said: list[tuple[float, float, float]] = []  # seconds since the beginning, share done, seconds left

    def __call__(self, step: Progress) -> None:
        """Take a sign of life."""
        now = time.monotonic()
        sign = f"{step.title} {step.value:g}/{step.total:g} {step.text or ''}".strip()
        if now - self._last > self.gap:
            self.gap, self.where = now - self._last, f"{self._step} -> {sign}, after {self._last - self.began:.0f} s"
        self._last, self._step = now, sign
        if found := _LEFT.search(step.text or ""):
            parts = [int(part) for part in found[3].split(":")]
            left = sum(part * 60**power for power, part in enumerate(reversed(parts)))
            self.said.append((now - self.began, int(found[1]) / int(found[2]), left))

    def errors(self) -> list[float]:
        """Give the error of the whole time that was shown after the first tenth, in percent of the true one."""
        whole = time.monotonic() - self.began
        return [100 * ((at + left) / whole - 1) for at, done, left in self.said if 0.1 <= done <= 0.9]


def run(options: argparse.Namespace, host: Host) -> dict:
    """Upscale Film over 200 frames (--frames) of the clips in --lr: error of the time left, longest silence (minutes).

    Run twice, with nothing remembered and with the speeds of the first; errors in percent between the first and the
    last tenth.
    """
    clips = [path for path in sorted(Path(options.lr or "").iterdir()) if path.suffix == ".mp4"] if options.lr else []
    if not clips:
        raise RunnerError("bench pace: needs --lr FOLDER with small clips (.mp4).")
    count, result = options.frames or FRAMES, {}
    with scratch_folder("pace-") as base:
        server = HostServer(host, base, cpu=runs_on_cpu(options.device))
        server.input_dir.mkdir(parents=True)
        pictures = [picture for clip in clips for picture in read_frames(clip)]
        same = [picture for picture in pictures if picture.shape == pictures[0].shape]
        frames = itertools.islice(itertools.cycle(same + same[::-1]), count)
        write_video(server.input_dir / "clip.mp4", frames, Fraction(24), codec="h264-rgb")
        with server:
            for name in _RUNS:
                workflow = Workflow.load("Upscale-a-Film")
                (source,) = workflow.of_type("VSRSampleClip")
                (film,) = workflow.of_type("VSRUpscaleFilm")
                workflow.prompt[source] |= {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}}
                workflow.prompt[film]["inputs"]["filename_prefix"] = name  # another name is another film
                for setting in options.settings:
                    workflow.set(setting)
                watch = Watch()
                HostClient(server.url, server).run(workflow.prompt, watch)
                errors = watch.errors()
                result |= {
                    f"{name}_run_seconds": round(time.monotonic() - watch.began, 1),
                    f"{name}_run_error_percent": [round(min(errors)), round(max(errors))] if errors else None,
                    f"{name}_run_longest_silence_seconds": round(watch.gap, 2),
                    f"{name}_run_longest_silence": watch.where,
                }
                print(f"  {name}: {errors and [round(e) for e in errors]}", flush=True)
    return {"frames": count, **result, "bar": "25 percent, 2 s"}
