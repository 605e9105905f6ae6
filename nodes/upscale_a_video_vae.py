"""Upscale-A-Video's autoencoders as a native VAE: chunks of frames, tiles, with or without LR frames."""

from functools import partial

import comfy.model_management as management
import comfy.ops
import torch

from ..models.layout.geometry import ClipSize
from ..models.upscale_a_video.codec import (
    blended_chunks,
    decode_clip,
    encode_clip,
    lr_grid,
    reference_chunks,
)
from ..models.upscale_a_video.config import SCALE, VAEConfig
from ..models.upscale_a_video.vae import UpscaleVAE
from . import checks, host
from .keys import ALPHAS_KEY, KIND_KEY, LR_FRAMES, REFERENCE
from .native_vae import NativeVAE

_CHUNKS = (8, 6, 5, 4, 3)  # frames decoded together: the most that fit; fewer before tiles are used at all
_CHUNK_OVERLAP = 2
_TILE_OVERLAP = 16  # cells
_TILES = (320, 256, 192, 128, 96, 64)  # cells; tried where whole frames do not fit
# Peak per output pixel and frame, in numbers per channel of the first level: 5.3 to 6.0 and 3.7 were counted on
# the published size (live tensors at 64..720 rows); the rest is for the work space of convolutions.
_DECODE_NUMBERS, _ENCODE_NUMBERS = 7, 4.5


class UpscaleAVideoVAE(NativeVAE):
    """The 4-channel autoencoder: 4 px and one frame per cell."""

    def __init__(
        self,
        config: VAEConfig,
        state: dict[str, torch.Tensor],
        precision: str,
        preset: str,
        lr_alphas: torch.Tensor,
        disable_dynamic: bool = False,
    ):
        self.preset, self._lr_alphas = preset, lr_alphas
        dtype = _pick_dtype(precision, preset, management.vae_device())
        network = UpscaleVAE(config, host.layers(comfy.ops.manual_cast, dtype, None), host.attention)
        super().__init__(network, state, dtype, SCALE, 1, disable_dynamic)
        numbers = config.block_out_channels[0] * management.dtype_size(dtype)
        self._decode_bytes, self._encode_bytes = _DECODE_NUMBERS * numbers, _ENCODE_NUMBERS * numbers
        self.memory_used_decode = lambda shape, dtype: (
            shape[-2] * shape[-1] * SCALE**2 * self._decode_bytes * _CHUNKS[-1]
        )
        self.memory_used_encode = lambda shape, dtype: (
            shape[-2] * shape[-1] * self._encode_bytes * _CHUNKS[-1]
        )

    @property
    def takes_lr_frames(self) -> bool:
        """Tell whether the decoder has a place for LR frames; a plain one ignores them."""
        return self.first_stage_model.config.condition

    def lr_latent(self, frames: torch.Tensor, size: ClipSize, mode: str) -> dict:
        """Give the LR frames themselves, at the latent's grid: this model sees pixels, not latents."""
        samples = host.to_output(lr_grid(frames, size, mode))
        return {"samples": samples, KIND_KEY: LR_FRAMES, ALPHAS_KEY: self._lr_alphas}

    def encode(self, pixel_samples: torch.Tensor) -> torch.Tensor:
        """Encode frames (B, H, W, C) as one clip, or clips (b, t, H, W, C), into latents (b, 4, t, h, w)."""
        return self._encode(pixel_samples)

    def encode_tiled(
        self, pixel_samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None
    ):
        """Encode with tiles of the given px; tile_t sets the frames of a chunk."""
        sides = (
            None if tile_x is None else tuple(max(8, side // SCALE) for side in (tile_y or tile_x, tile_x))
        )
        return self._encode(pixel_samples, tile_t, sides, (overlap or 0) // SCALE)

    def decode(self, samples_in: torch.Tensor, vae_options: dict | None = None) -> torch.Tensor:
        """Decode latents (b, 4, t, h, w) to clips (b, t, H, W, 3).

        vae_options: lr (B, h, w, 3), lr_weight, size (ClipSize, the exact result), chunk (frames at most),
        tile (px).
        """
        options = dict(vae_options or {})
        tile = options.pop("tile", 0) // SCALE
        return self._decode(samples_in, sides=(tile, tile) if tile else None, **options)

    def decode_tiled(self, samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """Decode with tiles of the given cells; tile_t sets the frames of a chunk."""
        sides = None if tile_x is None else (tile_y or tile_x, tile_x)
        return self._decode(samples, chunk=tile_t, sides=sides, overlap=overlap or 0)

    def _encode(self, pixels, chunk=None, sides=None, overlap=_TILE_OVERLAP):
        clips = pixels if pixels.ndim == 5 else pixels.unsqueeze(0)
        clips = [checks.check_frames("VAE Encode", "pixels", clip) for clip in clips]
        frames, height, width = clips[0].shape[:3]
        grid = (-(-height // SCALE), -(-width // SCALE))

        def work(chunks, tiles):
            settings = {"chunks": chunks, "tiles": tiles, **self._settings()}
            return torch.cat([encode_clip(self.first_stage_model, clip, **settings) for clip in clips])

        return self._in_pieces(work, frames, grid, chunk, sides, overlap, self._encode_bytes)

    def _decode(
        self, samples, lr=None, lr_weight=1.0, size=None, chunk=None, sides=None, overlap=_TILE_OVERLAP
    ):
        samples = checks.check_latent("VAE Decode", "samples", {"samples": samples}, self.latent_channels)
        size = size or checks.latent_target("VAE Decode", {"samples": samples}, SCALE, 1)
        guide = lr_grid(lr, size) if lr is not None and self.takes_lr_frames else None

        def work(chunks, tiles):
            settings = {"chunks": chunks, "tiles": tiles, "lr_weight": lr_weight, **self._settings()}
            one = (latent.unsqueeze(0) for latent in samples)
            return torch.stack([decode_clip(self.first_stage_model, z, guide, size, **settings) for z in one])

        grid = (samples.shape[3], samples.shape[4])
        return self._in_pieces(work, samples.shape[2], grid, chunk, sides, overlap, self._decode_bytes)

    def _in_pieces(self, work, frames: int, grid, most: int | None, sides, overlap: int, pixel_bytes: int):
        """Run `work(chunks, tiles)` on the longest chunks and largest tiles that fit; out of memory, halve once.

        Chunks give way first: over a tile the group norms see only a part of the picture.
        """
        cell_bytes = SCALE**2 * pixel_bytes
        whole = min(grid[0], sides[0] if sides else grid[0]) * min(grid[1], sides[1] if sides else grid[1])
        lengths = [n for n in _CHUNKS if n <= max(most or _CHUNKS[0], _CHUNKS[-1])]
        free = self._load(whole * cell_bytes * min(lengths[0], frames))
        if self.preset == REFERENCE:
            chunks = reference_chunks(frames)
        else:
            length = next((n for n in lengths if whole * cell_bytes * n < free), lengths[-1])
            chunks = blended_chunks(frames, length, _CHUNK_OVERLAP)
        cell_bytes *= max(window.length for window in chunks)
        ladder = [sides] if sides else [grid, *((side, side) for side in _TILES if side < max(grid))]
        sizes = [(min(rows, grid[0]), min(columns, grid[1])) for rows, columns in ladder]
        side = next((size for size in sizes if size[0] * size[1] * cell_bytes < free), sizes[-1])
        halved = (-(-side[0] // 2), -(-side[1] // 2))
        return host.to_output(self._run(partial(work, chunks), grid, [side, halved], overlap))


def _pick_dtype(precision: str, preset: str, device: torch.device) -> torch.dtype:
    """Choose bf16 where the device is good at it; fp32 on a CPU, in the reference preset and where asked for.

    float16 is never used: this autoencoder overflows in it.
    """
    if precision == "fp32" or preset == REFERENCE:
        return torch.float32
    return management.vae_dtype(device, [torch.bfloat16, torch.float32])
