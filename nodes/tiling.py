"""Spatial Tiles and Temporal Windows: large frames and long clips in parts, for any native video MODEL.

Both fuse predictions of the clean latent at every step. In order, at every step of a run:

1. The host's context handler, ours (`WindowHandler`), cuts the clip into windows of latent frames.
2. For each window the wrapper `_tiled_batch` cuts the latent and all conditions on its grid into tiles of cells.
3. The network predicts tile by tile; tiles are fused to windows and windows to the clip, by weights that sum to one.

A tile or window that covers everything is the plain call, bit for bit. References are seen whole by every part.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.context_windows as context_windows
import comfy.model_management as management
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..models.layout.pieces import Tile, TileFuser, Window, plan_tiles, plan_weights, plan_windows
from ..models.layout.sizes import latent_frames
from ..models.layout.turns import alternating_windows
from .host import services
from .host.caches import as_piece
from .host.cropping import crop_conds
from .host.keys import DEFAULT, PRESET_KEY, PUBLISHED, REFERENCE_CONDS, REFERENCES_KEY, SAVING_KEY, TILES_KEY
from .host.model import part_of_step, reference_cells, system_of
from .systems.base import Published, TileSizes, WindowSize

_TILES, _WINDOWS = "Spatial Tiles", "Temporal Windows"
_JOINTS = "shared frames", "alternating"
_HEADROOM = 1.3  # what is estimated times this must be free
_AT_ONCE = 4  # tiles predicted together on a GPU, where they fit


class SpatialTiles(io.ComfyNode):
    """Samples large frames tile by tile."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        option, px = io.DynamicCombo.Option, {"step": 8, "max": 16384}
        manual = [
            io.Int.Input("tile_width", default=960, min=64, tooltip="Width of a tile in output px.", **px),
            io.Int.Input("tile_height", default=544, min=64, tooltip="Height of a tile in output px.", **px),
            io.Int.Input("overlap", default=96, min=0, max=4096, step=8, tooltip="Output px that tiles share."),
        ]
        return io.Schema(
            node_id="VSRSpatialTiles",
            display_name=_TILES,
            category=services.CATEGORY,
            description="Samples a large frame tile by tile and fuses the predictions smoothly at every step, so that "
            "4K fits into memory. A tile as large as the frame changes nothing. Every tile sees all references whole.",
            search_aliases=["tiled diffusion", "tiling", "tile", "4k", "multidiffusion", "vram", "cascade vsr"],
            inputs=[
                io.Model.Input("model", tooltip="The video model to sample in tiles."),
                io.DynamicCombo.Input(
                    "tiling",
                    options=[option("auto", []), option("manual", manual), option("off", [])],
                    tooltip=(
                        "auto: tiles of the size at which the model works best, smaller if "
                        "memory is short; manual: the sizes below; off: whole frames."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, sampled in tiles.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, tiling: dict):
        """Clone the model and wrap its prediction."""
        patched, kind = model.clone(), tiling["tiling"]
        services.check_choice(_TILES, "tiling", kind, ("auto", "manual", "off"))
        if kind == "off":
            return io.NodeOutput(patched)
        space = services.video_format(_TILES, model).spacial_downscale_ratio
        system = system_of(model)
        published = _published(model)
        size, sizes = published.tile, system.tiles if system else TileSizes()
        if kind == "manual":
            names = ("tile_height", "tile_width", "overlap")
            size = tuple(max(1, round(tiling[name] / space)) for name in names)
            with services.titled(_TILES):
                plan_tiles(2 * size[0], 2 * size[1], *size)  # refuses an overlap that does not fit, before the run
        for place, wrapper in (
            (WrappersMP.PREPARE_SAMPLING, _TilePreparation(size, sizes, space, published.tiles)),
            (WrappersMP.CALC_COND_BATCH, _tiled_batch),
        ):
            patched.remove_wrappers_with_key(place, TILES_KEY)  # a second Spatial Tiles replaces the first
            patched.add_wrapper_with_key(place, TILES_KEY, wrapper)
        return io.NodeOutput(patched)


class TemporalWindows(io.ComfyNode):
    """Samples long clips window by window."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        option, frames, size = io.DynamicCombo.Option, {"max": 4096}, WindowSize()
        manual = [
            io.Int.Input("window", default=size.length, min=1, tooltip="Output frames of a window.", **frames),
            io.Int.Input("overlap", default=size.overlap, min=0, tooltip="Output frames windows share.", **frames),
        ]
        return io.Schema(
            node_id="VSRTemporalWindows",
            display_name=_WINDOWS,
            category=services.CATEGORY,
            description="Samples a long clip window by window and fuses the predictions at every step, so memory does "
            "not grow with its length. A window as long as the clip changes nothing.",
            search_aliases=["context windows", "long video", "sliding window", "temporal tiling", "cascade vsr"],
            inputs=[
                io.Model.Input("model", tooltip="The video model to sample in windows."),
                io.DynamicCombo.Input(
                    "windows",
                    options=[option("auto", []), option("manual", manual), option("off", [])],
                    tooltip=(
                        "auto: the length that the model was trained with, otherwise 33 frames with an overlap of 8; "
                        "manual: the lengths below; off: the whole clip at once."
                    ),
                ),
                io.Combo.Input(
                    "joints",
                    options=list(_JOINTS),
                    default=_JOINTS[0],
                    optional=True,
                    advanced=True,
                    tooltip="shared frames: windows overlap and fade into each other, as trained; alternating: windows "
                    "share no frame and lie half a window further at every other step, which takes a fifth to a third "
                    "less time, for runs of many steps.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, sampled in windows.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, windows: dict, joints: str = _JOINTS[0]):
        """Clone the model and set the host's context handler."""
        patched, kind = model.clone(), windows["windows"]
        services.check_choice(_WINDOWS, "windows", kind, ("auto", "manual", "off"))
        services.check_choice(_WINDOWS, "joints", joints, _JOINTS)
        if kind == "off":
            return io.NodeOutput(patched)
        alternate = joints != _JOINTS[0]
        if alternate:
            services.refuse_published(_WINDOWS, model, "joints alternating")
        services.video_format(_WINDOWS, model)
        time, plan = services.frames_a_latent(model), None
        system = system_of(model)
        size = system.windows if system else WindowSize()
        if kind == "manual":
            size = WindowSize(windows["window"], windows["overlap"])
        else:
            plan = _published(model).windows
        length, shared = latent_frames(size.length, time), math.ceil(size.overlap / time)
        with services.titled(_WINDOWS):
            plan_windows(2 * length, length, shared)  # refuses an overlap that does not fit, before the run
        patched.model_options["context_handler"] = WindowHandler(length, shared, time > 1, plan, alternate)
        context_windows.create_prepare_sampling_wrapper(patched)
        return io.NodeOutput(patched)


def _published(model: Any) -> Published:
    """Give the published plans of a MODEL that was loaded to repeat them; else none."""
    system = system_of(model)
    repeats = system is not None and model.model_options.get(PRESET_KEY, DEFAULT) == PUBLISHED
    return system.published if repeats else Published()


# Spatial tiles


@dataclass
class TileChoice:
    """Hold the tile of one run, in latent cells; where it does not fit into memory, it is halved once."""

    height: int
    width: int
    overlap: int
    published: Callable | None = None  # gives (tiles, weights) where the published ones are wanted
    at_once: int = _AT_ONCE
    halved: bool = False

    def plan(self, shape: torch.Size) -> tuple[tuple[Tile, ...], tuple[torch.Tensor, ...] | None]:
        """Plan the tiles of a latent, and their weights where not the smooth ones."""
        rows, columns = min(self.height, shape[-2]), min(self.width, shape[-1])
        if self.published is not None and (rows, columns) != tuple(shape[-2:]):
            return self.published(*shape[-2:], self.height, self.width, self.overlap)
        return plan_tiles(*shape[-2:], self.height, self.width, self.overlap), None

    def halve(self, shape: torch.Size) -> None:
        """Take half the sides, from no more than the latent's, and keep the overlap as far as it fits."""
        self.height = max(1, -(-min(self.height, shape[-2]) // 2))
        self.width = max(1, -(-min(self.width, shape[-1]) // 2))
        self.overlap = min(self.overlap, min(self.height, self.width) // 2)
        self.halved = True


@dataclass(frozen=True)
class _TilePreparation:
    """The wrapper that settles the tile of a run and tells the memory estimate about it."""

    size: tuple[int, int, int] | None  # height, width, overlap in cells; None: the largest that fits
    sizes: TileSizes
    space: int
    published: Callable | None

    def __call__(self, executor, model, noise_shape, conds, *args, model_options=None, **kwargs):
        services.check_clip(_TILES, tuple(noise_shape))
        windows = model_options.get("context_handler")
        tile = self.size or self._largest(model, noise_shape, conds, windows)
        model_options.setdefault("transformer_options", {})[TILES_KEY] = TileChoice(*tile, self.published)
        noise_shape = [*noise_shape[:3], min(noise_shape[3], tile[0]), min(noise_shape[4], tile[1])]
        return executor(model, noise_shape, conds, *args, model_options=model_options, **kwargs)

    def _largest(self, model: Any, noise_shape: list, conds: dict, windows: Any) -> tuple[int, int, int]:
        """Pick the largest tile of the list that fits: (height, width, overlap) in latent cells.

        Every tile sees one window of the clip, and beside it all references, whole.
        """
        batch, channels, frames, height, width = noise_shape
        frames = min(frames, getattr(windows, "context_length", frames))
        free = services.free_bytes(model.load_device)
        given = (cond for group in conds.values() for cond in group if cond.get(REFERENCES_KEY) is not None)
        cells = max(map(reference_cells, given), default=0)
        beside = model.memory_required([batch, channels, 1, 1, cells]) if cells else 0
        for long, short in self.sizes.sides:
            tile = (short, long) if width >= height else (long, short)
            rows, columns = min(height, tile[0] // self.space), min(width, tile[1] // self.space)
            need = model.memory_required([batch, channels, frames, rows, columns]) + beside
            if need * _HEADROOM < free:
                break
        return rows, columns, min(self.sizes.overlap // self.space, min(rows, columns) // 4)


def _tiled_batch(executor, model, conds, x_in, timestep, model_options):
    """Predict every conditioning tile by tile; out of memory, with tiles of half the side for the whole run."""
    choice = model_options.get("transformer_options", {}).get(TILES_KEY)
    while choice is not None:
        plan, weights = choice.plan(x_in.shape)
        together = _count_together(model, plan, conds, x_in, choice.at_once)
        try:
            if len(plan) == 1:
                return executor(model, conds, x_in, timestep, model_options)
            _refuse_regions(conds)
            fusers = [TileFuser(plan, weights) for _ in conds]
            for start in range(0, len(plan), together):
                services.check_cancelled()
                tiles = plan[start : start + together]
                part = [crop_conds(group, tiles, x_in.shape) for group in conds]
                options = part_of_step(model_options, start, len(plan), len(tiles))
                x = x_in[tiles[0].region]
                if len(tiles) > 1:
                    x = torch.cat([x_in[tile.region] for tile in tiles])
                results = as_piece(executor, str(tiles))(model, part, x, timestep.repeat(len(tiles)), options)
                for fuser, result in zip(fusers, results, strict=True):
                    for tile, one in zip(tiles, result.chunk(len(tiles)), strict=True):
                        fuser.add(tile, one)
            return [fuser.result() for fuser in fusers]
        except Exception as error:  # the host tells out-of-memory errors of all devices from others
            if not management.is_oom(error):
                raise
            space = model.latent_format.spacial_downscale_ratio
            if together == 1 and choice.halved:
                px = (choice.width * space, choice.height * space)
                raise services.out_of_memory(_TILES, *px) from error
        if together > 1:
            choice.at_once = 1
        else:
            choice.halve(x_in.shape)
            size = f"{choice.width * space}x{choice.height * space} px"
            logging.getLogger(__name__).warning("%s: out of memory; going on with tiles of %s", _TILES, size)
        management.soft_empty_cache()
    return executor(model, conds, x_in, timestep, model_options)


def _count_together(model: BaseModel, plan: tuple[Tile, ...], conds: list, x_in: torch.Tensor, most: int) -> int:
    """Say how many tiles to predict as one batch: on a GPU as many as fit, on a CPU one, which is as quick."""
    if management.is_device_cpu(x_in.device):
        return 1
    free = model.current_patcher.get_free_memory(x_in.device)
    tile, count = plan[0], x_in.shape[0] * len([group for group in conds if group])
    shape = [*x_in.shape[1:3], tile.height, tile.width]
    cells = 0  # of the latents that every tile sees whole
    for cond in (cond for group in conds for cond in group or ()):
        lists = (getattr(cond["model_conds"].get(key), "cond", None) for key in REFERENCE_CONDS)
        cells += sum(latent[0, 0].numel() for each in lists if isinstance(each, list) for latent in each)
    beside = model.memory_required([1, x_in.shape[1], 1, 1, cells]) if cells else 0  # again for every tile
    for together in range(min(most, len(plan)), 1, -1):
        need = model.memory_required([together * count, *shape]) + together * beside
        if need * _HEADROOM < free:
            return together
    return 1


def _refuse_regions(conds: list) -> None:
    rule = f"{_TILES}: conditioning in tiles must not depend on places of the whole frame; got"
    if services.has_guides(conds):
        raise ValueError(f"{rule} guide frames. Take them out (LTXVCropGuides), or set tiling to off.")
    for cond in (cond for group in conds for cond in group or ()):
        for key in ("area", "control", "gligen"):
            if cond.get(key) is not None:
                raise ValueError(f"{rule} {key!r}. Remove it, or set tiling to off.")


# Temporal windows


class WindowHandler(context_windows.IndexListContextHandler):
    """The host's context windows with our plan (every window full) and our weights (any overlap).

    `causal` says that a clip's first latent frame is special; `plan` gives (windows, weights) of a clip's length where
    the published ones are wanted. `alternate`: windows share no frame and take turns.
    """

    def __init__(
        self, length: int, overlap: int, causal: bool = True, plan: Callable | None = None, alternate: bool = False
    ):
        settings = {
            "context_schedule": context_windows.get_matching_context_schedule("standard_static"),
            "fuse_method": context_windows.get_matching_fuse_method("flat"),
            "context_length": length,
            "context_overlap": overlap,
            "dim": 2,
        }
        # One frame before each later window takes the place that training knows as a clip's first latent.
        if "causal_window_fix" in inspect.signature(super().__init__).parameters:
            settings["causal_window_fix"] = causal
        super().__init__(**settings)
        self._published, self._plans, self._made = plan, {}, {}
        self.alternate, self._turn = alternate, 0

    def should_use_context(self, model, conds, x_in, timestep, model_options):
        """Leave a clip that fits into one window to the plain call, bit for bit."""
        services.check_clip(_WINDOWS, tuple(x_in.shape))
        long = x_in.shape[self.dim] > self.context_length
        if long and services.has_guides(conds):
            raise ValueError(
                f"{_WINDOWS}: a window must not lose sight of guide frames; got a clip of {x_in.shape[self.dim]} "
                "latent frames with guides at its end. Set windows to off, or take the guides out (LTXVCropGuides)."
            )
        return long

    def get_context_windows(self, model: BaseModel, x_in: torch.Tensor, model_options: dict):
        """Plan the windows with the core's rule: once for a length, as long clips have thousands."""
        length, make = x_in.shape[self.dim], context_windows.IndexListContextWindow
        if self.alternate:  # where features are kept over steps, places stay as long as these
            saving = model_options.get("transformer_options", {}).get(SAVING_KEY)
            self._turn = self._step // (saving.interval if saving else 1) % 2
        if (length, self._turn) not in self._made:
            windows = self._plan(length)[0]
            self._made[length, self._turn] = [
                make(list(range(w.start, w.stop)), dim=self.dim, total_frames=length) for w in windows
            ]
        return self._made[length, self._turn]

    def evaluate_context_windows(
        self, calc_cond_batch, model, x_in, conds, timestep, enumerated, model_options, *args, **kwargs
    ):
        """Evaluate as the host does, with the progress of a window's share of the step."""
        count = len(self._plan(x_in.shape[self.dim])[0])
        number, window = enumerated[0]
        options, predict = part_of_step(model_options, number, count), as_piece(calc_cond_batch, str(window.index_list))
        return super().evaluate_context_windows(
            predict, model, x_in, conds, timestep, enumerated, options, *args, **kwargs
        )

    def combine_context_window_results(
        self, x_in, sub_conds_out, sub_conds, window, window_idx, total_windows, timestep, final, counts, biases
    ):
        """Add a window's predictions with weights that sum to one; the host then divides by ones."""
        weights = self._plan(x_in.shape[self.dim])[1][window_idx]
        weights = weights.to(x_in.device).view(-1, *[1] * (x_in.ndim - self.dim - 1))
        span = (slice(None),) * self.dim + (slice(window.index_list[0], window.index_list[-1] + 1),)
        for total, count, value in zip(final, counts, sub_conds_out, strict=True):
            total[span] += value * weights
            count[...] = 1.0

    def _plan(self, length: int) -> tuple[tuple[Window, ...], tuple[torch.Tensor, ...]]:
        """Give (windows, weights) of a clip's length in this turn, worked out once."""
        key = length, self._turn
        if key not in self._plans:
            if self._published is not None and not self.alternate:
                self._plans[key] = self._published(length)
            else:
                windows = plan_windows(length, self.context_length, self.context_overlap)
                if self.alternate:
                    windows = alternating_windows(length, self.context_length, self._turn)
                self._plans[key] = windows, plan_weights(windows)
        return self._plans[key]
