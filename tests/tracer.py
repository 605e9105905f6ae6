"""Trace which of our own functions a path runs through, with the Python of the environment that run.py made:

    python tests/tracer.py [template] [release] [reference] [steady] [film]

It runs the named paths (all by default) at toy size in the host's own executor, in this process, and prints for each
the own files with their functions in the order of the first call, and the deepest stack. The paths are the functions
in `PATHS`; what counts is described at `Trace`.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import os
import sys
import tempfile
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN = ("models", "nodes", "media")
# What watches a run (how far, how fast, is there room) and hands nothing of a clip on: no stations of its way
WATCHES = (
    "nodes/host/progress.py",
    "nodes/host/room.py",
    "nodes/host/foreign.py",
    "media/pace.py",
    "media/memory.py",
)


class Trace:
    """Record the own functions that run: those of files under models/, nodes/ and media/.

    A function counts by file and qualified name. A stack level is one running own function; frames of the host and of
    torch between two of them do not count. Lambdas and generator expressions count as functions and levels, list,
    set and dict comprehensions do not: this is what Python 3.12 and later show, where comprehensions are no frames.
    Class bodies, module bodies and whatever an import runs do not count, nor do WATCHES, nor the
    look at the Cancel button that they take now and then, wherever the work is just then.
    """

    def __init__(self, root: Path = ROOT):
        self._folders = tuple(f"{root / name}{os.sep}" for name in OWN)
        self._root, self._names, self._local = root, {}, threading.local()
        self.functions: dict[str, dict[str, None]] = {}  # file -> its functions, in order of their first call
        self.deepest: list[str] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record what this thread, and threads it starts, call inside."""
        threading.setprofile(self._event)
        sys.setprofile(self._event)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _event(self, frame: types.FrameType, event: str, _) -> None:
        if event not in ("call", "return"):
            return
        name = self._names.get(frame.f_code)
        if name is None:
            name = self._names[frame.f_code] = self._describe(frame.f_code)
        if not name:
            return
        caller = frame.f_back.f_code.co_filename if frame.f_back else ""
        if name[1] == "check_cancelled" and caller.replace(os.sep, "/").endswith(WATCHES):
            return
        stack = self._local.__dict__.setdefault("stack", [])
        if event == "return":
            if stack and stack[-1][0] is frame:
                stack.pop()
            return
        stack.append((frame, name))
        if any(not function for _, (_, function) in stack):
            return  # an import is running
        file, function = name
        self.functions.setdefault(file, {}).setdefault(function)
        if len(stack) > len(self.deepest):
            self.deepest = [f"{file}: {function}" for _, (file, function) in stack]

    def _describe(self, code: types.CodeType) -> tuple[str, str] | tuple:
        """Give (file, function) of own code, (file, "") of a module's or class's body, () of anything else."""
        if not code.co_filename.startswith(self._folders):
            return ()
        file = Path(code.co_filename).relative_to(self._root).as_posix()
        if file in WATCHES:
            return ()
        if not code.co_flags & inspect.CO_OPTIMIZED:
            return file, ""
        if code.co_name in ("<listcomp>", "<setcomp>", "<dictcomp>"):
            return ()
        return file, getattr(code, "co_qualname", code.co_name)

    def summary(self) -> dict:
        """Give what was recorded as plain data."""
        return {
            "files": {file: list(functions) for file, functions in self.functions.items()},
            "stack": self.deepest,
        }


def describe(summary: dict, functions: bool = True) -> str:
    """Write a summary for people: counts, files (with their functions), the deepest stack."""
    files, stack = summary["files"], summary["stack"]
    lines = [f"{len(files)} files, {sum(map(len, files.values()))} functions, stack {len(stack)}"]
    for file, names in files.items():
        lines.append(f"  {file} ({len(names)})")
        lines += [f"      {name}" for name in names] if functions else []
    lines.append("deepest stack:")
    lines += [f"  {level:2d} {'. ' * (level - 1)}{name}" for level, name in enumerate(stack, 1)]
    return "\n".join(lines)


# The host in this process


class _Server:
    """What the executor wants of a server when nobody listens."""

    client_id = last_node_id = last_prompt_id = None

    def send_sync(self, *_) -> None:
        """Send nothing."""


class Session:
    """The host in this process over a temporary base folder, with the pack loaded as the host loads custom nodes."""

    def __init__(self, host: Path, base: Path):
        for name in ("input", "output", "temp", "user", "models", "custom_nodes"):
            (base / name).mkdir(parents=True, exist_ok=True)
        self.base = base
        sys.argv = ["main.py", "--cpu", "--base-directory", str(base), "--disable-api-nodes"]
        sys.path.insert(0, str(host))
        import comfy.options

        comfy.options.enable_args_parsing()
        import execution

        import nodes

        self.execution = execution
        asyncio.run(self._load(nodes, host / "comfy_extras"))

    @staticmethod
    async def _load(nodes, extras: Path) -> None:
        wanted = [(extras / f"nodes_{name}.py", "comfy_extras") for name in ("custom_sampler", "video", "images")]
        for path, parent in [*wanted, (ROOT, "custom_nodes")]:
            if not await nodes.load_custom_node(str(path), module_parent=parent):
                raise RuntimeError(f"{path} must load in the host; see the log above.")

    def run(self, graph: dict, trace: Trace, before: tuple[str, ...] = (), until: tuple[str, ...] = ()) -> None:
        """Run a graph in API form: untraced up to the class types `before`, then traced to `until`, or the ends."""
        limits = {"lru": 0, "ram": 0, "ram_inactive": 0}
        cache = self.execution.CacheType.CLASSIC  # keeps every output for the second run
        executor = self.execution.PromptExecutor(_Server(), cache_type=cache, cache_args=limits)
        valid, error, ends, problems = asyncio.run(self.execution.validate_prompt("path", graph, None))
        if not valid or problems:
            raise RuntimeError(f"the host refuses the graph: {error} {problems}")
        if before:
            executor.execute(graph, "before", {}, [_find(graph, kind) for kind in before])
            _check(executor)
        with trace.running():
            executor.execute(graph, "traced", {}, [_find(graph, kind) for kind in until] or ends)
        _check(executor)


def _check(executor) -> None:
    if not executor.success:
        failure = dict(executor.status_messages)["execution_error"]
        raise RuntimeError(f"{failure['node_type']}: {failure['exception_message']}{''.join(failure['traceback'])}")


def _find(graph: dict, kind: str) -> str:
    """Find the only node of a class type."""
    (key,) = (key for key, node in graph.items() if node["class_type"] == kind)
    return key


def _graph(name: str, **changes: dict) -> dict:
    """Read a shipped graph and change inputs: class type -> inputs."""
    graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in graph.values():
        if node["class_type"] == "VSRSampleClip" and node["_meta"]["title"] == "Input":
            node["class_type"], node["inputs"] = "LoadVideo", {}
        if node["class_type"] in ("VSRLoadFilm", "LoadVideo"):
            node["inputs"] |= {"file": "input.mp4"}
        if node["class_type"] == "VSRLoadFilm":
            node["inputs"] |= {"first_seconds": 0.0}
        node["inputs"] |= changes.get(node["class_type"], {})
    return graph


# The paths


def template(session: Session, trace: Trace) -> None:
    """Run the template with the built-in model, from the frames of Load Film to those for Save Film."""
    session.run(_graph("Upscale-a-Video"), trace, ("VSRLoadFilm",), ("VSRTemporalDecode",))


def release(session: Session, trace: Trace) -> None:
    """Restore with an Upscale-A-Video release: load, estimate motion, propagate, sample, decode."""
    from cascadevsr.tests.host.uav_release import recorded, write_release

    folder = session.base / "models" / "video_restorers" / "release"
    write_release(recorded("pipeline_windowed_video"), folder)
    changes = {
        "VSRLoadVideoRestorer": {"restorer": folder.name},
        "VSRLatentPropagation": {"steps.step_list": "1,2"},
        "VSRRefineSigmas": {"steps": 3},
    }
    session.run(_graph("Restore-with-Upscale-A-Video", **changes), trace, ("VSRLoadFilm",), ("VSRTemporalDecode",))


def reference(session: Session, trace: Trace) -> None:
    """Take one identity picture through Reference Set, VSR Conditioning, the guider and the built-in model.

    Without tiles and windows, which cut the clip and hand references on as they are.
    """
    graph = _graph("Upscale-with-Identity-Images", VSRReferenceSet={"long_edge": 24})
    second = graph[_find(graph, "VSRReferenceSet")]["inputs"]["images.image_1"]
    del graph[second[0]]
    for node in graph.values():
        node["inputs"] = {name: value for name, value in node["inputs"].items() if value != second}
    for kind in ("VSRSpatialTiles", "VSRTemporalWindows"):
        key = _find(graph, kind)
        model = graph.pop(key)["inputs"]["model"]
        for node in graph.values():
            node["inputs"] = {name: model if value == [key, 0] else value for name, value in node["inputs"].items()}
    before = ("ImageFromBatch", "VSRCascadeInput", "VSRRefineSigmas", "VSRSeededNoise")
    session.run(graph, trace, (*before, "VSRRestorerSampler"), ("SamplerCustomAdvanced",))


def steady(session: Session, trace: Trace) -> None:
    """Make frames steady and give them their original's detail, as the template for edited videos does."""
    from cascadevsr.media.reader import read_frames
    from cascadevsr.media.writer import write_video

    graph = _graph("Upscale-an-Edited-Video")
    frames = list(read_frames(session.base / "input" / "input.mp4"))
    write_video(session.base / "input" / "original.mp4", [frame.repeat(2, 0).repeat(2, 1) for frame in frames], 24)
    for node in graph.values():
        if node["_meta"]["title"].startswith("Reference ("):
            node["inputs"]["file"] = "original.mp4"
    session.run(graph, trace, ("VSRReferenceSet", "VSRTemporalDecode"), ("VSRSteadyUpscaledVideo",))


def film(session: Session, trace: Trace) -> None:
    """Take a film from the file to the saved file, with nothing in between."""
    ends = [
        node for node in _graph("Upscale-a-Video").items() if node[1]["class_type"] in ("VSRLoadFilm", "VSRSaveFilm")
    ]
    (loader, _), (_, saver) = ends
    saver["inputs"] |= {"images": [loader, 1], "source": [loader, 0]}
    session.run(dict(ends), trace)


def long_film(session: Session, trace: Trace) -> None:
    """Take a film through Upscale Film, in two segments, from the file to the saved file."""
    before = ("VSRLoadVideoRestorer", "VSRTemporalWindows", "VSRReferenceSet", "VSRSeededNoise", "VSRRestorerSampler")
    graph = _graph("Upscale-a-Film", VSRUpscaleFilm={"segment": 5, "context": 2})
    session.run(graph, trace, (*before, "VSRRefineSigmas"))


PATHS = {
    "template": template,
    "release": release,
    "reference": reference,
    "steady": steady,
    "film": film,
    "long film": long_film,
}


def trace_paths(names: list[str]) -> dict[str, dict]:
    """Trace paths by name, in one host over a temporary folder: name -> summary."""
    package = types.ModuleType("cascadevsr")  # `cascadevsr.runner...` without the pack's entry file
    package.__path__ = [str(ROOT)]
    sys.modules.setdefault("cascadevsr", package)
    import numpy as np
    from cascadevsr.media.writer import write_video
    from cascadevsr.runner import environment, host

    found = environment.host_inside() or host.find_host()
    if found is None:
        raise RuntimeError("the tracer needs a ComfyUI; got none. Run python3 run.py test once, or set COMFYUI_PATH.")
    with tempfile.TemporaryDirectory() as base:
        session, summaries = Session(found.path, Path(base)), {}
        clip = np.random.default_rng(0).integers(0, 256, (9, 24, 32, 3), dtype=np.uint8)
        write_video(session.base / "input" / "input.mp4", clip, 24)
        for name in names:
            trace = Trace()
            PATHS[name](session, trace)
            summaries[name] = trace.summary()
    return summaries


def main() -> None:
    """Print the traces of the paths named on the command line."""
    parser = argparse.ArgumentParser(description="Trace the own functions that a path runs through.")
    parser.add_argument("paths", nargs="*", help=f"{', '.join(PATHS)}; all by default")
    parser.add_argument("--json", metavar="FILE", help="write the summaries to a file instead of printing them")
    options = parser.parse_args()
    if unknown := set(options.paths) - set(PATHS):
        parser.error(f"paths must be among {', '.join(PATHS)}; got {', '.join(sorted(unknown))}")
    summaries = trace_paths(options.paths or list(PATHS))
    if options.json:
        Path(options.json).write_text(json.dumps(summaries), encoding="utf-8")
        return
    for name, summary in summaries.items():
        print(f"\n== {name}: {describe(summary)}")


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: nothing here is to be imported by a bare name
    main()
