"""Video models of the host's own classes, a few thousand random weights each."""

import torch

_WAN = {
    "dim": 24,
    "ffn_dim": 32,
    "num_heads": 2,
    "num_layers": 1,
    "freq_dim": 16,
    "text_dim": 12,
    "in_dim": 16,
}
_HUNYUAN = {
    "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "vec_in_dim": 8, "context_in_dim": 12,
    "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [4, 6, 6], "theta": 256, "qkv_bias": True, "guidance_embed": False, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
_LTXV = {
    "in_channels": 128, "cross_attention_dim": 32, "attention_head_dim": 16, "num_attention_heads": 2,
    "caption_channels": 12, "num_layers": 1,
}  # fmt: skip
_COSMOS = {
    "max_img_h": 32, "max_img_w": 32, "max_frames": 8, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 32, "num_blocks": 1, "num_heads": 2, "crossattn_emb_channels": 12,
    "pos_emb_cls": "rope3d",
}  # fmt: skip
FAMILIES = {
    "wan": ("WAN21_T2V", {"image_model": "wan2.1", "model_type": "t2v", **_WAN}),
    "hunyuan": ("HunyuanVideo", {"image_model": "hunyuan_video", **_HUNYUAN}),
    "ltxv": ("LTXV", {"image_model": "ltxv", **_LTXV}),
    "cosmos": ("CosmosT2IPredict2", {"image_model": "cosmos_predict2", **_COSMOS}),
}


def make_family(name: str, seed: int = 0):
    """Build the MODEL of a family on the CPU, the same every time."""
    import comfy.model_patcher
    import comfy.supported_models

    kind, settings = FAMILIES[name]
    config = getattr(comfy.supported_models, kind)(dict(settings))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.diffusion_model.parameters():
        spread = 0.7 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread + (parameter.ndim == 1) * 0.5
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)


def text(seed: int = 1, width: int = 12):
    """Make a prompt: a conditioning of random tokens that every family takes."""
    tokens = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(1, 4, dtype=torch.long)  # LTX does not run without
    return [[tokens, {"pooled_output": torch.zeros(1, 8), "attention_mask": mask}]]
