"""Spatial tiles and temporal windows for any native video MODEL; both fuse predictions at every step."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import comfy.context_windows as context_windows
import comfy.model_management as management
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..models.layout.geometry import latent_frames
from ..models.layout.tiles import Tile, TileFuser, plan_tiles
from ..models.layout.windows import plan_windows
from . import checks, host, run_state
from .keys import PRESET_KEY, REFERENCE, REFERENCE_CONDS, TILES_KEY
from .reference_conds import reference_cells
from .window_handler import WindowHandler

_AUTO_TILES = (
    (1280, 720),
    (960, 544),
    (640, 384),
    (384, 256),
    (256, 192),
)  # px; larger ones attend too widely
_AUTO_OVERLAP = 96  # px
_AUTO_WINDOW, _AUTO_WINDOW_OVERLAP = 33, 8  # frames
_HEADROOM = 1.3  # share of free memory a tile may not use
_AT_ONCE = 4  # tiles predicted together on a GPU, where they fit


class SpatialTiles(io.ComfyNode):
    """Samples large frames tile by tile."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        manual = [
            io.Int.Input(
                "tile_width", default=960, min=64, max=16384, step=8, tooltip="Width of a tile in output px."
            ),
            io.Int.Input(
                "tile_height",
                default=544,
                min=64,
                max=16384,
                step=8,
                tooltip="Height of a tile in output px.",
            ),
            io.Int.Input(
                "overlap",
                default=96,
                min=0,
                max=4096,
                step=8,
                tooltip="How far tiles reach into each other, in output px.",
            ),
        ]
        return io.Schema(
            node_id="VSRSpatialTiles",
            display_name="Spatial Tiles",
            category=host.CATEGORY,
            description="Samples a large frame tile by tile and fuses the predictions smoothly at every "
            "step, so that "
            "4K fits. A tile as large as the frame changes nothing. References are seen whole by every tile.",
            search_aliases=["tiled diffusion", "tiling", "tile", "4k", "multidiffusion", "vram"],
            inputs=[
                io.Model.Input("model", tooltip="The video model to sample in tiles."),
                io.DynamicCombo.Input(
                    "tiling",
                    options=[
                        io.DynamicCombo.Option("auto", []),
                        io.DynamicCombo.Option("manual", manual),
                        io.DynamicCombo.Option("off", []),
                    ],
                    tooltip="auto: tiles of the size the model works best at, smaller where memory is "
                    "short; manual: your sizes; off: whole frames.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, tiled.")],
        )

    @classmethod
    def execute(cls, model, tiling):
        """Clone the model and wrap its prediction."""
        patched, kind = model.clone(), tiling["tiling"]
        if kind == "off":
            return io.NodeOutput(patched)
        space = _latent_format("Spatial Tiles", model).spacial_downscale_ratio
        size = None
        if kind == "manual":
            size = tuple(
                max(1, round(tiling[name] / space)) for name in ("tile_height", "tile_width", "overlap")
            )
            plan_tiles(
                2 * size[0], 2 * size[1], *size
            )  # refuses an overlap that does not fit, before the run
        elif kind != "auto":
            raise ValueError(f"Spatial Tiles: tiling must be auto, manual or off; got {kind!r}. Choose auto.")
        own = None
        if model.model_options.get(PRESET_KEY) == REFERENCE:
            own = getattr(_latent_format("Spatial Tiles", model), "vsr_reference_tiles", None)
            size = size or getattr(_latent_format("Spatial Tiles", model), "vsr_reference_tile", None)
        _wrap(patched, WrappersMP.PREPARE_SAMPLING, _prepare_tiles(size, space, own))
        _wrap(patched, WrappersMP.CALC_COND_BATCH, _tiled_batch)
        return io.NodeOutput(patched)


class TemporalWindows(io.ComfyNode):
    """Samples long clips window by window."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        manual = [
            io.Int.Input(
                "window",
                default=_AUTO_WINDOW,
                min=1,
                max=4096,
                tooltip="Length of a window in output frames.",
            ),
            io.Int.Input(
                "overlap",
                default=_AUTO_WINDOW_OVERLAP,
                min=0,
                max=4096,
                tooltip="How far windows reach into each other, in output frames.",
            ),
        ]
        return io.Schema(
            node_id="VSRTemporalWindows",
            display_name="Temporal Windows",
            category=host.CATEGORY,
            description="Samples a long clip window by window and fuses the predictions at every step, so "
            "memory does "
            "not grow with its length. A window as long as the clip changes nothing.",
            search_aliases=["context windows", "long video", "sliding window", "temporal tiling"],
            inputs=[
                io.Model.Input("model", tooltip="The video model to sample in windows."),
                io.DynamicCombo.Input(
                    "windows",
                    options=[
                        io.DynamicCombo.Option("auto", []),
                        io.DynamicCombo.Option("manual", manual),
                        io.DynamicCombo.Option("off", []),
                    ],
                    tooltip="auto: what the model was made for, else 33 frames, 8 shared with the next; "
                    "manual: your lengths; off: the whole clip at once.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, windowed.")],
        )

    @classmethod
    def execute(cls, model, windows):
        """Clone the model and set the host's context handler."""
        patched, kind = model.clone(), windows["windows"]
        if kind == "off":
            return io.NodeOutput(patched)
        if kind not in ("auto", "manual"):
            raise ValueError(
                f"Temporal Windows: windows must be auto, manual or off; got {kind!r}. Choose auto."
            )
        latent_format = _latent_format("Temporal Windows", model)
        time, plan = latent_format.temporal_downscale_ratio, None
        if kind == "manual":
            window, overlap = windows["window"], windows["overlap"]
        else:
            window, overlap = getattr(latent_format, "vsr_window", (_AUTO_WINDOW, _AUTO_WINDOW_OVERLAP))
            if model.model_options.get(PRESET_KEY) == REFERENCE:
                plan = getattr(latent_format, "vsr_reference_windows", None)
        length, shared = latent_frames(window, time), math.ceil(overlap / time)
        plan_windows(2 * length, length, shared)  # refuses an overlap that does not fit, before the run
        patched.model_options["context_handler"] = WindowHandler(length, shared, causal=time > 1, plan=plan)
        context_windows.create_prepare_sampling_wrapper(patched)
        return io.NodeOutput(patched)


def _latent_format(title: str, model):
    latent_format = model.get_model_object("latent_format")
    if latent_format.latent_dimensions != 3:
        raise ValueError(
            f"{title}: the model must be a video model; got {type(model.model).__name__} with "
            f"{latent_format.latent_dimensions}-dimensional latents. Use it on the restorer."
        )
    return latent_format


def _wrap(patcher, place: str, wrapper) -> None:
    patcher.remove_wrappers_with_key(place, TILES_KEY)  # a second Spatial Tiles replaces the first
    patcher.add_wrapper_with_key(place, TILES_KEY, wrapper)


# Spatial tiles


@dataclass
class TileChoice:
    """Hold the tile of one run, in latent cells; where it does not fit into memory, it is halved once."""

    height: int
    width: int
    overlap: int
    own: Callable | None = None  # gives (tiles, weights) where the published ones are wanted
    at_once: int = _AT_ONCE
    halved: bool = False

    def plan(self, shape: torch.Size) -> tuple[tuple[Tile, ...], tuple[torch.Tensor, ...] | None]:
        """Plan the tiles of a latent, and their weights where not the smooth ones."""
        rows, columns = (
            min(side, full) for side, full in zip((self.height, self.width), shape[-2:], strict=True)
        )
        if self.own is not None and (rows, columns) != tuple(shape[-2:]):
            return self.own(*shape[-2:], self.height, self.width, self.overlap)
        return plan_tiles(*shape[-2:], self.height, self.width, self.overlap), None

    def halve(self, shape: torch.Size) -> None:
        """Take half the sides, from no more than the latent's, and keep the overlap as far as it fits."""
        self.height, self.width = (
            max(1, -(-min(side, full) // 2))
            for side, full in zip((self.height, self.width), shape[-2:], strict=True)
        )
        self.overlap = min(self.overlap, min(self.height, self.width) // 2)
        self.halved = True


def _prepare_tiles(size: tuple[int, int, int] | None, space: int, own: Callable | None = None):
    """Make the wrapper that settles the tile of a run and tells the memory estimate about it."""

    def wrapper(executor, model, noise_shape, conds, *args, model_options=None, **kwargs):
        checks.check_clip("Spatial Tiles", tuple(noise_shape))
        tile = size or _auto_tile(model, noise_shape, conds, space, model_options.get("context_handler"))
        model_options.setdefault("transformer_options", {})[TILES_KEY] = TileChoice(*tile, own)
        noise_shape = [*noise_shape[:3], min(noise_shape[3], tile[0]), min(noise_shape[4], tile[1])]
        return executor(model, noise_shape, conds, *args, model_options=model_options, **kwargs)

    return wrapper


def _auto_tile(model, noise_shape, conds, space: int, windows=None) -> tuple[int, int, int]:
    """Pick the largest tile of the list that fits: (height, width, overlap) in latent cells.

    Every tile sees one window of the clip, and beside it all references, whole.
    """
    batch, channels, frames, height, width = noise_shape
    frames = min(frames, getattr(windows, "context_length", frames))
    free = host.free_bytes(model.load_device)
    cells = max((reference_cells(cond) for group in conds.values() for cond in group), default=0)
    beside = model.memory_required([batch, channels, 1, 1, cells]) if cells else 0
    latent_format = model.get_model_object("latent_format")
    for long, short in getattr(latent_format, "vsr_tiles", _AUTO_TILES):
        tile = (short, long) if width >= height else (long, short)
        rows, columns = (min(full, side // space) for full, side in zip((height, width), tile, strict=True))
        if (model.memory_required([batch, channels, frames, rows, columns]) + beside) * _HEADROOM < free:
            break
    wanted = getattr(latent_format, "vsr_tile_overlap", _AUTO_OVERLAP)
    overlap = min(wanted // space, min(rows, columns) // 4)
    return rows, columns, overlap


def _tiled_batch(executor, model, conds, x_in, timestep, model_options):
    """Predict every conditioning tile by tile; out of memory, with tiles of half the side for the whole run."""
    choice = model_options.get("transformer_options", {}).get(TILES_KEY)
    if choice is None:
        return executor(model, conds, x_in, timestep, model_options)
    while True:
        plan = choice.plan(x_in.shape)
        together = _count_together(model, plan[0], conds, x_in, choice.at_once)
        try:
            return _predict_tiles(executor, plan, together, model, conds, x_in, timestep, model_options)
        except Exception as error:  # the host tells out-of-memory errors of all devices from others
            if not management.is_oom(error):
                raise
            if together > 1:
                choice.at_once = 1
                management.soft_empty_cache()
                continue
            space = model.latent_format.spacial_downscale_ratio
            if choice.halved:
                raise host.out_of_memory("Spatial Tiles", (choice.height, choice.width), space) from error
        choice.halve(x_in.shape)
        size = f"{choice.width * space}x{choice.height * space} px"
        logging.getLogger(__name__).warning("Spatial Tiles: out of memory; going on with tiles of %s", size)
        management.soft_empty_cache()


def _count_together(model, plan, conds, x_in, most: int) -> int:
    """Say how many tiles to predict as one batch: on a GPU as many as fit, on a CPU one, which is as quick."""
    if management.is_device_cpu(x_in.device):
        return 1
    free = model.current_patcher.get_free_memory(x_in.device)
    tile, count = plan[0], x_in.shape[0] * len([group for group in conds if group])
    shape = [*x_in.shape[1:3], tile.height, tile.width]
    cells = sum(_whole_cells(cond) for group in conds for cond in group or ())
    beside = model.memory_required([1, x_in.shape[1], 1, 1, cells]) if cells else 0  # again for every tile
    for together in range(min(most, len(plan)), 1, -1):
        need = model.memory_required([together * count, *shape]) + together * beside
        if need * _HEADROOM < free:
            return together
    return 1


def _whole_cells(cond: dict) -> int:
    """Count the latent cells that a processed conditioning shows whole to every tile."""
    lists = (cond["model_conds"].get(key) for key in REFERENCE_CONDS)
    latents = [
        latent for each in lists if isinstance(getattr(each, "cond", None), list) for latent in each.cond
    ]
    return sum(latent[0, 0].numel() for latent in latents)


def _predict_tiles(executor, plan, together, model, conds, x_in, timestep, model_options):
    """Predict tile by tile and fuse; one tile that covers all is the plain call."""
    plan, weights = plan
    if len(plan) <= 1:
        return executor(model, conds, x_in, timestep, model_options)
    _refuse_regions(conds)
    fusers = [TileFuser(plan, weights) for _ in conds]
    for start in range(0, len(plan), together):
        host.check_cancelled()
        tiles = plan[start : start + together]
        part = [_crop_conds(group, tiles, x_in.shape) for group in conds]
        options = run_state.inside(model_options, start, len(plan), len(tiles))
        x = torch.cat([x_in[tile.region] for tile in tiles]) if len(tiles) > 1 else x_in[tiles[0].region]
        results = executor(model, part, x, timestep.repeat(len(tiles)), options)
        for fuser, result in zip(fusers, results, strict=True):
            for tile, one in zip(tiles, result.chunk(len(tiles)), strict=True):
                fuser.add(tile, one)
    return [fuser.result() for fuser in fusers]


def _refuse_regions(conds) -> None:
    if checks.guides(conds):
        raise ValueError(
            "Spatial Tiles: conditioning in tiles must not depend on places of the whole frame; got guide frames. "
            "Take them out (LTXVCropGuides), or set tiling to off."
        )
    for cond in (cond for group in conds for cond in group or ()):
        for key in ("area", "control", "gligen"):
            if cond.get(key) is not None:
                raise ValueError(
                    "Spatial Tiles: conditioning in tiles must not depend on places of the whole frame; "
                    f"got {key!r}. "
                    "Remove it, or set tiling to off."
                )


def _crop_conds(group, tiles: tuple[Tile, ...], shape: torch.Size):
    """Copy a conditioning with every tensor on the latent's grid cropped; lists (references) stay whole."""
    if group is None:
        return None
    cropped = []
    for cond in group:
        cond = cond.copy()
        if isinstance(cond.get("mask"), torch.Tensor) and cond["mask"].shape[-2:] == shape[-2:]:
            cond["mask"] = _cut(cond["mask"], tiles, shape[0])
        cond["model_conds"] = {key: _crop(value, tiles, shape) for key, value in cond["model_conds"].items()}
        cropped.append(cond)
    return cropped


def _crop(value, tiles: tuple[Tile, ...], shape: torch.Size):
    tensor = getattr(value, "cond", None)
    if not isinstance(tensor, torch.Tensor) or tensor.ndim < 4 or tensor.shape[-2:] != shape[-2:]:
        return value
    return value._copy_with(_cut(tensor, tiles, shape[0]))


def _cut(tensor: torch.Tensor, tiles: tuple[Tile, ...], batch: int) -> torch.Tensor:
    """Cut tiles out and put them one after the other in the batch, as the latents are."""
    if len(tiles) == 1:
        return tensor[tiles[0].region]
    whole = comfy.utils.repeat_to_batch_size(tensor, batch)
    return torch.cat([whole[tile.region] for tile in tiles])
