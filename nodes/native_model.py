"""Puts one of our networks, built through the host's own classes, behind a patcher: a native MODEL."""

import comfy.model_management as management
import comfy.model_patcher
import torch

from . import host, run_state


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
