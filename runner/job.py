"""Run one workflow in a temporary headless ComfyUI and bring its frames back exactly."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..media.pace import duration
from .binding import bind_output
from .client import HostClient
from .errors import RunnerError
from .host import Host
from .paths import scratch_folder
from .progress import Display, Whole
from .server import HostServer
from .workflow import Workflow

_NAME = "cascadevsr_frames"


@dataclass(frozen=True)
class Outcome:
    """Frames (n, h, w, 3) uint8 or uint16, mapped from disk while the job is open, and what the run cost.

    Memory in bytes: `peak_memory` of ComfyUI's process, `peak_device_memory` of its GPU; None where unknown. `stages`:
    seconds by the title of the node.
    """

    frames: np.ndarray
    seconds: float
    peak_memory: int | None
    network_calls: int
    device: str
    peak_device_memory: int | None = None
    stages: dict[str, float] = field(default_factory=dict)
    saved: tuple[Path, ...] = ()

    def costs(self) -> dict:
        """Return the costs as plain data."""
        count = len(self.frames)
        costs = {
            "frames": count,
            "width": self.frames.shape[2],
            "height": self.frames.shape[1],
            "seconds": round(self.seconds, 2),
            "seconds_per_frame": round(self.seconds / count, 4),
            "peak_memory_mb": round(self.peak_memory / 2**20) if self.peak_memory else None,
            "network_calls": self.network_calls,
        }
        if self.peak_device_memory is not None:
            costs["peak_device_memory_mb"] = round(self.peak_device_memory / 2**20)
        return costs


@contextlib.contextmanager
def open_job(host: Host, port: int | None = None, cpu: bool | None = None) -> Iterator[Job]:
    """Yield a job over a fresh base folder; files may be put into `job.input_dir` before it runs."""
    with scratch_folder("job-") as base:
        server = HostServer(host, base, port=port, cpu=cpu, capture=True, arguments=("--disable-metadata",))
        server.input_dir.mkdir(parents=True)
        try:
            yield Job(server)
        finally:
            server.stop()


class Job:
    """Runs, one after the other; the server starts with the first, so that every check made before costs nothing."""

    def __init__(self, server: HostServer) -> None:
        self.server = server
        self.input_dir = server.input_dir

    def run(self, workflow: Workflow, keep_savers: bool = False, bits: int = 8, whole: Whole | None = None) -> Outcome:
        """Run a filled-in workflow and return what came out of its last frames socket, 8 or 16 bits a channel.

        `whole`: the run over a film that this is a part of. The frames last until the next run.
        """
        bind_output(workflow, _NAME, keep_savers, bits)
        if not self.server.alive():
            where = "CPU" if self.server.cpu else "GPU"
            print(f"Starting ComfyUI {self.server.host.version} ({where}) ...", flush=True)
            self.server.start()
        client, display = HostClient(self.server.url, self.server), Display(whole=whole)
        try:
            result = client.run(workflow.prompt, display)
        finally:
            display.close()
        peak = self.server.peak_memory()
        path = self.server.output_dir / f"{_NAME}.rgb"
        facts = json.loads(path.with_suffix(".rgb.json").read_text())
        if facts["frames_not_finite"]:
            found = f"{facts['frames_not_finite']} of {facts['shape'][0]} frames"
            raise RunnerError(
                f"OUT: the pixels must be finite numbers; {found} hold NaN or infinity. Nothing was written. "
                'Try --set "Load Video Restorer.precision=fp32".'
            )
        if whole is not None:
            whole.end(float(np.prod(facts["shape"][:3])))
        frames = np.memmap(path, np.uint8 if bits == 8 else np.uint16, "r", shape=tuple(facts["shape"]))
        if whole is None:
            print(f"Workflow {workflow.name}: {len(frames)} frames in {duration(result.seconds)}.", flush=True)
        saved = tuple(_saved(self.server.output_dir, result.outputs))
        return Outcome(
            frames,
            result.seconds,
            peak,
            facts["network_calls"],
            facts["device"],
            facts["peak_device_memory"],
            display.seconds,
            saved,
        )


def _saved(folder: Path, outputs: dict) -> Iterator[Path]:
    """Yield the files that the workflow's own savers wrote."""
    for output in outputs.values():
        for items in output.values():
            for item in items if isinstance(items, list) else ():
                if isinstance(item, dict) and item.get("type") == "output" and item.get("filename"):
                    yield folder / item.get("subfolder", "") / item["filename"]
