"""The MGLD-VSR UNet and structure encoder as the host's native MODEL, and the loading of a whole release.

The host's sigma axis is sqrt((1 - abar) / abar) and its x is the published latent times sqrt(1 + sigma^2); the
network's input is the published one again. The LR latent joins on the channels and is also what sampling starts
from: noised to the last trained time, never noise alone.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as management
import comfy.model_sampling
import comfy.supported_models_base
import torch

from ..models.checkpoints import CheckpointError, State, strip_prefix
from ..models.layout.geometry import ClipSize, pad_clip
from ..models.layout.tiles import Tile
from ..models.layout.windows import Window
from ..models.mgld_vsr import checkpoint, published
from ..models.mgld_vsr.checkpoint import EMPTY_PROMPT, LICENCE, SEQUENCE, Release, empty_prompt, open_release
from ..models.mgld_vsr.structure import StructureConfig, StructureEncoder
from ..models.mgld_vsr.unet import MGLDUNet, UNetConfig
from ..models.mgld_vsr.vae import LATENT_CHANNELS, SPACE
from ..models.schedules import ddpm_timesteps
from . import host
from .keys import PRESET_KEY, REFERENCE
from .mgld_vsr_vae import MGLDVAE
from .native_model import HostCalls, check_text_width, does_not_fit, load_native, lr_condition, say_licence

_FIRST_STAGE = "first_stage."
_FIRST_DECODER = (f"{_FIRST_STAGE}decoder.", f"{_FIRST_STAGE}post_quant_conv.")


class MGLDFormat(comfy.latent_formats.SD15):
    """Latents of Stable Diffusion's autoencoder over time; what Spatial Tiles and Temporal Windows choose."""

    latent_channels = LATENT_CHANNELS
    latent_dimensions = 3
    spacial_downscale_ratio = SPACE
    temporal_downscale_ratio = 1
    # (long, short) sides in output px; the model was trained on 512, which is also the published tile
    vsr_tiles = ((768, 768), (640, 640), (512, 512), (384, 384))
    vsr_tile_overlap = 128  # output px
    vsr_reference_tile = (published.TILE, published.TILE, published.TILE_OVERLAP)  # cells
    vsr_window = (published.SEGMENT, 1)

    def __init__(self):
        super().__init__()
        self.taesd_decoder_name = None  # the host's small decoder takes pictures only, not clips

    @staticmethod
    def vsr_reference_windows(frames: int) -> tuple[tuple[Window, ...], tuple[torch.Tensor, ...]]:
        """Give the published segments, which share no frame; the network fills the last one up."""
        segments = published.published_segments(frames)
        windows = tuple(Window(segment[0], segment[-1] + 1) for segment in segments)
        return windows, tuple(torch.ones(window.length) for window in windows)

    @staticmethod
    def vsr_reference_tiles(
        height: int, width: int, tile_height: int, tile_width: int, overlap: int
    ) -> tuple[tuple[Tile, ...], tuple[torch.Tensor, ...]]:
        """Give the published tiles and their bells, which sum to one over the frame."""
        side = min(tile_height, tile_width)
        plan = published.published_tiles(height, width, side, min(overlap, side - 1))
        bells = [published.tile_weights(tile.height, tile.width) for tile in plan]
        total = torch.zeros(height, width, dtype=torch.float64)
        for tile, bell in zip(plan, bells, strict=True):
            total[tile.region] += bell
        shares = [(bell / total[tile.region]).float() for tile, bell in zip(plan, bells, strict=True)]
        return tuple(plan), tuple(shares)


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
    # 3000 numbers per cell were counted on the published size (live tensors at 64..160 columns), the rest is work
    # space. The host multiplies by 0.01 MiB and the bytes of a number.
    memory_usage_factor = 0.4

    def __init__(self, networks: Networks):
        super().__init__({"config": networks})

    def get_model(self, state_dict, prefix="", device=None):
        """Build the host's model around the networks, without weights."""
        return MGLDModel(self, device=device)


class HostNetworks(HostCalls):
    """Structure encoder and UNet with the host's calling convention: layers, wrappers, progress."""

    def __init__(self, config: Networks, dtype=None, device=None, operations=None):
        super().__init__()
        layers = host.layers(operations, dtype, device)
        self.config, self.dtype = config, dtype
        # The host computes the attention of Stable Diffusion 2 in fp32 where its kernels leave the choice.
        attention = partial(host.attention, precision=torch.float32)
        self.structure = StructureEncoder(config.structure, layers, attention)
        self.unet = MGLDUNet(config.unet, layers, attention)
        self.register_buffer(EMPTY_PROMPT, torch.zeros(1, config.words, config.unet.context_dim))
        self.to(device=device, dtype=dtype)

    def predict(self, x, timestep, context, progress, **_):
        """Predict the noise in `x` = noisy latents and LR latents on 4 + 4 channels."""
        size = ClipSize(*x.shape[2:])
        x = pad_clip(x, ClipSize(max(size.frames, self.config.fill), size.height, size.width))
        noisy, lr = x.chunk(2, 1)
        text = self.empty_prompt if context is None else context
        result = self.unet(noisy, timestep, self.structure(lr, timestep), text.to(x), progress)
        return result[:, :, : size.frames]


class StartsFromLatent(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """Noise prediction that always starts from its start latent, full noise included, as it was trained."""

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        """Add noise of deviation sigma to the latent."""
        return super().noise_scaling(sigma, noise, latent_image, False)


class MGLDModel(comfy.model_base.BaseModel):
    """Turns conditioning into what the network takes, so that tiles, windows and batching see it too."""

    def __init__(self, model_config, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.EPS, device=device, unet_model=HostNetworks)
        self.model_sampling = StartsFromLatent(model_config)
        alphas = published.SCHEDULE.alphas_cumprod().double()
        self.model_sampling.set_sigmas(((1 - alphas) / alphas).sqrt().float())
        self.model_sampling.vsr_times = ddpm_timesteps
        self.model_sampling.vsr_ends_clean = True

    def concat_cond(self, **kwargs):
        """Give the clean LR latent (b, 4, t, h, w) that joins the noisy one on the channels."""
        lr = lr_condition(kwargs, "MGLD-VSR", LATENT_CHANNELS, "low-resolution latent")
        return self.process_latent_in(lr)

    def extra_conds(self, **kwargs):
        """Let text in only where it is as wide as the empty prompt that the model was trained on."""
        out = super().extra_conds(**kwargs)
        width = self.diffusion_model.config.unet.context_dim
        check_text_width(out, width, "Leave positive and negative of VSR Conditioning open")
        return out


def load_mgld_vsr(release: Release, path: Path, precision: str, decoder: str, preset: str):
    """Build (MODEL, VAE, None) from a release; parts that do not fit are a CheckpointError."""
    try:
        state = release.main()
        vae = _load_vae(release, state, precision, decoder, preset)
        vae.patcher.cached_patcher_init = (_reload_vae, (path, precision, decoder, preset))
        model = _load_model(release, state, precision, preset)
        model.cached_patcher_init = (_reload_model, (path, precision, preset))
    except CheckpointError:
        raise
    except (KeyError, IndexError, RuntimeError, ZeroDivisionError, ValueError) as error:
        if management.is_oom(error):
            raise
        raise does_not_fit("MGLD-VSR", release.name, error) from error
    log = logging.getLogger(__name__)
    log.info("Loaded %s (mgld_vsr, preset %s)", release.name, preset)
    if release.sequence is None:
        log.warning(
            "%s lies without %s.ckpt: frames are decoded one by one, without the low-resolution frames. Put that "
            "file beside it.",
            release.name,
            SEQUENCE,
        )
    say_licence(LICENCE)
    return model, vae, None


def _load_model(release: Release, state: State, precision: str, preset: str, disable_dynamic: bool = False):
    options = release.options
    parts = {name: strip_prefix(state, f"{name}.") for name in ("unet", "structure")}
    text = empty_prompt(state, options["text_heads"])
    networks = Networks(
        checkpoint.unet_config(parts["unet"], options["num_head_channels"]),
        checkpoint.structure_config(parts["structure"], options["num_heads"]),
        text.shape[1],
        published.SEGMENT if preset == REFERENCE else 1,
    )
    weights = {
        **{f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()},
        EMPTY_PROMPT: text,
    }
    patcher = load_native(MGLDConfig(networks), weights, precision, disable_dynamic)
    patcher.model_options[PRESET_KEY] = preset
    return patcher


def _load_vae(
    release: Release, state: State, precision: str, decoder: str, preset: str, disable_dynamic: bool = False
):
    read_sequence = release.decoder(decoder)
    weights = {key: value for key, value in state.items() if key.startswith(_FIRST_STAGE)}
    config, sequence = checkpoint.vae_config(strip_prefix(weights, _FIRST_STAGE)), None
    if read_sequence is not None:
        entries = read_sequence()
        sequence = checkpoint.vae_config(entries)
        weights = {key: value for key, value in weights.items() if not key.startswith(_FIRST_DECODER)}
        weights |= {f"sequence.{key}": value for key, value in entries.items()}
    return MGLDVAE(config, sequence, weights, precision, preset, disable_dynamic)


def _reload_model(path, precision, preset, disable_dynamic: bool = False):
    """Build a fresh MODEL: the host asks for it on several GPUs and for hooks."""
    release = open_release(path)
    return _load_model(release, release.main(), precision, preset, disable_dynamic)


def _reload_vae(path, precision, decoder, preset, disable_dynamic: bool = False):
    release = open_release(path)
    return _load_vae(release, release.main(), precision, decoder, preset, disable_dynamic).patcher
