"""A training loop for any network: warm-up and cosine, average, mixed precision, exact resume, a log.

Two callables define what is trained. `draw(number)` returns the batch of a step and depends on that number alone (see
:func:`.curriculum.rng_at`); `loss(module, batch)` returns a scalar, or a scalar and a dict of figures for the log. So
the same seed and data give the same losses, and a killed run that is started again continues with the same numbers.

A step, in order:

1. set the learning rate: a linear warm-up, then a cosine;
2. for each of `parts` batches, numbers step * parts and on: draw it, compute the loss under autocast, add its gradient;
3. clip the norm of the gradient, update the weights, update their exponential moving average;
4. write a line of the log; every `save_every` steps a checkpoint, every `curve_every` steps a picture of the losses.

A run's folder holds `state.pt` (the last checkpoint, replaced atomically), `log.jsonl` (a line a step) and `loss.png`.
Of the module its trained parameters and its buffers are saved: a frozen base stays in its own file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from ..models.pixels.chart import draw_curves

log = logging.getLogger(__name__)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
STATE, LOG, CURVE = "state.pt", "log.jsonl", "loss.png"


@dataclass(frozen=True)
class LoopSettings:
    """What a run does; a checkpoint of other settings, intervals aside, is refused."""

    steps: int
    rate: float = 1e-4
    warmup: int = 100
    last_share: float = 0.02  # of the rate, at the end of the cosine
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    largest_gradient: float = 1.0  # norm; 0 clips nothing
    average: float = 0.998  # decay of the average of the weights
    precision: str = "fp32"
    parts: int = 1  # batches whose gradients a step adds up
    seed: int = 1
    save_every: int = 500
    curve_every: int = 500

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"Training: precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}. Use bf16 on a "
                "GPU that has it, fp32 on a CPU."
            )
        if self.steps < 1 or self.save_every < 1:
            raise ValueError(f"Training: needs at least one step; got {self.steps}. Ask for more.")


def rate_share(step: int, settings: LoopSettings) -> float:
    """Give the share of the learning rate: a linear warm-up, then a cosine down to `last_share`."""
    rise = min(1.0, (step + 1) / max(1, settings.warmup))
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / settings.steps)))
    return rise * (settings.last_share + (1 - settings.last_share) * fall)


def checkpoint_blocks(blocks: Iterable[torch.nn.Module]) -> None:
    """Let blocks compute their activations again in the backward pass instead of keeping them."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def trained_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Give what a module trains, and its buffers, by name; views of the module's own tensors."""
    frozen = {name for name, value in module.named_parameters() if not value.requires_grad}
    return {name: value.detach() for name, value in module.state_dict().items() if name not in frozen}


class Average:
    """Exponential moving average of what a module trains, by torch's AveragedModel.

    The decay after n updates is the lesser of `decay` and n / (9 + n), so that the average follows closely at first.
    Only trained parameters are copied: a module may carry a frozen base of many billions of weights.
    """

    def __init__(self, module: torch.nn.Module, decay: float):
        self.trained = torch.nn.ParameterList(p for p in module.parameters() if p.requires_grad)

        def blend(average: torch.Tensor, new: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
            return torch.lerp(average, new, 1 - min(decay, int(count) / (9 + int(count))))

        self.model = AveragedModel(self.trained, avg_fn=blend)
        self.model.n_averaged += 1  # the initial weights count: the first update blends, too

    def update(self) -> None:
        """Include the weights after a step."""
        self.model.update_parameters(self.trained)

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the module's trained parameters by their average."""
        for parameter, average in zip(self.trained, self.model.module, strict=True):
            parameter.copy_(average)

    @contextlib.contextmanager
    def applied(self, module: torch.nn.Module):
        """Put the average into the module for a while; afterwards its parameters and buffers are as before."""
        own = {name: value.clone() for name, value in trained_state(module).items()}
        self.apply()
        try:
            yield module
        finally:
            module.load_state_dict(own, strict=False)


class Loop:
    """Trains `module` in `folder`; `run()` starts or goes on, whichever the folder says."""

    def __init__(
        self,
        module: torch.nn.Module,
        draw: Callable[[int], object],
        loss: Callable[[torch.nn.Module, object], torch.Tensor | tuple[torch.Tensor, dict[str, float]]],
        folder: Path,
        settings: LoopSettings,
        parameters: Iterable[torch.nn.Parameter] | None = None,
        optimiser: Callable[[list[torch.nn.Parameter], float], torch.optim.Optimizer] | None = None,
    ):
        """Prepare a run; `optimiser(parameters, rate)` makes another one than AdamW."""
        seed_everything(settings.seed)
        self.module, self.draw, self.loss = module, draw, loss
        self.folder, self.settings, self.step = Path(folder), settings, 0
        self.parameters = [p for p in (parameters or module.parameters()) if p.requires_grad]
        if not self.parameters:
            raise ValueError("Training: the module must have something to train; got none. Unfreeze a part.")
        self.device = self.parameters[0].device
        self.optimiser = (optimiser or self._adamw)(self.parameters, settings.rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.average = Average(module, settings.average)

    def _adamw(self, parameters: list[torch.nn.Parameter], rate: float) -> torch.optim.Optimizer:
        settings = self.settings
        return torch.optim.AdamW(parameters, rate, settings.betas, weight_decay=settings.weight_decay)

    def run(self, until: int | None = None) -> list[float]:
        """Train to the end, or to step `until`; give the losses of the steps of this call."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.step == 0 and (self.folder / STATE).exists():
            self._load()
        end = self.settings.steps if until is None else min(until, self.settings.steps)
        losses, saved = [], self.step
        _cut_log(self.folder / LOG, self.step)
        with (self.folder / LOG).open("a", encoding="utf-8") as lines:
            while self.step < end:
                facts = self._one_step()
                losses.append(facts["loss"])
                lines.write(json.dumps(facts) + "\n")
                lines.flush()
                if self.step % self.settings.save_every == 0:
                    self._save()
                    saved = self.step
                if self.step % self.settings.curve_every == 0:
                    self.draw_curve()
        if saved != self.step:
            self._save()
        if losses:
            self.draw_curve()
        return losses

    def _one_step(self) -> dict:
        started, settings = time.monotonic(), self.settings
        rate = settings.rate * rate_share(self.step, settings)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.module.train()
        self.optimiser.zero_grad(set_to_none=True)
        value, figures = 0.0, {}
        for part in range(settings.parts):
            share, figures = self._backward(self.step * settings.parts + part)
            value += share
        self.scaler.unscale_(self.optimiser)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, settings.largest_gradient or float("inf")))
        self.scaler.step(self.optimiser)  # left out by itself where fp16 gradients are not finite
        self.scaler.update()
        self.average.update()
        self.step += 1
        seconds = round(time.monotonic() - started, 4)
        figures = {name: float(figure) for name, figure in figures.items()}
        return {"step": self.step, "loss": value, "rate": rate, "gradient": norm, "seconds": seconds, **figures}

    def _backward(self, number: int) -> tuple[float, dict]:
        """Add the gradient of one batch; give its share of the step's loss, and its figures."""
        batch = self.draw(number)
        with self._autocast():
            answer = self.loss(self.module, batch)
        loss, figures = answer if isinstance(answer, tuple) else (answer, {})
        loss = loss / self.settings.parts
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"Training: the loss must stay finite; got {value} at step {self.step}. Lower the rate, or use "
                "precision bf16 or fp32; the run goes on from its last checkpoint."
            )
        self.scaler.scale(loss).backward()
        return value, figures

    def _autocast(self):
        dtype = PRECISIONS[self.settings.precision]
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype)

    def draw_curve(self) -> None:
        """Draw the loss of every step so far, and its average over 50."""
        points = [(line["step"], line["loss"]) for line in read_log(self.folder / LOG)]
        series = {"loss": points, "average of 50": smooth(points, 50)}
        picture = draw_curves(series, f"{self.folder.name}: loss to step {self.step}", label="step")
        partial_file = self.folder / f".{CURVE}.part"
        picture.save(partial_file, "PNG", optimize=True)
        os.replace(partial_file, self.folder / CURVE)

    def _save(self) -> None:
        state = {
            "settings": json.dumps(_fixed(self.settings)),
            "module": trained_state(self.module),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.model.state_dict(),
            "step": self.step,
            "random": random_state(),
        }
        partial_file = self.folder / f".{STATE}.{os.getpid()}.part"
        try:
            with partial_file.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial_file, self.folder / STATE)
        finally:
            partial_file.unlink(missing_ok=True)

    def _load(self) -> None:
        state = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        before, now = json.loads(state["settings"]), json.loads(json.dumps(_fixed(self.settings)))
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            raise ValueError(
                f"Training: a run goes on with the settings it began with; got other {', '.join(changed)} than in "
                f"{self.folder / STATE}. Use the old settings, or another folder."
            )
        if "n_averaged" not in state["average"]:
            raise ValueError(
                f"Training: the checkpoint must be of this version; got one of 0.1.0 in {self.folder / STATE}. Use "
                "another folder, and start from its weights."
            )
        self.module.load_state_dict(state["module"], strict=False)
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.average.model.load_state_dict(state["average"])
        self.step = state["step"]
        restore_random(state["random"])
        log.info("resumed at step %d", self.step)


def _fixed(settings: LoopSettings) -> dict:
    """Give the settings that a run must not change."""
    free = ("save_every", "curve_every")
    return {name: value for name, value in asdict(settings).items() if name not in free}


def smooth(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Average each value with up to `window` - 1 before it."""
    out, total = [], 0.0
    for index, (x, y) in enumerate(points):
        total += y - (points[index - window][1] if index >= window else 0.0)
        out.append((x, total / min(index + 1, window)))
    return out


def read_log(path: Path) -> list[dict]:
    """Read a log's lines; one that a kill cut short ends it."""
    facts = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                facts.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return facts


def _cut_log(path: Path, step: int) -> None:
    """Drop lines of steps that came after the checkpoint: they are done again."""
    kept = [line for line in read_log(path) if line["step"] <= step]
    partial_file = path.with_name(f".{path.name}.part")
    partial_file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(partial_file, path)


# Random states: of PyTorch on every device, numpy and Python, as tensors and text, so that weights_only reads them


def seed_everything(seed: int) -> None:
    """Seed PyTorch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_state() -> dict:
    """Give the state of every global generator."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": json.dumps([name, keys.tolist(), position, has_gauss, gauss]),
        "python": json.dumps(random.getstate()),
    }


def restore_random(state: dict) -> None:
    """Put the global generators back; GPUs that are no longer there are left out."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = json.loads(state["numpy"])
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = json.loads(state["python"])
    random.setstate((version, tuple(internal), gauss))
