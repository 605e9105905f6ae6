"""SeedVR2 of the host's own classes with few random weights: MODEL and VAE."""

from unittest import mock

import torch

from .base_models import randomise


def make_model():
    """Build a MODEL of two blocks."""
    import comfy.model_patcher
    import comfy.supported_models

    shape = {"vid_dim": 96, "heads": 2, "head_dim": 48, "num_layers": 2, "mm_layers": 1, "rope_dim": 48}
    settings = {"image_model": "seedvr2", **shape, "norm_eps": 1e-5, "mlp_type": "swiglu"}
    config = comfy.supported_models.SeedVR2(settings)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=torch.device("cpu"))
    randomise(model.diffusion_model, 1)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)


def make_vae():
    """Build a VAE through the host's own detection."""
    import comfy.ldm.seedvr.vae as place
    import comfy.sd

    with mock.patch.object(place, "BYTEDANCE_BLOCK_OUT_CHANNELS", (32, 32, 32, 32)):
        return comfy.sd.VAE(sd=randomise(place.VideoAutoencoderKLWrapper(), 2).state_dict())
