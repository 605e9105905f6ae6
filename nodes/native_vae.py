"""What our VAEs share: a native VAE that owns its streaming and tiling, and answers to lack of memory."""

import contextlib
import logging
from functools import partial

import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import torch

from ..models.layout.geometry import ClipSize
from ..models.layout.pieces import blended_chunks, plain_chunks
from ..models.layout.tiles import plan_tiles
from . import checks, host
from .keys import REFERENCE

_CHUNK_OVERLAP = 2  # frames
_TILE_OVERLAP = 16  # cells
_TILES = (320, 256, 192, 128, 96, 64)  # cells; tried where whole frames do not fit


class NativeVAE(comfy.sd.VAE):
    """A native VAE around one of our networks; `decode` takes LR frames and more through vae_options."""

    def __init__(self, network, state, dtype: torch.dtype, space: int, time: int, disable_dynamic=False):
        with host.quiet("WARNING: No VAE weights detected"):  # true for the host's own VAEs, not for ours
            super().__init__(sd={})
        self.latent_channels, self.latent_dim, self.output_channels = network.config.latent_channels, 3, 3
        self.downscale_ratio = (lambda frames: max(0, (frames + 2 * time - 2) // time), space, space)
        self.upscale_ratio = (lambda frames: max(0, frames * time - time + 1), space, space)
        self.downscale_index_formula = self.upscale_index_formula = (time, space, space)
        self.handles_tiling, self.crop_input = True, False  # any size is padded, nothing is cut off
        self.working_dtypes = list(host.PRECISIONS.values())
        self.device, self.output_device = management.vae_device(), management.intermediate_device()
        self.vae_dtype = dtype
        self.first_stage_model = network.eval().requires_grad_(False).to(dtype)
        management.archive_model_dtypes(network)
        kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        self.patcher = kind(network, load_device=self.device, offload_device=management.vae_offload_device())
        state = {key: value.to(dtype) for key, value in state.items()}
        network.load_state_dict(state, strict=True, assign=self.patcher.is_dynamic())
        self.model_size()

    def lr_latent(self, frames: torch.Tensor, size: ClipSize, mode: str) -> dict:
        """Give the LATENT entries that stand for LR frames (B, h, w, 3) at `size`; `mode` resizes."""
        raise NotImplementedError

    def _settings(self) -> dict:
        where = {"device": self.device, "dtype": self.vae_dtype}
        return {**where, "progress": host.Progress(), "check_cancelled": host.check_cancelled}

    def _load(self, memory: float) -> int:
        """Load the weights, let the host make room for `memory` bytes, and give the bytes there are."""
        with self._on_device():
            management.load_models_gpu([self.patcher], memory_required=memory)
            return host.free_bytes(self.device)

    def _on_device(self):
        return getattr(management, "cuda_device_context", contextlib.nullcontext)(self.device)

    def _run(self, work, grid: tuple[int, int], sides: list[tuple[int, int]], overlap: int):
        """Run `work(tiles)` with the first of `sides` (rows, columns in cells); out of memory, with the next.

        When the last does not fit either the error says what to do; nothing is left black.
        """
        for number, side in enumerate(sides, 1):
            try:
                with self._on_device():
                    return work(plan_tiles(*grid, *side, min(overlap, min(side) // 2)))
            except Exception as error:  # the host tells out-of-memory errors of all devices from others
                if not management.is_oom(error):
                    raise
                if number == len(sides):
                    raise host.out_of_memory("VAE", side, self.upscale_ratio[-1]) from error
            logging.getLogger(__name__).warning(
                "VAE: out of memory with tiles of %s cells; trying smaller ones", side
            )
            management.soft_empty_cache()
        raise AssertionError("the last side returns or raises")


class PieceVAE(NativeVAE):
    """A native VAE of whole frames that works in chunks of frames and tiles: the longest and largest that fit.

    Needs `encode_bytes` and `decode_bytes`, the peak per output pixel and frame, and what one piece does.
    """

    chunks: tuple[int, ...]  # frames together: the most that fit; fewer before tiles are used at all
    encode_overlap = _CHUNK_OVERLAP
    reference_chunk: int  # frames that the published program decodes together
    preset: str
    encode_bytes: float
    decode_bytes: float

    def __init__(self, network, state, dtype: torch.dtype, space: int, disable_dynamic=False):
        super().__init__(network, state, dtype, space, 1, disable_dynamic)
        self.space, least = space, self.chunks[-1]
        self.memory_used_decode = lambda shape, dtype: (
            shape[-2] * shape[-1] * space**2 * self.decode_bytes * least
        )
        self.memory_used_encode = lambda shape, dtype: shape[-2] * shape[-1] * self.encode_bytes * least

    def encode_clip(self, read, size: ClipSize, **pieces) -> torch.Tensor:
        """Encode a clip, of which `read(span)` gives frames (1, 3, n, H, W) in 0..1, to (1, c, t, h, w)."""
        raise NotImplementedError

    def decode_clip(self, latent: torch.Tensor, lr, size: ClipSize, **pieces) -> torch.Tensor:
        """Decode (1, c, t, h, w) with what `lr_guide` made to frames (t, H, W, 3) in the given pieces."""
        raise NotImplementedError

    def lr_guide(self, lr: torch.Tensor, size: ClipSize):
        """Prepare LR frames (B, h, w, 3) for decode_clip."""
        raise NotImplementedError

    def encode(self, pixel_samples: torch.Tensor) -> torch.Tensor:
        """Encode frames (B, H, W, C) as one clip, or clips (b, t, H, W, C), into latents (b, 4, t, h, w)."""
        return self._encode(pixel_samples)

    def encode_tiled(
        self, pixel_samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None
    ):
        """Encode with tiles of the given px; tile_t sets the frames of a chunk."""
        sides = (
            None
            if tile_x is None
            else tuple(max(8, side // self.space) for side in (tile_y or tile_x, tile_x))
        )
        return self._encode(pixel_samples, tile_t, sides, (overlap or 0) // self.space)

    def decode(self, samples_in: torch.Tensor, vae_options: dict | None = None) -> torch.Tensor:
        """Decode latents (b, 4, t, h, w) to clips (b, t, H, W, 3).

        vae_options: lr (B, h, w, 3), lr_weight, size (ClipSize, the exact result), chunk (frames at most),
        tile (px).
        """
        options = dict(vae_options or {})
        tile = options.pop("tile", 0) // self.space
        return self._decode(samples_in, sides=(tile, tile) if tile else None, **options)

    def decode_tiled(self, samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """Decode with tiles of the given cells; tile_t sets the frames of a chunk."""
        sides = None if tile_x is None else (tile_y or tile_x, tile_x)
        return self._decode(samples, chunk=tile_t, sides=sides, overlap=overlap or 0)

    def _encode(self, pixels, chunk=None, sides=None, overlap=_TILE_OVERLAP):
        clips = pixels if pixels.ndim == 5 else pixels.unsqueeze(0)
        clips = [checks.check_frames("VAE Encode", "pixels", clip) for clip in clips]
        size = ClipSize(*clips[0].shape[:3])
        parts = [self.encode_pieces_of(_reader(clip), size, chunk, sides, overlap) for clip in clips]
        return torch.cat(parts)

    def encode_pieces_of(
        self, read, size: ClipSize, chunk=None, sides=None, overlap=_TILE_OVERLAP, **options
    ) -> torch.Tensor:
        """Encode what `read` gives, a clip of `size`, in the largest pieces that fit; `options` of encode_clip."""
        grid = (-(-size.height // self.space), -(-size.width // self.space))

        def work(chunks, tiles):
            settings = {"chunks": chunks, "tiles": tiles, **self._settings(), **options}
            return self.encode_clip(read, size, **settings)

        many = (size.frames, grid, chunk, sides, overlap, self.encode_bytes, self.encode_overlap)
        return self._in_pieces(work, *many)

    def _decode(
        self, samples, lr=None, lr_weight=1.0, size=None, chunk=None, sides=None, overlap=_TILE_OVERLAP
    ):
        samples = checks.check_latent("VAE Decode", "samples", {"samples": samples}, self.latent_channels)
        size = size or checks.latent_target("VAE Decode", {"samples": samples}, self.space, 1)
        guide = None if lr is None else self.lr_guide(lr, size)

        def work(chunks, tiles):
            settings = {"chunks": chunks, "tiles": tiles, "lr_weight": lr_weight, **self._settings()}
            one = (latent.unsqueeze(0) for latent in samples)
            return torch.stack([self.decode_clip(z, guide, size, **settings) for z in one])

        grid = (samples.shape[3], samples.shape[4])
        return self._in_pieces(work, samples.shape[2], grid, chunk, sides, overlap, self.decode_bytes)

    def _in_pieces(
        self,
        work,
        frames: int,
        grid,
        most: int | None,
        sides,
        overlap: int,
        pixel_bytes: float,
        shared=_CHUNK_OVERLAP,
    ):
        """Run `work(chunks, tiles)` on the longest chunks and largest tiles that fit; out of memory, halve once.

        Chunks give way first: over a tile the group norms see only a part of the picture.
        """
        cell_bytes = self.space**2 * pixel_bytes
        whole = min(grid[0], sides[0] if sides else grid[0]) * min(grid[1], sides[1] if sides else grid[1])
        lengths = [n for n in self.chunks if n <= max(most or self.chunks[0], self.chunks[-1])]
        free = self._load(whole * cell_bytes * min(lengths[0], frames))
        if self.preset == REFERENCE:
            chunks = plain_chunks(frames, self.reference_chunk)
        else:
            length = next((n for n in lengths if whole * cell_bytes * n < free), lengths[-1])
            chunks = blended_chunks(frames, length, shared)
        cell_bytes *= max(window.length for window in chunks)
        ladder = [sides] if sides else [grid, *((side, side) for side in _TILES if side < max(grid))]
        sizes = [(min(rows, grid[0]), min(columns, grid[1])) for rows, columns in ladder]
        side = next((size for size in sizes if size[0] * size[1] * cell_bytes < free), sizes[-1])
        halved = (-(-side[0] // 2), -(-side[1] // 2))
        return host.to_output(self._run(partial(work, chunks), grid, [side, halved], overlap))


def _reader(frames: torch.Tensor):
    return lambda span: frames[span, ..., :3].permute(3, 0, 1, 2).unsqueeze(0)


def pick_vae_dtype(precision: str, preset: str, device: torch.device) -> torch.dtype:
    """Choose bf16 where the device is good at it; fp32 on a CPU, in the reference preset and where asked for.

    float16 is never used: these autoencoders overflow in it.
    """
    if precision == "fp32" or preset == REFERENCE:
        return torch.float32
    return management.vae_dtype(device, [torch.bfloat16, torch.float32])
