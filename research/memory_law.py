"""`run.py bench memory-law`: what a network call and a decode need, counted on the meta device, beside our laws.

1. Networks of the published size run without memory; a mode around them adds up the bytes of the tensors that live at
   once. Work space of convolutions, which no counter sees beforehand, is not in it: the law must lie above.
2. The laws of the graph (the host's estimate of a MODEL, the `VAELaw` of a VAE) are asked for the same sizes.
3. For cards of 8, 12, 16 and 24 GB: the largest tile and window that the law lets in beside the weights, in fp16.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..runner.host import Host
from ..runner.pack import load
from .apart import load_host, run_apart

CARDS = (8, 12, 16, 24)  # GB
_LEFT = 1.0  # GB that the screen, the driver and the host keep
_SIZES = ((1280, 720), (1920, 1080), (2560, 1440), (3840, 2160))
_HEADROOM = 1.3  # of what is chosen by itself (nodes/host/room.py)


def memory_law(options: argparse.Namespace, host: Host) -> dict:
    """Memory of the published systems: laws beside what is counted, and what fits 8 to 24 GB (a minute)."""
    return run_apart("memory-law", {"host": str(host.path)})


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of the storages that operations make, as long as they live; `peak` is the most at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if _is_tensor(each)}
        for each in tree_leaves(result):
            if _is_tensor(each) and each.untyped_storage()._cdata not in given:  # else a view, of a weight perhaps
                self._note(each.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def peak_bytes(work: Callable[[], Any]) -> int:
    """Count the bytes that live at once in what `work` computes, its inputs and weights apart."""
    with torch.no_grad(), LiveBytes() as counter:
        work()
    return counter.peak


def fused_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, precision: Any = None) -> torch.Tensor:
    """Stand in for a GPU's attention, which holds no scores: the meta device would write them all out."""
    return torch.empty_like(q)


def measured(job: dict) -> dict:
    """Give the figures of a job."""
    load_host(job["host"])
    load("nodes.host.services").attention = fused_attention
    return {"precision": "fp16, decoding in bf16", **{row["key"]: row for row in (_uav(), _mgld())}}


def _uav() -> dict:
    unets, vaes, plans = (load(f"models.upscale_a_video.{name}") for name in ("unet", "vae", "published"))
    systems = load("nodes.systems.upscale_a_video")
    with torch.device("meta"):
        network, vae = (
            systems.HostUNet(unets.UNetConfig(), operations=_ops()),
            vaes.UpscaleVAE(vaes.VAEConfig(), attention=fused_attention),
        )
    network, vae = network.half(), vae.bfloat16()

    def sample(frames: int, rows: int, columns: int) -> Callable[[], Any]:
        x, low = (_meta(1, channels, frames, rows, columns) for channels in (4, 3))
        time, text, level = _meta(1), _meta(1, 77, 1024), _meta(1, kind=torch.int64)
        return lambda: unets.VideoUNet.forward(network, x, time, low, text, level)

    def decode(frames: int, rows: int, columns: int) -> Callable[[], Any]:
        z = _meta(1, 4, frames, rows, columns, kind=torch.bfloat16)
        return lambda: vae.decode(z)

    numbers = systems._DECODE_NUMBERS * vaes.VAEConfig().block_out_channels[0] * 2
    factor, sides = systems.UpscaleAVideoConfig.memory_usage_factor, systems.SYSTEM.tiles.sides
    laws = _Laws("upscale_a_video", vaes.SCALE, factor, 0, numbers, plans.WINDOW, (8, 6, 5, 4, 3), sides)
    return laws.table(_bytes(network), sample, decode)


def _mgld() -> dict:
    unets, structures, vaes, plans = (
        load(f"models.mgld_vsr.{name}") for name in ("unet", "structure", "vae", "published")
    )
    systems, sequence = load("nodes.systems.mgld_vsr"), load("models.mgld_vsr.decoder").SequenceVAE
    whole = systems.Networks(unets.UNetConfig(), structures.StructureConfig(), 77)
    with torch.device("meta"):
        network, vae = (
            systems.HostNetworks(whole, operations=_ops()),
            sequence(vaes.VAEConfig(sequence=True), attention=fused_attention),
        )
    network, vae = network.half(), vae.bfloat16()

    def sample(frames: int, rows: int, columns: int) -> Callable[[], Any]:
        x, time = _meta(1, 8, frames, rows, columns), _meta(1)
        return lambda: network.predict(x, time, None, {})

    def decode(frames: int, rows: int, columns: int) -> Callable[[], Any]:
        z = _meta(1, 4, frames, rows, columns, kind=torch.bfloat16)
        clip = _meta(1, 3, frames, rows * vaes.SPACE, columns * vaes.SPACE, kind=torch.bfloat16)
        return lambda: vae.decode(z, vae.features(clip))

    numbers = systems._DECODE_NUMBERS * vaes.VAEConfig().ch * 2
    factor, sides = systems.MGLDConfig.memory_usage_factor, systems.SYSTEM.tiles.sides
    inner = 12 * unets.UNetConfig().model_channels * systems.TOKENS_AT_ONCE
    laws = _Laws("mgld_vsr", vaes.SPACE, factor, inner, numbers, plans.SEGMENT, (5, 4, 3), sides)
    return laws.table(_bytes(network), sample, decode)


class _Laws:
    """The laws of one system, and what they let in."""

    def __init__(
        self,
        key: str,
        space: int,
        factor: float,
        constant: int,  # numbers that a call needs whatever its size
        decode_bytes: float,
        window: int,
        lengths: tuple[int, ...],
        sides: tuple[tuple[int, int], ...],
    ):
        self.key, self.space, self.factor, self.decode_bytes = key, space, factor, decode_bytes
        self.constant = constant
        self.window, self.lengths, self.sides = window, lengths, sides

    def sampling(self, frames: int, rows: int, columns: int) -> float:
        """Give the bytes of a call, as the host estimates them: numbers of a cell times 0.01 MiB and the factor."""
        return 2 * (frames * rows * columns * 0.01 * self.factor * 2**20 + self.constant)

    def decoding(self, frames: int, rows: int, columns: int) -> float:
        """Give the bytes of a span."""
        return frames * rows * columns * self.space**2 * self.decode_bytes

    def table(self, weights: int, sample: Callable, decode: Callable) -> dict:
        """Count two sizes of each, and list what fits."""
        checked = {}
        for name, law, work in (("sampling", self.sampling, sample), ("decoding", self.decoding, decode)):
            for height, width in ((512, 512), (720, 1280)):
                size = (self.window if name == "sampling" else 3, height // self.space, width // self.space)
                counted, said = peak_bytes(work(*size)), law(*size)
                checked[f"{name} {size[0]} frames of {width}x{height}"] = {
                    "counted_gb": round(counted / 1e9, 3),
                    "law_gb": round(said / 1e9, 3),
                    "law_over_counted": round(said / counted, 2),
                }
        fits = {f"{card} GB": self._fits(card * 1e9 - _LEFT * 1e9, weights) for card in CARDS}
        return {"key": self.key, "weights_gb": round(weights / 1e9, 2), "checked": checked, "fits": fits}

    def _fits(self, free: float, weights: int) -> dict:
        tile = next(
            (
                sides
                for sides in self.sides
                if _HEADROOM * self.sampling(self.window, *(side // self.space for side in sides)) < free - weights
            ),
            None,
        )
        spans = {}
        for width, height in _SIZES:
            rows, columns = height // self.space, width // self.space
            spans[f"{width}x{height}"] = next(
                (n for n in self.lengths if self.decoding(n, rows, columns) < free), "tiles"
            )
        words = "smaller than any" if tile is None else f"{tile[0]}x{tile[1]}"
        return {"tile_px": words, "window_frames": self.window, "frames_decoded_at_once": spans}


def _meta(*shape: int, kind: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.empty(shape, dtype=kind, device="meta")


def _bytes(network: torch.nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in network.parameters())


def _ops() -> Any:
    import comfy.ops

    return comfy.ops.disable_weight_init
