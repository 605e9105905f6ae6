"""The published weights as they come: a folder of folders, a converted file, or the UNet's file alone.

Nothing is read before it is asked for, except small json and text files (specification, section 1).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..checkpoints import CheckpointError, State, load_state, strip_prefix
from ..released import CONDITIONED, PLAIN, WEIGHT_SUFFIXES, find_weights, no_such_decoder
from .config import is_unet, is_vae, vae_config_from_state

ARCHITECTURE = "upscale_a_video"
LICENCE = (
    "Upscale-A-Video weights: S-Lab License 1.0, non-commercial use only; commercial use needs the authors' "
    "consent."
)
VAE_PREFIXES = {
    PLAIN: "vae.",
    CONDITIONED: "vae_video.",
}  # in a converted file; vae_3d is the published default
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")

# What the x4 upscaler that the model was made from states; used only where the json is missing.
_NOISING = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
}
_DDIM = {
    **_NOISING,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Part:
    """One network: a function that reads its state, and its published json (None: deduce from shapes)."""

    read: Callable[[], State]
    config: Mapping | None = None


@dataclass(frozen=True)
class Release:
    """What a folder or file holds; `vaes` by decoder, `tokenizer` as {file name: text}."""

    name: str
    unet: Part
    vaes: Mapping[str, Part] = field(default_factory=dict)
    text: Part | None = None
    tokenizer: Mapping[str, str] = field(default_factory=dict)
    scheduler: Mapping = field(default_factory=lambda: dict(_DDIM))
    low_res: Mapping = field(default_factory=lambda: dict(_NOISING))

    def decoder(self, wanted: str) -> Part | None:
        """Choose a VAE; `auto` takes the plain one, as the published program does. None: there is no VAE."""
        if wanted == "auto":
            return next((self.vaes[kind] for kind in (PLAIN, CONDITIONED) if kind in self.vaes), None)
        if wanted not in self.vaes:
            remedy = "add the file of that VAE to the folder vae"
            raise no_such_decoder(self.name, list(self.vaes), wanted, remedy)
        return self.vaes[wanted]


def is_release_folder(path: Path) -> bool:
    """Tell whether a folder has the released layout: unet/ and vae/ with weights in them."""
    return all(
        (path / part).is_dir() and any(f.suffix in WEIGHT_SUFFIXES for f in (path / part).iterdir())
        for part in ("unet", "vae")
    )


def open_folder(path: Path) -> Release:
    """Open a released folder; a missing part is a CheckpointError that names it."""
    unet = _find(path / "unet", ("unet_video", "diffusion_pytorch_model"), ("unet_video_config", "config"))
    if unet is None:
        raise CheckpointError(
            "a released folder must hold unet/unet_video.bin (or .safetensors) and vae/vae_3d.bin; got "
            f"{path.name} without weights in unet. Copy the whole folder as it was downloaded."
        )
    vaes = {
        PLAIN: _find(path / "vae", ("vae_3d", "diffusion_pytorch_model"), ("vae_3d_config", "config")),
        CONDITIONED: _find(path / "vae", ("vae_video",), ("vae_video_config",)),
    }
    vaes = {kind: part for kind, part in vaes.items() if part is not None}
    texts = {name: path / "tokenizer" / name for name in TOKENIZER_FILES}
    return Release(
        path.name,
        unet,
        vaes,
        _find(path / "text_encoder", ("model", "pytorch_model"), ("config",)),
        {name: file.read_text(encoding="utf-8") for name, file in texts.items() if file.is_file()},
        _json(path / "scheduler" / "scheduler_config.json") or dict(_DDIM),
        _json(path / "low_res_scheduler" / "scheduler_config.json") or dict(_NOISING),
    )


def open_state(state: State, metadata: Mapping[str, str], path: Path) -> Release | None:
    """Understand the entries of one file; None where they are not of this model.

    The UNet's file inside a released folder brings the rest of the folder with it.
    """
    if is_unet(strip_prefix(state, "unet.")):
        return _open_converted(state, metadata, path.name)
    if is_unet(state):
        folder = path.parent.parent
        part = Part(lambda: state, _sibling_config(path))
        if path.parent.name == "unet" and is_release_folder(folder):
            return replace(open_folder(folder), name=path.name, unet=part)
        return Release(path.name, part)
    for vae in (state, *(strip_prefix(state, prefix) for prefix in VAE_PREFIXES.values())):
        if is_vae(vae):
            kind = CONDITIONED if vae_config_from_state(vae).condition else PLAIN
            raise CheckpointError(
                f"the file must hold the UNet; got {path.name}, which is the {kind} VAE of Upscale-A-Video. "
                "Choose the released folder (with unet/, vae/, text_encoder/), or a file converted from it."
            )
    return None


def _open_converted(state: State, metadata: Mapping[str, str], name: str) -> Release:
    def part(prefix: str, config: str) -> Part | None:
        entries = strip_prefix(state, prefix)
        return Part(lambda: entries, _parsed(metadata, config, name)) if entries else None

    vaes = {PLAIN: part("vae.", "vae_config"), CONDITIONED: part("vae_video.", "vae_video_config")}
    return Release(
        name,
        part("unet.", "unet_config"),
        {kind: vae for kind, vae in vaes.items() if vae is not None},
        part("text_encoder.", "text_config"),
        _parsed(metadata, "tokenizer", name) or {},
        _parsed(metadata, "scheduler", name) or dict(_DDIM),
        _parsed(metadata, "low_res_scheduler", name) or dict(_NOISING),
    )


def _find(folder: Path, stems: tuple[str, ...], configs: tuple[str, ...]) -> Part | None:
    """Find weights by their published names, and the json beside them."""
    if not folder.is_dir():
        return None
    weights = find_weights(folder, *stems)
    if weights is None:
        return None
    config = next((json for name in configs if (json := _json(folder / f"{name}.json")) is not None), None)
    return Part(lambda: load_state(weights)[0], config)


def _sibling_config(path: Path) -> Mapping | None:
    names = (f"{path.stem}_config.json", "unet_video_config.json", "config.json")
    found = (json for name in names if (json := _json(path.with_name(name))) is not None)
    return next((json for json in found if "block_out_channels" in json), None)


def _json(path: Path) -> dict | None:
    return _understand(path.read_text(encoding="utf-8"), path.name) if path.is_file() else None


def _parsed(metadata: Mapping[str, str], key: str, name: str) -> dict | None:
    return _understand(metadata[key], f"{name} ({key})") if key in metadata else None


def _understand(text: str, name: str) -> dict:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CheckpointError(
            f"a json file must be readable; got {name}: {error}. Download it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"a json file must hold an object; got {name}. Download it again.")
    return content
