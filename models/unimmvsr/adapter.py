"""The adapter file: what makes a base text-to-video model a UniMMVSR restorer, and nothing of the base itself.

A safetensors file with (1) the weights of the LR channels that join the patch embedding, (2) a small network that
embeds the noise level of the LR latent, (3) changes of the base's linear layers, low-rank or whole. Names are those
of ComfyUI's WanModel under "diffusion_model."; `host_name` translates those of diffusers. docs/adapters.md describes
keys, metadata and mathematics.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import torch.nn as nn

from ..checkpoints import CheckpointError, State, load_state, save_state, strip_prefix
from .references import PAPER_RULE, StartRule

FORMAT, VERSION = "cascadevsr-adapter", 1
LAYOUT = "noisy,lr"  # input channels of the widened patch embedding, in their order
FAMILIES = {"wan2.1-t2v": 16, "wan2.2-ti2v": 48}  # base families, and the channels of their latents
LR_WEIGHT = "diffusion_model.patch_embedding.lr_weight"
LEVEL_PREFIX = "diffusion_model.level_embedding."
LEVEL_KEYS = ("0.weight", "0.bias", "2.weight", "2.bias")

_BLOCK = r"blocks\.\d+\.(?:self_attn\.[qkvo]|cross_attn\.(?:[qkvo]|k_img|v_img)|ffn\.[02])"
_OTHERS = r"text_embedding\.[02]|time_embedding\.[02]|time_projection\.1|head\.head"
_LAYER = re.compile(rf"(diffusion_model\.(?:{_BLOCK}|{_OTHERS}))\.(lora_A\.weight|lora_B\.weight|alpha|diff|diff_b)")
_NONE = "none"  # StartRule.first where references begin at the target's end
# From diffusers' WanTransformer3DModel to the host's WanModel, tried in turn
_DIFFUSERS = (
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_out\.0$", ".o"),
    (r"\.to_([qkv])$", r".\1"),
    (r"\.add_([kv])_proj$", r".\1_img"),
    (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
    (r"\.ffn\.net\.2$", ".ffn.2"),
    (r"^condition_embedder\.(t\w+)_embedder\.linear_1$", r"\1_embedding.0"),
    (r"^condition_embedder\.(t\w+)_embedder\.linear_2$", r"\1_embedding.2"),
    (r"^condition_embedder\.time_proj$", "time_projection.1"),
    (r"^proj_out$", "head.head"),
)


class LevelEmbedding(nn.Sequential):
    """Embed the noise level of the LR latent as Wan embeds its time step; the two are added."""

    def __init__(self, features: int, width: int, ops=nn):
        super().__init__(ops.Linear(features, width), nn.SiLU(), ops.Linear(width, width))
        self.features = features

    def forward(self, level: torch.Tensor) -> torch.Tensor:
        """Embed levels (b,), counted in thousandths, as (b, width)."""
        return super().forward(step_features(level, self.features))


def step_features(step: torch.Tensor, count: int) -> torch.Tensor:
    """Give Wan's sinusoidal features of steps 0..1000: (b,) -> (b, count), cosines first."""
    half = count // 2
    frequency = torch.pow(10000.0, -torch.arange(half, device=step.device, dtype=torch.float32) / half)
    angle = step.float()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), 1)


@dataclass(frozen=True)
class AdapterInfo:
    """What the metadata of a file states; strings there, of the same names."""

    base: str = "wan2.1-t2v"
    latent_channels: int = 16
    rule: StartRule = PAPER_RULE
    level_min: float = 0.2  # noise levels of training
    level_max: float = 0.6
    rank: int = 0  # of the low-rank changes; 0 without
    alpha: float = 0.0  # a change is alpha / rank * B A; every layer's own stands in the file too
    steps: int = 0  # of training
    licence: str = "unknown"
    made_from: str = ""  # the base weights, the data: whatever the next person must know


@dataclass(frozen=True)
class Adapter:
    """An adapter's tensors: `lr_weight` (width, channels, 1, 2, 2), `level` (keys of LevelEmbedding; empty without)
    and `layers` with the names of the file."""

    info: AdapterInfo
    lr_weight: torch.Tensor
    level: State = field(default_factory=dict)
    layers: State = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Channels of the base's tokens."""
        return self.lr_weight.shape[0]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the base's layers that change, without an ending."""
        return tuple(dict.fromkeys(_LAYER.fullmatch(key)[1] for key in self.layers))


def host_name(diffusers_name: str) -> str:
    """Translate the name of a linear layer of diffusers' WanTransformer3DModel to the file's: no ending on either.

    A name without a place in the file is a KeyError.
    """
    name = diffusers_name
    for pattern, replacement in _DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    if not _LAYER.fullmatch(f"diffusion_model.{name}.diff"):
        raise KeyError(f"Adapter: layer {diffusers_name!r} has no place in an adapter file")
    return f"diffusion_model.{name}"


def lora_entries(name: str, down: torch.Tensor, up: torch.Tensor, alpha: float) -> State:
    """Name the tensors of one low-rank change W + alpha / rank * up @ down; `name` as host_name gives it."""
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.alpha": torch.tensor(float(alpha))}


def save_adapter(path: Path, adapter: Adapter) -> None:
    """Write a file; what `load_adapter` would refuse is refused here."""
    state = {LR_WEIGHT: adapter.lr_weight, **adapter.layers}
    state.update({LEVEL_PREFIX + key: value for key, value in adapter.level.items()})
    metadata = {"format": FORMAT, "format_version": str(VERSION), "layout": LAYOUT}
    for entry in fields(AdapterInfo):
        if entry.name != "rule":
            metadata[entry.name] = str(getattr(adapter.info, entry.name))
    rule = adapter.info.rule
    first = _NONE if rule.first is None else str(rule.first)
    metadata.update(start_first=first, start_lead=str(rule.lead), start_gap=str(rule.gap))
    _parse(path.name, state, metadata)
    save_state(path, state, metadata)


def load_adapter(path: Path) -> Adapter:
    """Read a file; anything that is not a whole adapter of a known version is a CheckpointError."""
    state, metadata = load_state(path)
    return _parse(path.name, state, metadata)


def _parse(name: str, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Adapter:
    info = _read_info(name, metadata)
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise _refuse(name, "hold finite numbers only", f"NaN or infinity in {key!r}")
    lr_weight = state.get(LR_WEIGHT)
    if lr_weight is None:
        raise _refuse(name, f"have the entry {LR_WEIGHT!r}", f"{len(state)} others")
    shape = (lr_weight.shape[0], info.latent_channels, 1, 2, 2)
    if tuple(lr_weight.shape) != shape:
        rule = f"have {info.latent_channels} LR channels, as its metadata says: {LR_WEIGHT!r} of shape {shape}"
        raise _refuse(name, rule, tuple(lr_weight.shape))
    level = strip_prefix(dict(state), LEVEL_PREFIX)
    _check_level(name, level, shape[0])
    layers = {k: v for k, v in state.items() if k != LR_WEIGHT and not k.startswith(LEVEL_PREFIX)}
    _check_layers(name, layers)
    return Adapter(info, lr_weight, level, layers)


def _read_info(name: str, metadata: Mapping[str, str]) -> AdapterInfo:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"the file must be a UniMMVSR adapter (metadata format {FORMAT!r}); got {name} with "
            f"{metadata.get('format', 'none')!r}. LoRA files belong into the host's own LoRA loader, whole checkpoints "
            "into Load Diffusion Model."
        )
    if metadata.get("format_version") != str(VERSION):
        raise CheckpointError(
            f"the adapter's format must be version {VERSION}; got {name} of version "
            f"{metadata.get('format_version')!r}. Update this pack, or export the adapter again."
        )
    if metadata.get("layout") != LAYOUT:
        raise _refuse(name, f"have the channel layout {LAYOUT!r}", repr(metadata.get("layout")))
    try:
        first = metadata["start_first"]
        rule = StartRule(
            None if first == _NONE else int(first), int(metadata["start_lead"]), int(metadata["start_gap"])
        )
        values = {entry.name: metadata[entry.name] for entry in fields(AdapterInfo) if entry.name != "rule"}
        counts = {key: int(values.pop(key)) for key in ("latent_channels", "rank", "steps")}
        numbers = {key: float(values.pop(key)) for key in ("level_min", "level_max", "alpha")}
    except (KeyError, ValueError) as error:
        raise _refuse(name, "state base, channels, starts, levels, rank and steps", f"{error!r}") from error
    info = AdapterInfo(rule=rule, **values, **counts, **numbers)
    if FAMILIES.get(info.base) != info.latent_channels:
        known = ", ".join(f"{base} ({channels} channels)" for base, channels in FAMILIES.items())
        raise _refuse(name, f"be for one of {known}", f"{info.base} ({info.latent_channels} channels)")
    if not 0 <= info.level_min <= info.level_max <= 1 or not math.isfinite(info.alpha):
        raise _refuse(name, "state noise levels in 0..1, the lower first", (info.level_min, info.level_max))
    return info


def _check_level(name: str, level: State, width: int) -> None:
    if not level:
        return
    if set(level) != set(LEVEL_KEYS):
        raise _refuse(name, f"have all of {', '.join(LEVEL_KEYS)} under {LEVEL_PREFIX!r}", sorted(level))
    features = level["0.weight"].shape[-1]
    shapes = ((width, features), (width,), (width, width), (width,))
    for key, shape in zip(LEVEL_KEYS, shapes, strict=True):
        if tuple(level[key].shape) != shape:
            raise _refuse(name, f"have {LEVEL_PREFIX + key!r} of shape {shape}", tuple(level[key].shape))


def _check_layers(name: str, layers: State) -> None:
    parts: dict[str, set[str]] = {}
    for key in layers:
        match = _LAYER.fullmatch(key)
        if match is None:
            raise _refuse(name, "hold entries of this format only", repr(key))
        parts.setdefault(match[1], set()).add(match[2])
    for layer, found in parts.items():
        pair = {"lora_A.weight", "lora_B.weight"}
        if found & {*pair, "alpha"} and not found >= {*pair, "alpha"}:
            missing = sorted({*pair, "alpha"} - found)
            raise _refuse(name, f"have lora_A, lora_B and alpha of {layer!r}", f"none of {', '.join(missing)}")
        if pair <= found:
            down, up = (tuple(layers[f"{layer}.lora_{part}.weight"].shape) for part in "AB")
            if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
                raise _refuse(name, f"have one rank in both matrices of {layer!r}", f"{down} and {up}")


def _refuse(name: str, rule: str, got: object) -> CheckpointError:
    return CheckpointError(
        f"the adapter must {rule}; got {got} in {name}. The file is damaged, or made for another version: download or "
        "export it again."
    )
