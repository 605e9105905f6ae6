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
from typing import Any

import comfy.context_windows as context_windows
import comfy.model_management as management
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..models.layout.pieces import TileFuser, Window, plan_tiles, plan_weights, plan_windows
from ..models.layout.sizes import latent_frames
from ..models.layout.turns import alternating_windows, turn_at
from .host import seedvr2, services
from .host.caches import as_piece
from .host.cropping import crop_conds, refuse_regions
from .host.joints import JointFade
from .host.keys import DEFAULT, PRESET_KEY, PUBLISHED, SAVING_KEY, TILES_KEY
from .host.model import part_of_step, system_of
from .host.room import CutChoice, tiles_at_once
from .systems.base import Published, TileSizes, WindowSize

_TILES, _WINDOWS = "Spatial Tiles", "Temporal Windows"
_JOINTS, _JOINTS_KEY = ("shared frames", "alternating"), "vsr_joints"


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
        size, sizes = published.tile, (system.tiles if system else TileSizes()) if kind == "auto" else None
        if kind == "manual":
            names = ("tile_height", "tile_width", "overlap")
            patch = seedvr2.PATCH if seedvr2.is_model(model) else 1
            size = tuple(patch * max(1, round(tiling[name] / space / patch)) for name in names)
            with services.titled(_TILES):
                plan_tiles(2 * size[0], 2 * size[1], *size)  # refuses an overlap that does not fit, before the run
        _replace(patched, WrappersMP.PREPARE_SAMPLING, CutChoice(_TILES, space, size, sizes, published.tiles))
        _replace(patched, WrappersMP.CALC_COND_BATCH, _tiled_batch)  # a second Spatial Tiles replaces the first
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
        fade = JointFade(max(2, shared)) if alternate else None
        automatic = kind == "auto" and system is not None and plan is None
        kind = TurningWindows if alternate else WindowHandler
        patched.model_options["context_handler"] = kind(length, shared, time > 1, plan, fade, automatic)
        if automatic and not patched.get_wrappers(WrappersMP.PREPARE_SAMPLING, TILES_KEY):  # else Spatial Tiles asks
            _replace(patched, WrappersMP.PREPARE_SAMPLING, CutChoice(_WINDOWS))
        _replace(patched, WrappersMP.OUTER_SAMPLE, None if fade is None else fade.outer_sample, _JOINTS_KEY)
        context_windows.create_prepare_sampling_wrapper(patched)
        return io.NodeOutput(patched)


def _replace(patched: ModelPatcher, place: str, wrapper: Callable | None, key: str = TILES_KEY) -> None:
    """Put a wrapper in the place of that of a node before, if any."""
    patched.remove_wrappers_with_key(place, key)
    if wrapper is not None:
        patched.add_wrapper_with_key(place, key, wrapper)


def _published(model: Any) -> Published:
    """Give the published plans of a MODEL that was loaded to repeat them; else none."""
    system = system_of(model)
    repeats = system is not None and model.model_options.get(PRESET_KEY, DEFAULT) == PUBLISHED
    return system.published if repeats else Published()


# Spatial tiles


def _tiled_batch(executor, model, conds, x_in, timestep, model_options):
    """Predict every conditioning tile by tile; out of memory, with tiles of half the side for the whole run."""
    choice = model_options.get("transformer_options", {}).get(TILES_KEY)
    while choice is not None:
        plan, weights = choice.plan(x_in.shape)
        together = tiles_at_once(model, plan, conds, x_in, choice.at_once)
        try:
            if len(plan) == 1:
                return executor(model, conds, x_in, timestep, model_options)
            refuse_regions(_TILES, conds)
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


# Temporal windows


class WindowHandler(context_windows.IndexListContextHandler):
    """The host's context windows with our plan (every window full) and our weights (any overlap).

    `causal` says that a clip's first latent frame is special; `plan` gives (windows, weights) of a clip's length where
    the published ones are wanted. With `fade` (`TurningWindows`) windows share no frame and take turns.
    `automatic`: windows get shorter where memory is short.
    """

    def __init__(
        self,
        length: int,
        overlap: int,
        causal: bool = True,
        plan: Callable | None = None,
        fade: JointFade | None = None,
        automatic: bool = False,
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
        self.alternate, self._fade, self._turn = fade is not None, fade, 0
        self.automatic = automatic

    def shortened(self, length: int) -> WindowHandler:
        """Give windows of `length` latent frames, for one run."""
        logging.getLogger(__name__).warning("%s: memory is short; windows have %d latent frames", _WINDOWS, length)
        overlap, causal = min(self.context_overlap, length // 2), getattr(self, "causal_window_fix", True)
        return type(self)(length, overlap, causal, None, self._fade)

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
            options = model_options.get("transformer_options", {})
            grid, saving = options.get("sample_sigmas", ()), options.get(SAVING_KEY)  # no grid: to plan a run
            self._turn = turn_at(self._step, len(grid) - 1, saving.interval if saving else 1) % 2
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
            total[span].addcmul_(value, weights)
            if window_idx == 0:
                count.fill_(1.0)

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


class TurningWindows(WindowHandler):
    """Windows that take turns, and whose joints fade."""

    def execute(self, calc_cond_batch, model, conds, x_in, timestep, model_options):
        """Predict all windows, and fade their joints."""
        results = super().execute(calc_cond_batch, model, conds, x_in, timestep, model_options)
        return self._fade(results, conds, self._step, self._turn, self.context_length)
