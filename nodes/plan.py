"""VSR Plan: what a run will ask for, read from the model with all its patches, before anything is sampled.

1. The size comes from a latent or from width, height and length; the conditionings from a guider or cfg.
2. `_rehearse` runs what nodes put before the loading of a model, but loads nothing: it settles tiles, counts memory.
3. Windows, branches, references and patch size make a `RunPlan`, which counts and warns in words.
4. What earlier runs have measured on this device gives the time (`sampling_seconds`).
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers, merge_nested_dicts
from comfy.sampler_helpers import estimate_memory
from comfy.samplers import CFGGuider
from comfy_api.latest import Input, io, ui

from ..media.pace import duration
from ..models.layout.pieces import Tile
from ..models.layout.plan import Memory, RunPlan
from ..models.layout.sizes import ClipSize, latent_size
from ..models.unimmvsr.references import References
from .frames import asked_size, multiple_input, target_input
from .guidance import ReferenceGuider, ReferencePatch
from .host import seedvr2, services
from .host.keys import REFERENCES_KEY, SAVING_KEY, TILES_KEY
from .host.model import system_of
from .host.progress import pass_name, speeds, where
from .work import deep_share, guided_counts, with_turns, with_work

_WHO = "VSR Plan"


class VSRPlan(io.ComfyNode):
    """Counts tokens, tiles, windows, passes and memory."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        sides = [
            io.Int.Input(
                name,
                default=0,
                min=0,
                max=16384,
                tooltip=f"Output {what}, if samples are not linked; 0 takes it from samples.",
            )
            for name, what in (("width", "width in px"), ("height", "height in px"), ("length", "frames"))
        ]
        return io.Schema(
            node_id="VSRPlan",
            display_name=_WHO,
            category=services.CATEGORY,
            description="Says what a run will cost before it starts: tokens, tiles, windows, network passes and "
            "memory, and which setting helps where something does not fit.",
            search_aliases=["estimate", "vram", "memory", "tokens", "cost", "out of memory", "dry run", "cascade vsr"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model as the sampler gets it, with all its patches; or link guider.",
                ),
                io.Guider.Input(
                    "guider",
                    optional=True,
                    tooltip=("The guider of SamplerCustomAdvanced; its model, branches and references are planned."),
                ),
                io.Latent.Input(
                    "samples",
                    optional=True,
                    tooltip="The latent that will be sampled, or Cascade Input's lr_latent; or give width, height and "
                    "length.",
                ),
                io.Custom("VSR_REFERENCES").Input(
                    "references", optional=True, tooltip=("References from Reference Set; a guider has its own.")
                ),
                io.Sigmas.Input("sigmas", optional=True, tooltip="The sigmas of the run, instead of steps."),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip=("Steps of the run if sigmas are not linked, with one network evaluation each."),
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip=("KSampler's cfg, which adds a branch unless it is 1; a guider has its own."),
                ),
                *sides,
                io.MultiType.Input(
                    "clip",
                    types=[io.Image, io.Video],
                    optional=True,
                    tooltip="The clip before Cascade Input, as frames or as video, instead of samples: nothing has to "
                    "be encoded for the plan. Its size times target is planned.",
                ),
                target_input(optional=True, tooltip="With clip: the size of the result, as in Cascade Input."),
                multiple_input("With clip: as in Cascade Input."),
            ],
            outputs=[io.String.Output(display_name="plan", tooltip="The plan as text.")],
        )

    @classmethod
    def execute(
        cls,
        steps: int,
        cfg: float,
        width: int,
        height: int,
        length: int,
        model: ModelPatcher | None = None,
        guider: CFGGuider | None = None,
        samples: dict | None = None,
        references: References | None = None,
        sigmas: torch.Tensor | None = None,
        clip: torch.Tensor | Input.Video | None = None,
        target: dict | None = None,
        multiple: int = 1,
    ):
        """Count, and show the text."""
        if model is None and guider is None:
            raise ValueError(f"{_WHO}: needs a model or a guider; got neither. Link the one that the sampler gets.")
        patcher = model if guider is None else guider.model_patcher
        conds = _conditions(guider, cfg, references)
        given = ClipSize(length, height, width) if width * height * length else None
        if clip is not None and target is not None:
            if samples is not None:
                raise ValueError(f"{_WHO}: needs samples or a clip; got both. Unlink samples: the clip is enough.")
            given = _enlarged(clip, target, multiple)
        size, shape = _measure(patcher, samples, given)
        steps = steps if sigmas is None else max(0, len(sigmas) - 1)
        plan = with_work(make_plan(patcher, guider, conds, size, shape, steps, sigmas), patcher)
        for warning in plan.warnings():
            logging.getLogger(__name__).warning("%s: %s", _WHO, warning)
        text = plan.text(time_words(plan, patcher))
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def _enlarged(clip: torch.Tensor | Input.Video, target: dict, multiple: int) -> ClipSize:
    """Give the size of the result of a clip."""
    if isinstance(clip, torch.Tensor):
        frames, height, width = services.check_frames(_WHO, "clip", clip).shape[:3]
    else:
        (width, height), frames = clip.get_dimensions(), clip.get_frame_count()
    return ClipSize(frames, *asked_size(_WHO, "target", target, height, width, multiple))


# Time


def plan_clip(guider: CFGGuider, size: ClipSize, steps: int) -> RunPlan:
    """Plan the sampling of a clip of `size` by a guider."""
    patcher, conds = guider.model_patcher, _conditions(guider, 1.0, None)
    return make_plan(patcher, guider, conds, *_measure(patcher, None, size), steps)


def sampling_seconds(plan: RunPlan, patcher: ModelPatcher) -> float | None:
    """Give the seconds of a planned run, by passes of the model that earlier runs have measured on this device.

    Passes of about this size count, else of the next size, smaller or larger, by how the costs of the built-in model
    grow.
    """
    for away in (0, -1, 1, -2, 2, -3, 3):
        cells = plan.pass_cells * 2.0**away
        if seconds := speeds().known(pass_name(patcher, cells)):
            passes = plan.passes if plan.deep_every == 1 else deep_share(plan, patcher) * plan.passes
            return seconds * passes * plan.pass_cells * _cost(plan.pass_cells) / _cost(cells)
    return None


def usual_seconds(plan: RunPlan) -> float:
    """Give the seconds of a planned run of the built-in model, on one thread of a CPU."""
    return plan.passes * plan.pass_cells * _cost(plan.pass_cells)


def _cost(cells: float) -> float:
    """Give the seconds of a latent cell in a pass of so many: measured with the built-in model, 16,000 to 39,000."""
    return 5.1e-5 + 3.4e-9 * cells


def time_words(plan: RunPlan, patcher: ModelPatcher) -> str:
    """Say how long a planned run will take, and what of it is not known yet."""
    pixels = plan.size.frames * plan.size.height * plan.size.width * plan.latent[0] / 1e6
    parts = {"sampling": sampling_seconds(plan, patcher)}
    system = system_of(patcher)
    if system is not None:
        for what in ("Encoding", "Decoding"):
            seconds = speeds().known(f"{where()}: {what}, {system.name}")
            parts[what.lower()] = None if seconds is None else seconds * pixels
    known = {name: seconds for name, seconds in parts.items() if seconds is not None}
    unknown = " and ".join(name for name in parts if name not in known)
    missing = f"{unknown} not yet measured on this device; the first run does it"
    if not known:
        return missing
    listed = ", ".join(f"{name} {duration(seconds)}" for name, seconds in known.items())
    text = f"about {duration(sum(known.values()))}, as earlier runs here: {listed}"
    return f"{text}; {missing}" if unknown else text


def _conditions(guider: CFGGuider | None, cfg: float, references: References | None) -> dict[str, list[dict]]:
    """Give the conditionings of a run as the memory estimate takes them."""
    if guider is not None:
        return {name: [dict(cond) for cond in conds] for name, conds in guider.original_conds.items()}
    cond = {} if references is None else {REFERENCES_KEY: references}
    return {name: [dict(cond)] for name in ("positive", "negative")[: 1 if math.isclose(cfg, 1) else 2]}


def _measure(patcher: ModelPatcher, samples: dict | None, size: ClipSize | None) -> tuple[ClipSize, tuple[int, ...]]:
    """Give (the size in px and frames, the (b, c, T, h, w) that will be sampled)."""
    latent_format = services.video_format(_WHO, patcher)
    space, time = latent_format.spacial_downscale_ratio, services.frames_a_latent(patcher)
    if (samples is None) == (size is None):
        got = "neither" if size is None else "both"
        raise ValueError(
            f"{_WHO}: needs samples, or width, height and length above 0; got {got}. Link a latent, or enter the size."
        )
    if size is not None:
        cells = latent_size(size, space, time)
        cells = seedvr2.whole_patches(cells) if seedvr2.is_model(patcher) else cells
        return size, (1, latent_format.latent_channels, cells.frames, cells.height, cells.width)
    clip = services.check_latent(_WHO, "samples", samples)
    shape = (clip.shape[0], latent_format.latent_channels, *clip.shape[2:])
    return services.latent_target(_WHO, samples, space, time)[0], shape


def make_plan(
    patcher: ModelPatcher,
    guider: CFGGuider | None,
    conds: dict[str, list[dict]],
    size: ClipSize,
    shape: tuple[int, ...],
    steps: int,
    sigmas: torch.Tensor | None = None,
) -> RunPlan:
    """Ask the model's own patches what they will do with a latent of a shape."""
    options, memory = _rehearse(patcher, conds, shape)
    latent_format = patcher.get_model_object("latent_format")
    choice = options["transformer_options"].get(TILES_KEY)
    tiles = (Tile(0, 0, *shape[-2:]),) if choice is None else choice.plan(torch.Size(shape))[0]
    handler = options.get("context_handler")
    window, windows = _windows(patcher, handler, shape)
    given = (cond.get(REFERENCES_KEY) for cond in conds.get("positive", ()))
    latents = [latent for references in given if references for latent in references.latents]
    plan = RunPlan(
        model=type(patcher.model).__name__,
        size=size,
        latent=tuple(shape),
        space=latent_format.spacial_downscale_ratio,
        time=services.frames_a_latent(patcher),
        patch=patch_of(patcher.get_model_object("diffusion_model")),
        references=tuple(tuple(latent.shape[2:]) for latent in latents),
        tiles=tuple(tiles),
        windows=windows,
        window=window,
        branches=_branches(patcher, guider, conds, steps, bool(latents)),
        memory=memory,
    )
    if getattr(handler, "alternate", False) or SAVING_KEY in options["transformer_options"]:
        plan = with_turns(plan, patcher, handler)
        plan = replace(plan, branches=guided_counts(patcher, plan.branches, sigmas))
    return plan


def _rehearse(patcher: ModelPatcher, conds: dict, shape: tuple[int, ...]) -> tuple[dict, Memory]:
    """Run what nodes put before the loading of a model, but load nothing: their choices, and the host's estimate."""
    options = comfy.model_patcher.create_model_options_clone(patcher.model_options)
    inner = options.setdefault("transformer_options", {})
    merge_nested_dicts(inner.setdefault("wrappers", {}), patcher.wrappers, copy_dict1=False)
    found = []

    def estimate(model: ModelPatcher, noise_shape: list, conds: dict, **_):
        found.extend(estimate_memory(model, list(noise_shape), conds))
        return model.model, conds, []

    wrappers = get_all_wrappers(WrappersMP.PREPARE_SAMPLING, options, is_model_options=True)
    executor = WrapperExecutor.new_executor(estimate, wrappers)
    executor.execute(patcher, list(shape), conds, model_options=options, force_full_load=False, force_offload=False)
    device = patcher.load_device
    memory = Memory(
        weights=patcher.model_size() + sum(each.model_size() for each in patcher.get_nested_additional_models()),
        loaded=patcher.loaded_size(),
        one=int(found[1]),
        two=int(found[0]),
        free=int(services.free_bytes(device)),
        free_ram=int(services.free_bytes(torch.device("cpu"))),
        shared=management.is_device_cpu(device),
    )
    return options, memory


def _windows(patcher: ModelPatcher, handler: Any, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Give (latent frames of a window, those of every window with the frame that some have in front)."""
    dim = getattr(handler, "dim", 2)
    if handler is None or dim != 2 or shape[dim] <= handler.context_length:
        return shape[2], (shape[2],)
    clip = torch.empty(shape, device="meta")
    found = handler.get_context_windows(patcher.model, clip, patcher.model_options)
    ahead = getattr(handler, "causal_window_fix", False)
    counts = (len(each.index_list) + (ahead and each.index_list[0] > 0) for each in found)
    return handler.context_length, tuple(counts)


def _branches(
    patcher: ModelPatcher, guider: CFGGuider | None, conds: dict, steps: int, has_references: bool
) -> tuple[int, ...]:
    """Count the predictions of every step."""
    if isinstance(guider, ReferenceGuider):
        return guider.guidance.branches(steps, has_references)
    plain = len(conds)
    if guider is not None and type(guider).predict_noise is CFGGuider.predict_noise:
        needed = patcher.model_options.get("disable_cfg1_optimization", False)
        plain = 1 if math.isclose(guider.cfg, 1.0) and not needed else plain
    counts = [plain] * steps
    for function in patcher.model_options.get("sampler_post_cfg_function", ()):
        if isinstance(function, ReferencePatch):
            counts = [n + (has_references and function.guidance.acts(step)) for step, n in enumerate(counts)]
    return tuple(counts)


def patch_of(network: torch.nn.Module) -> tuple[int, int, int]:
    """Read the latent frames, rows and columns that one token of a network stands for; 1 each where none is told."""
    for owner in (network, getattr(network, "patchifier", None), getattr(network, "vid_in", None)):
        patch = getattr(owner, "patch_size", None)
        if isinstance(patch, int):
            return 1, patch, patch
        if patch is not None and len(patch) in (2, 3):
            return (1, *patch) if len(patch) == 2 else tuple(patch)
    side, frames = (getattr(network, f"patch_{axis}", 1) for axis in ("spatial", "temporal"))
    return int(frames), int(side), int(side)
