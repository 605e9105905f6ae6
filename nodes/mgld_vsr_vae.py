"""MGLD-VSR's autoencoders as a native VAE: the first stage encodes, the sequence decoder decodes with LR frames."""

import comfy.model_management as management
import comfy.ops
import torch

from ..models.layout.geometry import ClipSize
from ..models.mgld_vsr.codec import Autoencoder, EnlargedClip, decode_clip, encode_clip, work_size
from ..models.mgld_vsr.decoder import SequenceVAE
from ..models.mgld_vsr.published import SEGMENT, SHORTEST
from ..models.mgld_vsr.vae import SPACE, FirstStage, VAEConfig
from . import host
from .keys import DEVIATION_KEY, KIND_KEY, LR_START, REFERENCE, WORK_KEY
from .native_vae import PieceVAE, pick_vae_dtype

# Peak per output pixel and frame, in numbers per channel of the first level: 3.5 to 4.3 and 0.6 to 1.0 were counted
# on the published size (live tensors, chunks of 5 and 3 frames); the rest is for the work space of convolutions.
_DECODE_NUMBERS, _ENCODE_NUMBERS = 5.5, 1.5


class MGLDVAE(PieceVAE):
    """The 4-channel autoencoder of Stable Diffusion, decoding over time: 8 px and one frame per cell."""

    chunks = (SEGMENT, 4, 3)
    reference_chunk = SEGMENT
    encode_overlap = 0  # frames are encoded one by one

    def __init__(
        self,
        first_stage: VAEConfig,
        sequence: VAEConfig | None,
        state: dict[str, torch.Tensor],
        precision: str,
        preset: str,
        disable_dynamic: bool = False,
    ):
        self.preset, self.shortest = preset, SHORTEST
        dtype = pick_vae_dtype(precision, preset, management.vae_device())
        layers = host.layers(comfy.ops.manual_cast, dtype, None)
        network = Autoencoder(
            FirstStage(first_stage, layers, host.attention),
            None if sequence is None else SequenceVAE(sequence, layers, host.attention),
        )
        numbers = first_stage.ch * management.dtype_size(dtype)
        self.decode_bytes, self.encode_bytes = _DECODE_NUMBERS * numbers, _ENCODE_NUMBERS * numbers
        super().__init__(network, state, dtype, SPACE, disable_dynamic)

    def lr_latent(self, frames: torch.Tensor, size: ClipSize, mode: str) -> dict:
        """Encode LR frames at `size`, small ones larger; sampling starts from them, too.

        The reference preset draws the latent from the encoder's answer, so it is told how wide that spreads.
        """
        work, sampled = work_size(size, self.shortest), self.preset == REFERENCE
        clip = EnlargedClip(frames, work, mode, published=sampled)
        latent = self.encode_pieces_of(clip.read, work, deviation=sampled)
        entries = {"samples": latent[:, : self.latent_channels], KIND_KEY: LR_START}
        if sampled:
            entries[DEVIATION_KEY] = latent[:, self.latent_channels :]
        if work != size:
            entries[WORK_KEY] = (work.height, work.width)
        return entries

    def lr_guide(self, lr: torch.Tensor, size: ClipSize) -> EnlargedClip | None:
        """Bring LR frames to the exact size, chunk by chunk, for the decoder that takes them."""
        if not self.first_stage_model.takes_lr_frames:
            return None
        return EnlargedClip(lr, size, published=self.preset == REFERENCE)

    def encode_clip(self, read, size: ClipSize, **pieces) -> torch.Tensor:
        """Encode a clip in pieces."""
        return encode_clip(self.first_stage_model, read, size, **pieces)

    def decode_clip(self, latent: torch.Tensor, lr, size: ClipSize, **pieces) -> torch.Tensor:
        """Decode a latent in pieces; the published program fills its last segment up."""
        least = SEGMENT if self.preset == REFERENCE else 1
        return decode_clip(self.first_stage_model, latent, lr, size, least=least, **pieces)
