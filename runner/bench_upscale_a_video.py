"""`run.py bench upscale_a_video`: cost of the whole run with random weights, which cost what trained ones do.

On a GPU the networks have their published size and the default clip is 33 frames of 180x320 -> 720x1280; on a CPU
they are a hundredth of it and the clip is small: a figure to compare versions with, not to plan a job with.
"""

from __future__ import annotations

import os
import time

from .binding import parse_size
from .pack import load
from .server import peak_memory

_FULL, _SMALL = (33, "1280x720", 30), (9, "192x128", 4)  # frames, output size, steps
_SMALL_UNET = {"block_out_channels": (32, 64, 64, 128), "heads": (1, 1, 1, 1), "layers_per_block": 1}
_SMALL_VAE = {"block_out_channels": (32, 64, 64), "layers_per_block": 1}
_WORDS, _LEVEL, _GUIDANCE = 77, 120, 6.0
_CHUNK, _CHUNK_OVERLAP = 6, 2  # of the decoder, as Temporal Decode chooses them within 12 GB


def run(options, host) -> dict:
    """Upscale-A-Video alone, in this process: seconds a frame, network calls, peak memory (minutes on a GPU)."""
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    full = device == "cuda"
    frames, size, steps = _FULL if full else _SMALL
    frames, size = options.frames or frames, parse_size(options.size or size)
    dtypes = (torch.float16, torch.bfloat16) if full else (torch.float32, torch.float32)
    unet, vae = _networks(full, device, *dtypes)
    calls = []
    unet.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        stages = _measure(unet, vae, frames, size, steps, device)
    peak = torch.cuda.max_memory_allocated() if full else peak_memory(os.getpid())
    return {
        "device": torch.cuda.get_device_name() if full else f"cpu, {torch.get_num_threads()} threads",
        "networks": "published size" if full else "tiny",
        "parameters_m": round(sum(p.numel() for net in (unet, vae) for p in net.parameters()) / 1e6, 1),
        "frames": frames,
        "size": "x".join(map(str, size)),
        "steps": steps,
        **{f"{name}_seconds": round(seconds, 2) for name, seconds in stages.items()},
        "seconds_per_frame": round(sum(stages.values()) / frames, 3),
        "network_calls": len(calls),
        "peak_memory_mb": round(peak / 2**20) if peak else None,
    }


def _measure(unet, vae, frames: int, size: tuple[int, int], steps: int, device: str) -> dict[str, float]:
    """Time the two halves of a run; the second run counts, the first warms kernels up."""
    import torch

    sampling, codec = load("models.upscale_a_video.sampling"), load("models.upscale_a_video.codec")
    pieces = load("models.layout.pieces")
    geometry, tiles = load("models.layout.geometry"), load("models.layout.tiles")
    width, height = size
    rows, columns = height // 4, width // 4
    maker = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=maker).to(device, next(unet.parameters()).dtype)

    lr, x = draw(1, 3, frames, rows, columns), draw(1, 4, frames, rows, columns)
    text, negative = (draw(1, _WORDS, unet.config.cross_attention_dim) for _ in range(2))

    def sample(count: int) -> torch.Tensor:
        return sampling.denoise(unet, x, lr, text, negative, steps=count, guidance=_GUIDANCE, level=_LEVEL)

    def decode() -> torch.Tensor:
        chunks = pieces.blended_chunks(frames, min(_CHUNK, frames), _CHUNK_OVERLAP)
        whole = geometry.ClipSize(frames, 4 * rows, 4 * columns)
        plan = tiles.plan_tiles(rows, columns, rows, columns, 0)
        dtype = next(vae.parameters()).dtype
        return codec.decode_clip(vae, x / 4, lr, whole, chunks=chunks, tiles=plan, device=device, dtype=dtype)

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    sample(1)
    started = clock()
    sample(steps)
    sampled = clock()
    decode()
    return {"sample": sampled - started, "decode": clock() - sampled}


def _networks(full: bool, device: str, unet_dtype, vae_dtype):
    """Build UNet and plain VAE with random weights straight on the device."""
    import torch

    config = load("models.upscale_a_video.config")
    unet_class = load("models.upscale_a_video.unet").VideoUNet
    vae_class = load("models.upscale_a_video.vae").UpscaleVAE
    with torch.device(device):
        unet = unet_class(config.UNetConfig(**({} if full else _SMALL_UNET)))
        unet.to(unet_dtype)
        vae = vae_class(config.VAEConfig(**({} if full else _SMALL_VAE))).to(vae_dtype)
    return unet.eval(), vae.eval()
