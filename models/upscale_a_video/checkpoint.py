"""Upscale-A-Video's weights: detect them, open a folder or file, deduce the networks, convert to one file.

1. Detect: a released folder (unet/, vae/, text_encoder/, tokenizer/, two schedulers), a file that `convert` wrote, or
   the UNet's file alone.
2. Open: a Release with one Part a network; weights are read when a Part is, only jsons and texts at once.
3. Deduce: keys are brought to the names of our networks, sizes are read from shapes. The published json adds what no
   shape shows: norm groups and eps, the largest noise level, the scaling factor, and whether a level that is as wide
   as the text attends to the text only. Contradictions and what is not built are refused.
4. Convert: all parts as one safetensors file. docs/systems/upscale_a_video.md lists the published files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from ..checkpoints import (
    CONDITIONED,
    PLAIN,
    S_LAB,
    WEIGHT_SUFFIXES,
    CheckpointError,
    State,
    check_options,
    count_blocks,
    find_weights,
    load_state,
    no_such_decoder,
    own_copies,
    parse_json,
    read_json,
    shape_of,
    strip_prefix,
    write_converted,
)
from .published import SCHEDULE
from .temporal import ROTARY_FREQUENCIES
from .unet import UNetConfig
from .vae import VAEConfig

NAME, ARCHITECTURE = "Upscale-A-Video", "upscale_a_video"
LICENCE = f"{NAME} weights: {S_LAB}"
HOLDS = "the UNet, a converted file, or the released folder"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
VAE_PREFIXES = {PLAIN: "vae.", CONDITIONED: "vae_video."}  # in a converted file
# Prefixes in a converted file, and the keys of the jsons in its metadata.
_CONVERTED = {
    "unet.": "unet_config",
    **{prefix: prefix[:-1] + "_config" for prefix in VAE_PREFIXES.values()},
    "text_encoder.": "text_config",
}
_VOCABULARY = 49408  # tokens of CLIP's own vocabulary, which every host has: it is not stored again
UNET_MARK = "mid_block.attentions.0.transformer_blocks.0.attn_temporal.to_q.weight"
VAE_MARK = "decoder.mid_block.resnets.0.conv1.weight"
_FREQS = "rotary_emb.freqs"
_ATTENTION_NAMES = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

# Options of the published jsons that have one meaning here; those that are not known must be switched off.
_UNET_FIXED = {
    "act_fn": "silu",
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "mid_block_scale_factor": 1,
    "resnet_time_scale_shift": "default",
    "use_linear_projection": True,
}
# Options that leave the network as it is: notes, sizes of training, precision, and a flag nothing reads.
_WITHOUT_EFFECT = {"sample_size", "upcast_attention", "use_temporal_block", "force_upcast"}


@dataclass(frozen=True)
class Part:
    """One network: a function that reads its state, and its published json (None: there is none)."""

    read: Callable[[], State]
    config: Mapping | None = None


@dataclass(frozen=True)
class Release:
    """What a folder or file holds; `vaes` by decoder, `tokenizer` as {file name: text}, jsons of two schedulers."""

    name: str
    unet: Part
    vaes: Mapping[str, Part] = field(default_factory=dict)
    text: Part | None = None
    tokenizer: Mapping[str, str] = field(default_factory=dict)
    scheduler: Mapping = field(default_factory=lambda: asdict(SCHEDULE))
    low_res: Mapping = field(default_factory=lambda: asdict(SCHEDULE))

    def decoder(self, wanted: str) -> Part | None:
        """Choose a VAE; `auto` takes the plain one, as the published program does. None: there is no VAE."""
        if wanted == "auto":
            return self.vaes.get(PLAIN) or self.vaes.get(CONDITIONED)
        if wanted not in self.vaes:
            raise no_such_decoder(self.name, list(self.vaes), wanted, "add its file to the folder vae")
        return self.vaes[wanted]


# Detect


def is_unet(state: State) -> bool:
    """Return whether a state dict, under any prefix, holds this UNet."""
    prefix = _prefix(state, UNET_MARK)
    return prefix is not None and prefix + "class_embedding.weight" in state


def is_vae(state: State) -> bool:
    """Return whether a state dict, under any prefix, holds this VAE: four-fold, or conditioned on LR frames."""
    prefix = _prefix(state, VAE_MARK)
    if prefix is None or prefix + "post_quant_conv.weight" not in state:
        return False
    levels = count_blocks(state, prefix + "decoder.up_blocks.")
    return levels == 3 or prefix + "decoder.condition_fuse.scale.weight" in state


def is_release_folder(path: Path) -> bool:
    """Return whether a folder has the released layout: unet/ and vae/ with weights in them."""
    return all(
        (path / part).is_dir() and any(file.suffix in WEIGHT_SUFFIXES for file in (path / part).iterdir())
        for part in ("unet", "vae")
    )


# Open


def open_release(path: Path) -> Release:
    """Open a folder or file; what is not of this system is a CheckpointError."""
    release = open_folder(path) if path.is_dir() else open_state(*load_state(path), path)
    if release is None:
        raise CheckpointError(f"the file must hold {NAME} ({HOLDS}); got {path.name}. Choose another file.")
    return release


def open_folder(path: Path) -> Release:
    """Open a released folder; a missing part is a CheckpointError that names it."""
    unet = _find(path / "unet", "unet_video", "diffusion_pytorch_model")
    if unet is None:
        raise CheckpointError(
            "a released folder must hold unet/unet_video.bin (or .safetensors) and vae/vae_3d.bin; got "
            f"{path.name} without weights in unet. Copy the whole folder as it was downloaded."
        )
    plain = _find(path / "vae", "vae_3d", "diffusion_pytorch_model")
    vaes = {PLAIN: plain, CONDITIONED: _find(path / "vae", "vae_video")}
    texts = (path / "tokenizer" / name for name in TOKENIZER_FILES)
    return Release(
        path.name,
        unet,
        {kind: part for kind, part in vaes.items() if part is not None},
        _find(path / "text_encoder", "model", "pytorch_model"),
        {file.name: file.read_text(encoding="utf-8") for file in texts if file.is_file()},
        read_json(path / "scheduler" / "scheduler_config.json") or asdict(SCHEDULE),
        read_json(path / "low_res_scheduler" / "scheduler_config.json") or asdict(SCHEDULE),
    )


def open_state(state: State, metadata: Mapping[str, str], path: Path) -> Release | None:
    """Understand the entries of one file; None where they are not of this system.

    The UNet's file inside a released folder brings the rest of the folder with it.
    """
    if is_unet(strip_prefix(state, "unet.")):
        return _open_converted(state, metadata, path.name)
    if is_unet(state):
        names = (f"{path.stem}_config.json", "unet_video_config.json", "config.json")
        found = (read_json(path.with_name(name)) or {} for name in names)
        part = Part(lambda: state, next((each for each in found if "block_out_channels" in each), None))
        folder = path.parent.parent
        if path.parent.name == "unet" and is_release_folder(folder):
            return replace(open_folder(folder), name=path.name, unet=part)
        return Release(path.name, part)
    for vae in (state, *(strip_prefix(state, prefix) for prefix in VAE_PREFIXES.values())):
        if is_vae(vae):
            kind = CONDITIONED if any("condition_fuse." in key for key in vae) else PLAIN
            raise CheckpointError(
                f"the file must hold the UNet; got {path.name}, which is the {kind} VAE of {NAME}. Choose the "
                "released folder (with unet/, vae/, text_encoder/), or a file converted from it."
            )
    return None


def _open_converted(state: State, metadata: Mapping[str, str], name: str) -> Release:
    def stated(key: str) -> dict | None:
        return parse_json(metadata[key], f"{name} ({key})") if key in metadata else None

    def part(prefix: str) -> Part | None:
        entries = strip_prefix(state, prefix)
        return Part(lambda: entries, stated(_CONVERTED[prefix])) if entries else None

    vaes = {kind: part(prefix) for kind, prefix in VAE_PREFIXES.items()}
    return Release(
        name,
        part("unet."),
        {kind: vae for kind, vae in vaes.items() if vae is not None},
        part("text_encoder."),
        stated("tokenizer") or {},
        stated("scheduler") or asdict(SCHEDULE),
        stated("low_res_scheduler") or asdict(SCHEDULE),
    )


def _find(folder: Path, stem: str, *stems: str) -> Part | None:
    """Find weights by their published names, and the json beside them: STEM_config, or config where names are plain."""
    weights = find_weights(folder, stem, *stems)
    if weights is None:
        return None
    jsons = (read_json(folder / name) for name in (f"{stem}_config.json", "config.json")[: 1 + len(stems)])
    return Part(lambda: load_state(weights)[0], next((each for each in jsons if each is not None), None))


# Deduce


def unet_config(state: State, options: Mapping | None = None) -> UNetConfig:
    """Deduce the UNet from normalised keys and shapes, and from unet_video_config.json what no shape shows.

    Shapes cannot distinguish text attention from self-attention where text is as wide as the level. Without a json the
    published pattern holds there: self-attention at the deepest level only. A json that contradicts the shapes, or
    switches on what is not built here, is a ValueError.
    """
    levels = range(count_blocks(state, "down_blocks."))
    blocks = [f"down_blocks.{i}.attentions.0.transformer_blocks.0." for i in levels]
    middle = "mid_block.attentions.0.transformer_blocks.0."
    bias = "attn_temporal.time_rel_pos_bias.relative_attention_bias.weight"
    attention = tuple(block + "attn1.to_k.weight" in state for block in blocks)
    widths = tuple(shape_of(state, f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in levels)
    text_width = shape_of(state, middle + "attn2.to_k.weight")[1]
    given = options or {}
    only = _spread(given, "only_cross_attention", [options is None and i + 1 < len(levels) for i in levels])

    def attends_to_text_only(level: int) -> bool:
        if not attention[level] or widths[level] == text_width:
            return not attention[level] or bool(only[level])
        return shape_of(state, blocks[level] + "attn1.to_k.weight")[1] == text_width

    def temporal(way: str) -> tuple[int, ...]:
        return tuple(i for i in levels if f"{way}_temp_blocks.{i}.shift_conv.weight" in state)

    config = UNetConfig(
        in_channels=shape_of(state, "conv_in.weight")[1],
        out_channels=shape_of(state, "conv_out.weight")[0],
        block_out_channels=widths,
        layers_per_block=count_blocks(state, "down_blocks.0.resnets."),
        attention=attention,
        heads=tuple(shape_of(state, (blocks[i] if attention[i] else middle) + bias)[1] for i in levels),
        only_cross_attention=tuple(map(attends_to_text_only, levels)),
        cross_attention_dim=text_width,
        num_class_embeds=shape_of(state, "class_embedding.weight")[0],
        down_temporal_idx=temporal("down"),
        mid_temporal="mid_temp_block.shift_conv.weight" in state,
        up_temporal_idx=temporal("up"),
        **{key: given[key] for key in ("norm_num_groups", "norm_eps", "max_noise_level") if key in given},
    )
    expected = {
        **_UNET_FIXED,
        **vars(config),
        "attention_head_dim": config.heads,  # an old name: it is the number of heads
        "down_block_types": ["CrossAttnDownBlock3D" if has else "DownBlock3D" for has in attention],
        "up_block_types": ["CrossAttnUpBlock3D" if has else "UpBlock3D" for has in reversed(attention)],
    }
    # What is stated for levels without attention, or for levels that are not there, has no meaning.
    stated = dict(given)
    for key in ("attention_head_dim", "only_cross_attention"):
        stated[key] = _spread(given, key, expected[key], attention)
    for key in ("down_temporal_idx", "up_temporal_idx"):
        stated[key] = [i for i in levels if i in given.get(key, expected[key])]
    check_options(f"{NAME} UNet", stated, expected, _WITHOUT_EFFECT)
    return config


def vae_config(state: State, options: Mapping | None = None) -> VAEConfig:
    """Deduce a VAE from normalised keys and shapes, and from its json what no shape shows, as `unet_config` does."""
    levels = range(count_blocks(state, "encoder.down_blocks."))
    lr_layer, given = "decoder.condition_in.0.conv1.weight", options or {}
    condition = lr_layer in state
    config = VAEConfig(
        in_channels=shape_of(state, "encoder.conv_in.weight")[1],
        out_channels=shape_of(state, "decoder.conv_out.weight")[0],
        latent_channels=shape_of(state, "post_quant_conv.weight")[0],
        block_out_channels=tuple(shape_of(state, f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in levels),
        layers_per_block=count_blocks(state, "encoder.down_blocks.0.resnets."),
        condition=condition,
        condition_channels=shape_of(state, lr_layer)[0] if condition else VAEConfig.condition_channels,
        **{key: given[key] for key in ("norm_num_groups", "scaling_factor") if key in given},
    )
    fixed = {
        "act_fn": "silu",
        "condition_img": condition,
        "down_block_types": ["DownEncoderBlock3D"] * len(levels),
        "up_block_types": ["UpDecoderBlock3D_plus" if condition else "UpDecoderBlock3D"] * len(levels),
    }
    check_options(f"{NAME} VAE", given, {**vars(config), **fixed}, _WITHOUT_EFFECT)
    return config


def normalise_unet_keys(state: State) -> State:
    """Give the UNet's entries under the names :class:`~.unet.VideoUNet` has: no prefix, all rotary frequencies.

    Files may lack the frequencies or share one tensor for all of them; each gets its own copy of the constants.
    Frequencies that are not those constants are a CheckpointError.
    """
    found = _without_prefix(state, UNET_MARK, "UNet")
    weights = {key: value for key, value in found.items() if not key.endswith(_FREQS)}
    expected = torch.tensor(ROTARY_FREQUENCIES)
    for key in found.keys() - weights.keys():
        value, fits = found[key], found[key].shape == expected.shape
        if fits and not value.is_meta:  # a file in bfloat16 keeps eight bits of them
            fits = torch.allclose(value.float().cpu(), expected, rtol=1e-2)
        if not fits:
            raise CheckpointError(
                f"{NAME} UNet: {key} must hold the constants 10000^(-2i/32); got {value.flatten()[:3].tolist()}... "
                "These weights need another network."
            )
    ends = "temporal.to_q.weight"
    places = [key.removesuffix("to_q.weight") + _FREQS for key in weights if key.endswith(ends)]
    return weights | {key: torch.tensor(ROTARY_FREQUENCIES) for key in ("temporal_" + _FREQS, *places)}


def normalise_vae_keys(state: State) -> State:
    """Give the VAE's entries under the names :class:`~.vae.UpscaleVAE` has, from either naming of attention."""
    named = {}
    for key, value in _without_prefix(state, VAE_MARK, "VAE").items():
        if ".attentions." in key:
            for new, published in _ATTENTION_NAMES.items():
                key = key.replace("." + new, "." + published)
        named[key] = value
    return named


def _prefix(state: State, mark: str) -> str | None:
    """Find what stands before a key that only this network has."""
    return next((key.removesuffix(mark) for key in state if key.endswith(mark)), None)


def _without_prefix(state: State, mark: str, what: str) -> State:
    prefix = _prefix(state, mark)
    if prefix is None:
        raise CheckpointError(
            f"{NAME} {what}: the weights must have an entry {mark!r}; got {len(state)} others. "
            "Choose the file of this network."
        )
    return strip_prefix(state, prefix)


def _spread(options: Mapping, key: str, found: Sequence, counts: Sequence[bool] | None = None) -> list:
    """Read an option that is one value for all levels or a list; `found` where it is missing or does not count."""
    value = options.get(key, list(found))
    values = value if isinstance(value, list) else [value] * len(found)
    if len(values) != len(found):
        raise ValueError(
            f"{NAME} UNet: {key} in the json must be one value or {len(found)}; got {values}. "
            "Use the json that came with the weights."
        )
    return [each if counts is None or counts[i] else found[i] for i, each in enumerate(values)]


# Convert


def convert(source: Path, target: Path, half: bool, say: Callable[[str], None]) -> bool:
    """Write a released folder or the UNet's file as one file; False where `source` is not of this system.

    half stores UNet and text encoder as float16, in which the published program runs them; VAEs stay as they are.
    """
    if source.is_dir() and not any((source / part).is_dir() for part in ("unet", "vae")):
        return False
    release = open_folder(source) if source.is_dir() else open_state(*load_state(source), source)
    if release is None:
        return False
    if (source / "propagator").is_dir():
        say("propagator: left out; the flow network is read from its own file, or converted by itself")
    parts = {VAE_PREFIXES[kind]: part for kind, part in release.vaes.items()}
    parts = {"unet.": release.unet, **parts, "text_encoder.": release.text}
    tensors: State = {}
    metadata = {"architecture": ARCHITECTURE, "source": release.name, "licence": LICENCE}
    for prefix, part in parts.items():
        if part is not None:
            state = part.read()
            say(f"{prefix[:-1]}: {len(state)} tensors")
            tensors |= own_copies(state, prefix, half and prefix not in VAE_PREFIXES.values())
            if part.config is not None:
                metadata[_CONVERTED[prefix]] = json.dumps(part.config)
    metadata["scheduler"] = json.dumps(dict(release.scheduler))
    metadata["low_res_scheduler"] = json.dumps(dict(release.low_res))
    if release.tokenizer:
        tokenizer = dict(release.tokenizer)
        if len(parse_json(tokenizer.get("vocab.json", "{}"), "vocab.json")) in (0, _VOCABULARY):
            tokenizer = {name: text for name, text in tokenizer.items() if name not in TOKENIZER_FILES[:2]}
        metadata["tokenizer"] = json.dumps(tokenizer)
    write_converted(target, tensors, metadata, say)
    return True
