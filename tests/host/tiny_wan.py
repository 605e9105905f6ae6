"""The host's own Wan models at the smallest size its loader takes, with random weights, loaded as it loads files."""

import torch

WIDTH, TEXT, FEATURES, DEPTH = (
    128,
    4096,
    256,
    2,
)  # what the host reads from a file fixes heads (128 wide) and text


def weights(channels: int = 16, inputs: int | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make the entries of a Wan text-to-video checkpoint with `inputs` input channels."""
    import comfy.ldm.wan.model
    import comfy.ops

    sizes = {"dim": WIDTH, "ffn_dim": 192, "num_heads": 1, "num_layers": DEPTH, "text_dim": TEXT}
    network = comfy.ldm.wan.model.WanModel(
        **sizes,
        in_dim=inputs or channels,
        out_dim=channels,
        freq_dim=FEATURES,
        operations=comfy.ops.disable_weight_init,
        dtype=torch.float32,
    )
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in network.state_dict().items():
        spread = 0.1 if value.ndim < 2 else value[0].numel() ** -0.5
        state[key] = torch.randn(value.shape, generator=generator) * spread
        if "norm" in key and key.endswith("weight"):
            state[key] += 1
    return state


def load(state: dict[str, torch.Tensor]):
    """Load entries as the host's Load Diffusion Model does: architecture and channels from the weights."""
    import comfy.sd

    return comfy.sd.load_diffusion_model_state_dict({key: value.clone() for key, value in state.items()})


def text(seed: int = 3, length: int = 5) -> torch.Tensor:
    """Make an encoded prompt."""
    return torch.randn(1, length, TEXT, generator=torch.Generator().manual_seed(seed))


def latent(*shape: int, seed: int = 1) -> torch.Tensor:
    """Make a latent (1, ...) of unit variance."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def other(name: str):
    """Build a MODEL of a family that takes no reference tokens: "vace", "hunyuan" or "ltxv"."""
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models as supported

    wan = {"dim": WIDTH, "ffn_dim": 192, "num_heads": 1, "num_layers": DEPTH, "text_dim": TEXT}
    heads = {"num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 10, 10], "theta": 256}
    none = {"byt5": False, "meanflow": False, "use_cond_type_embedding": False, "meanflow_sum": False}
    hunyuan = {
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": 32,
        "context_in_dim": 32,
        "hidden_size": 48,
    }
    more = {"mlp_ratio": 2.0, "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": False}
    ltxv = {"in_channels": 128, "cross_attention_dim": 48, "attention_head_dim": 24, "num_attention_heads": 2}
    kind, settings = {
        "vace": (
            supported.WAN21_Vace,
            {"image_model": "wan2.1", "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96, **wan},
        ),
        "hunyuan": (
            supported.HunyuanVideo,
            {"image_model": "hunyuan_video", "vision_in_dim": None, **heads, **none, **hunyuan, **more},
        ),
        "ltxv": (supported.LTXV, {"image_model": "ltxv", "caption_channels": 32, "num_layers": 1, **ltxv}),
    }[name]
    config = kind(settings)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=torch.device("cpu"))
    for parameter in model.diffusion_model.parameters():
        parameter.data.normal_(std=0.05)
    device, offload = management.get_torch_device(), management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def other_prompt(name: str):
    """Make a prompt for a model of `other`."""
    if name == "hunyuan":
        return [[torch.randn(1, 6, 32), {"pooled_output": torch.randn(1, 32)}]]
    return [[torch.randn(1, 6, 32), {"attention_mask": torch.ones(1, 6, dtype=torch.int64)}]]
