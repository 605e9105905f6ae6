"""A tiny Wan of the host's own classes with random weights: MODEL, VAE and a prompt."""

import torch

TEXT_WIDTH = 24
DIM, HEADS, FFN, DEPTH, FREQUENCIES = 48, 2, 64, 2, 32


def config(in_dim: int = 16) -> dict:
    """What the host's WanModel is built from."""
    return {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "dim": DIM,
        "out_dim": 16,
        "in_dim": in_dim,
        "num_heads": HEADS,
        "ffn_dim": FFN,
        "num_layers": DEPTH,
        "patch_size": (1, 2, 2),
        "freq_dim": FREQUENCIES,
        "text_dim": TEXT_WIDTH,
        "qk_norm": True,
        "cross_attn_norm": True,
        "eps": 1e-6,
    }


def scramble(network: torch.nn.Module, seed: int = 0) -> None:
    """Give a network random weights at which it does something."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        fan = value[0].numel() if value.ndim > 1 else 1
        drawn = torch.randn(value.shape, generator=generator)
        scale = 0.8 / fan**0.5 if value.ndim > 1 else 0.1
        ones = 1.0 if value.ndim == 1 and ("norm" in name or "gamma" in name) and "bias" not in name else 0.0
        value.data.copy_(ones + scale * drawn)


def make_model(seed: int = 0, in_dim: int = 16):
    """Build a MODEL of the Wan 2.1 text-to-video class."""
    import comfy.model_patcher
    import comfy.supported_models

    settings = comfy.supported_models.WAN21_T2V(config(in_dim))
    settings.set_inference_dtype(torch.float32, None)
    model = settings.get_model({}, device="cpu")
    scramble(model.diffusion_model, seed)
    model.eval()
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def make_vae(seed: int = 1, dim: int = 8):
    """Build a VAE of the Wan 2.1 class through the host's own detection."""
    import comfy.ldm.wan.vae
    import comfy.sd

    network = comfy.ldm.wan.vae.WanVAE(dim, 16, [1, 2, 4, 4], 2, [], [False, True, True])
    scramble(network, seed)
    return comfy.sd.VAE(sd={key: value.clone() for key, value in network.state_dict().items()})


def prompt(seed: int = 2) -> list:
    """Make a CONDITIONING of random text."""
    return [[torch.randn(1, 6, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed)), {}]]
