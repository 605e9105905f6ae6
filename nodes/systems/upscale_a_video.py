"""Upscale-A-Video in the host: the UNet as a MODEL, its two autoencoders as a VAE, the text encoder as a CLIP.

The host's sigma axis is sqrt((1 - abar) / abar) and its x is the published latent times sqrt(1 + sigma^2); the
network's input is the published one again. LR frames join as pixels, noised by VSR Conditioning (`_condition`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import comfy.clip_model
import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as management
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import folder_paths
import torch

from ...models.checkpoints import CheckpointError, shape_of, strip_prefix
from ...models.layout.pieces import Tile, Window, blended_spans, plain_spans
from ...models.layout.sizes import ClipSize
from ...models.schedules import DiffusionSettings, ddim_timesteps, diffuse
from ...models.upscale_a_video import checkpoint
from ...models.upscale_a_video import published as plan
from ...models.upscale_a_video.unet import MAX_NOISE_LEVEL, UNetConfig, VideoUNet
from ...models.upscale_a_video.vae import (
    LATENT_CHANNELS,
    LATENT_SCALE,
    SCALE,
    UpscaleVAE,
    VAEConfig,
    lr_grid,
    piece_decoder,
    piece_encoder,
)
from ..host import services
from ..host.keys import ALPHAS_KEY, DEEP_KEY, LEVEL_KEY, NOISE_STEPS, PUBLISHED
from ..host.model import (
    RestorerModel,
    RestorerNetwork,
    Spacing,
    as_native,
    block_progress,
    check_text_width,
    clip_prediction,
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
    State,
    System,
    TileSizes,
    Weights,
    WindowSize,
)

# Peak per output pixel and frame, in numbers per channel of the first level: 5.3 to 6.0 and 3.7 were counted on
# the published size (live tensors at 64..720 rows); the rest is for the work space of convolutions.
_DECODE_NUMBERS, _ENCODE_NUMBERS = 7, 4.5
# Folders of a release whose files are not listed by themselves
_FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "low_res_scheduler", "scheduler", "propagator")
_NAME, _KEY = "h", "clip_h"  # the host's names of this family
_EMBEDDING = "text_model.embeddings.token_embedding.weight"
_TEXT = {"hidden_act": "gelu", "num_attention_heads": 16, "eos_token_id": 49407}
_STANDARD = {"<|startoftext|>": 49406, "<|endoftext|>": 49407, "!": 0}  # of CLIP's own vocabulary
_PAD = "!"  # with which SD 2 tokenizers pad


# The UNet


class UpscaleAVideoFormat(comfy.latent_formats.SD_X4):
    """Latents of the x4 autoencoder over time."""

    latent_channels = LATENT_CHANNELS
    latent_dimensions = 3
    spacial_downscale_ratio = SCALE
    temporal_downscale_ratio = 1


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


class HostUNet(RestorerNetwork, VideoUNet):
    """The network with the host's calling convention and layers."""

    def __init__(self, config: UNetConfig, dtype=None, device=None, operations=None):
        layers = services.layers(operations, dtype, device)
        super().__init__(config, ops=layers, attention=services.attention)
        self.dtype = dtype
        self.to(device=device, dtype=dtype)

    def predict(self, x, timestep, context, transformer_options, noise_level=None, **_):
        """Predict v for `x` = noisy latents and noised LR frames on 4 + 3 channels."""
        if context is None:
            raise ValueError(
                f"{services.SAMPLER}: Upscale-A-Video needs text; got a conditioning without. Link CLIP Text Encode to "
                "VSR Conditioning, with its text left empty for no prompt."
            )
        noisy, lr = x.split((LATENT_CHANNELS, x.shape[1] - LATENT_CHANNELS), 1)
        show, memory = block_progress(transformer_options, x), transformer_options.get(DEEP_KEY)
        deep = None if memory is None else memory.recall(transformer_options, x)
        result = VideoUNet.forward(self, noisy, timestep, lr, context, noise_level, show, deep)
        if memory is not None:
            memory.keep(transformer_options, x, deep)
        return result


class UpscaleAVideoModel(RestorerModel):
    """Turns conditioning into what the network takes, so that tiles, windows and batching see it too."""

    lr_channels, lr_name = 3, "low-resolution frames"

    def __init__(self, model_config: UpscaleAVideoConfig, device: torch.device | None = None):
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
        self.spacing = Spacing(partial(_spaced, schedule), schedule.set_alpha_to_one)

    def extra_conds(self, **values):
        """Add the noise level as the class label of the network; text must be of its width."""
        out = super().extra_conds(**values)
        remedy = "Use the CLIP output of the same Load Video Restorer in CLIP Text Encode"
        check_text_width(out, self.diffusion_model.config.cross_attention_dim, remedy)
        label = round(NOISE_STEPS * float(values.get(LEVEL_KEY, 0.0)))
        out["noise_level"] = comfy.conds.CONDRegular(torch.tensor([label]))
        return out


def _spaced(schedule: DiffusionSettings, steps: int, times: int) -> list[int]:
    """Space steps over the first `times` of the schedule as published."""
    return ddim_timesteps(steps, replace(schedule, num_train_timesteps=max(times, 1)))


def _condition(clip: LRClip) -> Conditioned:
    """Noise LR frames by the model's own schedule; the level counts thousandths of it. Sampling starts empty."""
    lr, most = clip.latent["samples"], MAX_NOISE_LEVEL / NOISE_STEPS
    if clip.references:
        raise ValueError(f"Upscale-A-Video takes no references; got {clip.references}. Unlink Reference Set.")
    if clip.noise_level > most:
        raise ValueError(
            f"noise_level must be at most {most} for Upscale-A-Video; got {clip.noise_level:g}. Use 0.12, the "
            "published choice."
        )
    level, alphas = round(NOISE_STEPS * clip.noise_level), clip.latent[ALPHAS_KEY].to(lr.device)
    noised = diffuse(lr, clip.draw(lr), alphas[level])
    return Conditioned(noised, lr.new_zeros(lr.shape[0], LATENT_CHANNELS, *lr.shape[2:]))


def _published_windows(frames: int) -> tuple[tuple[Window, ...], Weights]:
    """Give the published windows, each once, and their weights as its sequential blend leaves them."""
    found: dict[Window, torch.Tensor] = {}
    spans = zip(plan.published_windows(frames), plan.published_window_weights(frames), strict=True)
    for span, weights in spans:  # the last windows can be equal
        window = Window(*span)
        found[window] = found.get(window, 0) + weights[window.span]
    return tuple(found), tuple(found.values())


# The autoencoders


class UpscaleAVideoVAE(RestorerVAE):
    """The 4-channel autoencoder: 4 px and one frame per cell; spans of frames, with or without LR frames."""

    def __init__(
        self,
        config: VAEConfig,
        state: Mapping[str, torch.Tensor],
        loading: Loading,
        lr_alphas: torch.Tensor,
        disable_dynamic: bool,
    ):
        self._lr_alphas = lr_alphas
        dtype = pick_vae_dtype(loading.precision, loading.preset, management.vae_device())
        network = UpscaleVAE(config, services.layers(comfy.ops.manual_cast, dtype, None), services.attention)
        numbers = config.block_out_channels[0] * management.dtype_size(dtype)
        spans = _published_spans if loading.preset == PUBLISHED else blended_spans
        law = VAELaw(
            space=SCALE,
            time=1,
            decode_bytes=_DECODE_NUMBERS * numbers,
            encode_bytes=_ENCODE_NUMBERS * numbers,
            sides=(320, 256, 192, 128, 96, 64),
            overlap=16,
            lengths=(8, 6, 5, 4, 3),
            spans=spans,
            encode_spans=spans,
        )
        super().__init__(network, state, dtype, law, config.latent_channels, disable_dynamic)

    def lr_latent(self, frames: torch.Tensor, size: ClipSize, mode: str) -> dict:
        """Give the LR frames themselves, at the latent's grid: this model sees pixels, not latents."""
        samples = services.to_output(lr_grid(frames, size, mode, self.device))
        return {"samples": samples, ALPHAS_KEY: self._lr_alphas}

    def piece_encoder(self, frames: torch.Tensor, size: ClipSize, mode: str) -> Callable[[Window, Tile], torch.Tensor]:
        """Give what encodes a piece."""
        return piece_encoder(self.first_stage_model, frames, self.device, self.vae_dtype)

    def piece_decoder(
        self, latent: torch.Tensor, lr: torch.Tensor | None, size: ClipSize, lr_weight: float
    ) -> Callable[[Window, Tile], torch.Tensor]:
        """Give what decodes a piece; a plain decoder has no place for LR frames."""
        network = self.first_stage_model
        guide = None if lr is None or not network.config.condition else lr_grid(lr, size, device=self.device)
        return piece_decoder(network, latent, guide, lr_weight, self.device, self.vae_dtype)


def _published_spans(frames: int, length: int) -> tuple:
    """Cut a clip as the published program does, whatever length fits."""
    return plain_spans(frames, plan.DECODE_CHUNK)


# The text encoder: an OpenCLIP text tower of any size, as its json says


def _load_clip(release: checkpoint.Release, loading: Loading, disable_dynamic: bool) -> comfy.sd.CLIP | None:
    """Build the CLIP of a release: the last layer's state after the final norm, padding as its tokenizer says."""
    if release.text is None:
        return None
    state = release.text.read()
    state = strip_prefix(state, next((k.removesuffix(_EMBEDDING) for k in state if k.endswith(_EMBEDDING)), ""))
    config = _text_config(state, release.text.config or {})
    special = _special_tokens(release.tokenizer)
    state.setdefault("text_projection.weight", torch.eye(config["hidden_size"]))  # the pooled text is not used
    tower = partial(_TextTower, config=config, special=special)
    tokenizer = partial(_make_tokenizer, config=config, files=release.tokenizer, pad=special["pad"])
    target = SimpleNamespace(
        clip=partial(comfy.sd1_clip.SD1ClipModel, clip_name=_NAME, clip_model=tower),
        tokenizer=partial(comfy.sd1_clip.SD1Tokenizer, clip_name=_NAME, tokenizer=tokenizer),
        params={},
    )
    embeddings = folder_paths.get_folder_paths("embeddings")
    return comfy.sd.CLIP(target, embedding_directory=embeddings, state_dict=[state], disable_dynamic=disable_dynamic)


class _TextTower(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None, *, config: dict, special: dict):
        super().__init__(
            device=device,
            dtype=dtype,
            layer="last",
            textmodel_json_config=dict(config),
            model_class=_tower,
            special_tokens=special,
            enable_attention_masks=bool(config.get("use_attention_mask")),
            return_projected_pooled=False,
            model_options=model_options or {},
        )


def _tower(config: dict, dtype: torch.dtype | None, device: torch.device | str, operations: Any):
    """Build the host's text model with as many tokens as the weights have."""
    model = comfy.clip_model.CLIPTextModel(config, dtype, device, operations)
    if config["vocab_size"] != model.get_input_embeddings().num_embeddings:
        size = (config["vocab_size"], config["hidden_size"])
        model.set_input_embeddings(operations.Embedding(*size, dtype=dtype, device=device))
    return model


def _make_tokenizer(embedding_directory=None, tokenizer_data=None, *, config: dict, files: Mapping[str, str], pad: int):
    """Build the host's tokenizer from the release's files; without a vocabulary, from the host's own."""
    settings = {
        "pad_with_end": False,
        "max_length": config["max_position_embeddings"],
        "embedding_directory": embedding_directory,
        "embedding_size": config["hidden_size"],
        "embedding_key": _KEY,
        "tokenizer_data": tokenizer_data or {},
    }
    own = {"vocab.json", "merges.txt"}
    with TemporaryDirectory() as folder:
        for name in own & files.keys():
            (Path(folder) / name).write_text(files[name], encoding="utf-8")
        tokenizer = comfy.sd1_clip.SDTokenizer(folder if own <= files.keys() else None, **settings)
    tokenizer.pad_token = pad
    return tokenizer


def _special_tokens(files: Mapping[str, str]) -> dict[str, int]:
    """Find the numbers of the tokens that start, end and pad a text."""
    vocabulary = json.loads(files["vocab.json"]) if "vocab.json" in files else _STANDARD
    names = {"start": "<|startoftext|>", "end": "<|endoftext|>", "pad": _PAD}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        token = json.loads(files.get(file, "{}")).get("pad_token")
        names["pad"] = (token.get("content") if isinstance(token, dict) else token) or names["pad"]
    for name in names.values():
        if name not in vocabulary:
            raise CheckpointError(
                f"the tokenizer's vocabulary must have the token {name!r} that its json names; got "
                f"{len(vocabulary)} other tokens. Download the folder tokenizer again."
            )
    return {use: vocabulary[name] for use, name in names.items()}


def _text_config(state: State, published: Mapping) -> dict:
    """Merge the json of the text encoder with what the shapes say."""
    vocabulary, width = shape_of(state, _EMBEDDING)
    layers = {int(key.split(".")[3]) for key in state if key.startswith("text_model.encoder.layers.")}
    shapes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "intermediate_size": shape_of(state, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "max_position_embeddings": shape_of(state, "text_model.embeddings.position_embedding.weight")[0],
    }
    for key, value in shapes.items():
        if published.get(key, value) != value:
            raise CheckpointError(
                f"text_encoder/config.json must fit its weights; got {key} {published[key]} for weights of "
                f"{value}. Download the folder text_encoder again."
            )
    return {**_TEXT, **published, **shapes}


# Loading


def _load_model(release: checkpoint.Release, loading: Loading, disable_dynamic: bool):
    state = host_entries(checkpoint.normalise_unet_keys(release.unet.read()))
    vae = release.decoder(loading.decoder)
    scale = (vae.config or {} if vae is not None else {}).get("scaling_factor", LATENT_SCALE)
    schedule = DiffusionSettings.from_json(release.scheduler)
    settings = UpscaleAVideoConfig(checkpoint.unet_config(state, release.unet.config), schedule, scale)
    set_precision(settings, loading.precision, state)
    patcher = as_native(UpscaleAVideoModel(settings), state, disable_dynamic)
    if schedule.clip_sample:
        patcher.set_model_sampler_post_cfg_function(clip_prediction(schedule.clip_sample_range))
    return patcher


def _load_vae(release: checkpoint.Release, loading: Loading, disable_dynamic: bool) -> UpscaleAVideoVAE | None:
    part = release.decoder(loading.decoder)
    if part is None:
        return None
    state = checkpoint.normalise_vae_keys(part.read())
    alphas = DiffusionSettings.from_json(release.low_res).alphas_cumprod()
    return UpscaleAVideoVAE(checkpoint.vae_config(state, part.config), state, loading, alphas, disable_dynamic)


SYSTEM = System(
    key=checkpoint.ARCHITECTURE,
    name=checkpoint.NAME,
    holds=checkpoint.HOLDS,
    licence=checkpoint.LICENCE,
    marks=(checkpoint.UNET_MARK, checkpoint.VAE_MARK),  # VAEs alone are an error that says what to choose
    open_state=checkpoint.open_state,
    open_release=checkpoint.open_release,
    load_model=_load_model,
    load_vae=_load_vae,
    load_clip=_load_clip,
    folder=ReleaseFolder(("unet/*", "vae/*"), tuple(f"{name}/*" for name in _FOLDERS)),
    flow=FlowFile("propagator/*"),
    condition=_condition,
    lr_is_latent=False,
    # (long, short) sides in output px; the published program works on 256 LR px with 64 around them
    tiles=TileSizes(((1536, 1536), (1280, 1280), (1024, 1024), (768, 768), (512, 512)), 256),
    windows=WindowSize(plan.WINDOW, plan.WINDOW_OVERLAP),
    keeps_deep=True,
    published=Published(windows=_published_windows),
)
