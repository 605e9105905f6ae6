"""The text encoder of a release as the host's own CLIP: an OpenCLIP text tower of any size, as its json says."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import comfy.clip_model
import comfy.sd
import comfy.sd1_clip
import folder_paths
import torch

from ..models.checkpoints import CheckpointError, shape_of, strip_prefix
from ..models.upscale_a_video.checkpoint import Release

_NAME, _KEY = "h", "clip_h"  # the host's names of this family
_EMBEDDING = "text_model.embeddings.token_embedding.weight"
_PUBLISHED = {"hidden_act": "gelu", "num_attention_heads": 16, "eos_token_id": 49407}
_STANDARD = {"<|startoftext|>": 49406, "<|endoftext|>": 49407, "!": 0}  # of CLIP's own vocabulary
_PAD = "!"  # with which SD 2 tokenizers pad


def load_clip(release: Release, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """Build the CLIP of a release: the last layer's state after the final norm, padding as its tokenizer says."""
    state = release.text.read()
    state = strip_prefix(
        state, next((k.removesuffix(_EMBEDDING) for k in state if k.endswith(_EMBEDDING)), "")
    )
    config = _config(state, release.text.config or {})
    special = _special_tokens(release.tokenizer)
    state.setdefault(
        "text_projection.weight", torch.eye(config["hidden_size"])
    )  # the pooled text is not used
    target = SimpleNamespace(
        clip=partial(
            comfy.sd1_clip.SD1ClipModel,
            clip_name=_NAME,
            clip_model=partial(_TextTower, config=config, special=special),
        ),
        tokenizer=partial(
            comfy.sd1_clip.SD1Tokenizer,
            clip_name=_NAME,
            tokenizer=partial(_make_tokenizer, config=config, files=release.tokenizer, pad=special["pad"]),
        ),
        params={},
    )
    embeddings = folder_paths.get_folder_paths("embeddings")
    return comfy.sd.CLIP(
        target, embedding_directory=embeddings, state_dict=[state], disable_dynamic=disable_dynamic
    )


class _TextTower(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None, config=None, special=None):
        super().__init__(
            device=device,
            dtype=dtype,
            layer="last",
            textmodel_json_config=dict(config),
            model_class=_tower,
            special_tokens=special,
            enable_attention_masks=bool(config.get("use_attention_mask")),
            return_projected_pooled=False,
            model_options=model_options or {},
        )


def _tower(config, dtype, device, operations):
    """Build the host's text model with as many tokens as the weights have."""
    model = comfy.clip_model.CLIPTextModel(config, dtype, device, operations)
    if config["vocab_size"] != model.get_input_embeddings().num_embeddings:
        size = (config["vocab_size"], config["hidden_size"])
        model.set_input_embeddings(operations.Embedding(*size, dtype=dtype, device=device))
    return model


def _make_tokenizer(embedding_directory=None, tokenizer_data=None, config=None, files=None, pad=0):
    """Build the host's tokenizer from the release's files; without a vocabulary, from the host's own."""
    settings = {
        "pad_with_end": False,
        "max_length": config["max_position_embeddings"],
        "embedding_directory": embedding_directory,
        "embedding_size": config["hidden_size"],
        "embedding_key": _KEY,
        "tokenizer_data": tokenizer_data or {},
    }
    own = {"vocab.json", "merges.txt"}
    with TemporaryDirectory() as folder:
        for name in own & files.keys():
            (Path(folder) / name).write_text(files[name], encoding="utf-8")
        tokenizer = comfy.sd1_clip.SDTokenizer(folder if own <= files.keys() else None, **settings)
    tokenizer.pad_token = pad
    return tokenizer


def _special_tokens(files: Mapping[str, str]) -> dict[str, int]:
    """Find the numbers of the tokens that start, end and pad a text."""
    vocabulary = json.loads(files["vocab.json"]) if "vocab.json" in files else _STANDARD
    names = {"start": "<|startoftext|>", "end": "<|endoftext|>", "pad": _PAD}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        token = json.loads(files.get(file, "{}")).get("pad_token")
        names["pad"] = (token.get("content") if isinstance(token, dict) else token) or names["pad"]
    for name in names.values():
        if name not in vocabulary:
            raise CheckpointError(
                f"the tokenizer's vocabulary must have the token {name!r} that its json names; got "
                f"{len(vocabulary)} other tokens. Download the folder tokenizer again."
            )
    return {use: vocabulary[name] for use, name in names.items()}


def _config(state, published: Mapping) -> dict:
    """Merge the json of the text encoder with what the shapes say."""
    vocabulary, width = shape_of(state, _EMBEDDING)
    layers = {int(key.split(".")[3]) for key in state if key.startswith("text_model.encoder.layers.")}
    shapes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "intermediate_size": shape_of(state, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "max_position_embeddings": shape_of(state, "text_model.embeddings.position_embedding.weight")[0],
    }
    for key, value in shapes.items():
        if published.get(key, value) != value:
            raise CheckpointError(
                f"text_encoder/config.json must fit its weights; got {key} {published[key]} for weights of "
                f"{value}. Download the folder text_encoder again."
            )
    return {**_PUBLISHED, **published, **shapes}
