"""The UniMMVSR transformer as the host's native MODEL.

The sign of the velocity is converted here and nowhere else: the core predicts z_HR - eps as the paper does,
the host's flow models predict eps - z_HR.
"""

from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as management
import comfy.supported_models_base
import torch

from ..models.checkpoints import load_state, strip_prefix
from ..models.unimmvsr.config import SPACE, TIME, DiTConfig, dit_config, vae_config
from ..models.unimmvsr.dit import UniMMVSRDiT
from ..models.unimmvsr.rope import REFERENCE_RULE
from . import host
from .keys import LEVEL_KEY
from .native_model import HostCalls, does_not_fit, load_native, lr_condition
from .reference_conds import reference_cells, reference_conds
from .video_vae import RestorerVAE, preview_factors


class UniMMVSRFormat(comfy.latent_formats.LatentFormat):
    """Latents of the causal video VAE: 16 channels at unit variance, 8 px and 4 frames per cell."""

    latent_channels = 16
    latent_dimensions = 3
    spacial_downscale_ratio = SPACE
    temporal_downscale_ratio = TIME


class UniMMVSRConfig(comfy.supported_models_base.BASE):
    """How the host builds and samples the network: flow matching without shift, time in 0..1."""

    unet_extra_config = {}
    latent_format = UniMMVSRFormat
    sampling_settings = {"shift": 1.0, "multiplier": 1.0}
    # Measured: 5 KB of activations per latent cell in fp32. The host multiplies by 0.04 or 0.15 MiB per cell.
    memory_usage_factor = 0.12

    def model_type(self, state_dict, prefix=""):
        """Say that the network predicts a flow."""
        return comfy.model_base.ModelType.FLOW

    def get_model(self, state_dict, prefix="", device=None):
        """Build the host's model around the network, without weights."""
        return UniMMVSRModel(self, device=device)


class HostDiT(HostCalls, UniMMVSRDiT):
    """The transformer with the host's calling convention: layers, wrappers, progress and sign."""

    def __init__(self, config: DiTConfig, dtype=None, device=None, operations=None):
        super().__init__(config, ops=host.layers(operations, dtype, device), attention=host.attention)
        self.dtype = dtype
        self.to(device=device, dtype=dtype)

    def predict(
        self, x, timestep, context, progress, noise_level=None, references=(), reference_starts=None, **_
    ):
        """Return eps - z_HR for `x` = noisy latent and LR latent on 2c channels."""
        noisy, lr = x.chunk(2, dim=1)
        level = torch.zeros_like(timestep) if noise_level is None else noise_level
        return -UniMMVSRDiT.forward(
            self, noisy, timestep, lr, level, references, context, progress, reference_starts
        )


class UniMMVSRModel(comfy.model_base.BaseModel):
    """Turns conditioning into what the network takes, so that tiles, windows and batching see it too."""

    vsr_references = True  # needs no Reference Tokens

    def __init__(self, model_config, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=HostDiT)
        self.memory_usage_factor_conds = ("references",)

    def process_timestep(self, timestep, **kwargs):
        """Keep time in 0..1 even where a sampling node set a multiplier of its own."""
        return timestep / getattr(self.model_sampling, "multiplier", 1.0)

    def concat_cond(self, **kwargs):
        """Give the LR latent (b, 16, T, h, w) that joins the noisy one on the channels."""
        lr = lr_condition(kwargs, "UniMMVSR", self.latent_format.latent_channels, "low-resolution latent")
        return self.process_latent_in(lr)

    def extra_conds(self, **kwargs):
        """Add the noise level and the references; text goes in only where the weights have a place for it."""
        out = super().extra_conds(**kwargs)
        text = out.get("c_crossattn")
        if text is not None and text.cond.shape[-1] != self.diffusion_model.config.text_width:
            del out["c_crossattn"]
        out["noise_level"] = comfy.conds.CONDRegular(torch.tensor([float(kwargs.get(LEVEL_KEY, 0.0))]))
        out.update(reference_conds(self, kwargs, kwargs["noise"].shape[2], REFERENCE_RULE))
        return out

    def extra_conds_shapes(self, **kwargs):
        """Tell the memory estimate how many reference cells there are before sampling starts."""
        cells = reference_cells(kwargs)
        return {"references": [1, self.latent_format.latent_channels, cells]} if cells else {}


def load_unimmvsr(state: dict[str, torch.Tensor], path: Path, precision: str):
    """Build (MODEL, VAE) from the entries of a file; entries that do not fit are a CheckpointError."""
    vae_state, dit_state = strip_prefix(state, "vae."), strip_prefix(state, "dit.")
    try:
        vae = RestorerVAE(vae_config(vae_state), vae_state, precision)
        factors, bias = preview_factors(vae_config(vae_state), vae_state)
        model = _load_model(dit_state, precision)
    except (
        KeyError,
        IndexError,
        RuntimeError,
        ZeroDivisionError,
    ) as error:  # load_state_dict raises RuntimeError
        if management.is_oom(error):
            raise
        raise does_not_fit("UniMMVSR", path.name, error) from error
    model.model.latent_format.latent_rgb_factors = factors
    model.model.latent_format.latent_rgb_factors_bias = bias
    model.cached_patcher_init = (_reload_model, (path, precision))
    vae.patcher.cached_patcher_init = (_reload_vae, (path, precision))
    return model, vae


def _load_model(state: dict[str, torch.Tensor], precision: str, disable_dynamic: bool = False):
    return load_native(UniMMVSRConfig({"config": dit_config(state)}), state, precision, disable_dynamic)


def _reload_model(path: str | Path, precision: str, disable_dynamic: bool = False):
    """Build a fresh MODEL from the file: the host asks for it on several GPUs and for hooks."""
    return _load_model(strip_prefix(load_state(path)[0], "dit."), precision, disable_dynamic)


def _reload_vae(path: str | Path, precision: str, disable_dynamic: bool = False):
    state = strip_prefix(load_state(path)[0], "vae.")
    return RestorerVAE(vae_config(state), state, precision, disable_dynamic).patcher
