"""Parameters of the MGLD-VSR networks, deduced from a checkpoint's keys and shapes or stated by the published names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

import torch

from ..checkpoints import CheckpointError, count_blocks, shape_of

SPACE = 8  # output pixels per latent cell
LATENT_CHANNELS = 4
LATENT_SCALE = 0.18215  # the sampler's latents are the autoencoder's times this
SEGMENT = 5  # frames the temporal layers were trained on
TILE = 64  # latent cells along a side of what the UNet was trained on
GROUPS = 32  # of every group norm

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class UNetConfig:
    """Shape of :class:`~.unet.MGLDUNet`; levels count from full resolution down."""

    in_channels: int = LATENT_CHANNELS
    out_channels: int = LATENT_CHANNELS
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (1, 2, 4)  # down-sampling factors, not sizes
    num_head_channels: int = 64  # in no weight
    context_dim: int = 1024
    semb_channels: int = 256  # of the structure maps


@dataclass(frozen=True)
class StructureConfig:
    """Shape of :class:`~.structure.StructureEncoder`."""

    in_channels: int = LATENT_CHANNELS
    out_channels: int = 256  # of every map
    model_channels: int = 256
    channel_mult: tuple[int, ...] = (1, 1, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (1, 2, 4)
    num_heads: int = 4  # in no weight


@dataclass(frozen=True)
class VAEConfig:
    """Shape of :class:`~.vae.FirstStage`, or with `sequence` of :class:`~.decoder.SequenceVAE`."""

    in_channels: int = 3
    out_ch: int = 3
    z_channels: int = LATENT_CHANNELS
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    sequence: bool = False  # the decoder mixes frames and fuses in features of the LR clip

    @property
    def widths(self) -> tuple[int, ...]:
        """Give the channels of every level, from full resolution down."""
        return tuple(self.ch * mult for mult in self.ch_mult)


@dataclass(frozen=True)
class TextConfig:
    """Shape of :class:`~.text.OpenCLIPText`."""

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 1024
    heads: int = 16  # in no weight
    layers: int = 24
    projection: int = 1024  # of a matrix that is in every file and unused here


Config = TypeVar("Config", UNetConfig, StructureConfig, VAEConfig, TextConfig)

# Options of the published configs that have one meaning here: any other value is another network.
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
    """Make a config of the options of a published one; an option that makes another network is a ValueError."""
    for name, value in options.items():
        if name in _FIXED and value != _FIXED[name]:
            raise ValueError(
                f"MGLD-VSR {kind.__name__}: {name} must be {_FIXED[name]!r}; got {value!r}. "
                "Weights made with it need another network."
            )
    names = {field.name for field in fields(kind)}
    known = {name: value for name, value in options.items() if name in names}
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    return kind(**plain, **more)


def unet_config_from_state(state: State, num_head_channels: int = 64) -> UNetConfig:
    """Deduce the UNet from keys and shapes, without prefix."""
    return UNetConfig(
        out_channels=shape_of(state, "out.2.weight")[0],
        num_head_channels=num_head_channels,
        context_dim=shape_of(state, "middle_block.2.transformer_blocks.0.attn2.to_k.weight")[1],
        semb_channels=shape_of(state, "middle_block.0.spade.mlp_shared.0.weight")[1],
        **_levels(state, "1.proj_in.weight"),
    )


def structure_config_from_state(state: State, num_heads: int = 4) -> StructureConfig:
    """Deduce the structure encoder from keys and shapes, without prefix."""
    return StructureConfig(
        out_channels=shape_of(state, "fea_tran.0.out_layers.3.weight")[0],
        num_heads=num_heads,
        **_levels(state, "1.qkv.weight"),
    )


def vae_config_from_state(state: State) -> VAEConfig:
    """Deduce an autoencoder, of the first stage or of sequences, from keys and shapes, without prefix."""
    ch = shape_of(state, "encoder.conv_in.weight")[0]
    levels = range(count_blocks(state, "encoder.down."))
    widths = (shape_of(state, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in levels)
    return VAEConfig(
        in_channels=shape_of(state, "encoder.conv_in.weight")[1],
        out_ch=shape_of(state, "decoder.conv_out.weight")[0],
        z_channels=shape_of(state, "post_quant_conv.weight")[0],
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=count_blocks(state, "encoder.down.0.block."),
        sequence="decoder.temporal_mixing.temporal_alpha" in state,
    )


def text_config_from_state(state: State, heads: int = 16) -> TextConfig:
    """Deduce the text encoder from keys and shapes, without prefix."""
    vocabulary, width = shape_of(state, "token_embedding.weight")
    return TextConfig(
        vocab_size=vocabulary,
        context_length=shape_of(state, "positional_embedding")[0],
        width=width,
        heads=heads,
        layers=count_blocks(state, "transformer.resblocks."),
        projection=shape_of(state, "text_projection")[1],
    )


def _levels(state: State, attention: str) -> dict:
    """Read the way down, which the UNet and the structure encoder share; `attention` is a key of such a layer."""
    model_channels, in_channels = shape_of(state, "input_blocks.0.0.weight")[:2]
    levels: list[list[int]] = [[]]  # numbers of the residual blocks of every level
    for i in range(1, count_blocks(state, "input_blocks.")):
        if f"input_blocks.{i}.0.op.weight" in state:
            levels.append([])
        else:
            levels[-1].append(i)
    counts = {len(level) for level in levels}
    if len(counts) != 1 or 0 in counts:
        raise CheckpointError(
            f"MGLD-VSR: every level must have as many residual blocks; got {[len(each) for each in levels]}. "
            "The file is of another architecture: choose another file."
        )
    first = [level[0] for level in levels]
    widths = (shape_of(state, f"input_blocks.{i}.0.in_layers.2.weight")[0] for i in first)
    has = (f"input_blocks.{i}.{attention}" in state for i in first)
    return {
        "in_channels": in_channels,
        "model_channels": model_channels,
        "channel_mult": tuple(width // model_channels for width in widths),
        "num_res_blocks": counts.pop(),
        "attention_resolutions": tuple(2**level for level, each in enumerate(has) if each),
    }
