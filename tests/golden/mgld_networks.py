"""What reproduces the recorded cases of the MGLD-VSR networks and their blocks.

Recorded frames are folded into the batch; where the case says nothing else they are one clip.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from cascadevsr.models.mgld_vsr.blocks import (
    SPADE,
    ResBlock,
    TemporalAttention,
    TemporalConv,
    fold,
    unfold,
)
from cascadevsr.models.mgld_vsr.decoder import FuseBlock, SequenceVAE
from cascadevsr.models.mgld_vsr.structure import StructureConfig, StructureEncoder
from cascadevsr.models.mgld_vsr.text import OpenCLIPText, TextConfig
from cascadevsr.models.mgld_vsr.unet import MGLDUNet, Transformer, UNetConfig
from cascadevsr.models.mgld_vsr.vae import LATENT_SCALE, FirstStage, VAEConfig
from cascadevsr.models.schedules import timestep_features

from .cases import Case, Tensors
from .configs import from_options


def filled(weights: Tensors, build) -> nn.Module:
    """Build without memory for weights, then hand the recorded ones over."""
    with torch.device("meta"):
        network = build()
    network.load_state_dict(weights, assign=True)
    return network.eval()


def timestep_embedding(case: Case) -> Tensors:
    """Embed time steps at the recorded widths, named dimWIDTH; an odd one has a column of zeros."""
    t, produced = case.group("in")["t"], {}
    for name in case.group("out"):
        width = int(name.removeprefix("dim"))
        produced[name] = F.pad(timestep_features(t, width), (0, width % 2))
    return produced


def spade(case: Case) -> Tensors:
    """Modulate by a structure map."""
    sizes, given = case.meta["config"], case.group("in")
    block = filled(case.weights(), lambda: SPADE(sizes["norm_nc"], sizes["label_nc"], nn))
    return {"y": block(given["x"], given["seg"])}


def temporal_blocks(case: Case) -> Tensors:
    """Run both layers over time; the recorded rule gives one clip of 5 and of 7 frames, two of 10."""
    sizes, weights = case.meta["config"], case.weights()
    width = sizes["channels"]
    conv = filled(_under(weights, "conv."), lambda: TemporalConv(width, nn))
    attend = filled(_under(weights, "attn."), lambda: TemporalAttention(width, sizes["num_heads"], nn))
    produced = {}
    for name, x in case.group("in").items():
        batch = x.shape[0] // sizes["num_frames"]
        produced["conv" + name[1:]] = conv(x.clone(), batch)
        produced["attn" + name[1:]] = attend(x, batch)
    return produced


def resblock_dual(case: Case) -> Tensors:
    """Run a residual block with SPADE, with one embedding for all frames and one each."""
    sizes, given = case.meta["config"], case.group("in")
    parts = (sizes["channels"], sizes["out_channels"], sizes["emb_channels"], nn, sizes["semb_channels"])
    block = filled(case.weights(), lambda: ResBlock(*parts))
    return {"y_" + name: block(given["x"], given["emb_" + name], given["seg"]) for name in ("per_item", "single")}


def spatial_transformer(case: Case) -> Tensors:
    """Run a transformer on five frames with one context."""
    sizes, given = case.meta["config"], case.group("in")
    parts = (sizes["channels"], sizes["heads"], sizes["context_dim"], nn, F.scaled_dot_product_attention)
    block = filled(case.weights(), lambda: Transformer(*parts))
    return {"y": block(given["x"], given["context"])}


def structcond(case: Case) -> Tensors:
    """Run the structure encoder; recorded maps are named by their width."""
    given = case.group("in")
    settings = from_options(StructureConfig, case.meta["config"])
    network = filled(case.weights(), lambda: StructureEncoder(settings))
    return {
        f"{name}.{each.shape[-1]}": fold(each)
        for name in ("single", "per_frame")
        for each in network(unfold(given["x"], 1), given["t_" + name])
    }


def unet(case: Case) -> Tensors:
    """Run the whole UNet on one clip, and on two: the second has the structure maps of the first, frames reversed."""
    given = case.group("in")
    settings = from_options(UNetConfig, case.meta["config"])
    network = filled(case.weights(), lambda: MGLDUNet(settings))
    x, text, t = unfold(given["x"], 1), given["context"], given["t_single"]
    # Maps are named by their width; there are as many as the network has levels, the finest first.
    widths = sorted((int(name.removeprefix("struct.")) for name in given if name.startswith("struct.")), reverse=True)
    maps = [unfold(given[f"struct.{width}"], 1) for width in widths]
    both = [torch.cat((each, each.flip(2))) for each in maps]
    return {
        "y_single": fold(network(x, t, maps, text)),
        "y_per_frame": fold(network(x, given["t_per_frame"], maps, text)),
        "y_two_clips": fold(network(unfold(given["x2"], 2), t, both, given["context2"])),
    }


def first_stage(case: Case) -> Tensors:
    """Encode, sample the posterior, decode its mean."""
    given = case.group("in")
    settings = from_options(VAEConfig, case.meta["config"])
    network = filled(case.weights(), lambda: FirstStage(settings))
    mean, logvar = network.encode(unfold(given["x"], 1))
    std = (logvar / 2).exp()
    return {
        "moments": fold(torch.cat((mean, logvar), 1)),
        "mean": fold(mean),
        "std": fold(std),
        "z_sampled_scaled": LATENT_SCALE * fold(mean + std * unfold(given["noise"], 1)),
        "decode_mean": fold(network.decode(mean)),
    }


def fuse_block(case: Case) -> Tensors:
    """Fuse encoder features into the decoder's."""
    given = case.group("in")
    block = filled(case.weights(), lambda: FuseBlock(case.meta["config"]["in_ch"], nn))
    return {f"w{weight}": block(given["enc"], given["dec"], weight) for weight in (0.5, 1.0)}


def video_vae(case: Case) -> Tensors:
    """Encode, take the features, decode with each fusion weight."""
    given = case.group("in")
    settings = from_options(VAEConfig, case.meta["config"], sequence=True)
    network = filled(case.weights(), lambda: SequenceVAE(settings))
    x, z = unfold(given["x"], 1), unfold(given["z"], 1)
    features = network.features(x)
    produced = {f"dec_w{weight}": fold(network.decode(z, features, weight)) for weight in case.meta["dec_w"]}
    produced |= {f"enc_fea{i}": fold(each) for i, each in enumerate(features)}
    return produced | {"moments": fold(torch.cat(network.encode(x), 1))}


def text_encoder(case: Case) -> Tensors:
    """Encode tokens; the scale, which nothing reads, is recorded as a vector of one."""
    weights = case.weights()
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    sizes = dict(case.meta["config"], projection=weights["text_projection"].shape[1])
    network = filled(weights, lambda: OpenCLIPText(from_options(TextConfig, sizes)))
    return {"z": network(case.group("in")["tokens"])}


def _under(weights: Tensors, prefix: str) -> Tensors:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


RUNNERS = {
    ("mgld_vsr", "first_stage"): first_stage,
    ("mgld_vsr", "fuse_block"): fuse_block,
    ("mgld_vsr", "resblock_dual"): resblock_dual,
    ("mgld_vsr", "spade"): spade,
    ("mgld_vsr", "spatial_transformer"): spatial_transformer,
    ("mgld_vsr", "structcond"): structcond,
    ("mgld_vsr", "temporal_blocks"): temporal_blocks,
    ("mgld_vsr", "text_encoder"): text_encoder,
    ("mgld_vsr", "timestep_embedding"): timestep_embedding,
    ("mgld_vsr", "unet"): unet,
    ("mgld_vsr", "video_vae"): video_vae,
}
