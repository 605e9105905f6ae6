"""The Upscale-A-Video UNet as the host's native MODEL, and the loading of a whole release.

The host's sigma axis is sqrt((1 - abar) / abar) and its x is the published latent times sqrt(1 + sigma^2); the
network's input is the published one again. LR frames join as pixels, already noised by VSR Conditioning.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as management
import comfy.supported_models_base
import torch

from ..models.checkpoints import CheckpointError
from ..models.layout.windows import Window
from ..models.schedules import DiffusionSettings, ddim_timesteps
from ..models.upscale_a_video import checkpoint, published
from ..models.upscale_a_video.checkpoint import LICENCE, Release, open_release
from ..models.upscale_a_video.unet import UNetConfig, VideoUNet
from ..models.upscale_a_video.vae import LATENT_CHANNELS, LATENT_SCALE, SCALE
from . import host, run_state
from .keys import LEVEL_KEY, PRESET_KEY
from .native_model import HostCalls, check_text_width, does_not_fit, load_native, lr_condition, say_licence
from .upscale_a_video_text import load_clip
from .upscale_a_video_vae import UpscaleAVideoVAE

_LEVELS = 1000  # noise levels are counted in steps of the schedule
_SAMPLER = "KSampler / SamplerCustomAdvanced"


class UpscaleAVideoFormat(comfy.latent_formats.SD_X4):
    """Latents of the x4 autoencoder over time; what Spatial Tiles and Temporal Windows choose by themselves."""

    latent_channels = LATENT_CHANNELS
    latent_dimensions = 3
    spacial_downscale_ratio = SCALE
    temporal_downscale_ratio = 1
    # (long, short) sides in output px; the published program works on 256 LR px with 64 around them
    vsr_tiles = ((1536, 1536), (1280, 1280), (1024, 1024), (768, 768), (512, 512))
    vsr_tile_overlap = 256  # output px
    vsr_window = (published.WINDOW, published.WINDOW_OVERLAP)

    @staticmethod
    def vsr_reference_windows(frames: int) -> tuple[tuple[Window, ...], tuple[torch.Tensor, ...]]:
        """Give the published windows, each once, and their weights as its sequential blend leaves them."""
        found: dict[Window, torch.Tensor] = {}
        plan = published.published_windows(frames), published.published_window_weights(frames)
        for span, weights in zip(*plan, strict=True):  # the last windows can be equal
            window = Window(*span)
            found[window] = found.get(window, 0) + weights[window.span]
        return tuple(found), tuple(found.values())


class UpscaleAVideoConfig(comfy.supported_models_base.BASE):
    """How the host builds and samples the network."""

    unet_extra_config = {}
    latent_format = UpscaleAVideoFormat
    # 2950 to 3650 numbers per cell were counted on the published size (live tensors at 90..180 rows), the rest is
    # work space. The host multiplies by 0.01 MiB and the bytes of a number.
    memory_usage_factor = 0.4

    def __init__(self, unet: UNetConfig, schedule: DiffusionSettings, latent_scale: float):
        super().__init__({"config": unet})
        self.schedule = schedule
        self.latent_format.scale_factor = latent_scale

    def get_model(self, state_dict, prefix="", device=None):
        """Build the host's model around the network, without weights."""
        return UpscaleAVideoModel(self, device=device)


class HostUNet(HostCalls, VideoUNet):
    """The network with the host's calling convention: layers, wrappers, progress."""

    def __init__(self, config: UNetConfig, dtype=None, device=None, operations=None):
        super().__init__(config, ops=host.layers(operations, dtype, device), attention=host.attention)
        self.dtype = dtype
        self.to(device=device, dtype=dtype)

    def predict(self, x, timestep, context, progress, noise_level=None, **_):
        """Predict v for `x` = noisy latents and noised LR frames on 4 + 3 channels."""
        if context is None:
            raise ValueError(
                f"{_SAMPLER}: Upscale-A-Video needs text; got a conditioning without. Link CLIP Text Encode to "
                "VSR Conditioning, with its text left empty for no prompt."
            )
        noisy, lr = x.split((LATENT_CHANNELS, x.shape[1] - LATENT_CHANNELS), 1)
        return VideoUNet.forward(self, noisy, timestep, lr, context, noise_level, progress)


class UpscaleAVideoModel(comfy.model_base.BaseModel):
    """Turns conditioning into what the network takes, so that tiles, windows and batching see it too."""

    def __init__(self, model_config, device=None):
        schedule = model_config.schedule
        kinds = comfy.model_base.ModelType
        kind = {"v_prediction": kinds.V_PREDICTION, "epsilon": kinds.EPS}.get(schedule.prediction_type)
        if kind is None:
            raise CheckpointError(
                "the scheduler's prediction_type must be v_prediction or epsilon; got "
                f"{schedule.prediction_type!r}. Use the scheduler json of the published model."
            )
        super().__init__(model_config, kind, device=device, unet_model=HostUNet)
        alphas = schedule.alphas_cumprod()
        self.model_sampling.set_sigmas(((1 - alphas) / alphas).sqrt())
        self.model_sampling.vsr_times = partial(_spaced, schedule)
        self.model_sampling.vsr_ends_clean = schedule.set_alpha_to_one

    def concat_cond(self, **kwargs):
        """Give the noised LR frames (b, 3, t, h, w) that join the latents on the channels."""
        return lr_condition(kwargs, "Upscale-A-Video", 3, "low-resolution frames")

    def extra_conds(self, **kwargs):
        """Add the noise level as the class label of the network; text must be of its width."""
        out = super().extra_conds(**kwargs)
        remedy = "Use the CLIP output of the same Load Video Restorer in CLIP Text Encode"
        check_text_width(out, self.diffusion_model.config.cross_attention_dim, remedy)
        label = round(_LEVELS * float(kwargs.get(LEVEL_KEY, 0.0)))
        out["noise_level"] = comfy.conds.CONDRegular(torch.tensor([label]))
        return out


def _spaced(schedule: DiffusionSettings, steps: int, times: int) -> list[int]:
    """Space steps over the first `times` of the schedule as published."""
    return ddim_timesteps(steps, replace(schedule, num_train_timesteps=max(times, 1)))


def load_upscale_a_video(release: Release, path: Path, precision: str, decoder: str, preset: str):
    """Build (MODEL, VAE or None, CLIP or None) from a release; parts that do not fit are a CheckpointError."""
    part, vae = release.decoder(decoder), None
    try:
        if part is not None:
            vae = _load_vae(release, decoder, precision, preset)
            vae.patcher.cached_patcher_init = (_reload_vae, (path, precision, decoder, preset))
        clip = load_clip(release) if release.text is not None else None
        if clip is not None:
            clip.patcher.cached_patcher_init = (_reload_clip, (path,))
        model = _load_model(release, decoder, precision, preset)
        model.cached_patcher_init = (_reload_model, (path, precision, decoder, preset))
    except CheckpointError:
        raise
    except (KeyError, IndexError, RuntimeError, ZeroDivisionError, ValueError) as error:
        if management.is_oom(error):
            raise
        raise does_not_fit("Upscale-A-Video", release.name, error) from error
    log = logging.getLogger(__name__)
    missing = [name for name, value in (("VAE", vae), ("CLIP", clip)) if value is None]
    log.info(
        "Loaded %s (upscale_a_video, preset %s)%s",
        release.name,
        preset,
        f"; it has no {' and no '.join(missing)}" if missing else "",
    )
    say_licence(LICENCE)
    return model, vae, clip


def _load_model(release: Release, decoder: str, precision: str, preset: str, disable_dynamic: bool = False):
    state = checkpoint.normalise_unet_keys(release.unet.read())
    unet = checkpoint.unet_config(state, release.unet.config)
    vae = release.decoder(decoder)
    scale = (vae.config or {} if vae is not None else {}).get("scaling_factor", LATENT_SCALE)
    schedule = DiffusionSettings.from_json(release.scheduler)
    settings = UpscaleAVideoConfig(unet, schedule, scale)
    patcher = load_native(settings, state, precision, disable_dynamic)
    patcher.model_options[PRESET_KEY] = preset
    if schedule.clip_sample:
        patcher.set_model_sampler_post_cfg_function(run_state.clip_prediction(schedule.clip_sample_range))
    return patcher


def _load_vae(release: Release, decoder: str, precision: str, preset: str, disable_dynamic: bool = False):
    part = release.decoder(decoder)
    state = checkpoint.normalise_vae_keys(part.read())
    config = checkpoint.vae_config(state, part.config)
    alphas = DiffusionSettings.from_json(release.low_res).alphas_cumprod()
    return UpscaleAVideoVAE(config, state, precision, preset, alphas, disable_dynamic)


def _reload_model(path, precision, decoder, preset, disable_dynamic: bool = False):
    """Build a fresh MODEL: the host asks for it on several GPUs and for hooks."""
    return _load_model(open_release(path), decoder, precision, preset, disable_dynamic)


def _reload_vae(path, precision, decoder, preset, disable_dynamic: bool = False):
    return _load_vae(open_release(path), decoder, precision, preset, disable_dynamic).patcher


def _reload_clip(path, disable_dynamic: bool = False):
    return load_clip(open_release(path), disable_dynamic).patcher
