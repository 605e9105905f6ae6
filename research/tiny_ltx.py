"""The host's own LTX video classes at toy size with random weights: a base model for benchmarks, on the CPU."""

from __future__ import annotations

import json

import torch

CHANNELS, SPACE, TIME = 128, 32, 8  # of a latent; px and frames of a cell
_TEXT = 32  # width of the random prompt


def make_model():
    """Build a MODEL around the host's own class."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    settings = {"image_model": "ltxv", "in_channels": CHANNELS, "cross_attention_dim": 48, "num_layers": 2}
    settings |= {"attention_head_dim": 24, "num_attention_heads": 2, "caption_channels": _TEXT}
    config = comfy.supported_models.LTXV(settings)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=torch.device("cpu"))
    _randomise(model.diffusion_model, 1)
    load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=load, offload_device=offload)


def make_prompt() -> list:
    """Draw CONDITIONING of six tokens."""
    text = torch.randn(1, 6, _TEXT, generator=torch.Generator().manual_seed(0))
    return [[text, {"attention_mask": torch.ones(1, 6, dtype=torch.int64)}]]


def make_vae():
    """Build a VAE as the host does for a file: it recognises LTX by its keys and reads the metadata."""
    import comfy.sd
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    blocks = [["res_x", 1], ["compress_all", 1], ["res_x_y", 1], ["compress_all", 1], ["res_x_y", 1]]
    config = {"dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": CHANNELS, "patch_size": 4}
    config |= {"blocks": [*blocks, ["compress_all", 1], ["res_x", 1]], "norm_layer": "pixel_norm"}
    config |= {"latent_log_var": "uniform", "causal_decoder": False}
    config |= {"encoder_base_channels": 8, "decoder_base_channels": 8}
    network = _randomise(VideoVAE(config=config), 2)
    return comfy.sd.VAE(sd=network.state_dict(), metadata={"config": json.dumps({"vae": config})})


def _randomise(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fill a network with random weights that keep signals alive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in [*network.named_parameters(), *network.named_buffers()]:
            if not value.is_floating_point() or 0 in value.stride():  # integers, and views of one number
                continue
            draw = torch.randn(value.shape, generator=generator)
            if "std-of-means" in key:
                value.fill_(1.0)
            elif value.ndim == 1:
                value.copy_(0.02 * draw if key.endswith("bias") else 1 + 0.02 * draw)
            else:
                value.copy_(draw * (0.8 / value[0].numel() ** 0.5))
    return network.eval().requires_grad_(False)
