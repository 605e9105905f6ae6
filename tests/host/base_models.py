"""The host's own video models and VAEs at toy size, with random weights: what a base model is to our nodes."""

from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch

TEXT = 32  # width of the random prompts


@dataclass(frozen=True)
class Family:
    """Name what of the host makes a family, and its numbers."""

    channels: int
    space: int
    time: int


FAMILIES = {
    "wan21": Family(16, 8, 4),
    "wan22": Family(48, 16, 4),
    "hunyuan": Family(16, 8, 4),
    "ltxv": Family(128, 32, 8),
}


def make_model(name: str):
    """Build a MODEL of a family around the host's own classes."""
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models as supported

    wan = {"model_type": "t2v", "dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "text_dim": TEXT}
    if name in ("wan21", "wan22"):
        kind = {"wan21": supported.WAN21_T2V, "wan22": supported.WAN22_T2V}[name]
        width = FAMILIES[name].channels
        config = kind({"image_model": "wan2.1", **wan, "in_dim": width, "out_dim": width})
    elif name == "hunyuan":
        config = supported.HunyuanVideo(
            {
                "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": TEXT,
                "context_in_dim": TEXT, "hidden_size": 48, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
                "depth_single_blocks": 1, "axes_dim": [4, 10, 10], "theta": 256, "patch_size": [1, 2, 2],
                "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
                "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
            }
        )  # fmt: skip
    else:
        config = supported.LTXV(
            {
                "image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 48, "attention_head_dim": 24,
                "num_attention_heads": 2, "caption_channels": TEXT, "num_layers": 2,
            }
        )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=torch.device("cpu"))
    randomise(model.diffusion_model, 1)
    device, offload = management.get_torch_device(), management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def make_prompt(name: str, seed: int = 0):
    """Draw a prompt as a family's text encoder would give it."""
    generator = torch.Generator().manual_seed(seed)
    text, extra = torch.randn(1, 6, TEXT, generator=generator), {}
    if name == "hunyuan":
        extra["pooled_output"] = torch.randn(1, TEXT, generator=generator)
    if name == "ltxv":
        extra["attention_mask"] = torch.ones(1, 6, dtype=torch.int64)
    return [[text, extra]]


def make_vae(name: str):
    """Build a VAE of a family: the host recognises it by its keys and sets it up as it does the real one."""
    import comfy.ldm.wan.vae
    import comfy.ldm.wan.vae2_2
    import comfy.sd

    if name == "ltxv":
        import json

        from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

        config = {"vae": ltx_vae_config()}
        network = randomise(VideoVAE(config=config["vae"]), 2)
        return comfy.sd.VAE(sd=network.state_dict(), metadata={"config": json.dumps(config)})
    place, kind, small = {
        "wan21": (comfy.ldm.wan.vae, "WanVAE", {"dim": 8, "z_dim": 16}),
        "wan22": (comfy.ldm.wan.vae2_2, "WanVAE", {"dim": 8, "dec_dim": 8, "z_dim": 48}),
        "hunyuan": (comfy.sd, "AutoencoderKL", {}),
    }[name]
    common = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []}
    with shrunk(place, kind, small):
        if name == "hunyuan":
            settings = {
                "double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3,
                "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
                "conv3d": True, "time_compress": 4,
            }  # fmt: skip
            network = getattr(place, kind)(ddconfig=settings, embed_dim=16)
        else:
            network = getattr(place, kind)(temperal_downsample=[False, True, True], **common)
        state = randomise(network, 2).state_dict()
        return comfy.sd.VAE(sd=state)


def ltx_vae_config() -> dict:
    """Describe LTX's VAE with few channels, as its files carry the description in their metadata."""
    blocks = [["res_x", 1], ["compress_all", 1], ["res_x_y", 1], ["compress_all", 1], ["res_x_y", 1]]
    blocks = [*blocks, ["compress_all", 1], ["res_x", 1]]
    return {
        "dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": 128, "blocks": blocks,
        "norm_layer": "pixel_norm", "patch_size": 4, "latent_log_var": "uniform", "causal_decoder": False,
        "encoder_base_channels": 8, "decoder_base_channels": 8,
    }  # fmt: skip


@contextmanager
def shrunk(place, kind: str, small: dict):
    """Let the host build a class with fewer channels than the published files have."""
    original = getattr(place, kind)

    def make(*args, **kwargs):
        if "ddconfig" in kwargs:  # group norms of 32 groups allow no fewer
            kwargs["ddconfig"] = {**kwargs["ddconfig"], "ch": 32}
        return original(*args, **{**kwargs, **small})

    with mock.patch.object(place, kind, make):
        yield


def randomise(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Fill a network with random weights of a size that keeps signals alive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in [*network.named_parameters(), *network.named_buffers()]:
            if not value.is_floating_point() or 0 in value.stride():  # integers, and views of one number
                continue
            draw = torch.randn(value.shape, generator=generator)
            if "std-of-means" in key or (value.ndim <= 4 and key.endswith(("gamma", "norm.weight", "scale"))):
                value.fill_(1.0)
            elif value.ndim == 1:
                value.copy_(0.02 * draw if key.endswith("bias") else 1 + 0.02 * draw)
            else:
                value.copy_(draw * (0.8 / value[0].numel() ** 0.5))
    return network.eval().requires_grad_(False)
