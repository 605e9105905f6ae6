"""Shapes of networks by the options a recorded case states; where there are weights, checkpoint.py deduces them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TypeVar

from cascadevsr.models.upscale_a_video import unet, vae

Config = TypeVar("Config")

# Options of MGLD-VSR's published configs that have one meaning here: any other value is another network.
_FIXED = {
    "attn_resolutions": [],
    "conv_resample": True,
    "dims": 2,
    "double_z": True,
    "resblock_updown": False,
    "transformer_depth": 1,
    "use_linear_in_transformer": True,
    "use_new_attention_order": False,
    "use_scale_shift_norm": False,
    "use_spatial_transformer": True,
}


def from_options(kind: type[Config], options: Mapping, **more) -> Config:
    """Make a config of the options with its field names; an option that makes another network is a ValueError."""
    for name, value in options.items():
        if name in _FIXED and value != _FIXED[name]:
            raise ValueError(f"{kind.__name__}: {name} must be {_FIXED[name]!r}; got {value!r}.")
    names = {field.name for field in fields(kind)} - more.keys()
    known = {name: value for name, value in options.items() if name in names}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}, **more)


def unet_of(json: Mapping) -> unet.UNetConfig:
    """Read Upscale-A-Video's unet_video_config.json."""
    levels = range(len(json["block_out_channels"]))
    attention = tuple(kind == "CrossAttnDownBlock3D" for kind in json["down_block_types"])

    def spread(key: str, default) -> list:
        value = json.get(key, default)
        return value if isinstance(value, list) else [value] * len(levels)

    heads, only = spread("attention_head_dim", 8), spread("only_cross_attention", False)
    temporal = {
        key: tuple(i for i in levels if i in json.get(key, levels)) for key in ("down_temporal_idx", "up_temporal_idx")
    }
    return from_options(
        unet.UNetConfig,
        json,
        attention=attention,
        heads=tuple(heads[i] if attention[i] else heads[-1] for i in levels),
        only_cross_attention=tuple(only[i] or not attention[i] for i in levels),
        **temporal,
    )


def vae_of(json: Mapping) -> vae.VAEConfig:
    """Read Upscale-A-Video's vae_3d_config.json or vae_video_config.json."""
    condition = json.get("condition_img", False)
    more = {} if condition else {"condition_channels": vae.VAEConfig.condition_channels}
    return from_options(vae.VAEConfig, json, condition=condition, **more)
