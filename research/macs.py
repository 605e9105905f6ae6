"""`run.py bench macs`: operations a frame of 1280x720, through the graph, beside the published programs' plans.

1. The graph's own nodes sample a clip of the length asked for on a few cells of a tiny network. A wrapper answers for
   it, and notes of every call its frames, its branches, and whether the deep half was given.
2. Spatial Tiles says what it would cut 1280x720 into on a card of 80 GB, the VAE what spans it would decode.
3. Every different call is counted at its real size on the meta device, networks of the published size.

So the count is exact: what a call costs depends on its shape only. A published program is counted by its plan: its
windows, tiles and chunks with the same networks, both branches of a guided pair whole.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..runner.host import Host
from ..runner.pack import load
from .apart import load_host, run_apart

FRAMES, ROWS, COLUMNS = 100, 720, 1280
LENGTHS = (33, 100, 1000)  # frames
_CELLS = 8  # of a side of the clip that is sampled
_CARD = 80 * 2**30
_PIXEL_TILE, _PIXEL_STRIDE, _PADDED = 960, 750, 736  # MGLD-VSR's program cuts pictures before it cuts latents
_FASTEST = {"upscale_a_video": (3, 0.0, 0.5), "mgld_vsr": (6, 0.0, 1.0)}  # of Faster Sampling
Call = tuple[int, int, bool]  # branches, frames, whether the deep half was given


def macs(options: argparse.Namespace, host: Host) -> dict:
    """TFLOP a frame of 1280x720 of Upscale-A-Video and MGLD-VSR: published, reference, default, fastest (minutes)."""
    lengths = [options.frames] if options.frames else sorted({FRAMES, *LENGTHS}, key=lambda count: count != FRAMES)
    return run_apart("macs", {"host": str(host.path), "lengths": lengths})


def measured(job: dict) -> dict:
    """Give the figures of a job."""
    custom = load_host(job["host"])
    import torch

    result: dict[str, Any] = {"size": f"{COLUMNS}x{ROWS}", "unit": "TFLOP a frame, encoding and decoding included"}
    with torch.inference_mode():
        for make in (upscale_a_video, mgld_vsr):
            counted = make(custom)
            rows = {str(frames): counted.row(frames) for frames in job["lengths"]}
            result[counted.key] = {**rows[str(job["lengths"][0])], "frames": rows}
    return result


@dataclass(frozen=True)
class Counted:
    """One system: how it is sampled at a setting, and what its parts cost at full size."""

    key: str
    calls: Callable[[str, int], Counter]  # (setting, frames) -> how often each Call is made
    tiles: Callable[[str], list[tuple[int, int]]]  # setting -> (rows, columns) of every tile, in cells
    call: Callable[[Call, int, int], int]  # (call, rows, columns) -> operations
    coding: Callable[[str, int], int]  # (setting, frames) -> operations of encoding and decoding
    published: Callable[[int], int]  # frames -> operations of the published program

    def row(self, frames: int) -> dict[str, float]:
        """Give TFLOP a frame of a clip of so many frames, and shares of the published."""
        published = self.published(frames) / frames / 1e12
        row = {"published": round(published, 2)}
        for setting in ("reference", "default", "fastest"):
            calls, total = self.calls(setting, frames), self.coding(setting, frames)
            for rows, columns in self.tiles(setting):
                total += sum(count * self.call(call, rows, columns) for call, count in calls.items())
            row[setting] = round(total / frames / 1e12, 2)
            row[f"{setting}_share"] = round(total / frames / 1e12 / published, 3)
        return row


def _sampled(custom: Any, model: Any, key: str, setting: str, frames: int, cfg: float, steps: int) -> Counter:
    """Sample a clip of a few cells through the graph's nodes; count what the network is called with."""
    import torch
    from comfy.patcher_extension import WrappersMP

    tiling, sampling, faster = (load(f"nodes.{name}") for name in ("tiling", "sampling", "faster"))
    keys, deep_half = load("nodes.host.keys"), load("nodes.host.deep")
    model.model_options[keys.PRESET_KEY] = keys.PUBLISHED if setting == "reference" else keys.DEFAULT
    joints = "alternating" if setting == "fastest" else "shared frames"
    patched = tiling.TemporalWindows.execute(model, {"windows": "auto"}, joints).args[0]
    if setting == "fastest":
        patched = faster.FasterSampling.execute(patched, *_FASTEST[key]).args[0]
    seen: Counter[Call] = Counter()

    def answer(executor, x, timestep, context, options, **_):
        deep = deep_half.recalled(options, x)
        if deep is not None and deep.given is None:
            deep.kept = x.new_zeros(len(x), 1, 1, 1, 1)
        seen[len(x), x.shape[2], deep is not None and deep.given is not None] += 1
        deep_half.remember(options, x, deep)
        return torch.zeros_like(x[:, :4])

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "answer", answer)
    lr = torch.zeros(1, model.model.lr_channels, frames, _CELLS, _CELLS)
    config = model.model.diffusion_model.config
    width = config.unet.context_dim if hasattr(config, "unet") else config.cross_attention_dim
    conds = [[torch.full((1, 77, width), float(branch)), {keys.LR_KEY: lr}] for branch in (1, 0)]
    guider = custom.CFGGuider.execute(patched, [conds[0]], [conds[1]], cfg).args[0]
    sampler = sampling.RestorerSampler.execute("ddim" if cfg > 1 else "ddpm").args[0]
    sigmas = sampling.RefineSigmas.execute(patched, 1.0, steps, 1.0).args[0]
    start = {"samples": torch.zeros(1, 4, frames, _CELLS, _CELLS)}
    custom.SamplerCustomAdvanced.execute(sampling.AddressedNoise(0), guider, sampler, sigmas, start)
    return seen


def _tiles(model: Any, setting: str, space: int) -> list[tuple[int, int]]:
    """Ask Spatial Tiles, on auto, how it cuts the frame on a card of 80 GB."""
    tiling, plan, services, keys, sizes = (
        load(f"nodes.{name}") for name in ("tiling", "plan", "host.services", "host.keys", "frames")
    )
    model.model_options[keys.PRESET_KEY] = keys.PUBLISHED if setting == "reference" else keys.DEFAULT
    patched = tiling.TemporalWindows.execute(model, {"windows": "auto"}).args[0]
    patched = tiling.SpatialTiles.execute(patched, {"tiling": "auto"}).args[0]
    before, services.free_bytes = services.free_bytes, lambda device: _CARD
    try:
        size, shape = sizes.ClipSize(8, ROWS, COLUMNS), (1, 4, 8, ROWS // space, COLUMNS // space)
        made = plan.make_plan(patched, None, {"positive": [{}]}, size, shape, 1)
    finally:
        services.free_bytes = before
    return [(tile.height, tile.width) for tile in made.tiles]


def _flops(work: Callable[[], Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _meta(*shape: int) -> Any:
    import torch

    return torch.empty(shape, device="meta")


def _remembering(function: Callable) -> Callable:
    from functools import lru_cache

    return lru_cache(maxsize=None)(function)


def upscale_a_video(custom: Any) -> Counted:
    """Count Upscale-A-Video: 30 guided steps, the plain decoder."""
    import torch

    unets, vaes, plans, pieces = (
        load(f"models.{name}")
        for name in ("upscale_a_video.unet", "upscale_a_video.vae", "upscale_a_video.published", "layout.pieces")
    )
    systems, natives, flops = load("nodes.systems.upscale_a_video"), load("nodes.host.model"), load("nodes.host.flops")
    tiny = unets.UNetConfig(block_out_channels=(32, 32), heads=(1, 1), attention=(False, True),
                            only_cross_attention=(True, True), layers_per_block=1, cross_attention_dim=16)  # fmt: skip
    settings = systems.UpscaleAVideoConfig(tiny, plans.SCHEDULE, vaes.LATENT_SCALE)
    model = _native(natives, systems, systems.UpscaleAVideoModel, settings)
    with torch.device("meta"):
        network, vae = systems.HostUNet(unets.UNetConfig(), operations=_ops()), vaes.UpscaleVAE(vaes.VAEConfig())
    rows, columns, steps = ROWS // vaes.SCALE, COLUMNS // vaes.SCALE, 30
    decode = _remembering(lambda n: _flops(lambda: vae.decode(_meta(1, 4, n, rows, columns))))

    @_remembering
    def call(call: Call, rows: int, columns: int) -> int:
        branches, frames, given = call
        return flops.call_flops(network, 7, (branches, frames, rows, columns), given)

    def coding(setting: str, frames: int) -> int:
        spans = systems._published_spans(frames, 8) if setting == "reference" else pieces.blended_spans(frames, 8)
        return sum(decode(span.window.length) for span in spans)

    def published(frames: int) -> int:
        windows = plans.published_windows(frames)
        sampling = sum(2 * steps * call((1, stop - start, False), rows, columns) for start, stop in windows)
        chunks = (min(plans.DECODE_CHUNK, frames - start) for start in range(0, frames, plans.DECODE_CHUNK))
        return sampling + sum(map(decode, chunks))

    return Counted(
        "upscale_a_video",
        _remembering(lambda setting, frames: _sampled(custom, model, "upscale_a_video", setting, frames, 6.0, steps)),
        _remembering(lambda setting: _tiles(model, setting, vaes.SCALE)),
        call,
        coding,
        published,
    )


def mgld_vsr(custom: Any) -> Counted:
    """Count MGLD-VSR: 50 steps, the decoder that takes LR frames."""
    import torch

    unets, structures, vaes, plans, pieces = (
        load(f"models.{name}")
        for name in ("mgld_vsr.unet", "mgld_vsr.structure", "mgld_vsr.vae", "mgld_vsr.published", "layout.pieces")
    )
    systems, natives, flops = load("nodes.systems.mgld_vsr"), load("nodes.host.model"), load("nodes.host.flops")
    sequence = load("models.mgld_vsr.decoder").SequenceVAE
    levels = {"model_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "attention_resolutions": ()}
    tiny = unets.UNetConfig(**levels, num_head_channels=32, context_dim=16, semb_channels=32)
    tiny_structure = structures.StructureConfig(**levels, out_channels=32)
    model = _native(natives, systems, systems.MGLDModel, systems.MGLDConfig(systems.Networks(tiny, tiny_structure, 77)))
    whole = systems.Networks(unets.UNetConfig(), structures.StructureConfig(), 77)
    with torch.device("meta"):
        network = systems.HostNetworks(whole, operations=_ops())
        first, decoder = vaes.FirstStage(vaes.VAEConfig()), sequence(vaes.VAEConfig(sequence=True))
    steps, space, segment = 50, vaes.SPACE, plans.SEGMENT

    @_remembering
    def call(call: Call, rows: int, columns: int) -> int:
        branches, frames, given = call
        return flops.call_flops(network, 8, (branches, frames, rows, columns), given)

    @_remembering
    def encode(frames: int, height: int, width: int) -> int:
        return _flops(lambda: first.encode(_meta(1, 3, frames, height, width)))

    @_remembering
    def decode(frames: int, height: int, width: int) -> int:
        clip, latent = _meta(1, 3, frames, height, width), _meta(1, 4, frames, height // space, width // space)
        return _flops(lambda: decoder.decode(latent, decoder.features(clip)))

    def coding(setting: str, frames: int) -> int:
        if setting == "reference":
            spans, least = systems._published_spans(frames, segment), segment  # the last one is filled up
        elif setting == "fastest":  # joints carried over: the work of a chunk that shares no frame
            spans, least = pieces.plain_spans(frames, segment), 1
        else:
            spans, least = pieces.blended_spans(frames, segment), 1
        lengths = [max(least, span.window.length) for span in spans]
        return frames * encode(1, ROWS, COLUMNS) + sum(decode(length, ROWS, COLUMNS) for length in lengths)

    def published(frames: int) -> int:
        starts = {min(start, COLUMNS - _PIXEL_TILE) for start in range(0, COLUMNS, _PIXEL_STRIDE)}
        tiles = plans.published_tiles(_PADDED // space, _PIXEL_TILE // space)
        pixels = _PADDED, _PIXEL_TILE
        one = sum(steps * call((1, segment, False), tile.height, tile.width) for tile in tiles)
        one += segment * encode(1, *pixels) + decode(segment, *pixels)
        return one * len(starts) * len(plans.published_segments(frames))

    def sampled(setting: str, frames: int) -> Counter:
        found = _sampled(custom, model, "mgld_vsr", setting, frames, 1.0, steps)
        if setting != "reference":
            return found
        filled: Counter[Call] = Counter()  # the published preset fills short segments up
        for (branches, count, given), times in found.items():
            filled[branches, max(segment, count), given] += times
        return filled

    return Counted(
        "mgld_vsr",
        _remembering(sampled),
        _remembering(lambda setting: _tiles(model, setting, space)),
        call,
        coding,
        published,
    )


def _ops() -> Any:
    import comfy.ops

    return comfy.ops.disable_weight_init


def _native(natives: Any, systems: Any, kind: type, settings: Any) -> Any:
    """Make the MODEL of a tiny network."""
    natives.set_precision(settings, "fp32")
    model = kind(settings)
    patcher = natives.as_native(model, model.diffusion_model.state_dict(), False)
    patcher.model.system = systems.SYSTEM
    return patcher
