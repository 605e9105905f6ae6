"""Noise, sampler and sigmas of the published method, as the host's own NOISE, SAMPLER and SIGMAS."""

import comfy.model_sampling
import torch
from comfy.samplers import KSAMPLER
from comfy_api.latest import io

from ..models.layout.geometry import ClipSize
from ..models.layout.noise import addressed_noise
from ..models.schedules import flow_sigmas, unshift_sigma
from . import host

# Adams-Bashforth weights, newest first: the pseudo linear multistep method of PNDM (Liu et al. 2022), on v.
_MULTISTEP = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


class AddressedNoise:
    """The host's NOISE: every value depends on the seed and its own frame, row, column and channel."""

    def __init__(self, seed: int):
        self.seed = seed

    def generate_noise(self, input_latent: dict) -> torch.Tensor:
        """Draw noise shaped like the latent; a 4-D latent holds its frames in the batch."""
        samples = input_latent["samples"]
        return noise_like(samples, self.seed)


def noise_like(samples: torch.Tensor, seed: int) -> torch.Tensor:
    """Draw addressed noise shaped like a latent; clips of one batch take consecutive seeds."""
    if getattr(samples, "is_nested", False) or samples.ndim not in (4, 5):
        raise ValueError(
            "Seeded Noise: the latent must be a picture or video latent (4 or 5 dimensions); got "
            f"{samples.ndim}. "
            "Use the host's RandomNoise for this model."
        )
    clips = samples if samples.ndim == 5 else samples.transpose(0, 1).unsqueeze(0)
    size = ClipSize(*clips.shape[2:])
    host.check_cancelled()
    noise = torch.stack(
        [addressed_noise((seed + i) % 2**64, (clips.shape[1], size)) for i in range(clips.shape[0])]
    )
    noise = noise if samples.ndim == 5 else noise.squeeze(0).transpose(0, 1)
    return noise.to(samples)


class SeededNoise(io.ComfyNode):
    """Noise that tiles, windows and chunks do not change."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRSeededNoise",
            display_name="Seeded Noise",
            category=host.CATEGORY,
            description="Noise whose every value depends on the seed and its own place (frame, row, "
            "column) only, "
            "so clip length, tiles, windows and resuming do not change it.",
            search_aliases=["random noise", "noise", "seed", "vsr noise"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Same seed, same noise at the same place of the clip, whatever its size and "
                    "length.",
                ),
            ],
            outputs=[io.Noise.Output(tooltip="Noise for SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, seed):
        """Wrap the seed."""
        return io.NodeOutput(AddressedNoise(seed))


@torch.no_grad()
def sample_restorer_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Follow the flow in straight steps; the last step lands on the prediction itself, exactly."""
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = _predict(model, x, sigma, extra_args)
        if callback is not None:
            callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = denoised if following == 0 else x + (following - sigma) * (x - denoised) / sigma
    return x


@torch.no_grad()
def sample_restorer_plms(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Follow the flow with up to four past velocities; its order holds for even sigmas (shift 1)."""
    history: list[torch.Tensor] = []
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = _predict(model, x, sigma, extra_args)
        if callback is not None:
            callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        velocity = (x - denoised) / sigma
        history = [velocity, *history[:3]]
        if len(history) == 1 and following == 0:
            return denoised
        if len(history) == 1:  # no past yet: average the velocities at both ends of the step
            ahead = x + (following - sigma) * velocity
            end = (ahead - _predict(model, ahead, following, extra_args)) / following
            direction = (velocity + end) / 2
        else:
            weights = _MULTISTEP[len(history) - 1]
            direction = sum(weight * past for weight, past in zip(weights, history, strict=True))
        x = x + (following - sigma) * direction
    return x


def _predict(model, x, sigma, extra_args):
    host.check_cancelled()
    return model(x, sigma * x.new_ones(x.shape[0]), **(extra_args or {}))


_SAMPLERS = {"euler": sample_restorer_euler, "plms": sample_restorer_plms}


class RestorerSampler(io.ComfyNode):
    """The samplers of the UniMMVSR paper."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRRestorerSampler",
            display_name="Restorer Sampler",
            category=host.CATEGORY,
            description="Samplers for flow restorers. euler suits one step (fidelity); plms reuses past "
            "predictions "
            "and suits many steps, as in the UniMMVSR paper.",
            search_aliases=["sampler", "plms", "pndm", "euler", "vsr sampler"],
            inputs=[
                io.Combo.Input(
                    "sampler",
                    options=list(_SAMPLERS),
                    default="euler",
                    tooltip="euler: straight steps, exact at one step; plms: multistep, for 8 steps and "
                    "more.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="Sampler for SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, sampler):
        """Wrap the sampler function for the host."""
        if sampler not in _SAMPLERS:
            raise ValueError(
                f"Restorer Sampler: sampler must be one of {', '.join(_SAMPLERS)}; got {sampler!r}. "
                "Choose euler."
            )
        return io.NodeOutput(KSAMPLER(_SAMPLERS[sampler]))


class RefineSigmas(io.ComfyNode):
    """A start sigma instead of a denoise that means something else for every model."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRRefineSigmas",
            display_name="Refine Sigmas",
            category=host.CATEGORY,
            description="Sigmas of a flow model from a start sigma you choose. On models with a large "
            "shift KSampler's "
            "denoise 0.3 starts near sigma 0.8; here 0.3 means 0.3.",
            search_aliases=["sigmas", "scheduler", "denoise", "sdedit", "start sigma"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The flow model that will be sampled; its shift gives the denoise output.",
                ),
                io.Float.Input(
                    "start_sigma",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of noise at the start: 1 makes the clip anew from its conditions, 0.3 "
                    "keeps most of a start latent.",
                ),
                io.Int.Input(
                    "steps", default=1, min=1, max=1000, tooltip="Number of steps; 1 is the faithful mode."
                ),
                io.Float.Input(
                    "shift",
                    default=1.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="Moves steps towards the noisy end; 1 spaces them evenly, as UniMMVSR does.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(tooltip="Sigmas for SamplerCustomAdvanced."),
                io.Float.Output(
                    display_name="denoise", tooltip="The KSampler denoise that starts at the same sigma."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, start_sigma, steps, shift):
        """Compute the sigmas, and read the model's own shift for the denoise."""
        sampling = model.get_model_object("model_sampling")
        if not isinstance(sampling, comfy.model_sampling.CONST):
            raise ValueError(
                f"Refine Sigmas: the model must be a flow model; got {type(model.model).__name__}. "
                "Use the host's BasicScheduler for it."
            )
        denoise = unshift_sigma(start_sigma, getattr(sampling, "shift", 1.0))
        return io.NodeOutput(flow_sigmas(steps, start_sigma, shift), round(float(denoise), 6))
