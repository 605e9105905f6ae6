"""The parts that `run.py bench beside` compares, with one thread.

research/beside.py runs this file once in every checkout: it takes modules by their names, not from the pack around it.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

_LATENTS = ((24, 40), (40, 64))  # cells of a tile: 192x320 and 320x512 px
_CLIPS = ((48, 64, 22), (90, 160, 9), (180, 320, 3))  # height, width, frames
_NOISES = ((4, 33, 90, 160), (4, 5, 180, 320), (16, 9, 90, 160))  # channels, latent frames, height, width
_FRAMES = 5  # of MGLD-VSR's windows
_REPEATED = 3

Part = tuple[str, Callable[[], object]]


def _structure(load: Callable) -> Iterator[Part]:
    module = load("models.mgld_vsr.structure")
    config = getattr(module, "StructureConfig", None) or load("models.mgld_vsr.config").StructureConfig  # 0.1.0
    network = module.StructureEncoder(config()).eval()
    for height, width in _LATENTS:
        latent = torch.randn(1, 4, _FRAMES, height, width)
        yield f"structure encoder, {width}x{height} cells", lambda latent=latent: network(latent, 500.0)


def _attention(load: Callable) -> Iterator[Part]:
    layer = load("models.mgld_vsr.vae").AttnBlock(512, nn, F.scaled_dot_product_attention).eval()
    for height, width in (*_LATENTS, (64, 64)):
        x = torch.randn(1, 512, height, width)
        yield f"attention of the decoder, {width}x{height} cells", lambda x=x: layer(x)


def _motion(load: Callable) -> Iterator[Part]:
    estimator, estimation = load("models.motion.blockflow").BlockFlow(), load("models.motion.estimation")
    for height, width, frames in _CLIPS:
        drawn = torch.rand(1, 3, height // 4 + 1, width // 4 + 1)
        wide = F.interpolate(drawn, (height + 2 * frames, width + 3 * frames), mode="bicubic").clamp(0, 1)
        places = ((2 * k, 3 * k) for k in range(frames))
        clip = torch.cat([wide[..., y : y + height, x : x + width] for y, x in places]).movedim(1, -1)
        yield f"built-in motion, {width}x{height} px", lambda clip=clip: estimation.estimate_pairs(clip, estimator)


def _noise(load: Callable) -> Iterator[Part]:
    draw = load("models.layout.noise").addressed_noise
    for channels, frames, height, width in _NOISES:
        size = channels, _sizes(load).ClipSize(frames, height, width)
        yield f"noise, {channels} channels, {width}x{height} cells", lambda size=size: draw(5, size)


def _sizes(load: Callable):
    try:
        return load("models.layout.sizes")
    except ImportError:
        return load("models.layout.geometry")  # version 0.1.0


PARTS = {"structure": _structure, "attention": _attention, "motion": _motion, "noise": _noise}


def measured(load: Callable, names: Sequence[str]) -> dict[str, float]:
    """Give {part: least seconds of CPU time}; `load` imports a module of the checkout."""
    torch.set_num_threads(1)
    taken = {}
    with torch.inference_mode():
        for name in names or PARTS:
            torch.manual_seed(0)
            for part, work in PARTS[name](load):
                work()
                taken[part] = min(_seconds(work) for _ in range(_REPEATED))
    return taken


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
