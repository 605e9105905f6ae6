"""Parameters of the Upscale-A-Video networks: from the published json, or from a checkpoint's keys and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..checkpoints import CheckpointError, count_blocks, shape_of
from .temporal import rotary_frequencies

SCALE = 4  # output pixels per LR pixel, and per latent cell
LATENT_CHANNELS = 4
LATENT_SCALE = 0.08333  # the sampler's latents are the autoencoder's times this
MAX_NOISE_LEVEL = (
    350  # of the LR frames, of 1000 steps; the embedding has more rows, which were never trained
)
WINDOW = 8  # frames the UNet sees at once
WINDOW_OVERLAP = 2
DECODE_CHUNK = 3  # frames decoded together

State = Mapping[str, torch.Tensor]

_UNET_MARK = "mid_block.attentions.0.transformer_blocks.0.attn_temporal.to_q.weight"
_VAE_MARK = "decoder.mid_block.resnets.0.conv1.weight"
_FREQS = "rotary_emb.freqs"
_ATTENTION_NAMES = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}


@dataclass(frozen=True)
class UNetConfig:
    """Shape of :class:`~.unet.VideoUNet`; tuples are per level, from full resolution down.

    A level without attention carries the heads of the deepest one and "only cross", which then mean nothing: so
    equal networks have equal configs.
    """

    in_channels: int = 7
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (256, 512, 512, 1024)
    layers_per_block: int = 2
    attention: tuple[bool, ...] = (False, True, True, True)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    only_cross_attention: tuple[bool, ...] = (True, True, True, False)
    cross_attention_dim: int = 1024
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    num_class_embeds: int = 1000
    max_noise_level: int = MAX_NOISE_LEVEL
    down_temporal_idx: tuple[int, ...] = (0, 1, 2, 3)
    mid_temporal: bool = True
    up_temporal_idx: tuple[int, ...] = (0, 1, 2, 3)  # counted from the deepest level


@dataclass(frozen=True)
class VAEConfig:
    """Shape of :class:`~.vae.UpscaleVAE`; `condition` tells the "video" form from the "3d" one."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = LATENT_CHANNELS
    block_out_channels: tuple[int, ...] = (128, 256, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    condition: bool = False
    condition_channels: int = 128
    scaling_factor: float = LATENT_SCALE

    @property
    def scale(self) -> int:
        """Give the output pixels per latent cell."""
        return 2 ** (len(self.block_out_channels) - 1)


# Options of the published jsons that have one meaning here: any other value is another network.
_UNET_FIXED = {
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "resnet_time_scale_shift": "default",
    "use_first_frame": False,
    "use_linear_projection": True,
    "use_relative_position": False,
}
_VAE_FIXED = {"act_fn": "silu"}
# Options that leave the network as it is: notes, sizes of training, precision, and a flag nothing reads.
_WITHOUT_EFFECT = {"sample_size", "upcast_attention", "use_temporal_block", "force_upcast"}


def unet_config(json: Mapping) -> UNetConfig:
    """Understand unet_video_config.json; an option that makes another network is a ValueError."""
    widths = tuple(json.get("block_out_channels", UNetConfig.block_out_channels))
    levels = len(widths)
    down = json.get("down_block_types", ["DownBlock3D"] + ["CrossAttnDownBlock3D"] * (levels - 1))
    up = json.get("up_block_types", ["CrossAttnUpBlock3D"] * (levels - 1) + ["UpBlock3D"])
    attention = tuple(name == "CrossAttnDownBlock3D" for name in down)
    mirrored = ["CrossAttnUpBlock3D" if each else "UpBlock3D" for each in reversed(attention)]
    plain = ["CrossAttnDownBlock3D" if each else "DownBlock3D" for each in attention]
    numbers = ("in_channels", "out_channels", "layers_per_block", "cross_attention_dim", "norm_num_groups")
    numbers += ("norm_eps", "num_class_embeds", "max_noise_level", "mid_temporal")
    lists = ("attention_head_dim", "only_cross_attention", "down_temporal_idx", "up_temporal_idx")
    _refuse_others(
        "UNet",
        json,
        _UNET_FIXED | {"down_block_types": plain, "up_block_types": mirrored},
        {"block_out_channels", *numbers, *lists},
    )
    if len(down) != levels or list(up) != mirrored:
        raise ValueError(
            f"Upscale-A-Video UNet: {levels} widths need as many down blocks, mirrored by the up blocks; got "
            f"{list(down)} and {list(up)}. Use the json that came with the weights."
        )
    temporal = (json.get(f"{way}_temporal_idx", range(levels)) for way in ("down", "up"))
    down_temporal, up_temporal = (tuple(i for i in range(levels) if i in set(each)) for each in temporal)
    return UNetConfig(
        block_out_channels=widths,
        **_per_level(
            attention,
            _spread(json, "attention_head_dim", 8, levels),  # the name is old: it is the number of heads
            _spread(json, "only_cross_attention", False, levels),
        ),
        down_temporal_idx=down_temporal,
        up_temporal_idx=up_temporal,
        **{name: json[name] for name in numbers if name in json},
    )


def vae_config(json: Mapping) -> VAEConfig:
    """Understand vae_3d_config.json and vae_video_config.json; another network is a ValueError."""
    widths = tuple(json.get("block_out_channels", VAEConfig.block_out_channels))
    condition = bool(json.get("condition_img", False))
    up = "UpDecoderBlock3D_plus" if condition else "UpDecoderBlock3D"
    blocks = {
        "down_block_types": ["DownEncoderBlock3D"] * len(widths),
        "up_block_types": [up] * len(widths),
    }
    numbers = ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups")
    numbers += ("condition_channels", "scaling_factor")
    _refuse_others("VAE", json, _VAE_FIXED | blocks, {"block_out_channels", "condition_img", *numbers})
    return VAEConfig(
        block_out_channels=widths,
        condition=condition,
        **{name: json[name] for name in numbers if name in json and (condition or "condition" not in name)},
    )


def unet_config_from_state(state: State, heads: int = 8) -> UNetConfig:
    """Deduce the UNet from normalised keys and shapes; `heads` only where no relative bias tells.

    Shapes cannot tell text attention from self-attention where text is as wide as the level. There the published
    pattern holds: self-attention at the deepest level only.
    """
    levels = count_blocks(state, "down_blocks.")
    middle = "mid_block.attentions.0.transformer_blocks.0."
    text_width = shape_of(state, middle + "attn2.to_k.weight")[1]
    widths, attention, head_counts, only_cross = [], [], [], []
    for i in range(levels):
        prefix = f"down_blocks.{i}.attentions.0.transformer_blocks.0."
        widths.append(shape_of(state, f"down_blocks.{i}.resnets.0.conv1.weight")[0])
        attention.append(prefix + "attn1.to_k.weight" in state)
        head_counts.append(_heads(state, prefix if attention[i] else middle, heads))
        if attention[i] and text_width != widths[i]:
            only_cross.append(shape_of(state, prefix + "attn1.to_k.weight")[1] == text_width)
        else:
            only_cross.append(i < levels - 1)
    head_counts[-1] = _heads(state, middle, heads)
    return UNetConfig(
        in_channels=shape_of(state, "conv_in.weight")[1],
        out_channels=shape_of(state, "conv_out.weight")[0],
        block_out_channels=tuple(widths),
        layers_per_block=count_blocks(state, "down_blocks.0.resnets."),
        **_per_level(tuple(attention), tuple(head_counts), tuple(only_cross)),
        cross_attention_dim=text_width,
        num_class_embeds=shape_of(state, "class_embedding.weight")[0],
        down_temporal_idx=_temporal_levels(state, "down", levels),
        mid_temporal="mid_temp_block.shift_conv.weight" in state,
        up_temporal_idx=_temporal_levels(state, "up", levels),
    )


def vae_config_from_state(state: State) -> VAEConfig:
    """Deduce the VAE from normalised keys and shapes; the scaling factor is in no weight and stays the default."""
    levels = count_blocks(state, "encoder.down_blocks.")
    widths = (shape_of(state, f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels))
    condition = "decoder.condition_fuse.scale.weight" in state
    first = "decoder.condition_in.0.conv1.weight"
    return VAEConfig(
        in_channels=shape_of(state, "encoder.conv_in.weight")[1],
        out_channels=shape_of(state, "decoder.conv_out.weight")[0],
        latent_channels=shape_of(state, "post_quant_conv.weight")[0],
        block_out_channels=tuple(widths),
        layers_per_block=count_blocks(state, "encoder.down_blocks.0.resnets."),
        condition=condition,
        condition_channels=shape_of(state, first)[0] if condition else VAEConfig.condition_channels,
    )


def is_unet(state: State) -> bool:
    """Tell whether a state dict, under any prefix, holds this UNet."""
    prefix = _prefix(state, _UNET_MARK)
    return prefix is not None and prefix + "class_embedding.weight" in state


def is_vae(state: State) -> bool:
    """Tell whether a state dict, under any prefix, holds this VAE: four-fold, or conditioned on LR frames."""
    prefix = _prefix(state, _VAE_MARK)
    if prefix is None or prefix + "post_quant_conv.weight" not in state:
        return False
    fourfold = prefix + "decoder.up_blocks.2.resnets.0.conv1.weight" in state
    eightfold = prefix + "decoder.up_blocks.3.resnets.0.conv1.weight" in state
    return prefix + "decoder.condition_fuse.scale.weight" in state or (fourfold and not eightfold)


def normalise_unet_keys(state: State) -> dict[str, torch.Tensor]:
    """Give the UNet's entries under the names :class:`~.unet.VideoUNet` has: no prefix, all rotary frequencies.

    Files may lack the frequencies or share one tensor for all of them; each gets its own copy of the constants.
    Frequencies that are not those constants are a CheckpointError.
    """
    found = _without_prefix(state, _UNET_MARK, "UNet")
    weights = {key: value for key, value in found.items() if not key.endswith(_FREQS)}
    for key in found.keys() - weights.keys():
        _check_frequencies(key, found[key])
    places = ["temporal_" + _FREQS]
    places += [
        key.removesuffix("to_q.weight") + _FREQS for key in weights if key.endswith("temporal.to_q.weight")
    ]
    return weights | {key: rotary_frequencies() for key in places}


def normalise_vae_keys(state: State) -> dict[str, torch.Tensor]:
    """Give the VAE's entries under the names :class:`~.vae.UpscaleVAE` has, from either naming of attention."""
    named = {}
    for key, value in _without_prefix(state, _VAE_MARK, "VAE").items():
        if ".attentions." in key:
            for new, published in _ATTENTION_NAMES.items():
                key = key.replace("." + new, "." + published)
        named[key] = value
    return named


def _prefix(state: State, mark: str) -> str | None:
    """Find what stands before a key that only this network has."""
    return next((key.removesuffix(mark) for key in state if key.endswith(mark)), None)


def _without_prefix(state: State, mark: str, what: str) -> dict[str, torch.Tensor]:
    prefix = _prefix(state, mark)
    if prefix is None:
        raise CheckpointError(
            f"Upscale-A-Video {what}: the weights must have an entry {mark!r}; got {len(state)} others. "
            "Choose the file of this network."
        )
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _check_frequencies(key: str, found: torch.Tensor) -> None:
    expected = rotary_frequencies()
    if found.is_meta and found.shape == expected.shape:
        return
    # A file in bfloat16 keeps eight bits of them.
    if found.shape != expected.shape or not torch.allclose(found.float().cpu(), expected, rtol=1e-2):
        raise CheckpointError(
            f"Upscale-A-Video UNet: {key} must hold the constants 10000^(-2i/32); got "
            f"{found.flatten()[:3].tolist()}... These weights need another network."
        )


def _refuse_others(what: str, json: Mapping, fixed: Mapping, known: set[str]) -> None:
    for key, value in json.items():
        if key.startswith("_") or key in known or key in _WITHOUT_EFFECT:
            continue
        if key in fixed and _plain(value) == _plain(fixed[key]):
            continue
        if key not in fixed and _off(value):
            continue
        expected = f"be {fixed[key]!r}" if key in fixed else "not be set"
        raise ValueError(
            f"Upscale-A-Video {what}: {key} in the json must {expected}; got {value!r}. "
            "Weights made with it need another network."
        )


def _off(value) -> bool:
    """Tell whether an option, or all in a group of options, is switched off."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return all(map(_off, value)) if isinstance(value, (list, tuple)) else not value


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _spread(json: Mapping, key: str, default, levels: int) -> tuple:
    """Read an option that is one value for all levels or a list."""
    value = json.get(key, default)
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels
    if len(values) != levels:
        raise ValueError(
            f"Upscale-A-Video UNet: {key} in the json must be one value or {levels}; got {list(values)}. "
            "Use the json that came with the weights."
        )
    return values


def _per_level(attention: tuple[bool, ...], heads: tuple[int, ...], only_cross: tuple[bool, ...]) -> dict:
    """Put a fixed value where a level has no attention for the setting to act on."""
    return {
        "attention": attention,
        "heads": tuple(n if has else heads[-1] for n, has in zip(heads, attention, strict=True)),
        "only_cross_attention": tuple(
            bool(only) or not has for only, has in zip(only_cross, attention, strict=True)
        ),
    }


def _heads(state: State, block: str, fallback: int) -> int:
    key = block + "attn_temporal.time_rel_pos_bias.relative_attention_bias.weight"
    return shape_of(state, key)[1] if key in state else fallback


def _temporal_levels(state: State, way: str, levels: int) -> tuple[int, ...]:
    return tuple(i for i in range(levels) if f"{way}_temp_blocks.{i}.shift_conv.weight" in state)
