"""Runners for the recorded cases of MGLD-VSR's schedule, motion guidance, flow and sampling."""

import torch
from cascadevsr.models.motion.guidance import (
    PUBLISHED,
    PUBLISHED_STRENGTH,
    Flows,
    motion_gradient,
    published_update,
)
from cascadevsr.models.motion.spynet import SpyNet, spynet_state
from cascadevsr.models.schedules import DiffusionSettings, SpacedDDPM, ddpm_posterior

from .cases import Case, Tensors

SETTINGS = DiffusionSettings(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False)


def _schedule_arrays(alphas: torch.Tensor) -> Tensors:
    """Give the arrays of a schedule, noisiest last, from its alphas in that order."""
    before = torch.cat((alphas.new_ones(1), alphas[:-1]))
    of_clean, of_x, log_variance = ddpm_posterior(alphas, before)
    return {
        "betas": 1 - alphas / before,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": alphas.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas).sqrt(),
        "sqrt_recip_alphas_cumprod": (1 / alphas).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alphas - 1).sqrt(),
        "posterior_variance": (1 - alphas / before) * (1 - before) / (1 - alphas),
        "posterior_log_variance_clipped": log_variance,
        "posterior_mean_coef1": of_clean,
        "posterior_mean_coef2": of_x,
    }


def schedule(case: Case) -> Tensors:
    """The trained schedule and its re-spacings."""
    produced = {}
    for steps in case.meta["steps"]:
        run = SpacedDDPM(SETTINGS, steps)
        produced[f"steps{steps}.timesteps"] = torch.tensor(run.timesteps[::-1])
        for name, values in {
            "base1000": run.trained_alphas,
            f"steps{steps}": run.alphas[:-1].flip(0),
        }.items():
            produced |= {f"{name}.{key}": value for key, value in _schedule_arrays(values).items()}
    return produced


def _clips(folded: torch.Tensor, frames: int) -> torch.Tensor:
    """Turn recorded (b t, c, h, w) into (b, c, t, h, w)."""
    return folded.unflatten(0, (-1, frames)).transpose(1, 2)


def _folded(clips: torch.Tensor) -> torch.Tensor:
    return clips.transpose(1, 2).flatten(0, 1)


def _flows(given: Tensors, prefix: str = "", masked: bool = True) -> Flows:
    """Read recorded flows: those of forward propagation lead back in time."""
    backward, forward, hidden, hidden_back = (
        given[prefix + name].transpose(1, 2)
        for name in ("flow_fwd_prop", "flow_bwd_prop", "fwd_occ", "bwd_occ")
    )
    return Flows(forward, backward, 1 - hidden * masked, 1 - hidden_back * masked)


def motion_loss(case: Case) -> Tensors:
    """Loss and gradient in the published form, and one update."""
    given, frames, produced = case.group("in"), case.meta["num_frames"], {}
    for name, prefix, masked in (("masked", "", True), ("nomask", "", False), ("b2", "b2.", True)):
        x = _clips(given[prefix + "latents"], frames)
        loss, gradient = motion_gradient(x, _flows(given, prefix, masked), form=PUBLISHED)
        produced |= {f"{name}.loss": loss[None], f"{name}.grad": _folded(gradient)}
        if name == "masked":
            updated = published_update(x, gradient, -3.25, PUBLISHED_STRENGTH)
            produced["update_gs-10_logvar-3.25"] = _folded(updated)
    return produced


def spynet(case: Case) -> Tensors:
    """Flow of two images by SpyNet."""
    network = SpyNet().eval()
    network.load_state_dict(spynet_state(case.weights()))
    given = case.group("in")
    return {"flow": network(given["ref"], given["supp"])}


RUNNERS = {
    ("mgld_vsr", "flownet_spynet"): spynet,
    ("mgld_vsr", "motion_loss"): motion_loss,
    ("mgld_vsr", "schedule"): schedule,
}
