"""`run.py bench overhead`: what a run costs beside its networks, ms a frame of 1280x720 by stage, motion apart.

1. Load tiny weights of either published system in this process, and let its networks answer at once with tensors of
   the full size.
2. Send a clip of noise through the nodes of the template, at the published number of steps and cut as for a card of
   80 GB, and take the processor time of every stage.
3. All stages but sampling have a device that computes nothing (PyTorch's "meta") in place of a GPU: what is left is
   what stays on the CPU, namely calls, what crosses between the two, and what is not sent to a device. Shapes on that
   device are worked out in Python, up to a millisecond a call: a call counts as CALL instead, that of a GPU's kernel.
4. Sampling needs values, so it runs on the CPU, and again on a few cells of the same number of frames: that leaves
   planning, bookkeeping and calls. The rest is arithmetic on latents, which goes to a GPU with the network.

Other threads are left out: what runs beside the network delays nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..runner.host import Host
from ..runner.pack import load
from . import restorers
from .apart import load_host, run_apart

FRAMES, ROWS, COLUMNS, SCALE = 33, 720, 1280, 4
BAR = 20.0  # ms a frame of what stays on the CPU
CALL = 0.01  # ms that starting a kernel of a GPU is taken to cost: assumed, none was at hand to measure it
_CELLS = 4  # of a side of the latent that is sampled for its calls alone
_PAIRS = 2  # of frames whose motion is estimated, on the CPU
_ROUNDS = 3
_CARD = 80 * 2**30  # bytes that are free


def overhead(options: argparse.Namespace, host: Host) -> dict:
    """What a run of the published systems costs beside their networks: ms a frame of 1280x720 by stage (minutes)."""
    job = {"host": str(host.path), "frames": options.frames or FRAMES}
    return run_apart("overhead", job)


def measured(job: dict) -> dict:
    """Give the figures of a job."""
    custom = load_host(job["host"])
    load("nodes.host.services").free_bytes = lambda device: _CARD
    torch.set_num_threads(1)
    frames, result = job["frames"], {"size": f"{COLUMNS}x{ROWS}", "frames": job["frames"], "bar_ms_a_frame": BAR}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for key, run in (("upscale_a_video", _upscale_a_video), ("mgld_vsr", _mgld_vsr)):
            rounds = [run(custom, Path(folder) / key, frames) for _ in range(_ROUNDS)]
            result[key] = {name: round(median(each[name] for each in rounds), 2) for name in rounds[0]}
            print(f"  {key}: {json.dumps(result[key])}", file=sys.stderr, flush=True)
    return result


class _NoDevice(TorchDispatchMode):
    """Lets values of the device that computes nothing be asked for: zeros, in memory that is written.

    `calls` counts those of the device, which took `spent` seconds to work out shapes.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.spent = 0, 0.0

    def __torch_dispatch__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Answer what leads from the device to the CPU, and call the rest."""
        began = time.thread_time()
        result = self._answer(function, args, kwargs or {})
        if isinstance(result, torch.Tensor) and result.is_meta:
            self.calls += 1
            self.spent += time.thread_time() - began
        return result

    def _answer(self, function: Callable, args: tuple, kwargs: dict) -> Any:
        aten = torch.ops.aten
        left = isinstance(args[0], torch.Tensor) and args[0].is_meta if args else False
        if function is aten._local_scalar_dense.default and left:
            return 0.0
        if function is aten._to_copy.default and left and torch.device(kwargs.get("device") or "meta").type == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype).add_(0)
        if function is aten.copy_.default and not left and args[1].is_meta:
            return args[0].fill_(0)
        return function(*args, **kwargs)


class _Stages:
    """The processor time of this thread, stage by stage."""

    def __init__(self, frames: int):
        self.frames, self.taken = frames, {}

    def run(self, name: str, work: Callable[[], Any], frames: int = 0) -> Any:
        """Do the work of one stage."""
        began = time.thread_time()
        result = work()
        self.taken[name] = 1000 * (time.thread_time() - began) / (frames or self.frames)
        return getattr(result, "args", result)

    def run_apart(self, name: str, vae: Any, work: Callable[[], Any]) -> Any:
        """Do the work of one stage with a device that computes nothing."""
        management, place = sys.modules["comfy.model_management"], torch.device("meta")
        kept = management.get_torch_device, management.free_memory, vae.device
        management.get_torch_device, management.free_memory, vae.device = lambda: place, lambda *_: [], place
        with _NoDevice():
            work()  # plans, and what is made once
        with _NoDevice() as device:
            result = self.run(name, work)
        self.taken[name] += (CALL * device.calls - 1000 * device.spent) / self.frames
        self.taken["device_calls"] = self.taken.get("device_calls", 0) + device.calls / self.frames
        management.get_torch_device, management.free_memory, vae.device = kept
        return result

    def timed(self, noise: Callable) -> Callable:
        """Let the drawing of noise be told from the stage it is a part of, and from what other threads draw."""

        def draw(*args, **kwargs):
            own = threading.current_thread() is threading.main_thread()
            began = time.thread_time()
            result = noise(*args, **kwargs)
            name = "noise" if own else "noise_beside"
            self.taken[name] = self.taken.get(name, 0.0) + 1000 * (time.thread_time() - began) / self.frames
            return result

        return draw

    def summary(self) -> dict[str, float]:
        """Give ms a frame of the stages, and their sum without motion, arithmetic on latents, and other threads."""
        taken = dict(self.taken)
        taken["latents"] = max(0.0, taken.pop("sample") - taken["calls"] - taken["noise"])
        apart = {name: taken.pop(name, 0.0) for name in ("motion", "latents", "noise_beside", "device_calls")}
        return {**taken, "sum": sum(taken.values()), **{f"apart_{name}": value for name, value in apart.items()}}


def _upscale_a_video(custom: Any, folder: Path, frames: int) -> dict[str, float]:
    """Send a clip through the nodes of Restore-with-Upscale-A-Video."""
    if not folder.exists():
        restorers.write_upscale_a_video(folder, False)
    model, vae = load("nodes.loaders").load_restorer(folder, "fp32")[:2]
    answers = _Answers()
    network = vae.first_stage_model
    network.decode = lambda z, *_: answers.give(z, 3, SCALE)
    texts = [[[torch.zeros(1, 77, 64), {}]] for _ in range(2)]
    motion = load("nodes.motion")

    def patched(model: Any, moved: Any) -> Any:
        steps = {"steps": "step list", "step_list": "24,26,28"}
        return motion.LatentPropagation.execute(model, moved, steps, "both", 0.5, "nearest", 0.001, 0.05).args[0]

    def guided(model: Any, positive: list, negative: list) -> Any:
        return custom.CFGGuider.execute(model, positive, negative, 6.0).args[0]

    return _through(custom, model, vae, answers, frames, "bilinear", 0.12, texts, patched, guided, "ddim", 30, None)


def _mgld_vsr(custom: Any, folder: Path, frames: int) -> dict[str, float]:
    """Send a clip through the nodes of Restore-with-MGLD-VSR."""
    if not folder.exists():
        restorers.write_mgld_vsr(folder, False)
    model, vae = load("nodes.loaders").load_restorer(folder, "fp32")[:2]
    answers = _Answers()
    first, sequence = vae.first_stage_model.first_stage, vae.first_stage_model.sequence
    first.encode = lambda clip: (answers.give(clip, 4, 1 / 8),) * 2
    sequence.features = lambda clip: []
    sequence.decode = lambda z, *_: answers.give(z, 3, 8)
    guide = load("nodes.motion_guidance").MotionGuidance

    def patched(model: Any, moved: Any) -> Any:
        return guide.execute(model, moved, 1.0, 0.0, 1.0, "both", "default").args[0]

    def guided(model: Any, positive: list, negative: list) -> Any:
        return custom.BasicGuider.execute(model, positive).args[0]

    texts = [None, None]
    return _through(custom, model, vae, answers, frames, "bicubic", 0.0, texts, patched, guided, "ddpm", 50, "adain")


class _Answers:
    """Networks that answer at once: a tensor for every size, made when it is asked for first."""

    def __init__(self):
        self._made: dict[tuple, torch.Tensor] = {}

    def give(self, like: torch.Tensor, channels: int, scale: float) -> torch.Tensor:
        """Answer to (b, c, t, h, w) with (b, channels, t, scale h, scale w)."""
        shape = (len(like), channels, like.shape[2], *(int(side * scale) for side in like.shape[-2:]))
        if (shape, like.device) not in self._made:
            made = torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 0.5
            self._made[shape, like.device] = made.to(like.device)
        return self._made[shape, like.device]

    def call(self, executor: Callable, x: torch.Tensor, *_, **__) -> torch.Tensor:
        """Answer in place of a network that samples."""
        return self.give(x, 4, 1)


def _through(
    custom: Any,
    model: Any,
    vae: Any,
    answers: _Answers,
    frames: int,
    kernel: str,
    level: float,
    texts: list,
    patched: Callable,
    guided: Callable,
    sampler: str,
    steps: int,
    colour: str | None,
) -> dict[str, float]:
    """Send a clip of noise through the nodes of a template."""
    from comfy.patcher_extension import WrappersMP

    nodes, tiling, sampling, motion = (load(f"nodes.{name}") for name in ("frames", "tiling", "sampling", "motion"))
    conditioning, flows = load("nodes.conditioning").VSRConditioning, load("models.motion.estimation")
    stages, draw = _Stages(frames), torch.Generator().manual_seed(0)
    low = torch.rand((frames, ROWS // SCALE, COLUMNS // SCALE, 3), generator=draw)
    flow = motion.LoadFlowModel.execute("built-in").args[0]
    few = low[: _PAIRS + 1]
    stages.run("motion", lambda: motion.EstimateMotion.execute(few, flow), _PAIRS)
    moved = torch.randn((2, frames - 1, 2, *low.shape[1:3]), generator=draw).half()
    moved = flows.Motion(*moved, (), frames, *low.shape[1:3])

    target = {"target": "scale", "scale": float(SCALE)}
    entered = stages.run_apart("cascade_input", vae, lambda: nodes.CascadeInput.execute(vae, target, kernel, low))
    latent, shown = entered[:2]
    given = stages.run("conditioning", lambda: conditioning.execute(latent, level, 0, *texts))
    model = tiling.SpatialTiles.execute(model, {"tiling": "auto"}).args[0]
    model = tiling.TemporalWindows.execute(model, {"windows": "auto"}).args[0]
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "answers", answers.call)
    sigmas = sampling.RefineSigmas.execute(model, 1.0, steps, 1.0).args[0]
    method, noise = sampling.RestorerSampler.execute(sampler).args[0], sampling.AddressedNoise(1)

    def sampled(model: Any, given: tuple) -> Any:
        guider = guided(model, given[0], given[1])
        return custom.SamplerCustomAdvanced.execute(noise, guider, method, sigmas, given[2])

    small = [_cut(each) for each in given[:2]], {**given[2], "samples": _corner(given[2]["samples"])}
    small[1].pop("vsr_size", None)
    near = flows.Motion(moved.forward, moved.backward, (), frames, *low.shape[1:3])
    sampled(model, (*small[0], small[1]))  # loads the weights
    stages.run("calls", lambda: sampled(patched(model, near), (*small[0], small[1])))
    drawing, sampling.noise_like = sampling.noise_like, stages.timed(sampling.noise_like)
    done = stages.run("sample", lambda: sampled(patched(model, moved), given))[0]
    sampling.noise_like = drawing
    clip = stages.run_apart("decode", vae, lambda: nodes.TemporalDecode.execute(done, vae, 1.0, 16, 0, shown))[0]
    if colour is not None:
        match = load("nodes.colour").ColourMatch
        stages.run_apart("colour_match", vae, lambda: match.execute(clip, shown, colour, 1.0))
    if tuple(clip.shape) != (frames, ROWS, COLUMNS, 3):
        raise ValueError(f"bench overhead: got frames of {tuple(clip.shape)}.")
    return stages.summary()


def _corner(samples: torch.Tensor) -> torch.Tensor:
    return samples[..., :_CELLS, :_CELLS].contiguous()


def _cut(conditioning: list) -> list:
    """Give a conditioning with the corner of its LR clip."""
    key = load("nodes.host.keys").LR_KEY
    return [[text, {**entries, key: _corner(entries[key])}] for text, entries in conditioning]
