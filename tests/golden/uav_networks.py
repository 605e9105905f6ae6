"""What reproduces the recorded cases of the Upscale-A-Video networks and their blocks."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from cascadevsr.models.upscale_a_video import checkpoint
from cascadevsr.models.upscale_a_video.temporal import (
    Rotary,
    TemporalAttention,
    TemporalModule,
    TemporalResnet,
)
from cascadevsr.models.upscale_a_video.unet import Transformer, VideoUNet
from cascadevsr.models.upscale_a_video.vae import ConditionFuse, PlusResnet, UpscaleVAE

from .cases import Case, Tensors, check_weight_sums, recipe_weights
from .configs import unet_of, vae_of

GROUPS = 32


def recorded_weights(case: Case, network: nn.Module) -> Tensors:
    """Give the stored weights, or make them by the recipe the case states."""
    if "weight_recipe" not in case.meta:
        return case.weights()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    gain, rounded = case.meta["recipe_gain"], case.meta["recipe_round_fp16"]
    weights = recipe_weights(shapes, case.meta["recipe_seed"], gain, rounded)
    check_weight_sums(case, weights)
    return weights


def filled(case: Case, build, normalise=dict) -> nn.Module:
    """Build without memory for weights, then hand the recorded ones over: the largest network has 2.8 GB."""
    with torch.device("meta"):
        network = build()
    network.load_state_dict(normalise(recorded_weights(case, network)), assign=True)
    return network.eval()


def unet(case: Case) -> Tensors:
    """Run the whole UNet."""
    given, call = case.group("in"), case.meta["call"]
    network = filled(case, lambda: VideoUNet(unet_of(case.meta["config"])), checkpoint.normalise_unet_keys)
    labels = torch.tensor(call["class_labels"])
    return {
        "sample": network(given["sample"], call["timestep"], given["low_res"], given["text"], labels),
    }


def vae(case: Case) -> Tensors:
    """Decode with each fusion weight, and encode."""
    given = case.group("in")
    network = filled(case, lambda: UpscaleVAE(vae_of(case.meta["config"])), checkpoint.normalise_vae_keys)
    produced = {
        f"decode_w{i}": network.decode(given["z"], given["img"], weight)
        for i, weight in enumerate(case.meta["call"]["w_lrs"])
    }
    if "x" in given:
        mean, logvar = network.encode(given["x"])
        produced |= {"enc_mean": mean, "enc_logvar": logvar, "enc_mode": mean}
    return produced


def temporal_module(case: Case) -> Tensors:
    """Run what stands after a level."""
    sizes, given = case.meta["config"], case.group("in")
    block = filled(case, lambda: TemporalModule(sizes["channels"], sizes["temb_channels"], GROUPS, nn))
    return {"y": block(given["x"], given["temb"])}


def transformer(case: Case) -> Tensors:
    """Run a transformer with its leading temporal residual block."""
    sizes, given = case.meta["config"], case.group("in")
    width, only_text = sizes["heads"] * sizes["dim_head"], sizes["only_cross_attention"]
    parts = (width, sizes["heads"], sizes["cross_attention_dim"], only_text, sizes["norm_num_groups"])
    block = filled(case, lambda: Transformer(*parts, Rotary(), nn, F.scaled_dot_product_attention))
    return {"y": block(given["x"], given["text"])}


def temporal_attention(case: Case) -> Tensors:
    """Attend over frames; recorded tokens are (positions, frames, channels)."""
    sizes, given = case.meta["config"], case.group("in")
    width = sizes["heads"] * sizes["dim_head"]
    block = filled(case, lambda: TemporalAttention(width, sizes["heads"], Rotary(), nn))
    return {"y": block(given["x"].transpose(0, 1)[None])[0].transpose(0, 1)}


def resnet_temporal(case: Case) -> Tensors:
    """Run a residual block along time."""
    sizes, given = case.meta["config"], case.group("in")
    parts = (sizes["in_channels"], sizes["out_channels"], sizes["temb_channels"], sizes["kernel"])
    block = filled(case, lambda: TemporalResnet(*parts, sizes["groups"], nn))
    return {"y": block(given["x"], given["temb"])}


def resnet_plus(case: Case) -> Tensors:
    """Run a residual block of the video decoder."""
    sizes = case.meta["config"]
    parts = (sizes["in_channels"], sizes["out_channels"], sizes["groups"])
    return {"y": filled(case, lambda: PlusResnet(*parts, nn))(case.group("in")["x"])}


def fuse_sft(case: Case) -> Tensors:
    """Fuse LR features into the decoder's."""
    sizes, given = case.meta["config"], case.group("in")
    block = filled(case, lambda: ConditionFuse(sizes["enc_ch"], sizes["dec_ch"], GROUPS, nn))
    return {"y": block(given["enc"], given["dec"], sizes["w"])}


RUNNERS = {
    ("upscale_a_video", "fuse_sft"): fuse_sft,
    ("upscale_a_video", "resnet_plus"): resnet_plus,
    ("upscale_a_video", "resnet_temporal"): resnet_temporal,
    ("upscale_a_video", "temporal_attention"): temporal_attention,
    ("upscale_a_video", "temporal_module"): temporal_module,
    ("upscale_a_video", "transformer"): transformer,
    ("upscale_a_video", "unet"): unet,
    ("upscale_a_video", "vae"): vae,
}
