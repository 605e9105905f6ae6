"""One of our networks as the host's native MODEL.

1. A system builds its `RestorerModel`, the host's BaseModel around a network; `as_native` puts a patcher around it and
   fills in the weights.
2. When a run starts, `_outer_sample` refuses schedules that no restorer can be sampled with, and starts its progress.
3. The host turns conditioning into what the network takes: `RestorerModel.concat_cond` gives the LR clip,
   `reference_conds` the references, each with a range of time of its own.
4. At every call the host calls `RestorerNetwork.forward`, which goes through the wrappers of other nodes to `predict`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_management as management
import comfy.model_patcher
import comfy.model_sampling
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...models.schedules import SAME
from ...models.unimmvsr.references import References, StartRule
from . import services
from .deep import DeepMemory
from .foreign import answer_foreign, check_foreign
from .keys import DEEP_KEY, LR_KEY, PART_KEY, PROGRESS_KEY, REFERENCES_KEY, SAVING_KEY, UNEDITED_KEY
from .progress import SamplingProgress
from .quantised import QUANTISED, quantised_state, stored
from .services import SAMPLER

_FULL = 0.98  # a start sigma from here on counts as full noise (schedulers end within 0.2 % of 1)
_UNTOUCHED = 0.01  # a start sigma below this leaves the start latent as it is
# On ComfyUI 0.30 one step of uni_pc ends 3.4 away from the prediction, of dpm_fast and dpm_adaptive 4.4 (from
# noise of unit variance). The stochastic ones add noise between steps, and there is no between.
_ONE_STEP_BREAKS = ("unipc", "dpm_fast", "dpm_adaptive", "sde", "seeds", "sa_solver")
_STOPS_EARLY = ("dpm_fast", "dpm_adaptive")  # end at the last sigma but one, and leave its noise in the picture
_licences_logged: set[str] = set()


# The network and the model around it


class RestorerNetwork(torch.nn.Module):
    """The host's calling convention for a network: wrappers around it, and progress of its blocks."""

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor | None = None,
        transformer_options: dict | None = None,
        **conditions,
    ):
        """Predict through the wrappers of the host and of other nodes."""
        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self.predict, self, wrappers)
        return executor.execute(x, timestep, context, options, **conditions)

    def predict(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor | None,
        transformer_options: dict,
        **conditions,
    ):
        """Give what the network predicts for x, which holds the LR clip on its last channels."""
        raise NotImplementedError


def run_of(options: Mapping) -> SamplingProgress | None:
    """Give the watched run that a call of a network is of; None inside of a compiled network, which it would cut."""
    return None if torch.compiler.is_compiling() else options.get(PROGRESS_KEY)


def block_progress(
    options: Mapping, x: torch.Tensor, references: Sequence[torch.Tensor] = ()
) -> Callable[[int, int], None] | None:
    """Count a call of a network, and give its `progress(done, total)` callback; None where no run is watched.

    Calls that a cache answers do not come here.
    """
    run = run_of(options)
    if run is None:
        return None
    run.count(x, references)
    return run.blocks(options)


@dataclass(frozen=True)
class Spacing:
    """How the published program of a model spaces its steps.

    `times(steps, trained)` gives the descending times of a run over the first `trained` of the schedule; `ends_clean`
    says that a clean sample follows the last step, else that of the schedule's first time.
    """

    times: Callable[[int, int], list[int]]
    ends_clean: bool


class RestorerModel(comfy.model_base.BaseModel):
    """The host's model around a restoring network."""

    system: Any = None  # the System (nodes/systems/base.py) that loaded it
    lr_channels: int  # of the LR clip that joins the noisy latent
    lr_name: str  # what that clip is, in errors
    spacing: Spacing | None = None  # None: a flow model, sampled with any spacing

    def concat_cond(self, **values):
        """Give the LR clip (b, lr_channels, t, h, w) that joins the noisy latent on the channels, scaled as it is."""
        lr = values.get(LR_KEY)
        if lr is None:
            raise ValueError(
                f"{SAMPLER}: a restorer needs the low-resolution clip in positive and negative; got a conditioning "
                "without it. Take both from the VSR Conditioning node."
            )
        check_lr(lr, values["noise"], self.system.name, self.lr_channels, self.lr_name)
        lr = lr.to(values["device"])
        return self.process_latent_in(lr) if self.system.lr_is_latent else lr


def system_of(patcher: comfy.model_patcher.ModelPatcher) -> Any:
    """Give the System that a MODEL is of; None for those of the host and of other packs."""
    return patcher.model.system if isinstance(patcher.model, RestorerModel) else None


def check_lr(lr: torch.Tensor, noise: torch.Tensor, model: str, channels: int, name: str) -> None:
    """Raise where an LR clip has other than `channels`, or is not on the grid of the sampled latent."""
    if lr.shape[1] != channels:
        raise ValueError(
            f"{SAMPLER}: {model} needs {name} ({channels} channels) in its conditioning; got a latent of "
            f"{lr.shape[1]} channels. Give Cascade Input the VAE of the sampled model."
        )
    if lr.shape[2:] != noise.shape[2:]:
        raise ValueError(
            f"{SAMPLER}: the sampled latent must have the grid of the {name} {tuple(lr.shape[2:])}; got "
            f"{tuple(noise.shape[2:])}. Sample the latent that VSR Conditioning gives."
        )


def check_text_width(conds: Mapping, width: int, remedy: str) -> None:
    """Raise where a text among the model's conditions is not as wide as the network takes it."""
    text = conds.get("c_crossattn")
    if text is not None and text.cond.shape[-1] != width:
        raise ValueError(
            f"{SAMPLER}: text must be {width} numbers wide for this model; got {text.cond.shape[-1]}. {remedy}."
        )


def set_precision(
    settings: comfy.supported_models_base.BASE, precision: str, state: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Tell the settings of a model that is going to be built in which number formats it is stored and computed.

    `state`: its entries, of which some may be quantised.
    """
    storage, computed = services.pick_dtypes(precision, management.get_torch_device())
    quantised = any(key.endswith(QUANTISED) for key in state or ())
    settings.set_inference_dtype(storage, computed or storage if quantised else computed)
    settings.quant_config = {"mixed_ops": True} if quantised else None


def host_entries(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Give the entries of a network as the host's layers take them: quantised ones need more than plain ones."""
    return quantised_state(state) if any(value.itemsize == 1 for value in state.values()) else state


def as_native(
    model: RestorerModel, state: Mapping[str, torch.Tensor], disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """Put a built model behind a patcher, fill in the weights of `state`, and guard its runs."""
    device, offload = management.get_torch_device(), management.unet_offload_device()
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=device, offload_device=offload)
    storage = model.model_config.unet_config["dtype"]
    if model.model_config.quant_config:
        state = stored(state, storage)
    else:
        state = {key: value.to(storage) for key, value in state.items()}
    model.diffusion_model.load_state_dict(state, strict=True, assign=patcher.is_dynamic())
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "vsr_run", _outer_sample)
    answer_foreign(model, model.spacing is not None)
    return patcher


def log_licence(text: str) -> None:
    """Log the licence of weights, once."""
    if text not in _licences_logged:
        _licences_logged.add(text)
        logging.getLogger(__name__).info(text)


# References and levels among the conditions of a model


class Unanswered(comfy.conds.CONDConstant):
    """Condition that raises its text when it is used.

    It lies in a conditioning under the key of a condition that must not be lost in silence: the host lets what a
    model gives under the same key win, so it is used by models only that do not know the key.
    """

    def process_cond(self, batch_size: int, **kwargs):
        """Raise: the sampled model has put nothing in this place."""
        raise ValueError(self.cond)


def unanswered_references(count: int) -> Unanswered:
    """Make what VSR Conditioning puts where a model's references belong."""
    return Unanswered(
        f"{SAMPLER}: references need a model that takes them; got {count} with a model that would ignore them. Put "
        "Reference Tokens or Load VSR Adapter after the model (plain Wan 2.1 and 2.2), use the built-in model of Load "
        "Video Restorer, or unlink Reference Set from VSR Conditioning."
    )


def unanswered_level(level: float) -> Unanswered:
    """Make what VSR Conditioning puts where a model's noise level belongs."""
    return Unanswered(
        f"{SAMPLER}: noise in the low-resolution clip needs a model that knows of it; got noise_level "
        f"{level:g} with one that does not. Put Load VSR Adapter after the model (after a checkpoint "
        "with channels for the clip: Reference Tokens), or set noise_level to 0 in VSR Conditioning."
    )


def reference_cells(values: Mapping) -> int:
    """Count the latent cells of the references in a raw conditioning."""
    references = values.get(REFERENCES_KEY)
    return sum(latent[0, 0].numel() for latent in references.latents) if references else 0


def reference_conds(model: comfy.model_base.BaseModel, values: Mapping, frames: int, rule: StartRule) -> dict:
    """Give a BaseModel's conditions "references" and "reference_starts"; none without references.

    `values` are those of extra_conds, `frames` latent frames are sampled. With temporal windows the target of every
    window has the indices 0 .. length-1, so the starts follow from the window's length and are the same in all of
    them; every window sees all references whole.
    """
    references: References | None = values.get(REFERENCES_KEY)
    if not references:
        return {}
    channels, latents = model.latent_format.latent_channels, []
    for number, latent in enumerate(references.latents, 1):
        if latent.shape[1] != channels:
            raise ValueError(
                f"{SAMPLER}: reference {number} must be a latent of {channels} channels for {type(model).__name__}; "
                f"got {latent.shape[1]}. Give Reference Set the VAE of the sampled model."
            )
        latents.append(model.process_latent_in(latent).to(values["device"]))
    with services.titled(services.REFERENCE_SET):
        starts = references.starts(frames_at_once(model, frames), rule)
    return {"references": comfy.conds.CONDList(latents), "reference_starts": comfy.conds.CONDConstant(starts)}


def frames_at_once(model: comfy.model_base.BaseModel, frames: int) -> int:
    """Say how many of a clip's latent frames a model being sampled sees together: a temporal window's, or all."""
    options = getattr(model.current_patcher, "model_options", {})
    handler = options.get("context_handler")
    length = getattr(handler, "context_length", frames)
    if frames <= length:
        return frames
    return length + bool(getattr(handler, "causal_window_fix", False))  # the frame before each later window


# What guards a run


def _outer_sample(
    executor: WrapperExecutor,
    noise: torch.Tensor,
    latent_image: torch.Tensor,
    sampler: object,
    sigmas: torch.Tensor,
    *args,
    **kwargs,
):
    """Refuse what breaks the run, and start its progress."""
    patcher = executor.class_obj.model_patcher
    check_foreign(patcher, executor.class_obj.model_options, patcher.model.spacing is not None)
    check_sigmas(sigmas)
    sampling = patcher.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.CONST):
        check_flow_run(sampler, sigmas, latent_image)
    options = executor.class_obj.model_options.setdefault("transformer_options", {})
    run = options[PROGRESS_KEY] = SamplingProgress(len(sigmas) - 1)
    if SAVING_KEY in options and options[SAVING_KEY].interval > 1:
        options[DEEP_KEY], run.partial = DeepMemory(options[SAVING_KEY].interval), True
    result = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    run.end(patcher)
    return result


def check_sigmas(sigmas: torch.Tensor) -> None:
    """Raise a ValueError for sigmas that no model can be sampled with."""
    steps, shown = len(sigmas) - 1, [round(float(sigma), 4) for sigma in sigmas[:4]]
    if steps < 1:
        raise ValueError(
            f"{SAMPLER}: sampling needs at least one step; got sigmas {shown}. Set steps to 1, denoise to 1."
        )
    if not torch.isfinite(sigmas).all():
        raise ValueError(
            f"{SAMPLER}: the scheduler must give finite sigmas; got {shown} for {steps} step(s) (kl_optimal does this "
            "at one step). Choose scheduler simple."
        )
    if sigmas.min() < 0 or sigmas[0] <= 0:
        raise ValueError(
            f"{SAMPLER}: sigmas must start above 0 and not fall below it; got {shown} for {steps} step(s). Choose "
            "scheduler simple, or Refine Sigmas."
        )


def check_flow_run(sampler: object, sigmas: torch.Tensor, latent_image: torch.Tensor) -> None:
    """Raise a ValueError for sampler, sigmas and start latent that break a flow model, or leave it untouched."""
    steps, shown = len(sigmas) - 1, [round(float(sigma), 4) for sigma in sigmas[:4]]
    if sigmas.max() > SAME or sigmas[0] < _UNTOUCHED:
        raise ValueError(
            f"{SAMPLER}: sigmas of this flow model must start between {_UNTOUCHED} and 1 and not fall below 0; got "
            f"{shown} for {steps} step(s) (ddim_uniform does this at one step). Choose scheduler simple, or Refine "
            "Sigmas."
        )
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
    stops_early = any(part in name for part in _STOPS_EARLY) and sigmas[-2] > _UNTOUCHED
    if stops_early or steps == 1 and any(part in name for part in _ONE_STEP_BREAKS):
        raise ValueError(
            f"{SAMPLER}: the sampler must end at the model's prediction; got {name.removeprefix('sample_')}, and this "
            f"sampler cannot finish in {steps} step(s). Choose sampler euler."
        )
    if sigmas[0] < _FULL and torch.count_nonzero(latent_image) == 0:
        raise ValueError(
            f"{SAMPLER}: an empty latent must start at full noise (sigma 1); got a start sigma of {shown[0]} for "
            f"{steps} step(s) (scheduler ddim_uniform, or denoise below 1). Choose scheduler simple and denoise 1, or "
            "sample from Cascade Input's lr_latent."
        )


# Predictions that nodes edit


def keep_unedited(options: Mapping, clean: torch.Tensor) -> None:
    """Store what the network predicted, for the sampler's noise estimate, before a node edits it.

    `options` are transformer options; only the first node to edit a prediction stores it.
    """
    kept = options.get(UNEDITED_KEY)
    if kept is not None and kept["x0"] is None:
        kept["x0"] = clean


def clip_prediction(limit: float) -> Callable[[dict], torch.Tensor]:
    """Make the post-CFG function that clips predictions, as schedulers with clip_sample do."""

    def clip(args: dict) -> torch.Tensor:
        keep_unedited(args["model_options"].get("transformer_options", {}), args["denoised"])
        return args["denoised"].clamp(-limit, limit)

    return clip


# Progress


def part_of_step(options: Mapping, index: int, count: int, together: int = 1) -> dict:
    """Copy model_options for the sub-calls from `index` of `count`, `together` in one, which are a part of the step."""
    inner = dict(options.get("transformer_options", {}))
    start, length = inner.get(PART_KEY, (0.0, 1.0))
    inner[PART_KEY] = (start + length * index / count, length * together / count)
    return {**options, "transformer_options": inner}
