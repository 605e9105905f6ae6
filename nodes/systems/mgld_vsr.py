"""MGLD-VSR in the host: UNet and structure encoder as a MODEL, first stage and sequence decoder as a VAE.

The host's sigma axis is sqrt((1 - abar) / abar) and its x is the published latent times sqrt(1 + sigma^2); the
network's input is the published one again. The LR latent joins on the channels and is also what sampling starts from:
noised to the last trained time, never noise alone (`_condition`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as management
import comfy.model_sampling
import comfy.ops
import comfy.supported_models_base
import torch

from ...models.checkpoints import strip_prefix
from ...models.layout.pieces import Tile, Window, blended_spans, plain_spans
from ...models.layout.sizes import ClipSize, pad_clip
from ...models.mgld_vsr import checkpoint
from ...models.mgld_vsr import published as plan
from ...models.mgld_vsr.checkpoint import EMPTY_PROMPT, MAIN, SEQUENCE
from ...models.mgld_vsr.decoder import SequenceVAE
from ...models.mgld_vsr.structure import StructureConfig, StructureEncoder
from ...models.mgld_vsr.unet import MGLDUNet, UNetConfig
from ...models.mgld_vsr.vae import (
    LATENT_CHANNELS,
    SPACE,
    Autoencoder,
    EnlargedClip,
    FirstStage,
    VAEConfig,
    frame_decoder,
    piece_decoder,
    piece_encoder,
    work_size,
)
from ...models.schedules import ddpm_timesteps
from ...models.transformer import TOKENS_AT_ONCE
from ..host import services
from ..host.keys import DEEP_KEY, DEVIATION_KEY, PUBLISHED, WORK_KEY
from ..host.model import (
    RestorerModel,
    RestorerNetwork,
    Spacing,
    as_native,
    block_progress,
    check_text_width,
    host_entries,
    set_precision,
)
from ..host.vae import RestorerVAE, VAELaw, pick_vae_dtype
from .base import (
    Conditioned,
    FlowFile,
    Loading,
    LRClip,
    Published,
    ReleaseFolder,
    System,
    TileSizes,
    Weights,
    WindowSize,
)

# Peak per output pixel and frame, in numbers per channel of the first level: 3.5 to 4.3 and 0.6 to 1.0 were counted
# on the published size (live tensors, spans of 5 and 3 frames); the rest is for the work space of convolutions.
_DECODE_NUMBERS, _ENCODE_NUMBERS = 5.5, 1.5
# The same where frames are decoded one by one: 11 wait in the 13 convolutions over frames, 7 as features of LR frames.
_CARRIED_NUMBERS = 18 + _DECODE_NUMBERS
_FIRST_STAGE = "first_stage."
_FIRST_DECODER = (f"{_FIRST_STAGE}decoder.", f"{_FIRST_STAGE}post_quant_conv.")


# The networks that sample


class MGLDFormat(comfy.latent_formats.SD15):
    """Latents of Stable Diffusion's autoencoder over time."""

    latent_channels = LATENT_CHANNELS
    latent_dimensions = 3
    spacial_downscale_ratio = SPACE
    temporal_downscale_ratio = 1

    def __init__(self):
        super().__init__()
        self.taesd_decoder_name = None  # the host's small decoder takes pictures only, not clips


@dataclass(frozen=True)
class Networks:
    """Shapes of what samples: the UNet, the structure encoder, and the embedding of the empty prompt."""

    unet: UNetConfig
    structure: StructureConfig
    words: int
    fill: int = 1  # frames that shorter clips are filled up to


class MGLDConfig(comfy.supported_models_base.BASE):
    """How the host builds and samples the network."""

    unet_extra_config = {}
    latent_format = MGLDFormat
    # 4000 numbers per cell were counted on the published size (`run.py bench memory-law`), the rest is work space. The
    # host multiplies by 0.01 MiB and the bytes of a number.
    memory_usage_factor = 0.45

    def __init__(self, networks: Networks):
        super().__init__({"config": networks})


class HostNetworks(RestorerNetwork):
    """Structure encoder and UNet with the host's calling convention and layers."""

    def __init__(
        self,
        config: Networks,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        operations: Any = None,
    ):
        super().__init__()
        layers = services.layers(operations, dtype, device)
        self.config, self.dtype = config, dtype
        # The host computes the attention of Stable Diffusion 2 in fp32 where its kernels leave the choice.
        attention = partial(services.attention, precision=torch.float32)
        self.structure = StructureEncoder(config.structure, layers, attention)
        self.unet = MGLDUNet(config.unet, layers, attention)
        self.register_buffer(EMPTY_PROMPT, torch.zeros(1, config.words, config.unet.context_dim))
        self.to(device=device, dtype=dtype)

    def predict(
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor | None, transformer_options: dict, **_
    ):
        """Predict the noise in `x` = noisy latents and LR latents on 4 + 4 channels."""
        size = ClipSize(*x.shape[2:])
        x = pad_clip(x, ClipSize(max(size.frames, self.config.fill), size.height, size.width))
        noisy, lr = x.chunk(2, 1)
        text = (self.empty_prompt if context is None else context).to(x)
        show, memory = block_progress(transformer_options, x), transformer_options.get(DEEP_KEY)
        deep = None if memory is None else memory.recall(transformer_options, x)
        structure = self.structure(lr, timestep, first=deep is not None and deep.given is not None)
        result = self.unet(noisy, timestep, structure, text, show, deep)
        if memory is not None:
            memory.keep(transformer_options, x, deep)
        return result[:, :, : size.frames]


class StartsFromLatent(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """Noise prediction that always starts from its start latent, full noise included, as it was trained."""

    def noise_scaling(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool = False
    ):
        """Add noise of deviation sigma to the latent."""
        return super().noise_scaling(sigma, noise, latent_image, False)


class MGLDModel(RestorerModel):
    """Turns conditioning into what the network takes, so that tiles, windows and batching see it too."""

    lr_channels, lr_name = LATENT_CHANNELS, "low-resolution latent"
    spacing = Spacing(ddpm_timesteps, ends_clean=True)

    def __init__(self, model_config: MGLDConfig, device: torch.device | None = None):
        super().__init__(model_config, comfy.model_base.ModelType.EPS, device=device, unet_model=HostNetworks)
        self.model_sampling = StartsFromLatent(model_config)
        alphas = plan.SCHEDULE.alphas_cumprod().double()
        self.model_sampling.set_sigmas(((1 - alphas) / alphas).sqrt().float())

    def memory_required(self, input_shape: list[int], cond_shapes: Mapping | None = None):
        """Add to the host's estimate the inner layer of a feed-forward, which does not grow with the picture."""
        numbers = 12 * self.diffusion_model.config.unet.model_channels * TOKENS_AT_ONCE
        return super().memory_required(input_shape, cond_shapes or {}) + numbers * management.dtype_size(
            self.get_dtype_inference()
        )

    def extra_conds(self, **values):
        """Let text in only where it is as wide as the empty prompt that the model was trained on."""
        out = super().extra_conds(**values)
        width = self.diffusion_model.config.unet.context_dim
        check_text_width(out, width, "Leave positive and negative of VSR Conditioning unlinked")
        return out


def _condition(clip: LRClip) -> Conditioned:
    """Draw the LR latent from the encoder's mean and deviation where given, as published; sampling starts from it."""
    if clip.references:
        raise ValueError(f"MGLD-VSR takes no references; got {clip.references}. Unlink Reference Set.")
    if clip.noise_level > 0:
        raise ValueError(
            f"MGLD-VSR has no noise level of the low-resolution clip; got {clip.noise_level:g}. Set it to 0; Temporal "
            "Decode's lr_weight says how closely the clip is followed."
        )
    lr, deviation = clip.latent["samples"], clip.latent.get(DEVIATION_KEY)
    if deviation is not None:
        lr = lr + deviation.to(lr) * clip.draw(lr)
    return Conditioned(lr, lr)


def _published_windows(frames: int) -> tuple[tuple[Window, ...], Weights]:
    """Give the published segments, which share no frame; the network fills the last one up."""
    segments = plan.published_segments(frames, plan.SEGMENT)
    windows = tuple(Window(segment[0], segment[-1] + 1) for segment in segments)
    return windows, tuple(torch.ones(window.length) for window in windows)


def _published_tiles(
    height: int, width: int, tile_height: int, tile_width: int, overlap: int
) -> tuple[tuple[Tile, ...], Weights]:
    """Give the published tiles and their bells, which sum to one over the frame."""
    side = min(tile_height, tile_width)
    tiles = plan.published_tiles(height, width, side, min(overlap, side - 1))
    bells = [plan.tile_weights(tile.height, tile.width) for tile in tiles]
    total = torch.zeros(height, width, dtype=torch.float64)
    for tile, bell in zip(tiles, bells, strict=True):
        total[tile.region] += bell
    shares = [(bell / total[tile.region]).float() for tile, bell in zip(tiles, bells, strict=True)]
    return tuple(tiles), tuple(shares)


# The autoencoders


class MGLDVAE(RestorerVAE):
    """Stable Diffusion's autoencoder, decoding over time with LR frames: 8 px and one frame per cell."""

    def __init__(
        self,
        first_stage: VAEConfig,
        sequence: VAEConfig | None,
        state: Mapping[str, torch.Tensor],
        loading: Loading,
        disable_dynamic: bool,
    ):
        self.published, self.shortest = loading.preset == PUBLISHED, plan.SHORTEST
        dtype = pick_vae_dtype(loading.precision, loading.preset, management.vae_device())
        layers = services.layers(comfy.ops.manual_cast, dtype, None)
        network = Autoencoder(
            FirstStage(first_stage, layers, services.attention),
            None if sequence is None else SequenceVAE(sequence, layers, services.attention),
        )
        numbers = first_stage.ch * management.dtype_size(dtype)
        law = VAELaw(
            space=SPACE,
            time=1,
            decode_bytes=_DECODE_NUMBERS * numbers,
            encode_bytes=_ENCODE_NUMBERS * numbers,
            sides=(320, 256, 192, 128, 96, 64),
            overlap=16,
            lengths=(plan.SEGMENT, 4, 3),
            spans=_published_spans if self.published else blended_spans if sequence else plain_spans,
            encode_spans=_published_spans if self.published else plain_spans,  # frames are encoded one by one
            carried=_CARRIED_NUMBERS * numbers,
        )
        super().__init__(network, state, dtype, law, LATENT_CHANNELS, disable_dynamic)

    def lr_latent(self, frames: torch.Tensor, size: ClipSize, mode: str) -> dict:
        """Encode LR frames at `size`, small ones larger; sampling starts from them, too.

        The published preset draws the latent from the encoder's answer, so its spread comes with it.
        """
        work = work_size(size, self.shortest)
        encoder = partial(self.piece_encoder, deviation=self.published)
        latent = self.encode_clips(frames, work, mode, piece_encoder=encoder)
        entries = {"samples": latent[:, : self.latent_channels]}
        if self.published:
            entries[DEVIATION_KEY] = latent[:, self.latent_channels :]
        if work != size:
            entries[WORK_KEY] = (work.height, work.width)
        return entries

    def piece_encoder(
        self, frames: torch.Tensor, size: ClipSize, mode: str, deviation: bool = False
    ) -> Callable[[Window, Tile], torch.Tensor]:
        """Give what encodes a piece."""
        clip = EnlargedClip(frames, size, mode, self.published, self.device)
        return piece_encoder(self.first_stage_model, clip, deviation, self.device, self.vae_dtype)

    def piece_decoder(
        self, latent: torch.Tensor, lr: torch.Tensor | None, size: ClipSize, lr_weight: float
    ) -> Callable[[Window, Tile], torch.Tensor]:
        """Give what decodes a piece; the published program fills its last segment up."""
        clip, least = None, plan.SEGMENT if self.published else 1
        if lr is not None and self.first_stage_model.takes_lr_frames:
            clip = EnlargedClip(lr, size, published=self.published, device=self.device)
        place = (self.device, self.vae_dtype)
        return piece_decoder(self.first_stage_model, latent, clip, lr_weight, least, *place)

    def frame_decoder(
        self, latent: torch.Tensor, lr: torch.Tensor | None, size: ClipSize, lr_weight: float
    ) -> Callable[[Tile], Iterator[torch.Tensor]]:
        """Give what decodes a tile frame by frame; the published program decodes segments."""
        if self.published:
            raise ValueError(
                f"{services.DECODE}: the preset {PUBLISHED} of Load Video Restorer decodes segments of {plan.SEGMENT} "
                "frames, as published; got joints carried over. Choose shared frames."
            )
        seen = lr is not None and lr_weight > 0 and self.first_stage_model.takes_lr_frames
        clip = EnlargedClip(lr, size, device=self.device) if seen else None
        return frame_decoder(self.first_stage_model, latent, clip, lr_weight, self.device, self.vae_dtype)


def _published_spans(frames: int, length: int) -> tuple:
    """Cut a clip as the published program does, whatever length fits."""
    return plain_spans(frames, plan.SEGMENT)


# Loading


def _load_model(release: checkpoint.Release, loading: Loading, disable_dynamic: bool):
    state, heads = release.main(), release.options
    parts = {name: host_entries(strip_prefix(state, f"{name}.")) for name in ("unet", "structure")}
    text = checkpoint.empty_prompt(state, heads["text_heads"])
    networks = Networks(
        checkpoint.unet_config(parts["unet"], heads["num_head_channels"]),
        checkpoint.structure_config(parts["structure"], heads["num_heads"]),
        text.shape[1],
        plan.SEGMENT if loading.preset == PUBLISHED else 1,
    )
    weights = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    settings = MGLDConfig(networks)
    set_precision(settings, loading.precision, weights)
    return as_native(MGLDModel(settings), {**weights, EMPTY_PROMPT: text}, disable_dynamic)


def _load_vae(release: checkpoint.Release, loading: Loading, disable_dynamic: bool) -> MGLDVAE:
    read_sequence = release.decoder(loading.decoder)
    if release.sequence is None:
        logging.getLogger(__name__).warning(
            "%s has no %s.ckpt beside it: frames are decoded one by one, without the low-resolution frames. Put that "
            "file beside it.",
            release.name,
            SEQUENCE,
        )
    weights = {key: value for key, value in release.main().items() if key.startswith(_FIRST_STAGE)}
    config, sequence = checkpoint.vae_config(strip_prefix(weights, _FIRST_STAGE)), None
    if read_sequence is not None:
        entries = read_sequence()
        sequence = checkpoint.vae_config(entries)
        weights = {key: value for key, value in weights.items() if not key.startswith(_FIRST_DECODER)}
        weights |= {f"sequence.{key}": value for key, value in entries.items()}
    return MGLDVAE(config, sequence, weights, loading, disable_dynamic)


SYSTEM = System(
    key=checkpoint.ARCHITECTURE,
    name=checkpoint.NAME,
    holds=checkpoint.HOLDS,
    licence=checkpoint.LICENCE,
    marks=checkpoint.MARKS,  # those of the sequence decoder, which alone is an error, too
    open_state=checkpoint.open_state,
    open_release=checkpoint.open_release,
    load_model=_load_model,
    load_vae=_load_vae,
    folder=ReleaseFolder((f"{MAIN}.*",), (f"{MAIN}.*", f"{SEQUENCE}.*")),
    flow=FlowFile(f"{MAIN}.*", "flownet_model.", plan.FLOW_ITERATIONS, signed=False),
    condition=_condition,
    # (long, short) sides in output px; the model was trained on 512, which is also the published tile
    tiles=TileSizes(((768, 768), (640, 640), (512, 512), (384, 384)), 128),
    windows=WindowSize(plan.SEGMENT, 1),
    keeps_deep=True,
    published=Published((plan.TILE, plan.TILE, plan.TILE_OVERLAP), _published_tiles, _published_windows),
)
