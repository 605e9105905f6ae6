"""Reference Tokens and Load VSR Adapter: what makes the host's Wan models restorers.

Reference Tokens patches a clone of the MODEL, so that it takes references (nodes/host/wan.py). Load VSR Adapter:

1. The file is read and checked against the base: channels, width, every changed layer.
2. A clone of the MODEL gets patches only: a wider patch embedding for the LR clip, changed layers (as a LoRA),
   reference tokens, and a small network for the noise level, which joins the time embedding by a forward hook.
3. The base's own weights are not written; LoRA loaders stack with it.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from pathlib import Path

import comfy.lora
import comfy.model_patcher
import comfy.ops
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP
from comfy_api.latest import io

from ..models.unimmvsr.adapter import LEVEL_KEYS, Adapter, LevelEmbedding, load_adapter
from .host import services
from .host.keys import LEVEL_KEY
from .host.model import log_licence, system_of
from .host.wan import attach, check_wan

_TITLE, _TOKENS = "Load VSR Adapter", "Reference Tokens"
_KEY = "vsr_adapter"  # of our wrappers and of the noise level's network
_PATCH_EMBEDDING = "diffusion_model.patch_embedding.weight"
_TIME_HOOKS = "diffusion_model.time_embedding._forward_hooks"


class ReferenceTokens(io.ComfyNode):
    """Makes a host's video model take references."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRReferenceTokens",
            display_name=_TOKENS,
            category=services.CATEGORY,
            description=(
                "Lets a plain Wan 2.1 or 2.2 model take the references of VSR Conditioning, as tokens beside the "
                "clip's own, each reference with its own time indices. Without references it changes nothing. Load VSR "
                "Adapter includes this; the built-in restorer needs neither."
            ),
            search_aliases=[
                "in-context",
                "identity",
                "reference latents",
                "context latents",
                "multi-id",
                "wan",
                "cascade vsr",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A Wan text-to-video or image-to-video model, before the sampler.")
            ],
            outputs=[io.Model.Output(tooltip="The model, which now takes references.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher):
        """Clone the model and patch the clone."""
        patched, system = model.clone(), system_of(model)
        if system is None or not system.takes_references:  # those that take them anyway stay as they are
            attach(patched, _TOKENS)
        return io.NodeOutput(patched)


class LoadVSRAdapter(io.ComfyNode):
    """Loads an adapter from models/vsr_adapters onto a Wan model."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRLoadAdapter",
            display_name=_TITLE,
            category=services.CATEGORY,
            description=(
                "Turns a Wan text-to-video model into a restorer: adds channels for the "
                "low-resolution clip, its noise level, changed layers and reference tokens. "
                "Only this MODEL changes; LoRA loaders can be added after it."
            ),
            search_aliases=["unimmvsr adapter", "super resolution lora", "wan upscale", "vsr lora", "cascade vsr"],
            inputs=[
                io.Model.Input("model", tooltip="The Wan text-to-video model the adapter was trained for."),
                io.Combo.Input("adapter", options=adapter_names(), tooltip="A file from models/vsr_adapters."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Strength of the adapter: 1 as trained, 0 the base model alone.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip=("The restorer, for any sampler. Take positive and negative from VSR Conditioning.")
                )
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, adapter: str, strength: float):
        """Clone the model and patch the clone."""
        path = adapter_path(adapter)
        patched = model.clone()
        with services.titled(_TITLE):
            apply_adapter(patched, path, load_adapter(path), strength)
        return io.NodeOutput(patched)

    @classmethod
    def validate_inputs(cls, adapter: str):
        """Say before the run where a missing adapter belongs."""
        try:
            adapter_path(adapter)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, adapter: str, strength: float, model: ModelPatcher | None = None):
        """Load again when the file changed; the host asks before there is a model."""
        path = adapter_path(adapter)
        return f"{path}:{services.newest_change(path)}:{strength}"


def adapter_names() -> list[str]:
    """List what the node offers."""
    return folder_paths.get_filename_list(services.ADAPTER_FOLDER)


def adapter_path(name: str) -> Path:
    """Find an adapter by the name in the list."""
    return services.listed_path(_TITLE, "adapter", {services.ADAPTER_FOLDER: adapter_names()}, name, "")


def apply_adapter(patcher: comfy.model_patcher.ModelPatcher, path: Path, adapter: Adapter, strength: float) -> None:
    """Patch a cloned MODEL; raises ValueError where the adapter was made for another base.

    Everything is a patch, an additional model or a wrapper of the patcher: the base's own weights are not written.
    """
    check_wan(patcher, _TITLE)
    _check_base(patcher, adapter)
    layers = _layer_patches(patcher, adapter)
    attach(patcher, _TITLE, adapter.info.rule)
    if adapter.info.licence:
        log_licence(f"{path.name}: licence {adapter.info.licence}.")
    if strength == 0:
        return
    base = patcher.model.diffusion_model.in_dim
    blank = adapter.lr_weight.new_zeros(adapter.width, base, *adapter.lr_weight.shape[2:])
    wide = torch.cat((blank, adapter.lr_weight), 1)
    patcher.add_patches({_PATCH_EMBEDDING: ("diff", (wide, {"pad_weight": True}))}, strength)
    patcher.remove_callbacks_with_key(CallbacksMP.ON_PRE_RUN, _KEY)
    patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, _KEY, _widen)
    patcher.add_patches(layers, strength)
    if adapter.level:
        _add_level(patcher, path, adapter, strength)


def _widen(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Make the loaded patch embedding as wide as its patches before a run.

    The host counts the channels for the clip by the weight as it lies there; one that it keeps off the GPU it patches
    at every call only.
    """
    conv, patches = patcher.model.diffusion_model.patch_embedding, patcher.patches[_PATCH_EMBEDDING]
    if comfy.lora.calculate_shape(patches, conv.weight, _PATCH_EMBEDDING) == conv.weight.shape:
        return
    patcher.patch_weight_to_device(_PATCH_EMBEDDING)
    late = comfy.model_patcher.LowVramPatch
    conv.weight_function = [function for function in conv.weight_function if not isinstance(function, late)]
    conv.comfy_patched_weights = True  # the host's own mark: nothing more to patch


def _check_base(patcher: comfy.model_patcher.ModelPatcher, adapter: Adapter) -> None:
    network, info = patcher.model.diffusion_model, adapter.info
    channels = patcher.model.latent_format.latent_channels
    if channels != info.latent_channels:
        raise ValueError(
            f"{_TITLE}: the model must have latents of {info.latent_channels} channels, as "
            f"{info.base} has; got {channels}. Load {info.base} before the adapter."
        )
    if network.in_dim != channels:
        raise ValueError(
            f"{_TITLE}: the model must be a text-to-video base with {channels} input channels; got "
            f"{network.in_dim}. Load a base without channels for images or a clip before the adapter; "
            "a whole restorer checkpoint needs Reference Tokens only."
        )
    if network.dim != adapter.width:
        raise ValueError(
            f"{_TITLE}: the model must be {adapter.width} channels wide, as the base of this adapter ({info.base}); "
            f"got {network.dim}. Load the size of the base that the adapter was trained for."
        )


def _layer_patches(patcher: comfy.model_patcher.ModelPatcher, adapter: Adapter) -> dict:
    """Read the changed layers as the host reads a LoRA; one that does not fit the base is a ValueError."""
    weights = comfy.lora.model_lora_keys_unet(patcher.model, {})
    shapes = {key: tuple(value.shape) for key, value in patcher.model.state_dict().items()}
    for module in adapter.modules:
        want, parts = shapes.get(weights.get(module)), adapter.layers
        down, up = (parts.get(f"{module}.lora_{part}.weight") for part in "AB")
        found = [(up.shape[0], down.shape[1])] if up is not None else []
        found += [tuple(parts[key].shape) for key in (f"{module}.diff",) if key in parts]
        if want is None or any(shape != want for shape in found):
            raise ValueError(
                f"{_TITLE}: the model must have {module!r} of {found[0] if found else 'any size'}; got "
                f"{want or 'no such layer'}. Load the base that the adapter was trained for ({adapter.info.base})."
            )
    return comfy.lora.load_lora(adapter.layers, {module: weights[module] for module in adapter.modules})


# Noise level


def _add_level(patcher: comfy.model_patcher.ModelPatcher, path: Path, adapter: Adapter, strength: float) -> None:
    """Let the noise level of VSR Conditioning join the time step, through the adapter's own small network."""
    network = _level_network(adapter)
    network.cached_patcher_init = (_reload_level, (path,))
    models = [*patcher.get_additional_models_with_key(_KEY), network]
    patcher.set_additional_models(_KEY, models)
    hook = _LevelHook(network.model, strength)
    hooks = OrderedDict(patcher.get_model_object(_TIME_HOOKS))
    hooks[id(hook)] = hook
    patcher.add_object_patch(_TIME_HOOKS, hooks)
    patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _KEY, hook.around_network)
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, _KEY, _warn_of_levels(path.name, adapter))


def _level_network(adapter: Adapter):
    first = adapter.level[LEVEL_KEYS[0]]
    ops = services.layers(comfy.ops.manual_cast, first.dtype, None)
    network = LevelEmbedding(first.shape[1], adapter.width, ops)
    network.load_state_dict(adapter.level)
    return services.wrap_network(network.eval().requires_grad_(False))


def _reload_level(path: Path, disable_dynamic: bool = False):
    """Build the network afresh from the file: the host asks for it on several GPUs."""
    return _level_network(load_adapter(path))


class _LevelHook:
    """Adds the embedded noise level of a call to what the time embedding gives.

    The host has no place for it, so this is a forward hook, and the dict of hooks an object patch: that comes and
    goes with the patcher even where the host forgets a patcher that it has loaded, which leaves an injection behind.
    """

    def __init__(self, embedding: LevelEmbedding, strength: float):
        # Weak: the base keeps this hook while it is loaded. An embedding that outlived its MODEL until the base is
        # unloaded would die while the host goes through its list of models, which breaks that list.
        self._embedding, self._strength = weakref.ref(embedding), strength
        self._now = {}  # by time embedding: the host calls copies of a model on several GPUs at once

    def __call__(self, module: torch.nn.Module, args: tuple, output: torch.Tensor):
        """Return the time embedding (b * n, width) with the level's (b, width) added."""
        level = self._now.get(id(module))
        if level is None:
            return output
        return output + level.to(output).repeat_interleave(output.shape[0] // level.shape[0], 0)

    def around_network(
        self,
        executor: WrapperExecutor,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        clip_fea: torch.Tensor | None,
        time_concat: torch.Tensor | None,
        options: dict,
        **kwargs,
    ):
        """Embed the level of a call before the network runs."""
        call = (x, timestep, context, clip_fea, time_concat, options)
        level, place = options.get(LEVEL_KEY), id(executor.class_obj.time_embedding)
        if level is None:
            return executor(*call, **kwargs)
        self._now[place] = self._strength * self._embedding()(level)
        try:
            return executor(*call, **kwargs)
        finally:
            del self._now[place]


def _warn_of_levels(name: str, adapter: Adapter):
    """Make the wrapper that says, once a run, that a noise level is none of the adapter's training."""
    low, high = adapter.info.level_min, adapter.info.level_max

    def prepare(executor: WrapperExecutor, model: ModelPatcher, noise_shape: list, conds: dict, *args, **kwargs):
        levels = {cond.get(LEVEL_KEY) for group in conds.values() for cond in group} - {None}
        for level in sorted(level for level in levels if not low <= level <= high):
            text = "%s: noise_level %g is outside the %g to %g that %s was trained with"
            logging.getLogger(__name__).warning(text, _TITLE, level, low, high, name)
        return executor(model, noise_shape, conds, *args, **kwargs)

    return prepare
