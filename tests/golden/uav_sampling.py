"""Upscale-A-Video's recorded cases of sampling: DDIM, noise, propagation, its plans, and whole runs."""

import torch
import torch.nn.functional as F
from cascadevsr.models.motion.flow import propagate
from cascadevsr.models.schedules import DiffusionSettings
from cascadevsr.models.upscale_a_video import published
from cascadevsr.models.upscale_a_video.unet import VideoUNet
from cascadevsr.models.upscale_a_video.vae import SCALE, UpscaleVAE
from cascadevsr.tests.published import upscale_a_video as oracle
from cascadevsr.tests.published.schedules import DDIM

from .cases import Case, Tensors, recipe_weights
from .configs import unet_of, vae_of


def ddim(case: Case) -> Tensors:
    """A whole run on given network outputs, some clean samples replaced between the two halves."""
    given, call = case.group("in"), case.meta["call"]
    run = DDIM(DiffusionSettings.from_json(case.meta["config"]), call["num_inference_steps"])
    torch.testing.assert_close(run.alphas, case.group("mid")["alphas_cumprod"], rtol=1e-6, atol=1e-7)
    x, clean_samples, samples = given["init"], [], []
    for i, t in enumerate(run.timesteps):
        output = given["model_outputs"][i]
        clean = run.predict_clean(x, output, t)
        clean_samples.append(clean)
        if i in call["override"]:
            clean = given["x0_overrides"][i]
        fresh = given["variance_noise"][i] if call["eta"] else None
        x = run.next(x, output, clean, t, call["eta"], fresh)
        samples.append(x)
    return {
        "timesteps": torch.tensor(run.timesteps),
        "x0": torch.stack(clean_samples),
        "samples": torch.stack(samples),
    }


def propagation(case: Case) -> Tensors:
    """Every recorded choice of sampling, mixing and limits; both components scaled by the width's ratio."""
    given, produced = case.group("in"), {}
    for i, chosen in enumerate(case.meta["cases"]):
        # An empty choice means the defaults of the published module, which its pipeline overrides.
        options = {
            "mode": chosen.get("interpolation", "bilinear"),
            "weight": 1.0 if chosen.get("mode") == "copy" else chosen.get("fuse_scale", 0.5),
            "alpha1": chosen.get("alpha1", 0.01),
            "alpha2": chosen.get("alpha2", 0.5),
        }
        flows = (_scaled_by_width(given[name], *given["x"].shape[-2:]) for name in ("flow_fwd", "flow_bwd"))
        produced[f"y{i}"] = propagate(given["x"], *flows, **options)
    return produced


def _scaled_by_width(flows: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize flows (b, 2, t, H, W) as published: both components are scaled by the width's ratio."""
    if flows.shape[-2:] == (height, width):
        return flows
    small = [F.interpolate(flow, (height, width), mode="area") for flow in flows.float().unbind(2)]
    return torch.stack(small, 2) * (width / flows.shape[-1])


def add_noise(case: Case) -> Tensors:
    """Noise on LR frames at every level: right, and as the published program has it in half precision."""
    given, produced = case.group("in"), {}
    alphas = DiffusionSettings.from_json(case.meta["config"]).alphas_cumprod()
    for level in case.meta["call"]["levels"]:
        x, noise = given["x"], given["noise"]
        produced[f"noisy_{level}"] = oracle.add_lr_noise(x, noise, level, alphas)
        produced[f"noisy_{level}_fp16"] = oracle.add_lr_noise(x.half(), noise.half(), level, alphas.half())
    return produced


def plans(case: Case) -> Tensors:
    """Tiles, windows with their weights, flow chunks, decode chunks: all in the json, so compared here."""
    for layout in case.meta["tiles"]:
        found = oracle.published_tiles(layout["height"], layout["width"], layout["tile"])
        if layout["complete"]:  # else the recorded program leaves the picture black
            assert [_recorded_tile(tile) for tile in found] == layout["tiles"], layout
    for plan in case.meta["unet_windows"]:
        assert [list(span) for span in published.published_windows(plan["frames"])] == plan["windows"], plan
        expected = torch.zeros(len(plan["windows"]), plan["frames"])
        for frame, shares in enumerate(plan["weights"]):
            for window, share in shares:
                expected[window, frame] = share
        assert torch.equal(published.published_window_weights(plan["frames"]), expected), plan
    for plan in case.meta["flow_chunks"]:
        spans = oracle.flow_chunks(plan["frames"], plan["width"])
        assert [list(span) for span in spans] == plan["chunks"], plan
    for plan in case.meta["decode_chunks"]:
        assert [list(span) for span in oracle.decode_chunks(plan["frames"])] == plan["chunks"], plan
    return {}


def _recorded_tile(tile: oracle.PublishedTile) -> dict[str, list[int]]:
    """Give the rectangles as recorded: the source in LR px, the core in px of the output."""
    source, core = tile.source, tile.core
    return {
        "in_y": [source.top, source.top + source.height],
        "in_x": [source.left, source.left + source.width],
        "out_y": [SCALE * core.top, SCALE * (core.top + core.height)],
        "out_x": [SCALE * core.left, SCALE * (core.left + core.width)],
    }


def pipeline(case: Case) -> Tensors:
    """Whole runs of tiny networks: noise in, latents and clip out."""
    given, call = case.group("in"), case.meta["call"]
    unet, vae = _network(case, "unet"), _network(case, "vae")
    low_res = DiffusionSettings.from_json(case.meta["low_res_config"])
    noised = oracle.add_lr_noise(given["image"], given["lr_noise"], call["noise_level"], low_res.alphas_cumprod())
    latents = oracle.denoise(
        unet,
        given["latents"],
        noised,
        given["pos"],
        given["neg"],
        steps=call["num_inference_steps"],
        guidance=call["guidance_scale"],
        level=call["noise_level"],
        flows=(given["flow_fwd"], given["flow_bwd"]) if call["propagation_steps"] else None,
        propagation_steps=call["propagation_steps"],
        settings=DiffusionSettings.from_json(case.meta["scheduler_config"]),
    )
    video = oracle.decode(vae, latents, given["image"], lr_weight=call["w_lr"])
    return {"latents": latents, "video": video}


def _network(case: Case, name: str) -> torch.nn.Module:
    settings, kind = {"unet": (unet_of, VideoUNet), "vae": (vae_of, UpscaleVAE)}[name]
    network = kind(settings(case.meta[f"{name}_config"])).eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    seed, gain = case.meta[f"recipe_seed_{name}"], case.meta["recipe_gain"]
    network.load_state_dict(recipe_weights(shapes, seed, gain, case.meta["recipe_round_fp16"]))
    return network


RUNNERS = {
    ("upscale_a_video", "add_noise"): add_noise,
    ("upscale_a_video", "ddim"): ddim,
    ("upscale_a_video", "pipeline"): pipeline,
    ("upscale_a_video", "plans"): plans,
    ("upscale_a_video", "propagation"): propagation,
}
