"""`run.py bench upscale_a_video | mgld_vsr`: cost of a whole run with random weights, which cost what trained ones do.

On a GPU the networks have their published size and the default clip is 33 frames of 180x320 -> 720x1280; on a CPU
they are a hundredth of it and the clip is small: a figure to compare versions with, not to plan a job with.
Windows, tiles and chunks are those of the default preset where 12 GB are free.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from .binding import parse_size
from .pack import load
from .server import peak_memory

_FULL, _SMALL = (33, "1280x720"), (9, "192x128")  # frames, output size
_WORDS = 77  # a prompt's tokens


def upscale_a_video(options, host) -> dict:
    """Upscale-A-Video alone, in this process: seconds a frame, network calls, peak memory (minutes on a GPU)."""
    networks, autoencoders = load("models.upscale_a_video.unet"), load("models.upscale_a_video.vae")
    sampling, codec = load("tests.published.upscale_a_video"), load("models.upscale_a_video.codec")
    bench = Bench(options)
    small = {"block_out_channels": (32, 64, 64, 128), "heads": (1, 1, 1, 1), "layers_per_block": 1}
    unet = bench.build(lambda: networks.VideoUNet(networks.UNetConfig(**bench.small(small))))
    small = {"block_out_channels": (32, 64, 64), "layers_per_block": 1}
    vae = bench.build(
        lambda: autoencoders.UpscaleVAE(autoencoders.VAEConfig(**bench.small(small))), decoder=True
    )
    lr, x = bench.latent(3, autoencoders.SCALE), bench.latent(4, autoencoders.SCALE)
    text, negative = (bench.draw(1, _WORDS, unet.config.cross_attention_dim) for _ in range(2))
    pieces = bench.pieces(6, 2, autoencoders.SCALE)

    def sample(steps: int) -> None:
        sampling.denoise(unet, x, lr, text, negative, steps=steps, guidance=6.0, level=120)

    def decode() -> None:
        codec.decode_clip(vae, x, None, bench.size, **bench.place, **pieces)

    return bench.measure(unet, (unet, vae), 30 if bench.full else 4, sample, decode)


def mgld_vsr(options, host) -> dict:
    """MGLD-VSR alone, in this process: seconds a frame, network calls, peak memory (minutes on a GPU)."""
    networks, codec, structures = (load(f"models.mgld_vsr.{name}") for name in ("unet", "codec", "structure"))
    autoencoders, segment = load("models.mgld_vsr.vae"), load("models.mgld_vsr.published").SEGMENT
    sampling, plan_windows = load("tests.published.mgld_vsr"), load("models.layout.pieces").plan_windows
    bench = Bench(options)
    small = {
        "model_channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (1, 2),
    }
    unet_config = networks.UNetConfig(**bench.small({**small, "num_head_channels": 32, "semb_channels": 32}))
    unet = bench.build(lambda: networks.MGLDUNet(unet_config))
    encoder_config = structures.StructureConfig(**bench.small({**small, "num_heads": 1, "out_channels": 32}))
    structure = bench.build(lambda: structures.StructureEncoder(encoder_config))
    small = {"ch": 32, "ch_mult": (1, 1, 2, 2), "num_res_blocks": 1}
    first, decoder = (
        autoencoders.VAEConfig(**bench.small(small), sequence=sequence) for sequence in (False, True)
    )
    first_class, decoder_class = (
        autoencoders.FirstStage,
        load("models.mgld_vsr.decoder").SequenceVAE,
    )
    vae = bench.build(lambda: codec.Autoencoder(first_class(first), decoder_class(decoder)), decoder=True)
    lr, noise = bench.latent(4, autoencoders.SPACE), bench.latent(4, autoencoders.SPACE)
    parts = sampling.Networks(unet, structure, bench.draw(1, _WORDS, unet_config.context_dim))
    windows = plan_windows(bench.frames, segment, 1)
    clip = codec.EnlargedClip(bench.draw(bench.frames, 45, 80, 3).float().cpu(), bench.size)
    pieces = bench.pieces(segment, 2, autoencoders.SPACE)

    def sample(steps: int) -> None:
        for window in windows:
            part, fresh = lr[:, :, window.span], noise[:, :, window.span]
            sampling.sample(parts, part, fresh, [fresh] * steps, steps=steps, tile=96, overlap=16)

    def decode() -> None:
        codec.encode_clip(vae, clip.read, bench.size, **bench.place, **pieces)
        codec.decode_clip(vae, lr, clip, bench.size, **bench.place, **pieces)

    return bench.measure(unet, (unet, structure, vae), 50 if bench.full else 4, sample, decode)


class Bench:
    """The machine, the clip and the clock of one benchmark."""

    def __init__(self, options):
        import torch

        self.device = options.device
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.full = self.device == "cuda"
        self.dtypes = (torch.float16, torch.bfloat16) if self.full else (torch.float32, torch.float32)
        self.place = {"device": self.device, "dtype": self.dtypes[1]}
        frames, size = _FULL if self.full else _SMALL
        width, height = parse_size(options.size or size)
        self.frames = options.frames or frames
        self.size = load("models.layout.sizes").ClipSize(self.frames, height, width)
        self._generator = torch.Generator().manual_seed(0)

    def small(self, settings: dict) -> dict:
        """Give the settings of a tiny network, or none for the published one."""
        return {} if self.full else settings

    def build(self, make: Callable, decoder: bool = False):
        """Build a network with random weights straight on the device; decoders have their own number format."""
        import torch

        with torch.device(self.device):
            return make().to(self.dtypes[decoder]).eval()

    def draw(self, *shape: int):
        """Draw random numbers in the network's format."""
        import torch

        return torch.randn(shape, generator=self._generator).to(self.device, self.dtypes[0])

    def latent(self, channels: int, space: int):
        """Draw a latent of the clip."""
        return self.draw(1, channels, self.frames, self.size.height // space, self.size.width // space)

    def pieces(self, chunk: int, overlap: int, space: int) -> dict:
        """Plan blended chunks of whole frames."""
        rows, columns = self.size.height // space, self.size.width // space
        chunks = load("models.layout.pieces").blended_chunks(self.frames, min(chunk, self.frames), overlap)
        return {
            "chunks": chunks,
            "tiles": load("models.layout.pieces").plan_tiles(rows, columns, rows, columns, 0),
        }

    def measure(self, counted, networks, steps: int, sample: Callable, decode: Callable) -> dict:
        """Time sampling, after one step that warms kernels up, and decoding; count calls of one network."""
        import torch

        calls: list[int] = []
        with torch.inference_mode():
            sample(2)
            counted.register_forward_hook(lambda *_: calls.append(1))
            times = [self._clock()]
            for work in (lambda: sample(steps), decode):
                work()
                times.append(self._clock())
        peak = torch.cuda.max_memory_allocated() if self.full else peak_memory(os.getpid())
        return {
            "device": torch.cuda.get_device_name()
            if self.full
            else f"cpu, {torch.get_num_threads()} threads",
            "networks": "published size" if self.full else "tiny",
            "parameters_m": round(
                sum(p.numel() for network in networks for p in network.parameters()) / 1e6, 1
            ),
            "frames": self.frames,
            "size": f"{self.size.width}x{self.size.height}",
            "steps": steps,
            "sample_seconds": round(times[1] - times[0], 2),
            "decode_seconds": round(times[2] - times[1], 2),
            "seconds_per_frame": round((times[2] - times[0]) / self.frames, 3),
            "network_calls": len(calls),
            "peak_memory_mb": round(peak / 2**20) if peak else None,
        }

    def _clock(self) -> float:
        import torch

        if self.full:
            torch.cuda.synchronize()
        return time.perf_counter()
