"""Makes the host's plain Wan models take the references and the noise level of VSR Conditioning.

1. `attach` patches a cloned MODEL: its conditions, its positions, and two wrappers.
2. When sampling starts, references become conditions with a start each, and noise is scaled to the network's latents.
3. At every call they are appended to the host's own in-context latents (`_append_references`).

References travel as the host's in-context latents (WanModel, `context_latents`): their tokens follow the target's and
are dropped at the output. The host lets every stream begin at time 0 and tells streams apart by a rotation; the paper
gives each a time range of its own, so `rope_encode` is made to take our starts. All changes are object patches and
wrappers of the patcher: with it they come and go.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence

import comfy.conds
import comfy.ldm.wan.model
import torch
import torch.nn.functional as F
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from ...models.unimmvsr.references import PAPER_RULE, StartRule
from .keys import LEVEL_KEY, LR_KEY, LR_NOISE_KEY, NOISE_STEPS, STARTS_KEY
from .model import check_lr, reference_cells, reference_conds
from .services import SAMPLER

_KEY = "vsr_references"  # of our wrappers
_RULE_KEY = "vsr_reference_rule"  # attachment of a patcher: the StartRule its weights were trained with
_ROPE_NEEDS = {"t_start", "transformer_options", "source_id"}


def attach(patcher: ModelPatcher, title: str, rule: StartRule | None = None) -> None:
    """Make a cloned MODEL take our references; twice is as once.

    `rule` is where the model's training began references; the paper's rule without. Raises ValueError, in the name of
    the node `title`, for a model that cannot take references.
    """
    if rule is not None:
        patcher.set_attachments(_RULE_KEY, rule)
    if patcher.get_wrappers(WrappersMP.DIFFUSION_MODEL, _KEY):
        return
    check_wan(patcher, title)
    get = patcher.get_model_object
    counted = (*get("memory_usage_factor_conds"), "references")
    patcher.add_object_patch("memory_usage_factor_conds", counted)
    patcher.add_object_patch("extra_conds", _own_conditions(get("extra_conds"), patcher.model))
    rope_encode = "diffusion_model.rope_encode"
    patcher.add_object_patch(rope_encode, _own_starts(get(rope_encode)))
    patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _KEY, _append_references)
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, _KEY, _count_references)


def is_wan(patcher: ModelPatcher) -> bool:
    """Tell whether a MODEL is the host's plain Wan network, without a forward pass of its own."""
    wan, network = comfy.ldm.wan.model.WanModel, getattr(patcher.model, "diffusion_model", None)
    same = ("forward", "_forward", "forward_orig", "rope_encode")
    return isinstance(network, wan) and all(getattr(type(network), n) is getattr(wan, n) for n in same)


def check_wan(patcher: ModelPatcher, title: str) -> None:
    """Raise where a MODEL is not the host's plain Wan network, as the host had it when this was written."""
    if not is_wan(patcher):
        raise ValueError(
            f"{title}: the model must be a plain Wan 2.1 or 2.2 model (text-to-video, "
            f"image-to-video); got {type(patcher.model).__name__}, which takes no reference tokens. "
            "Use a plain Wan model, or remove this node and the references."
        )
    found = set(inspect.signature(comfy.ldm.wan.model.WanModel.rope_encode).parameters)
    if not found >= _ROPE_NEEDS:
        raise ValueError(
            f"{title}: this ComfyUI must give every reference of a Wan model its own positions; got a rope_encode "
            f"without {', '.join(sorted(_ROPE_NEEDS - found))}. Use the tested ComfyUI (0.25 to 0.30), or a newer pack."
        )


# What the conditioning becomes


def _own_conditions(original: Callable, model: BaseModel) -> Callable:
    @functools.wraps(original)
    def extra_conds(**values):
        """Add references, their starts and the noise level to the model's own conditions."""
        if values.get("cross_attn") is None:
            raise ValueError(
                f"{SAMPLER}: {type(model).__name__} needs a prompt in positive and negative; got "
                "none. Link CLIP Text Encode to VSR Conditioning; its text may be empty."
            )
        out = original(**_noised(model, values))
        rule = model.current_patcher.get_attachment(_RULE_KEY) if model.current_patcher else None
        out.update(reference_conds(model, values, _target_frames(model, values), rule or PAPER_RULE))
        if LEVEL_KEY in values:
            # int: the host casts floats to the weights' dtype
            level = torch.tensor([round(NOISE_STEPS * values[LEVEL_KEY])])
            out["noise_level"] = comfy.conds.CONDRegular(level)
        return out

    return extra_conds


def _noised(model: BaseModel, values: dict) -> dict:
    """Check the LR latent of VSR Conditioning and scale its noise to the network's latents.

    VSR Conditioning mixes (1 - level) lr + level noise among the VAE's latents. Training mixes among the network's,
    which are normalised by the latent format P: (1 - level) P(lr) + level noise. P is affine for each channel, so the
    VAE's latent that the host turns into that is (1 - level) lr + level P^-1(noise).
    """
    lr = values.get(LR_KEY)
    if lr is None or LEVEL_KEY not in values:
        return values
    name, channels = type(model).__name__, model.latent_format.latent_channels
    check_lr(lr, values["noise"], name, channels, "low-resolution latent")
    noise = values.get(LR_NOISE_KEY)
    if noise is None:
        return values
    change = model.process_latent_out(noise.to(lr)) - noise.to(lr)
    return {**values, LR_KEY: lr + values[LEVEL_KEY] * change, LR_NOISE_KEY: None}


def _target_frames(model: BaseModel, values: dict) -> int:
    """Count the time indices that the target has, with what the host itself puts on the time axis."""
    frames, own = values["noise"].shape[2], values.get("time_dim_concat")
    if own is not None:
        frames += own.shape[2]
    if model.diffusion_model.ref_conv is not None and values.get("reference_latents") is not None:
        frames += 1
    return frames


# What happens at every call of the network


def _append_references(
    executor: WrapperExecutor,
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    clip_fea: torch.Tensor | None = None,
    time_dim_concat: torch.Tensor | None = None,
    transformer_options: dict | None = None,
    references: Sequence[torch.Tensor] = (),
    reference_starts: Sequence[int] = (),
    noise_level: torch.Tensor | None = None,
    context_latents: Sequence[torch.Tensor] | None = None,
    **kwargs,
):
    """Put references behind the host's own in-context latents, widened by zeros to the channels of x."""
    options, own = transformer_options or {}, list(context_latents or ())
    options[LEVEL_KEY] = noise_level
    options[STARTS_KEY] = {len(own) + number: start for number, start in enumerate(reference_starts, 1)}
    streams = [F.pad(each, (0,) * 7 + (x.shape[1] - each.shape[1],)) for each in (*own, *references)]
    if streams:
        kwargs["context_latents"] = streams
    return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)


def _own_starts(original: Callable) -> Callable:
    @functools.wraps(original)
    def rope_encode(*args, transformer_options: dict | None = None, source_id: int = 0, **kwargs):
        """Give a reference of ours positions from its own start on, and anything else the host's."""
        options = transformer_options or {}
        start = options.get(STARTS_KEY, {}).get(source_id)
        if start is not None:
            kwargs["t_start"], source_id = start, 0
        return original(*args, transformer_options=options, source_id=source_id, **kwargs)

    return rope_encode


def _count_references(executor: WrapperExecutor, model: ModelPatcher, noise_shape: list, conds: dict, *args, **kwargs):
    """Tell the memory estimate about references, after windows and tiles have made the latent smaller."""
    cells = max((reference_cells(cond) for group in conds.values() for cond in group), default=0)
    if cells and len(noise_shape) == 5:
        executor.original = _with_more_frames(executor.original, cells)
    return executor(model, noise_shape, conds, *args, **kwargs)


def _with_more_frames(prepare: Callable, cells: int) -> Callable:
    def enlarged(model: ModelPatcher, noise_shape: list, *args, **kwargs):
        extra = math.ceil(cells / math.prod(noise_shape[3:]))
        shape = [*noise_shape[:2], noise_shape[2] + extra, *noise_shape[3:]]
        return prepare(model, shape, *args, **kwargs)

    return enlarged
