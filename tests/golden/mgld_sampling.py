"""Runners for the recorded cases of MGLD-VSR's schedule, motion guidance, flow and oracle."""

import torch
from cascadevsr.models.mgld_vsr.decoder import SequenceVAE
from cascadevsr.models.mgld_vsr.published import SCHEDULE, tile_weights
from cascadevsr.models.mgld_vsr.structure import StructureConfig, StructureEncoder
from cascadevsr.models.mgld_vsr.unet import MGLDUNet, UNetConfig
from cascadevsr.models.mgld_vsr.vae import FirstStage, VAEConfig
from cascadevsr.models.motion.guidance import (
    PUBLISHED,
    PUBLISHED_STRENGTH,
    Flows,
    motion_gradient,
    published_update,
)
from cascadevsr.models.motion.raft import build_raft, raft_state
from cascadevsr.models.motion.spynet import SpyNet, spynet_state
from cascadevsr.models.schedules import ddpm_posterior
from cascadevsr.tests.published import mgld_vsr as oracle
from cascadevsr.tests.published.schedules import SpacedDDPM

from .cases import Case, Tensors, read_case
from .configs import from_options


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
        run = SpacedDDPM(SCHEDULE, steps)
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
        given[prefix + name].transpose(1, 2) for name in ("flow_fwd_prop", "flow_bwd_prop", "fwd_occ", "bwd_occ")
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


def raft(case: Case) -> Tensors:
    """Flow of two images by RAFT as this system feeds it, after ten refinements and fewer."""
    network, given = _raft(case), case.group("in")
    runs = {"flow": case.meta["config"]["iters"], "flow_iters1": 1, "flow_iters3": 3}
    return {
        name: oracle.raft_flow(network, given["ref"], given["sup"], iterations) for name, iterations in runs.items()
    }


def _raft(case: Case) -> torch.nn.Module:
    network = build_raft()
    network.load_state_dict(raft_state(case.weights()))
    return network


def preprocess_flow(case: Case) -> Tensors:
    """From 8-bit LR frames to flows and masks on the grid of the latents."""
    network = _raft(case)
    frames = case.group("in")["frames_u8"].transpose(0, 1)[None].float() / 127.5 - 1
    large = oracle.enlarge(frames, case.meta["upsample_scale"])
    padded = oracle.pad(large)
    assert list(large.shape[-2:]) == case.meta["upscaled"] and list(padded.shape[-2:]) == case.meta["padded"]
    seen = oracle.flow_frames(padded)
    flows = oracle.estimate_flows(padded, lambda *pair: oracle.raft_flow(network, *pair))
    forward, backward, forward_seen, backward_seen = (part.transpose(1, 2) for part in flows)
    return {
        "flow_input_first": seen[:, :, 0],
        "flow_raw_fwd_prop_first": oracle.raft_flow(network, seen[:, :, 1], seen[:, :, 0]),
        "flow_fwd_prop": backward,
        "flow_bwd_prop": forward,
        "fwd_occ": 1 - forward_seen,
        "bwd_occ": 1 - backward_seen,
        "padded_crop_rows": padded[0, :, 0, -40:, -40:],
    }


def gaussian_weights(case: Case) -> Tensors:
    """Weights of latent tiles."""
    sides = {name: [int(part[1:]) for part in name.split("_")] for name in case.group("out")}
    return {name: tile_weights(height, width).expand(1, 4, height, width) for name, (width, height) in sides.items()}


_KINDS = {
    "unet": (UNetConfig, MGLDUNet, {}),
    "structcond": (StructureConfig, StructureEncoder, {}),
    "first_stage": (VAEConfig, FirstStage, {}),
    "video_vae": (VAEConfig, SequenceVAE, {"sequence": True}),
}


def networks(case: Case) -> oracle.Networks:
    """Load the tiny networks a case borrows from others."""
    loaded = {}
    for name, file in case.meta["weights_from"].items():
        settings, kind, more = _KINDS[name]
        source = read_case(case.path.with_name(file).with_suffix(".json"))
        loaded[name] = kind(from_options(settings, source.meta["config"], **more)).eval()
        loaded[name].load_state_dict(source.weights())
    return oracle.Networks(
        loaded["unet"],
        loaded["structcond"],
        case.group("in")["context"],
        loaded.get("first_stage"),
        loaded.get("video_vae"),
    )


def _run(case: Case, guided: bool) -> dict:
    """Give the options of sample() that a case states."""
    config = case.meta["config"]
    return {
        "steps": config["steps"],
        "flows": _flows(case.group("in")) if guided else None,
        "strength": -config["guidance_scale"],
        "tile": config["tile_size"],
        "overlap": config["tile_overlap"],
    }


def sampling_loop(case: Case) -> Tensors:
    """Whole sampling runs, guided and not, in tiles and not."""
    given = {name: case.group("in")[name] for name in ("lr_latent", "noise_T", "step_noise")}
    frames, states = case.meta["config"]["num_frames"], []
    x0 = oracle.sample(
        networks(case),
        _clips(given["lr_latent"], frames),
        _clips(given["noise_T"], frames),
        [_clips(noise, frames) for noise in given["step_noise"]],
        on_step=lambda step, x: states.append(_folded(x)),
        **_run(case, case.meta["config"]["motion_guidance"]),
    )
    run = SpacedDDPM(SCHEDULE, case.meta["config"]["steps"])
    assert run.timesteps[::-1] == case.meta["config"]["ori_timesteps"]
    return {
        "x_T": run.noised(given["lr_latent"], given["noise_T"]),
        "x_per_step": torch.stack(states),
        "x0": _folded(x0),
    }


def segment_pipeline(case: Case) -> Tensors:
    """One segment from frames to 8-bit pictures."""
    given, config = case.group("in"), case.meta["config"]
    frames, nets = config["num_frames"], networks(case)
    clip = _clips(given["frames"], frames)
    lr = oracle.encode(nets, clip, _clips(given["posterior_noise"], frames))
    noise = _clips(given["noise_T"], frames)
    steps = [_clips(each, frames) for each in given["step_noise"]]
    x0 = oracle.sample(nets, lr, noise, steps, **_run(case, True))
    decoded = oracle.decode(nets, x0, clip, config["dec_w"])
    coloured = {name: oracle.match_colour(decoded, clip, name) for name in ("adain", "wavelet")}
    return {
        "lr_latent": _folded(lr),
        "x_T": _folded(SpacedDDPM(SCHEDULE, config["steps"]).noised(lr, noise)),
        "x0": _folded(x0),
        "decoded": _folded(decoded),
        "adain": _folded(coloured["adain"]),
        **{f"u8_{name}": oracle.to_bytes(value) for name, value in coloured.items()},
    }


RUNNERS = {
    ("mgld_vsr", "flownet_raft"): raft,
    ("mgld_vsr", "flownet_spynet"): spynet,
    ("mgld_vsr", "gaussian_weights"): gaussian_weights,
    ("mgld_vsr", "motion_loss"): motion_loss,
    ("mgld_vsr", "preprocess_flow"): preprocess_flow,
    ("mgld_vsr", "schedule"): schedule,
    ("mgld_vsr", "segment_pipeline"): segment_pipeline,
    **{
        ("mgld_vsr", f"sampling_{tiles}_{guided}"): sampling_loop
        for tiles in ("canvas", "full")
        for guided in ("guided", "unguided")
    },
}
