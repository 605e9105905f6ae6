"""Upscale-A-Video's autoencoders as a native VAE: chunks of frames, tiles, with or without LR frames."""

import comfy.model_management as management
import comfy.ops
import torch

from ..models.layout.geometry import ClipSize
from ..models.layout.pieces import encode_pieces
from ..models.upscale_a_video.codec import decode_clip, lr_grid
from ..models.upscale_a_video.published import DECODE_CHUNK
from ..models.upscale_a_video.vae import SCALE, UpscaleVAE, VAEConfig
from . import host
from .keys import ALPHAS_KEY, KIND_KEY, LR_FRAMES
from .native_vae import PieceVAE, pick_vae_dtype

# Peak per output pixel and frame, in numbers per channel of the first level: 5.3 to 6.0 and 3.7 were counted on
# the published size (live tensors at 64..720 rows); the rest is for the work space of convolutions.
_DECODE_NUMBERS, _ENCODE_NUMBERS = 7, 4.5


class UpscaleAVideoVAE(PieceVAE):
    """The 4-channel autoencoder: 4 px and one frame per cell."""

    chunks = (8, 6, 5, 4, 3)
    reference_chunk = DECODE_CHUNK

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
        dtype = pick_vae_dtype(precision, preset, management.vae_device())
        network = UpscaleVAE(config, host.layers(comfy.ops.manual_cast, dtype, None), host.attention)
        numbers = config.block_out_channels[0] * management.dtype_size(dtype)
        self.decode_bytes, self.encode_bytes = _DECODE_NUMBERS * numbers, _ENCODE_NUMBERS * numbers
        super().__init__(network, state, dtype, SCALE, disable_dynamic)

    @property
    def takes_lr_frames(self) -> bool:
        """Tell whether the decoder has a place for LR frames; a plain one ignores them."""
        return self.first_stage_model.config.condition

    def lr_latent(self, frames: torch.Tensor, size: ClipSize, mode: str) -> dict:
        """Give the LR frames themselves, at the latent's grid: this model sees pixels, not latents."""
        samples = host.to_output(lr_grid(frames, size, mode))
        return {"samples": samples, KIND_KEY: LR_FRAMES, ALPHAS_KEY: self._lr_alphas}

    def lr_guide(self, lr: torch.Tensor, size: ClipSize) -> torch.Tensor | None:
        """Bring LR frames to the latent's grid, for a decoder that takes them."""
        return lr_grid(lr, size) if self.takes_lr_frames else None

    def encode_clip(self, read, size: ClipSize, **pieces) -> torch.Tensor:
        """Encode a clip in pieces."""
        return encode_pieces(lambda clip: self.first_stage_model.encode(clip)[0], read, size, SCALE, **pieces)

    def decode_clip(self, latent: torch.Tensor, lr, size: ClipSize, **pieces) -> torch.Tensor:
        """Decode a latent in pieces."""
        return decode_clip(self.first_stage_model, latent, lr, size, **pieces)
