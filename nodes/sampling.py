"""Noise, samplers and sigmas of the published methods, as the host's own NOISE, SAMPLER and SIGMAS.

Every sampler here is a function (model, x, sigmas) -> clean latent for the host's KSAMPLER. At every step it

1. predicts: `model(x, sigma)` gives the clean latent that the network sees in x;
2. shows the prediction (callback), which moves the preview and the bar;
3. steps to the next sigma. They differ in this:

- euler: straight to the next sigma along the present velocity (x - clean) / sigma; the last step gives the prediction.
- plms: along a mean of up to four past velocities (even sigmas), a two-stage first step.
- pndm: the same on sigmas of any spacing, one network call a step.
- ddim, ddpm: the published steps of Upscale-A-Video and MGLD-VSR, on the published latent x / sqrt(1 + sigma^2).

Latents are (b, c, t, h, w), or (t, c, h, w) for picture models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER
from comfy_api.latest import io

from ..models.layout.noise import STEP_STREAM, addressed_noise
from ..models.layout.sizes import ClipSize
from ..models.schedules import ddim_update, ddpm_posterior, ddpm_update, flow_sigmas, pndm_weights
from .host import services
from .host.foreign import refuse_replaced
from .host.keys import AFTER_STEP_KEY, FIRST_KEY, STEPPING_KEY, UNEDITED_KEY
from .host.model import RestorerModel, Spacing, system_of

# Adams-Bashforth weights, newest first: the pseudo linear multistep method of PNDM (Liu et al. 2022), on v.
_MULTISTEP = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
_BESIDE = ThreadPoolExecutor(1, "vsr-noise")
_NOISE, _SAMPLER, _SIGMAS = "Seeded Noise", "Restorer Sampler", "Refine Sigmas"


class AddressedNoise:
    """The host's NOISE: every value depends on the seed and its own frame, row, column and channel."""

    def __init__(self, seed: int):
        self.seed = seed

    def generate_noise(self, input_latent: dict) -> torch.Tensor:
        """Draw noise shaped like the latent; a 4-D latent holds its frames in the batch."""
        services.check_cancelled()
        return noise_like(input_latent["samples"], self.seed, input_latent.get(FIRST_KEY, 0))


def noise_like(samples: torch.Tensor, seed: int, first: int = 0) -> torch.Tensor:
    """Draw addressed noise shaped like a latent from frame `first` on; clips of one batch take consecutive seeds."""
    if getattr(samples, "is_nested", False) or samples.ndim not in (4, 5):
        raise ValueError(
            f"{_NOISE}: the latent must be a picture or video latent (4 or 5 dimensions); got {samples.ndim}. Use the "
            "host's RandomNoise for this model."
        )
    clips = samples if samples.ndim == 5 else samples.transpose(0, 1).unsqueeze(0)
    size = ClipSize(*clips.shape[2:])
    channels, seeds = clips.shape[1], [(seed + i) % 2**64 for i in range(clips.shape[0])]
    drawn = [addressed_noise(each, (channels, size), frame0=first) for each in seeds]
    noise = torch.stack(drawn) if len(drawn) > 1 else drawn[0][None]  # most have one clip: no copy
    noise = noise if samples.ndim == 5 else noise.squeeze(0).transpose(0, 1)
    return noise.to(samples)


class SeededNoise(io.ComfyNode):
    """Noise that tiles, windows and chunks do not change."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRSeededNoise",
            display_name=_NOISE,
            category=services.CATEGORY,
            description=(
                "Noise whose values depend only on the seed and their position (frame, row, "
                "column), so that clip length, tiles, windows and resuming do not change it."
            ),
            search_aliases=["random noise", "noise", "seed", "vsr noise", "cascade vsr"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip=(
                        "The same seed gives the same noise at the same position of a clip, "
                        "whatever its size and length."
                    ),
                )
            ],
            outputs=[io.Noise.Output(tooltip="Noise for SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, seed: int):
        """Wrap the seed."""
        return io.NodeOutput(AddressedNoise(seed))


@torch.no_grad()
def sample_restorer_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Follow the flow in straight steps; the last step lands on the prediction itself, exactly."""
    for step, sigma, following in _steps(sigmas, sigmas):
        denoised = model(x, sigma * x.new_ones(len(x)), **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = denoised if following == 0 else x + (following - sigma) * (x - denoised) / sigma
    return x


@torch.no_grad()
def sample_restorer_plms(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Follow the flow with up to four past velocities; its order holds for even sigmas (shift 1)."""
    history: list[torch.Tensor] = []
    for step, sigma, following in _steps(sigmas, sigmas):
        denoised = model(x, sigma * x.new_ones(len(x)), **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        velocity = (x - denoised) / sigma
        history = [velocity, *history[:3]]
        if len(history) == 1 and following == 0:
            return denoised
        if len(history) == 1:  # no past yet: average the velocities at both ends of the step
            ahead = x + (following - sigma) * velocity
            end = model(ahead, following * x.new_ones(len(x)), **(extra_args or {}))
            end = (ahead - end) / following
            direction = (velocity + end) / 2
        else:
            weights = _MULTISTEP[len(history) - 1]
            direction = sum(weight * past for weight, past in zip(weights, history, strict=True))
        x = x + (following - sigma) * direction
    return x


@torch.no_grad()
def sample_restorer_pndm(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Follow the flow with up to four past velocities, one network evaluation a step, on sigmas of any spacing."""
    times = sigmas.tolist()
    history: list[torch.Tensor] = []
    for step, sigma, following in _steps(sigmas, sigmas):
        denoised = model(x, sigma * x.new_ones(len(x)), **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        history = [(x - denoised) / sigma, *history[:3]]
        weights = pndm_weights(times[step::-1][:4], times[step + 1])
        if len(weights) == 1 and following == 0:
            return denoised
        direction = sum(weight * past for weight, past in zip(weights, history, strict=False))
        x = x + (following - sigma) * direction
    return x


@torch.no_grad()
def sample_restorer_ddim(model, x, sigmas, extra_args=None, callback=None, disable=None, eta=0.0):
    """Step with the published DDIM of Upscale-A-Video (eta 0 .. 1 mixes in fresh noise).

    Where a node edits the prediction, the noise estimate still comes from the unedited one. Works on the
    published latent, which is the host's x over sqrt(1 + sigma^2) and starts as pure noise at any sigma.
    """
    sampling, alphas = _diffusion(model, sigmas, "ddim")
    alphas = alphas.float()
    extra_args, options = _with_options(extra_args, {})
    start = getattr(model, "latent_image", None)
    empty = start is None or torch.count_nonzero(start) == 0
    x = model.noise if empty and hasattr(model, "noise") else x * alphas[0].sqrt()
    for step, sigma, following in _steps(sigmas, alphas):
        alpha = alphas[step]
        scaled = x / alpha.sqrt()
        fresh = _drawn_beside(model, x, extra_args, step) if eta > 0 else None
        kept = options[UNEDITED_KEY] = {"x0": None}  # where a node edits the prediction, what it was before
        clean = model(scaled, sigma * x.new_ones(len(x)), **extra_args)
        if callback is not None:
            callback({"x": scaled, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": clean})
        unedited = clean if kept["x0"] is None else kept["x0"]
        estimate = (x - alpha.sqrt() * unedited) / (1 - alpha).sqrt()
        x = ddim_update(clean, estimate, alpha, following, eta, fresh and fresh())
    # The published run ends at the first alpha, and its latent goes to the decoder as it is.
    return x if float(sigmas[-1]) <= float(sampling.sigma_min) * 1.001 else x / alphas[-1].sqrt()


@torch.no_grad()
def sample_restorer_ddpm(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Step with the ancestral DDPM of MGLD-VSR: every step but the last adds fresh noise.

    What nodes put among the AFTER_STEP functions then acts on the sample itself, as published. Works on the
    published latent, which is the host's x over sqrt(1 + sigma^2).
    """
    _, alphas = _diffusion(model, sigmas, "ddpm")
    extra_args, options = _with_options(extra_args, {STEPPING_KEY: True})
    x = x * alphas[0].sqrt().to(x.dtype)
    for step, sigma, following in _steps(sigmas, alphas):
        alpha = alphas[step]
        scaled = x / alpha.sqrt().to(x.dtype)
        fresh = _drawn_beside(model, x, extra_args, step) if float(following) != 1 else None
        clean = model(scaled, sigma * x.new_ones(len(x)), **extra_args)
        if callback is not None:
            callback({"x": scaled, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": clean})
        x = ddpm_update(x, clean, fresh and fresh(), alpha, following)
        log_variance = float(ddpm_posterior(alpha, following)[2])
        for change in options.get(AFTER_STEP_KEY, ()):
            x = change(x, log_variance, float(sigma), options)
    return x / alphas[-1].sqrt().to(x.dtype)


def _steps(sigmas: torch.Tensor, grid: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield (number, sigma, what follows on `grid`) of every step; each is a place to interrupt."""
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], grid[1:], strict=True)):
        services.check_cancelled()
        yield step, sigma, following


def _diffusion(model: Any, sigmas: torch.Tensor, name: str) -> tuple[Any, torch.Tensor]:
    """Give (the model's sampling, the share of signal power at every sigma as doubles on the CPU)."""
    sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.CONST):
        raise ValueError(
            f"{_SAMPLER}: {name} needs a model that predicts v or noise, as Upscale-A-Video and MGLD-VSR "
            "do; got a flow model. Choose euler or plms."
        )
    return sampling, 1 / (1 + sigmas.cpu().double().square())  # not every GPU has doubles


def _with_options(extra_args: dict | None, added: dict) -> tuple[dict, dict]:
    """Copy a sampler's extra arguments with `added` transformer options; returns both, the options to write into."""
    model_options = dict((extra_args or {}).get("model_options", {}))
    options = model_options["transformer_options"] = {**model_options.get("transformer_options", {}), **added}
    return {**(extra_args or {}), "model_options": model_options}, options


def _drawn_beside(model: Any, x: torch.Tensor, extra_args: dict, step: int) -> Callable[[], torch.Tensor]:
    """Begin to draw the noise of a step, which takes the CPU while the network works; give what waits for it."""
    return _BESIDE.submit(_fresh_noise, model, x, extra_args, step).result


def _fresh_noise(model: Any, x: torch.Tensor, extra_args: dict, step: int) -> torch.Tensor:
    """Draw the noise of one step by its address in the film, unlike that of the start."""
    seed = extra_args.get("seed") or 0
    positive = getattr(getattr(model, "inner_model", None), "conds", {}).get("positive") or [{}]
    return noise_like(x, (seed ^ STEP_STREAM) + step & 2**64 - 1, positive[0].get(FIRST_KEY, 0))


_SAMPLERS: dict[str, Callable] = {
    "euler": sample_restorer_euler,
    "plms": sample_restorer_plms,
    "ddim": sample_restorer_ddim,
    "ddpm": sample_restorer_ddpm,
    "pndm": sample_restorer_pndm,
}


class RestorerSampler(io.ComfyNode):
    """The samplers of the published methods."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRRestorerSampler",
            display_name=_SAMPLER,
            category=services.CATEGORY,
            description=(
                "Samplers for restorers. euler suits one step (fidelity mode); plms reuses past predictions and suits "
                "many steps; pndm does so with one network call a step, as in the UniMMVSR paper; ddim is the sampler "
                "of Upscale-A-Video, ddpm that of MGLD-VSR."
            ),
            search_aliases=["plms", "pndm", "euler", "ddim", "ddpm", "ancestral", "vsr sampler", "cascade vsr"],
            inputs=[
                io.Combo.Input(
                    "sampler",
                    options=list(_SAMPLERS),
                    default="euler",
                    tooltip="euler: straight steps, suits one step; plms: multistep, for 8 steps and more; ddim: for "
                    "Upscale-A-Video, as published also with Latent Propagation; ddpm: ancestral, for MGLD-VSR, as "
                    "published also with Motion Guidance; pndm: multistep with exactly one network call a step, at "
                    "any shift, for the paper's 50 steps.",
                ),
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Noise added between the steps of ddim: 0 none, 1 as much as DDPM.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="Sampler for SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, sampler: str, eta: float = 0.0):
        """Wrap the sampler function for the services."""
        services.check_choice(_SAMPLER, "sampler", sampler, _SAMPLERS)
        if eta > 0 and sampler != "ddim":
            raise ValueError(f"{_SAMPLER}: eta belongs to ddim; got eta {eta} with {sampler}. Set eta to 0.")
        return io.NodeOutput(KSAMPLER(_SAMPLERS[sampler], {"eta": eta} if sampler == "ddim" else {}))


class RefineSigmas(io.ComfyNode):
    """A start sigma instead of a denoise that means something else for every model."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRRefineSigmas",
            display_name=_SIGMAS,
            category=services.CATEGORY,
            description=(
                "Makes sigmas from a start sigma that you choose. On flow models with a large shift KSampler's denoise "
                "0.3 starts near sigma 0.8; here 0.3 means 0.3. For Upscale-A-Video and MGLD-VSR it gives the steps of "
                "the published programs."
            ),
            search_aliases=["sigmas", "scheduler", "denoise", "sdedit", "start sigma", "ddim", "ddpm", "cascade vsr"],
            inputs=[
                io.Model.Input("model", tooltip=("The model that will be sampled; it determines the kind of sigmas.")),
                io.Float.Input(
                    "start_sigma",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of noise at the start: 1 generates the clip from its conditioning alone, 0.3 keeps "
                    "most of the latent it starts from.",
                ),
                io.Int.Input(
                    "steps",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Number of steps: 1 is the fidelity mode of the built-in model; as published, 30 for "
                    "Upscale-A-Video and 50 for MGLD-VSR.",
                ),
                io.Float.Input(
                    "shift",
                    default=1.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="Moves steps towards the noisy end; 1 spaces them evenly, as in UniMMVSR. Flow "
                    "models only.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(tooltip="Sigmas for SamplerCustomAdvanced."),
                io.Float.Output(display_name="denoise", tooltip="The KSampler denoise that starts at the same sigma."),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, start_sigma: float, steps: int, shift: float):
        """Compute the sigmas, and read the model's own shift for the denoise."""
        sampling, name = model.get_model_object("model_sampling"), type(model.model).__name__
        spacing = model.model.spacing if isinstance(model.model, RestorerModel) else None
        if system_of(model) is not None:
            refuse_replaced(_SIGMAS, model, spacing is not None)
            name = model.model.system.name
        if isinstance(sampling, comfy.model_sampling.CONST):
            denoise = round(_flow_denoise(sampling, start_sigma), 6)
            with services.titled(_SIGMAS):
                return io.NodeOutput(flow_sigmas(steps, start_sigma, shift), denoise)
        if spacing is None:
            raise ValueError(
                f"{_SIGMAS}: the model must be a flow model, Upscale-A-Video or MGLD-VSR; got {name}. Use the host's "
                "BasicScheduler for it."
            )
        if shift != 1:
            raise ValueError(f"{_SIGMAS}: only flow models have a shift; got {shift} for {name}. Set it to 1.")
        with services.titled(_SIGMAS):
            return io.NodeOutput(*_published_sigmas(sampling, spacing, start_sigma, steps))


def _flow_denoise(sampling: Any, start_sigma: float) -> float:
    """Find the share of the denoising that lies below a sigma; every family shifts in a way of its own."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sampling.percent_to_sigma(1 - middle) < start_sigma else (low, middle)
    return high


def _published_sigmas(sampling: Any, spacing: Spacing, start_sigma: float, steps: int) -> tuple[torch.Tensor, float]:
    """Give (steps + 1 sigmas with the published spacing, the KSampler denoise of their start).

    A start below 1 spaces the steps over the times at which sigma / (1 + sigma), the share of noise, is lower.
    """
    share = sampling.sigmas / (1 + sampling.sigmas)
    times = len(share) if start_sigma == 1 else int((share <= start_sigma).sum())
    indices = spacing.times(steps, times)
    last = sampling.sigmas.new_zeros(1) if spacing.ends_clean else sampling.sigmas[:1]
    return torch.cat((sampling.sigmas[torch.tensor(indices)], last)).cpu(), round(times / len(share), 6)
