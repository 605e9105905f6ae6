"""What a sampling run will ask for, in numbers: tokens, tiles, windows, passes and memory; and the same in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from .pieces import Tile
from .sizes import ClipSize
from .turns import turn_at

Grid = tuple[int, int, int]  # frames, rows, columns
GIB = 2**30
FRAME_BYTES = 12  # a pixel and frame: three float32 numbers
_WIDE = 1.5 * 1280 * 720  # px; a larger tile is wider than what most video models were trained on
_MANY = 0.25  # share of the tokens of a pass from which references are the dial to turn


def count_tokens(grid: Sequence[int], patch: Grid) -> int:
    """Count the tokens of a latent grid (T, h, w); sides that the patch does not divide are padded."""
    return math.prod(-(-side // part) for side, part in zip(grid, patch, strict=True))


@dataclass(frozen=True)
class Memory:
    """Hold bytes: what a run needs, and what is free."""

    weights: int  # of the network, all of it
    loaded: int  # share of them that lies on the device already
    one: int  # activations of one branch of the largest pass
    two: int  # activations of two branches at once
    free: int  # on the device
    free_ram: int
    shared: bool  # the device is the CPU: both are one


@dataclass(frozen=True)
class Work:
    """Hold calls of the network, of one branch for one tile and window, and operations of all of them."""

    calls: int
    flops: float


@dataclass(frozen=True)
class RunPlan:
    """Hold what a run consists of; `windows` are latent frames of each window, the frame in front of it included."""

    model: str
    size: ClipSize
    latent: tuple[int, ...]  # (b, c, T, h, w)
    space: int
    time: int
    patch: Grid
    references: tuple[Grid, ...]
    tiles: tuple[Tile, ...]
    windows: tuple[int, ...]
    window: int  # latent frames of a window without the one in front
    branches: tuple[int, ...]  # of every step
    memory: Memory
    turns: tuple[tuple[int, ...], ...] = ()  # latent frames of the windows of every turn, where they take turns
    deep_every: int = 1  # steps from which on the deep half of the network is computed again
    work: tuple[Work, Work] | None = None  # of the run, and of the same run with nothing left out

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        return count_tokens((1, *self.latent[3:]), (1, *self.patch[1:]))

    @property
    def clip_tokens(self) -> int:
        """Tokens of the whole clip."""
        return count_tokens(self.latent[2:], self.patch)

    @property
    def reference_tokens(self) -> int:
        """Tokens of all references, which every pass sees whole."""
        return sum(count_tokens(grid, self.patch) for grid in self.references)

    @property
    def pass_tokens(self) -> int:
        """Tokens of the clip in the largest pass."""
        tile = max(self.tiles, key=lambda each: each.height * each.width)
        return count_tokens((max(self.windows), tile.height, tile.width), self.patch)

    @property
    def pass_cells(self) -> int:
        """Latent cells that go through the network in the largest pass, with those of the references."""
        tile = max(tile.height * tile.width for tile in self.tiles)
        return max(self.windows) * tile + sum(math.prod(grid) for grid in self.references)

    @property
    def passes(self) -> int:
        """Times that one branch goes through the network for one tile and window, the clips of a batch together."""
        return len(self.tiles) * sum(count * len(self.windows_at(step)) for step, count in enumerate(self.branches))

    def windows_at(self, step: int) -> tuple[int, ...]:
        """Give the latent frames of the windows of a step."""
        if not self.turns:
            return self.windows
        return self.turns[turn_at(step, len(self.branches), self.deep_every) % len(self.turns)]

    def keeps_deep(self, step: int) -> bool:
        """Tell whether a step keeps the deep half of the network: that of other windows is none of its own."""
        alone = bool(self.turns) and step == len(self.branches) - 1
        return step % self.deep_every > 0 and not alone

    @property
    def frame_bytes(self) -> int:
        """Bytes of the resulting frames."""
        return FRAME_BYTES * self.size.frames * self.size.height * self.size.width * self.latent[0]

    def warnings(self) -> tuple[str, ...]:
        """Say what will not fit, and which dial helps."""
        found, memory = [], self.memory
        need = memory.one + max(0, memory.weights - memory.loaded)
        frames = self.frame_bytes
        if memory.one > memory.free or memory.shared and need > memory.free:
            found.append(f"a pass needs {_gib(need)}, {_gib(memory.free)} are free: {self._dials()}.")
        elif need > memory.free:
            found.append(
                "weights and a pass do not fit together: the host keeps a part of the weights in RAM, which is slower."
            )
        if frames + (need if memory.shared else 0) > memory.free_ram:
            found.append(
                f"the resulting frames need {_gib(frames)} of RAM, {_gib(memory.free_ram)} are free: split the clip, "
                "or choose a smaller size."
            )
        tile = max(self.tiles, key=lambda each: each.height * each.width)
        if tile.height * tile.width * self.space**2 > _WIDE:
            found.append(
                f"a pass sees {tile.width * self.space}x{tile.height * self.space} px at once, more than most video "
                "models were trained on: use Spatial Tiles, auto."
            )
        return tuple(found)

    def _dials(self) -> str:
        dials = ["smaller tiles in Spatial Tiles" if len(self.tiles) > 1 else "Spatial Tiles"]
        if len(self.windows) > 1:
            dials.append("a shorter window in Temporal Windows")
        elif self.latent[2] > 1:
            dials.append("Temporal Windows")
        if self.reference_tokens >= _MANY * (self.pass_tokens + self.reference_tokens):
            dials.append("a smaller long_edge in Reference Set")
        return f"use {', or '.join(dials)}"

    def text(self, time: str = "") -> str:
        """Write the plan for people, one fact a line; `time`: how long it will take."""
        memory, frames = self.memory, self.size.frames
        rows = [
            ("clip", f"{self.model}: {frames} frames of {self.size.width}x{self.size.height}"),
            ("latent", f"{_times(self.latent[1:])}, patch {'x'.join(map(str, self.patch))}"),
            ("tokens", f"{self.frame_tokens:,} a latent frame, {self.clip_tokens:,} the clip"),
            ("references", f"{self.reference_tokens:,} tokens in {len(self.references)}, seen whole by every pass"),
            ("tiles", self._tile_words()),
            ("windows", self._window_words()),
            ("a pass", f"{self.pass_tokens:,} + {self.reference_tokens:,} tokens at most"),
            ("steps", f"{len(self.branches)}, with {self._branch_words()} = {sum(self.branches):,} predictions"),
            ("passes", self._pass_words()),
            ("memory", f"weights {_gib(memory.weights)}, a pass {_gib(memory.one)}, two at once {_gib(memory.two)}"),
            ("", f"resulting frames {_gib(self.frame_bytes)} of RAM, the latent {_gib(self._latent_bytes)} a copy"),
            (
                "free",
                f"{_gib(memory.free_ram)} of RAM"
                if memory.shared
                else f"{_gib(memory.free)} on the device, {_gib(memory.free_ram)} of RAM",
            ),
        ]
        if time:
            rows.append(("time", time))
        if self.work is not None:
            rows[9:9] = [("work", self._work_words())]
        if not self.references:
            rows = [row for row in rows if row[0] != "references"]
        rows += [("warning", warning) for warning in self.warnings()] or [("fits", "nothing stands in the way")]
        return "\n".join(f"{name:<11}{words}" for name, words in rows)

    @property
    def _latent_bytes(self) -> int:
        return 4 * math.prod(self.latent)

    def _tile_words(self) -> str:
        if len(self.tiles) == 1:
            return "1, whole frames"
        columns, rows = (len({getattr(tile, side) for tile in self.tiles}) for side in ("left", "top"))
        first = self.tiles[0]
        return f"{len(self.tiles)} ({columns} x {rows}) of {first.width * self.space}x{first.height * self.space} px"

    def _window_words(self) -> str:
        if len(self.windows) == 1:
            return "1, the whole clip"
        if self.turns:
            counts = " and ".join(str(len(turn)) for turn in self.turns)
            return f"{counts} in turns, of {max(map(max, self.turns))} latent frames at most, sharing none"
        ahead = ", later ones with one more in front" if max(self.windows) > self.window else ""
        return f"{len(self.windows)} of {self.window} latent frames ({1 + self.time * (self.window - 1)} frames){ahead}"

    def _pass_words(self) -> str:
        if self.turns:
            return f"{self.passes:,} in all"
        return f"{sum(self.branches):,} x {len(self.tiles)} x {len(self.windows)} = {self.passes:,}"

    def _work_words(self) -> str:
        now, whole = self.work
        words = f"{now.calls:,} passes, {_tera(now.flops)}, {_tera(now.flops / self.size.frames)} a frame"
        if now == whole:
            return words
        return f"{words}; with nothing left out {whole.calls:,}, {_tera(whole.flops)} ({now.flops / whole.flops:.0%})"

    def _branch_words(self) -> str:
        runs = [(count, len(list(steps))) for count, steps in groupby(self.branches)]
        return ", then ".join(f"{count} branch{'es' * (count > 1)} in {steps}" for count, steps in runs)


def _times(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:,.1f} TFLOP" if flops >= 1e11 else f"{flops / 1e9:,.1f} GFLOP"
