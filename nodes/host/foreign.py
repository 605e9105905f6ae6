"""What other nodes put into a run of one of our networks, and which of it cannot be right there.

docs/accelerators.md lists every node of the host that patches a model. When a run starts,

1. `check_foreign` refuses what would make it wrong: another kind of prediction than the weights were trained for,
   a cache of whole steps where steps change what is cached, functions that need what our networks do not have;
2. it names in the log what has no effect: patches of the blocks of the host's own networks.

Two nodes of the host fail before that, where they read facts of a network; `answer_foreign` lets them fail with a line
that says why.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import comfy.model_sampling
from comfy.model_patcher import ModelPatcher

from .keys import CACHE_KEY
from .services import SAMPLER

_OBJECT = "model_sampling"
# Nodes of the host whose functions go wrong in our networks: {class: why}
_WRONG = {
    "SelfAttentionGuidance": "it reads the attention of the host's own networks",
    "RenormCFG": "it reads the channels of the host's own networks",
    "VideoLinearCFGGuidance": "it takes frames for a batch, and would set cfg to its min_cfg in all of them",
    "VideoTriangleCFGGuidance": "it takes frames for a batch, and would set cfg to its min_cfg in all of them",
}
# Those that predict once more at every step, with patches of blocks that our networks do not have
_IDLE = ("PerturbedAttentionGuidance", "SkipLayerGuidanceDiT", "SkipLayerGuidanceDiTSimple")
_PATCHED = ("patches", "patches_replace", "rope_options")  # in transformer options: what acts on the host's blocks


def check_foreign(patcher: ModelPatcher, model_options: Mapping, fixed: bool) -> None:
    """Raise a ValueError for what cannot be right in a run; log what has no effect in it.

    `fixed`: the model predicts v or noise on the schedule that it was trained on; else it is a flow model.
    """
    name = patcher.model.system.name
    refuse_replaced(SAMPLER, patcher, fixed)
    options = model_options.get("transformer_options", {})
    if fixed and getattr(options.get(CACHE_KEY), "name", "") == "LazyCache":
        raise ValueError(
            f"{SAMPLER}: LazyCache is right for flow models only; got {name}, whose noise does not keep its strength "
            "from step to step. Use EasyCache."
        )
    found = list(_functions(model_options))
    for owner in found:
        if owner in _WRONG:
            raise ValueError(f"{SAMPLER}: {owner} does not work with {name}: {_WRONG[owner]}. Take it out.")
    idle = [owner for owner in found if owner in _IDLE]
    idle += [owner for key in _PATCHED if options.get(key) for owner in _owners(options[key], key)]
    if idle:
        logging.getLogger(__name__).warning(
            "Sampling: no effect on %s: %s. Such patches are for the host's own networks; some cost a prediction more "
            "at every step.",
            name,
            ", ".join(dict.fromkeys(idle)),
        )


def refuse_replaced(title: str, patcher: ModelPatcher, fixed: bool) -> None:
    """Raise a ValueError where a node has replaced a model's sampling by one that its weights were not trained for."""
    sampling = patcher.object_patches.get(_OBJECT)
    if sampling is None or not fixed and isinstance(sampling, comfy.model_sampling.CONST):
        return
    kinds = [kind.__name__ for kind in type(sampling).__mro__ if kind.__module__ == comfy.model_sampling.__name__]
    rule = "the schedule it was trained on" if fixed else "a flow schedule (ModelSamplingSD3 may shift it)"
    raise ValueError(
        f"{title}: {patcher.model.system.name} must be sampled with {rule}, because its weights predict nothing else; "
        f"got another model sampling ({' and '.join(kinds)}). Take the ModelSampling node out."
    )


def answer_foreign(model: Any, fixed: bool) -> None:
    """Let nodes that ask a built model of ours for what it does not have fail with a line that says so."""
    model.model_config.unet_config = _Facts(model.model_config.unet_config)
    if fixed:
        kind = type(model.model_sampling)
        model.model_sampling.__class__ = type(kind.__name__, (_FixedSampling, kind), {})


class _MissingFact(KeyError):
    __str__ = Exception.__str__  # that of KeyError shows quotes around the text


class _Facts(dict):
    """Say in plain words that a network is none of the host's UNets."""

    def __missing__(self, key: str):
        raise _MissingFact(
            f"this restorer is none of the host's own UNets and has no {key!r}: the node that asks for it (FreeU, "
            "FreeU_V2) does not work with it. Take it out."
        )


class _FixedSampling:
    """Say in plain words that a schedule is fixed."""

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name not in ("shift", "multiplier", "set_parameters", "set_noise_scale"):
                raise
            raise AttributeError(
                f"the schedule of this restorer is fixed and has no {name!r}: the node that asks for it "
                "(ModelNoiseScale) does not work with it. Take it out."
            ) from error


def _functions(options: Mapping) -> Iterator[str]:
    """Yield the classes of the nodes whose functions the guider will call."""
    for key in ("sampler_pre_cfg_function", "sampler_post_cfg_function"):
        yield from map(_owner, options.get(key, ()))
    for key in ("sampler_cfg_function", "sampler_calc_cond_batch_function", "model_function_wrapper"):
        if key in options:
            yield _owner(options[key])


def _owners(value: Any, key: str) -> Iterator[str]:
    """Yield the classes of the nodes whose functions lie anywhere in patches; without any, the patches' own name."""
    if isinstance(value, Mapping) and key != "rope_options":
        for inner, part in value.items():
            yield from _owners(part, str(inner))
    elif isinstance(value, (list, tuple)) and value:
        for part in value:
            yield from _owners(part, key)
    elif value:
        yield _owner(value) if callable(value) else key


def _owner(function: Any) -> str:
    """Name the class that a node's inner function comes from, else the function."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return name.split(".")[0]
