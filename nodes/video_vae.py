"""The causal video VAE as a native VAE: streamed in time, tiled in space, with or without LR frames."""

import comfy.model_management as management
import comfy.ops
import torch

from ..models.layout.geometry import ClipSize, latent_size
from ..models.unimmvsr.codec import decode_clip, encode_clip
from ..models.unimmvsr.config import SPACE, TIME, VAEConfig
from ..models.unimmvsr.vae import CausalVideoVAE
from . import checks, host
from .native_vae import NativeVAE

CHUNK = 16  # output frames decoded or encoded together; the peak does not depend on the clip's length
_TILES = (1024, 512, 256, 128)  # px; tried in turn where whole frames do not fit
# Peak bytes per output pixel and frame of a chunk in fp32; 153 and 100 were measured on the CPU (640x352).
_DECODE_BYTES, _ENCODE_BYTES = 190, 120


class RestorerVAE(NativeVAE):
    """The causal video VAE; time is streamed, so memory does not grow with the clip."""

    def __init__(
        self, config: VAEConfig, state: dict[str, torch.Tensor], precision: str, disable_dynamic=False
    ):
        # fp32 unless asked otherwise: motion search and small residuals suffer in half precision.
        dtype = host.pick_vae_dtype(precision, management.vae_device())
        network = CausalVideoVAE(config, host.layers(comfy.ops.manual_cast, dtype, None))
        super().__init__(network, state, dtype, SPACE, TIME, disable_dynamic)
        # Streaming: what a VAE node needs does not depend on the number of frames.
        self.memory_used_decode = lambda shape, dtype: (
            shape[-2] * shape[-1] * SPACE**2 * _DECODE_BYTES * (CHUNK + 1)
        )
        self.memory_used_encode = lambda shape, dtype: shape[-2] * shape[-1] * _ENCODE_BYTES * (CHUNK + 1)

    def lr_latent(self, frames: torch.Tensor, size: ClipSize, mode: str) -> dict:
        """Encode LR frames, resized to `size`."""
        return {"samples": self.encode_resized(frames, size, mode=mode)}

    def encode(self, pixel_samples: torch.Tensor) -> torch.Tensor:
        """Encode frames (B, H, W, C) as one clip, or clips (b, t, H, W, C), into latents (b, 16, T, h, w)."""
        size = ClipSize(*pixel_samples.shape[-4:-1]) if pixel_samples.numel() else None
        return self.encode_resized(pixel_samples, size)

    def encode_tiled(
        self, pixel_samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None
    ):
        """Encode with tiles of the given px; time is streamed, so temporal tiles only set the chunk."""
        size = ClipSize(*pixel_samples.shape[-4:-1]) if pixel_samples.numel() else None
        sides = (
            None if tile_x is None else tuple(max(1, side // SPACE) for side in (tile_y or tile_x, tile_x))
        )
        return self.encode_resized(
            pixel_samples, size, chunk=tile_t or CHUNK, sides=sides, overlap=(overlap or 0) // SPACE
        )

    def encode_resized(
        self, frames, size: ClipSize | None, mode="bicubic", chunk=CHUNK, sides=None, overlap=8
    ):
        """Resize clips to `size`, pad and encode them chunk by chunk; frames past the end repeat the last."""
        clips = frames if frames.ndim == 5 else frames.unsqueeze(0)
        clips = [checks.check_frames("VAE Encode", "pixels", clip) for clip in clips]
        settings = {"mode": mode, "chunk": chunk, **self._settings()}

        def encode(tiles):
            return torch.cat(
                [encode_clip(self.first_stage_model, c, size, tiles=tiles, **settings) for c in clips]
            )

        return host.to_output(self._in_tiles(encode, size, sides, overlap, _ENCODE_BYTES * (chunk + 1)))

    def decode(self, samples_in: torch.Tensor, vae_options: dict | None = None) -> torch.Tensor:
        """Decode latents (b, 16, T, h, w) to clips (b, t, H, W, 3).

        vae_options: lr (B, h, w, 3), lr_weight, size (ClipSize, the exact result), chunk (frames), tile (px).
        """
        options = dict(vae_options or {})
        tile = options.pop("tile", 0) // SPACE
        return self._decode(samples_in, sides=(tile, tile) if tile else None, **options)

    def decode_tiled(self, samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """Decode with tiles of the given cells; time is streamed, so temporal tiles only set the chunk."""
        sides = None if tile_x is None else (tile_y or tile_x, tile_x)
        return self._decode(
            samples, chunk=(tile_t or CHUNK // TIME) * TIME, sides=sides, overlap=overlap or 0
        )

    def _decode(self, samples, lr=None, lr_weight=1.0, size=None, chunk=CHUNK, sides=None, overlap=8):
        samples = checks.check_latent("VAE Decode", "samples", {"samples": samples}, self.latent_channels)
        size = size or checks.latent_target("VAE Decode", {"samples": samples}, SPACE, TIME)
        settings = {"lr_weight": lr_weight, "chunk": chunk, **self._settings()}

        def decode(tiles):
            one = (latent.unsqueeze(0) for latent in samples)
            clips = [decode_clip(self.first_stage_model, z, lr, size, tiles=tiles, **settings) for z in one]
            return clips[0].unsqueeze(0) if len(clips) == 1 else torch.stack(clips)

        return host.to_output(self._in_tiles(decode, size, sides, overlap, _DECODE_BYTES * (chunk + 1)))

    def _in_tiles(self, work, size: ClipSize, sides: tuple[int, int] | None, overlap: int, pixel_bytes: int):
        """Run `work(tiles)` with the given tiles, or with the largest that fit."""
        grid = latent_size(size, SPACE, TIME)
        whole = (grid.height, grid.width)
        smaller = [(tile // SPACE, tile // SPACE) for tile in _TILES if tile // SPACE < max(whole)]
        ladder = [sides] if sides else [whole, *smaller]
        shown = ((min(side[0], whole[0]), min(side[1], whole[1])) for side in ladder)
        needs = [SPACE * rows * SPACE * columns * pixel_bytes for rows, columns in shown]
        free = self._load(needs[0])
        first = next((i for i, need in enumerate(needs) if need < free), len(needs) - 1)
        return self._run(work, whole, ladder[first:], overlap)


def preview_factors(
    config: VAEConfig, state: dict[str, torch.Tensor]
) -> tuple[list[list[float]], list[float]]:
    """Fit latent -> RGB (-1..1), for the sampler's previews, on flat colours that go through the encoder."""
    vae = CausalVideoVAE(config).eval()  # a plain copy on the CPU: the host's one may not be loaded yet
    vae.load_state_dict(state)
    colours = torch.rand(1, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latent = vae.encode(colours.repeat_interleave(4 * SPACE, -1).repeat_interleave(4 * SPACE, -2))[0]
    cells = latent[0, :, 0, 2::4, 2::4].flatten(1).T  # one cell from the middle of every colour
    design = torch.cat((cells, torch.ones(len(cells), 1)), 1)
    ridge = 1e-3 * len(cells) * torch.eye(design.shape[1])
    solution = torch.linalg.solve(design.T @ design + ridge, design.T @ colours[0, :, 0].flatten(1).T)
    return solution[:-1].tolist(), solution[-1].tolist()
