"""What a running node shows: a bar, a line of text, the newest frame. Every sign of life is a place to interrupt.

The host's own ProgressBar keeps back what moves it by less than half a percent: of an hour's work that is 18 s
without a sign. So the bar is told here, ten times a second at most.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.utils
import folder_paths
import latent_preview
import torch
import torch.nn.functional as F

from ...media.pace import Pace, Speeds, countdown
from ...models.layout.pieces import Pieces
from ...models.layout.sizes import first_frame
from ...models.schedules import SAME
from . import services
from .keys import PART_KEY

_GRAIN = 100  # parts of a piece that the bar tells apart
_EVERY, _SAID, _LOOK = 0.1, 0.5, 0.5  # seconds between two moves of the bar, two lines, two pictures, at least
_STEP = 1000  # ticks of a step
# Change of a prediction by a reference, of its deviation, that counts as none. With the built-in model a sharp frame of
# the same clip changes 39 % and more, a frame of another, noise and grey 1 to 4.5 %.
_NOTHING = 0.05
_PAUSE = 0.2  # seconds between two ticks of layers, at least
_PATIENCE = 2.0  # seconds; quicker work needs no words


class Progress:
    """Shows `done` of `total`. `what`: the work, for the console; `count`: its units, for the line on the node."""

    def __init__(self, what: str = "", count: int = 0, unit: str = "frame"):
        self._hook, self._what = comfy.utils.PROGRESS_BAR_HOOK, what
        self.pace, self._before = Pace(count, unit=unit), 0.0
        self._moved = self._said = self._looked = float("-inf")
        self._last: tuple[float, float] = (0, 1)

    def __call__(self, done: float, total: float, frame: torch.Tensor | None = None, certain: bool = True) -> None:
        """Show how far the work is, with the newest frame (1, 3, H, W) in 0..1; `certain`: so that time can be told."""
        services.check_cancelled()
        now, share = time.monotonic(), min(1.0, done / max(1, total))
        self._last = done, max(1, total)
        picture = None
        if frame is not None and now - self._looked >= _LOOK and self._hook is not None:
            self._looked, picture = now, preview(frame)
        if self._hook is not None and (picture or share >= 1 or now - self._moved >= _EVERY):
            self._moved = now
            self._hook(*self._last, picture)
        seconds = self.pace.seconds
        if not self.pace.total or seconds < _PATIENCE or getattr(self._hook, "speaks", False):
            return
        if share >= 1:
            self._end(seconds)
        elif now - self._said >= _SAID:
            self._said = now
            show_text(running_node(), self._line(share, certain))

    def anew(self) -> None:
        """Count the units from here on: what came before was other work."""
        done, total = self._last
        self.pace, self._before = Pace(self.pace.total, unit=self.pace.unit), done / total

    def _line(self, share: float, certain: bool) -> str:
        return self.pace.line(self.pace.total * (share - self._before) / (1 - self._before), certain)

    def beat(self) -> None:
        """Show that the work goes on where nobody knows how far it is."""
        Progress.__call__(self, *self._last, certain=False)

    def over(self, parts: Iterable) -> Iterator:
        """Pass parts on, with a beat for each."""
        for part in parts:
            self.beat()
            yield part

    def _end(self, seconds: float) -> None:
        text = f"{self.pace.total:,} {self.pace.unit}s in {countdown(seconds)}"
        if self.pace.unit == "frame":
            text += f", {self.pace.total / seconds:.2g} fps"
        show_text(running_node(), text)
        if self._what:
            logging.getLogger(__name__).info("%s: %s", self._what, text)
        self.pace = Pace(0)  # said once


@contextlib.contextmanager
def watched_layers(
    network: torch.nn.Module,
    what: str = "",
    frames: int = 0,
    each: Sequence[torch.nn.Module] = (),
    part: torch.nn.Module | None = None,
    rounds: int = 1,
) -> Iterator[PieceProgress]:
    """Let every layer of a network tick on the running node; yields the progress of whole pieces.

    Inside a piece the bar follows the layers that have run, of those that the piece before took. In the first piece it
    follows the modules `each`, which are called once a frame, whether or not they use their layers; without such, the
    layers of `part` of the network, which runs `rounds` times, and no time is told.
    """
    progress = PieceProgress(what, frames)
    leaves = [module for module in network.modules() if not any(module.children())]
    used = _layers(part or network)
    state = {"calls": 0, "usual": 0, "each": 0, "seen": time.monotonic()}

    def finished(done: int) -> None:
        if done:
            state["usual"] = max(state["usual"], state["calls"])
        state.update(calls=0, each=0)

    def tick(module: torch.nn.Module, *_) -> None:
        state["calls"] += _layers(module)
        if time.monotonic() - state["seen"] < _PAUSE:
            return
        state["seen"] = time.monotonic()
        if state["usual"]:
            share = state["calls"] / state["usual"]
        elif each:
            share = state["each"] / (len(each) * max(1, frames) * progress.portion)
        else:
            share = state["calls"] / (used * max(1, rounds))
        progress.inside(min(1.0, share), certain=bool(state["usual"] or each))

    def counted(module: torch.nn.Module, *_) -> None:
        state["each"] += 1
        tick(module)

    progress.finished = finished
    hooks = [module.register_forward_hook(tick) for module in leaves]
    hooks += [module.register_forward_hook(counted) for module in each]
    try:
        yield progress
    finally:
        for hook in hooks:
            hook.remove()


def _layers(network: torch.nn.Module) -> int:
    """Count the layers of a network; a layer is one."""
    return sum(not any(module.children()) for module in network.modules())


class PieceProgress(Progress):
    """The progress of work in pieces, each of which says how far it is."""

    def __init__(self, what: str, frames: int):
        super().__init__(what, frames)
        self._lengths: list[int] = []  # of all pieces: the last one may be a fraction of the others
        self._done, self._pieces, self.finished = 0, 1, lambda done: None

    def follow(self, pieces: Pieces) -> None:
        """Let the bar go by the lengths of the pieces to come."""
        self._lengths = [span.window.length for span in pieces.spans for _ in pieces.tiles]

    @property
    def portion(self) -> float:
        """Give the share of the whole work that the piece now made is."""
        return self._before_piece(self._done + 1) - self._before_piece(self._done)

    def __call__(self, done: float, total: float, frame: torch.Tensor | None = None, certain: bool = True) -> None:
        self._pieces, self._done = max(1, total), done
        self.finished(done)
        whole = _GRAIN * self._pieces
        super().__call__(self._before_piece(done) * whole, whole, frame, certain)

    def _before_piece(self, number: int) -> float:
        if len(self._lengths) != self._pieces:
            return number / self._pieces
        return sum(self._lengths[:number]) / sum(self._lengths)

    def shows(self, output: torch.Tensor, pieces: Pieces, time: int) -> Callable[[int, int], None]:
        """Give the progress of `decode_pieces`, which shows the newest frame of `output` (t, H, W, 3) that is ready."""
        starts = [first_frame(span.kept.start, time) for span in pieces.spans[1:]]
        ready = [*starts, len(output)]  # frames that no span after it touches

        def show(done: int, total: int) -> None:
            span, rest = divmod(done, len(pieces.tiles))
            newest = None if rest or not span else output[min(ready[span - 1], len(output)) - 1]
            self(done, total, None if newest is None else newest.movedim(-1, 0)[None])

        return show

    def inside(self, share: float, certain: bool) -> None:
        """Show the share of the piece that is done."""
        whole = _GRAIN * self._pieces
        place = (self._before_piece(self._done) + share * self.portion) * whole
        last = self._last[0] if self._last[1] == whole else 0
        super().__call__(max(last, int(place)), whole, certain=certain or self._done > 0)


def pass_name(patcher: Any, cells: int) -> str:
    """Name a pass of a model for `speeds`: attention makes large ones dearer, so they go by powers of two."""
    return f"{where()}: a pass of 2^{round(math.log2(max(1, cells)))} cells, {type(patcher.model).__name__}"


class SamplingProgress:
    """Turn the network's block ticks into progress of the whole run; it never runs backwards."""

    def __init__(self, steps: int):
        self._steps, self._last = steps, -1
        self._work: Counter[int] = Counter()  # calls of the network by the cells that went through it
        self._began: float | None = None
        self.partial = False  # calls leave work out: what they take says nothing of whole ones
        self.changes: list[float] | None = None  # by each reference, of the deviation of the prediction

    def count(self, x: torch.Tensor, references: Sequence[torch.Tensor]) -> None:
        """Note that a batch goes through the network, beside references."""
        if self._began is None:  # weights are loaded before
            self._began, self._show = time.monotonic(), Progress("Sampling", self._steps, "step")
        self._work[sum(part[0, 0].numel() for part in (x, *references))] += len(x)

    def tell_references(self) -> None:
        """Say which references were used, and which changed nothing."""
        if not self.changes:
            return
        numbered = list(enumerate(self.changes, 1))
        unused = [str(number) for number, change in numbered if change < _NOTHING]
        text = "changed by " + ", ".join(f"reference {number}: {change:.1%}" for number, change in numbered)
        if unused:
            which = f"reference {unused[0]} changes" if len(unused) == 1 else f"references {', '.join(unused)} change"
            what = "it shows" if len(unused) == 1 else "they show"
            text = f"{which} next to nothing: {what} something else, or too little of the clip ({text})"
        logging.getLogger(__name__).log(logging.WARNING if unused else logging.INFO, "Sampling: %s", text)
        show_text(running_node(), text)

    def end(self, patcher: Any) -> None:
        """Tell of references; remember what a pass cost: of passes of different sizes the largest stands for all."""
        self.tell_references()
        if self._began is not None and not self.partial:
            most = max(self._work)
            passes = sum(count * cells / most for cells, count in self._work.items())
            speeds().learn(pass_name(patcher, most), time.monotonic() - self._began, passes * most)

    def blocks(self, options: Mapping) -> Callable[[int, int], None]:
        """Give the `progress(done, total)` callback of one network call."""
        grid, now = options.get("sample_sigmas"), options.get("sigmas")
        step = 0 if grid is None or now is None else int((grid > float(now.flatten()[0]) * SAME).sum())
        start, length = options.get(PART_KEY, (0.0, 1.0))

        def tick(done: int, total: int) -> None:
            value = int(_STEP * (min(step, self._steps - 1) + start + length * done / total))
            self._last = max(self._last, value)
            self._show(self._last, _STEP * self._steps)

        return tick


def preview(frame: torch.Tensor) -> tuple:
    """Make of a frame (1, 3, H, W) in 0..1 what the host's progress bar shows on the running node, as samplers do."""
    most = latent_preview.MAX_PREVIEW_RESOLUTION
    scale = min(1.0, most / max(frame.shape[-2:]))
    small = F.interpolate(
        frame.float().clamp(0, 1), [max(1, round(side * scale)) for side in frame.shape[-2:]], mode="area"
    )
    return "JPEG", latent_preview.preview_to_image(small[0].movedim(0, -1), do_scale=False), most


def show_text(node: str | None, text: str) -> None:
    """Write a line on a running node, in editors that show such lines."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)  # there is none where no editor listens
    instance = getattr(server, "instance", None)
    if node is not None and hasattr(instance, "send_progress_text"):
        instance.send_progress_text(text, node)


def running_node() -> str | None:
    """Ask the host which node is running."""
    utils: Any = sys.modules.get("comfy_execution.utils")
    context = utils.get_executing_context() if hasattr(utils, "get_executing_context") else None
    return context and context.node_id


def speeds() -> Speeds:
    """Give what earlier runs have measured, kept in the host's user folder."""
    return Speeds(Path(folder_paths.get_user_directory()) / "cascade-vsr-speeds.json")


def where() -> str:
    """Name the device for `speeds`."""
    device = services.main_device()
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{management.get_torch_device_name(device)}{threads}"
