"""`run.py upscale --ray`: segments of a film as tasks of a Ray cluster, one headless ComfyUI a worker.

1. the film is planned here, as without Ray; this process alone writes the journal
2. a worker says whether its machine has the same source, weights and versions; one that has not takes no part
3. every worker gets one segment after the other and sends back its file; a segment whose worker was lost is made anew
4. what is finished stays: the same command goes on, with Ray or without
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import socket
import sys
import tempfile
from collections import Counter, deque
from pathlib import Path
from typing import Any

from ..media.journal import Journal, changes
from ..media.pace import Pace
from ..media.reader import Forward
from ..media.render import store, times_of
from ..media.segments import Segment
from .client import Progress
from .environment import host_inside
from .errors import RunnerError
from .host import find_host
from .job import open_job
from .paths import ROOT
from .progress import Display
from .segments import Maker, key_of
from .work import Work

_LOSSES = 3  # of workers over one segment: then it is the segment
_BEAT = 2.0  # s between two looks at the cluster
_PATIENCE = 120.0  # s without a worker before the cluster is said to have none


class Renderer:
    """What a worker does, in its own process and with its own ComfyUI."""

    def __init__(self, work: Work, segments: tuple[Segment, ...], key: dict) -> None:
        self.work, self.segments, self.key = work, segments, key
        self.source, self.maker, self.stack, self.calls = None, None, contextlib.ExitStack(), 0

    def unfit(self) -> str:
        """Say why this machine cannot take part; "": it can."""
        try:
            own = json.loads(json.dumps(key_of(self.work, host_inside() or find_host())))
        except OSError as error:
            return f"{error.strerror}: {error.filename}"
        return changes(self.key, own) if own != self.key else ""

    def render(self, index: int) -> tuple[bytes, dict]:
        """Make segment `index`; return its file and what it cost."""
        if self.maker is None:
            cpu = True if self.work.options.cpu else None
            job = self.stack.enter_context(open_job(host_inside() or find_host(), cpu=cpu))
            self.source = Forward(self.work.clip, self.work.how.wish)
            self.maker = Maker(self.work, job, Pace(self.work.clip.frames))
        segment: Segment = self.segments[index]
        frames = self.maker(segment, self.source.span(segment.first, segment.end))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "segment"
            store(file, frames, self.work.out, self.work.clip, self.work.how, segment)
            cost = self.maker.costs[-1]  # ComfyUI counts the calls of all segments
            cost, self.calls = {**cost, "network_calls": cost["network_calls"] - self.calls}, cost["network_calls"]
            return file.read_bytes(), cost


def _worker(root: str) -> type:
    """Make the class of a Ray actor; it is sent by value, and finds the pack of its own machine at `root`."""

    class Worker:
        def __init__(self, task: list) -> None:
            self.task, self.renderer = task, None  # in a list: it can be read once the pack is found

        def _do(self, name: str, *arguments) -> tuple[str, Any]:
            import importlib
            import os
            import sys

            import ray

            if not os.path.isfile(os.path.join(root, "run.py")):
                return "unfit", f"the pack must be at {root}"
            sys.path.insert(0, root)
            load = importlib.import_module("runner.pack").load
            known = load("runner.errors").RunnerError, load("media.errors").MediaError
            try:
                if self.renderer is None:
                    self.renderer = load("runner.cluster").Renderer(*ray.get(self.task[0]))
                return "", getattr(self.renderer, name)(*arguments)
            except known as error:
                return "error", str(error)

        def unfit(self) -> tuple[str, Any]:
            return self._do("unfit")

        def render(self, index: int) -> tuple[str, Any]:
            return self._do("render", index)

        def where(self) -> str:
            import platform

            return platform.node()

    return Worker


def render_on_ray(work: Work, journal: Journal, missing: list[int], pace: Pace) -> list[dict]:
    """Render segments on the cluster that the option names, write them into the journal, and return their costs."""
    ray = _connected(work.options.ray)
    crew = _Crew(ray, work, journal, missing, pace)
    try:
        costs = crew.work_through()
    except (_HeadLost, ray.exceptions.RayError) as error:
        # Ray would wait a minute for the head before it lets this process end, or break it off
        atexit.unregister(ray.shutdown)
        atexit.register(_leave)
        raise RunnerError(
            f"--ray: the cluster was lost ({error or type(error).__name__}). Finished segments are kept: start the "
            "cluster again, and the same command goes on; without --ray this machine does the rest."
        ) from error
    except BaseException:
        crew.dismiss()
        raise
    crew.dismiss()
    return costs


def _leave() -> None:
    """End this process, whose work is done, at once."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


class _HeadLost(Exception):
    """The head of the cluster does not answer."""


def _connected(address: str) -> Any:
    """Return Ray, connected to the cluster at `address`, or to one of this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise RunnerError(
            f"--ray: needs Ray in the Python that runs ComfyUI: {sys.executable} -m pip install ray."
        ) from error
    name, _, count = address.partition(":")
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        if re.fullmatch(r"[^/]+:\d+", address) and name != "local":  # Ray itself would try for minutes
            socket.create_connection((name, int(count)), timeout=10).close()
        if name == "local":
            ray.init(num_cpus=int(count) if count.isdigit() else None, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise RunnerError(
            f"--ray: no cluster that fits answers at {address} ({str(error).splitlines()[0]}). Start one by ray start "
            "--head with this Python, name its address or auto, or use --ray local."
        ) from error
    return ray


class _Crew:
    """The workers of a run, and what each is doing."""

    def __init__(self, ray: Any, work: Work, journal: Journal, missing: list[int], pace: Pace) -> None:
        self.ray, self.work, self.journal, self.pace = ray, work, journal, pace
        self.waiting, self.losses = deque(missing), Counter()
        self.running: dict = {}  # reference -> (worker, segment; None: it is asked whether it is fit)
        self.costs: list[dict] = []
        self.unfit: dict[str, str] = {}  # machine -> why
        resources = ray.cluster_resources()
        self.gpus = int(resources.get("GPU", 0)) if not work.options.cpu else 0
        name, _, count = (work.options.ray or "").partition(":")
        nodes = sum(node["Alive"] for node in ray.nodes())
        self.most = int(count) if name == "local" and count.isdigit() else self.gpus or nodes
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self.head = host.strip("[]"), int(port)
        self.task = ray.put((work, journal.segments, journal.key))

    def work_through(self) -> list[dict]:
        """Give segments to workers until all are there."""
        display, total = Display(), self.pace.total
        try:
            for _ in range(min(self.most, len(self.waiting))):
                self._hire()
            idle = 0.0
            while self.waiting or self.working:
                if not self.running:
                    reasons = "; ".join(f"{where}: {why}" for where, why in self.unfit.items())
                    raise RunnerError(f"--ray: no machine of the cluster can take part ({reasons}).")
                done, _ = self.ray.wait(list(self.running), timeout=_BEAT)
                self._look_at_head()
                idle = 0.0 if done or self.working else idle + _BEAT
                if idle > _PATIENCE:
                    raise RunnerError(
                        f"--ray: the cluster has started no worker within {_PATIENCE:.0f} s. Look at ray status: its "
                        "GPUs or CPUs may be taken."
                    )
                for reference in done:
                    self._answered(reference)
                count = len(self.running)
                display(Progress("ray", f"{count} worker{'s' * (count != 1)}", self.pace.done, total))
        finally:
            display.close()
        return self.costs

    @property
    def working(self) -> bool:
        """Return whether a worker makes a segment."""
        return any(index is not None for _, index in self.running.values())

    def dismiss(self) -> None:
        """End the workers and leave the cluster."""
        for worker, _ in self.running.values():
            self.ray.kill(worker)
        self.ray.shutdown()

    def _look_at_head(self) -> None:
        """Raise where the head of the cluster is gone: Ray itself would wait a minute, then end this process."""
        try:
            socket.create_connection(self.head, timeout=_BEAT).close()
        except OSError as error:
            raise _HeadLost(f"its head at {self.head[0]}:{self.head[1]} does not answer") from error

    def _hire(self) -> None:
        options = {"num_cpus": 1, "num_gpus": 1 if self.gpus else 0, "max_restarts": 0}
        worker = self.ray.remote(_worker(str(ROOT))).options(**options).remote([self.task])
        self.running[worker.unfit.remote()] = worker, None

    def _answered(self, reference: Any) -> None:
        worker, index = self.running.pop(reference)
        try:
            trouble, answer = self.ray.get(reference)
        except (self.ray.exceptions.RayActorError, self.ray.exceptions.WorkerCrashedError):
            self._lost(index)
            return
        if index is None:
            if trouble or answer:
                where = self.ray.get(worker.where.remote())
                self.unfit[where] = answer
                print(f"  --ray: {where} takes no part: {answer}", flush=True)
                self.ray.kill(worker)
                return
        elif trouble:
            raise RunnerError(answer)
        else:
            self._keep(index, *answer)
        if self.waiting:
            index = self.waiting.popleft()
            self.running[worker.render.remote(index)] = worker, index

    def _lost(self, index: int | None) -> None:
        """Give the segment of a lost worker to another one."""
        self.losses[index] += 1
        if self.losses[index] >= _LOSSES:
            what = "before they began" if index is None else f"over segment {index + 1}"
            raise RunnerError(
                f"--ray: {_LOSSES} workers were lost {what}. Their machines may lack memory: use a shorter --segment; "
                "the logs of Ray say more."
            )
        if index is not None:
            print(f"  --ray: a worker was lost; segment {index + 1} is made anew", flush=True)
            self.waiting.appendleft(index)
        self._hire()

    def _keep(self, index: int, data: bytes, cost: dict) -> None:
        segment = self.journal.segments[index]
        with self.journal.writing(index, times_of(segment, self.work.clip)) as file:
            file.write_bytes(data)
        before = self.costs[-1]["network_calls"] if self.costs else 0
        self.costs.append({**cost, "network_calls": before + cost["network_calls"]})
        self.pace.made += segment.frames
