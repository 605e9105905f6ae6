"""Puts one of our networks, built through the host's own classes, behind a patcher: a native MODEL."""

import logging
from collections.abc import Mapping

import comfy.model_management as management
import comfy.model_patcher
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ..models.checkpoints import CheckpointError
from . import host, run_state
from .keys import LR_KEY

_SAMPLER = "KSampler / SamplerCustomAdvanced"
_licences_said: set[str] = set()


class HostCalls(torch.nn.Module):
    """The host's calling convention for a network: wrappers around it, and progress of its blocks."""

    def forward(self, x, timestep, context=None, transformer_options=None, **kwargs):
        """Predict through the wrappers of the host and of other nodes."""
        options = transformer_options or {}
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._inside, self, wrappers)
        return executor.execute(x, timestep, context, options, **kwargs)

    def _inside(self, x, timestep, context, transformer_options, **conditions):
        run = transformer_options.get(run_state.PROGRESS_KEY)
        progress = run.blocks(transformer_options) if run is not None else None
        return self.predict(x, timestep, context, progress, **conditions)

    def predict(self, x, timestep, context, progress, **conditions):
        """Give what the network predicts for x, which holds the LR clip on its last channels."""
        raise NotImplementedError


def say_licence(text: str) -> None:
    """Log the licence of weights, once."""
    if text not in _licences_said:
        _licences_said.add(text)
        logging.getLogger(__name__).info(text)


def does_not_fit(model: str, name: str, error: Exception) -> CheckpointError:
    """Make the error for entries that the networks of `model` do not take."""
    reason = " ".join(str(error).split())[:300].rstrip(".")
    return CheckpointError(
        f"the entries must fit the {model} architecture; got {name}: {reason}. The file is damaged or of another "
        "version: download it again."
    )


def lr_condition(values: Mapping, model: str, channels: int, what: str) -> torch.Tensor:
    """Take the LR clip out of what concat_cond is given: it must be there, of `channels`, on the latent's grid."""
    noise, lr = values["noise"], values.get(LR_KEY)
    if lr is None:
        raise ValueError(
            f"{_SAMPLER}: a restorer needs the low-resolution clip in positive and negative; got a "
            "conditioning without it. Take both from the VSR Conditioning node."
        )
    check_lr(lr, noise, model, channels, what)
    return lr.to(values["device"])


def check_lr(lr: torch.Tensor, noise: torch.Tensor, model: str, channels: int, what: str) -> None:
    """Raise where an LR clip has other than `channels`, or is not on the grid of the sampled latent."""
    if lr.shape[1] != channels:
        raise ValueError(
            f"{_SAMPLER}: {model} needs {what} ({channels} channels) in its conditioning; got a latent of "
            f"{lr.shape[1]} channels. Give Cascade Input the VAE of the sampled model."
        )
    if lr.shape[2:] != noise.shape[2:]:
        raise ValueError(
            f"{_SAMPLER}: the sampled latent must have the grid of the {what} {tuple(lr.shape[2:])}; got "
            f"{tuple(noise.shape[2:])}. Sample the latent that VSR Conditioning gives."
        )


def check_text_width(conds: Mapping, width: int, remedy: str) -> None:
    """Raise where a text among the model's conditions is not as wide as the network takes it."""
    text = conds.get("c_crossattn")
    if text is not None and text.cond.shape[-1] != width:
        raise ValueError(
            f"{_SAMPLER}: text must be {width} numbers wide for this model; got {text.cond.shape[-1]}. {remedy}."
        )


def load_native(settings, state: dict[str, torch.Tensor], precision: str, disable_dynamic: bool = False):
    """Build the MODEL that `settings` (a supported_models_base.BASE) describes, with the weights of `state`."""
    device, offload = management.get_torch_device(), management.unet_offload_device()
    storage, compute = host.pick_dtypes(precision, device)
    settings.set_inference_dtype(storage, compute)
    model = settings.get_model(state)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=device, offload_device=offload)
    state = {key: value.to(storage) for key, value in state.items()}
    model.diffusion_model.load_state_dict(state, strict=True, assign=patcher.is_dynamic())
    run_state.attach(patcher)
    return patcher
