"""SDEdit Degradation: a base model draws the clip again, from partway through the noise.

1. The clip is reduced to the base model's resolution, padded and encoded.
2. Its latent is noised to a drawn step of the schedule and sampled from there on by the host.
3. The result is decoded and cropped to its exact size.
"""

from __future__ import annotations

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER
from comfy.sd import VAE
from comfy_api.latest import io

from ..models.layout.noise import SDEDIT_LR_STREAM
from ..models.layout.sizes import ClipSize, crop_clip, pad_clip, padded_size, resize_clip
from ..models.unimmvsr.sdedit import SDEdit
from .frames import asked_size, multiple_input, size_input
from .host import services
from .host.keys import LEVEL_KEY, LR_KEY
from .host.model import system_of
from .host.progress import Progress
from .host.room import check_room
from .sampling import AddressedNoise, sample_restorer_euler

_TITLE = "SDEdit Degradation"
_PATCH = 2  # latent cells a side that most networks take together; HunyuanVideo fails on odd sides


class SDEditDegradation(io.ComfyNode):
    """Imitates what a base model makes of a clip when it ignores the references."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRSDEditDegradation",
            display_name=_TITLE,
            category=services.CATEGORY,
            description=(
                "Makes a low-resolution clip as a base model would have made it: reduces a good clip, noises its "
                "latent to a random step and denoises it with the model. Structure drifts. Add Degrade Video after it "
                "for the complete degradation of the UniMMVSR paper."
            ),
            search_aliases=[
                "sdedit",
                "degradation",
                "training pairs",
                "base model",
                "low resolution",
                "drift",
                "cascade vsr",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The base video model, or the built-in one of Load Video Restorer."),
                io.Vae.Input("vae", tooltip="The VAE of that model."),
                io.Image.Input("images", tooltip="The good clip."),
                size_input(
                    "size",
                    ("short side", "largest edge", "exact size", "scale"),
                    0.25,
                    (832, 480),
                    8192,
                    "How the resolution that the base model was trained on is given; the result has it.",
                ),
                io.Float.Input(
                    "min_strength",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=("Smallest share of the schedule that is noised and denoised again; 0 is the VAE alone."),
                ),
                io.Float.Input(
                    "max_strength",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Largest share; the strength of a run is drawn uniformly between both.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Steps of the whole schedule; the drawn share of them is run.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip=("How strongly the prompt is followed; a value other than 1 needs negative."),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Seed of the drawn strength and of the noise.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip=("Prompt that says what the clip shows; only the built-in model works without it."),
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative prompt; used only when cfg is not 1."
                ),
                multiple_input(),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip=("The degraded clip, at the base resolution.")),
                io.Int.Output(display_name="steps_done", tooltip=("Number of steps that were run for this seed.")),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        vae: VAE | None,
        images: torch.Tensor,
        size: dict,
        min_strength: float,
        max_strength: float,
        steps: int,
        cfg: float,
        seed: int,
        positive: list | None = None,
        negative: list | None = None,
        multiple: int = 1,
    ):
        """Encode at the base resolution, sample from the drawn step, decode."""
        frames = services.check_frames(_TITLE, "images", images)
        _check_pair(model, vae)
        if min_strength > max_strength:
            raise ValueError(
                f"{_TITLE}: min_strength must not be above max_strength; got {min_strength:g} and {max_strength:g}. "
                "Swap them."
            )
        schedule = SDEdit(round(min_strength * steps), round(max_strength * steps), steps)
        k = schedule.draw(np.random.default_rng(seed))
        target = ClipSize(frames.shape[0], *asked_size(_TITLE, "size", size, *frames.shape[1:3], multiple))
        check_room(_TITLE, target)
        latent = _encode(vae, frames, target)
        if k:
            conditions = _conditions(model, latent, positive, negative, cfg, schedule.start(k), seed)
            latent = _sample(model, latent, _sigmas(model, schedule, k), cfg, seed, conditions)
        return io.NodeOutput(services.to_output(_decode(vae, latent, target)), k)


def _check_pair(model: ModelPatcher, vae: VAE | None) -> None:
    system = system_of(model)
    if system is not None and not system.redraws:
        raise ValueError(
            f"{_TITLE}: model must be a base video model or the built-in one; got {type(model.model).__name__}, which "
            "only restores. Load a text-to-video model, or choose built-in in Load Video Restorer."
        )
    channels = model.get_model_object("latent_format").latent_channels
    if vae is None or vae.latent_dim != 3 or vae.latent_channels != channels:
        got = "none" if vae is None else f"one of {vae.latent_channels} channels"
        raise ValueError(
            f"{_TITLE}: vae must be the video VAE of model ({channels} channels); got {got}. Link the VAE that "
            "belongs to the model."
        )


def _encode(vae: VAE, frames: torch.Tensor, target: ClipSize) -> torch.Tensor:
    clip = resize_clip(frames.movedim(-1, 0).unsqueeze(0), target.height, target.width, "bicubic").clamp(0, 1)
    space, time = _PATCH * vae.spacial_compression_encode(), vae.temporal_compression_decode() or 1
    return vae.encode(pad_clip(clip, padded_size(target, space, time))[0].movedim(0, -1))


def _decode(vae: VAE, latent: torch.Tensor, target: ClipSize) -> torch.Tensor:
    frames = vae.decode(latent)
    frames = frames.flatten(0, 1) if frames.ndim == 5 else frames
    return crop_clip(frames.movedim(-1, 0).unsqueeze(0), target)[0].movedim(0, -1)


def _sigmas(model: ModelPatcher, schedule: SDEdit, k: int) -> torch.Tensor:
    """Give the last k steps: even ones for a flow model, whatever its shift; the host's "simple" for others."""
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.CONST):
        return schedule.sigmas(k)
    return comfy.samplers.calculate_sigmas(sampling, "simple", schedule.steps)[-(k + 1) :]


def _conditions(
    model: ModelPatcher,
    latent: torch.Tensor,
    positive: list | None,
    negative: list | None,
    cfg: float,
    level: float,
    seed: int,
) -> tuple[list, list]:
    """Give (positive, negative); the built-in model is shown the clip itself, noised as far as the start."""
    if cfg != 1 and negative is None:
        raise ValueError(
            f"{_TITLE}: cfg other than 1 needs a negative prompt; got cfg {cfg:g} and none. Link negative, or set "
            "cfg to 1."
        )
    if system_of(model) is not None:
        noise = AddressedNoise(seed ^ SDEDIT_LR_STREAM).generate_noise({"samples": latent})
        values = {LR_KEY: (1 - level) * latent + level * noise, LEVEL_KEY: level}
        null = [[None, {}]]
        pair = (positive or null, negative or null)
        return tuple([[text, {**extra, **values}] for text, extra in given] for given in pair)
    if positive is None:
        raise ValueError(
            f"{_TITLE}: a text-to-video model needs positive; got none. Link CLIP Text Encode, an empty prompt "
            "included."
        )
    return positive, positive if negative is None else negative


def _sample(
    model: ModelPatcher,
    latent: torch.Tensor,
    sigmas: torch.Tensor,
    cfg: float,
    seed: int,
    conditions: tuple[list, list],
) -> torch.Tensor:
    noise = AddressedNoise(seed).generate_noise({"samples": latent})
    show = Progress(_TITLE, len(sigmas) - 1, "step")
    sampler = KSAMPLER(sample_restorer_euler)
    return comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        sampler,
        sigmas,
        *conditions,
        latent,
        callback=lambda step, denoised, x, total: show(step + 1, total),
        disable_pbar=True,
        seed=seed,
    )
