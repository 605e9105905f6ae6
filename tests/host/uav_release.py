"""A released folder of tiny Upscale-A-Video networks, with the weights that a recorded run states as a recipe."""

import json
from pathlib import Path

import torch
from cascadevsr.tests.golden.cases import COMMITTED, Case, read_case, recipe_weights

FAMILY = COMMITTED / "upscale_a_video"
TEXT = {
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "hidden_act": "gelu",
    "eos_token_id": 2,
}


def recorded(name: str) -> Case:
    """Read one of the committed runs."""
    return read_case(FAMILY / f"{name}.json")


def write_release(case: Case, folder: Path, text: bool = True) -> Path:
    """Write the networks of a recorded run in the layout of the published download."""
    from cascadevsr.models.upscale_a_video.unet import VideoUNet
    from cascadevsr.models.upscale_a_video.vae import UpscaleVAE
    from cascadevsr.tests.golden.configs import unet_of, vae_of

    vae_json = case.meta["vae_config"]
    form = "vae_video" if vae_json.get("condition_img") else "vae_3d"
    for part, network, stem in (
        ("unet", VideoUNet(unet_of(case.meta["unet_config"])), "unet_video"),
        ("vae", UpscaleVAE(vae_of(vae_json)), form),
    ):
        (folder / part).mkdir(parents=True, exist_ok=True)
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        meta = case.meta
        state = recipe_weights(shapes, meta[f"recipe_seed_{part}"], meta["recipe_gain"], meta["recipe_round_fp16"])
        torch.save(state, folder / part / f"{stem}.bin")
        _write_json(folder / part / f"{stem}_config.json", meta[f"{part}_config"])
    _write_json(folder / "scheduler" / "scheduler_config.json", case.meta["scheduler_config"])
    _write_json(folder / "low_res_scheduler" / "scheduler_config.json", case.meta["low_res_config"])
    if text:
        _write_json(folder / "text_encoder" / "config.json", TEXT)
        torch.save(text_state(), folder / "text_encoder" / "pytorch_model.bin")
        _write_json(folder / "tokenizer" / "tokenizer_config.json", {"pad_token": "!"})
    return folder


def text_state() -> dict[str, torch.Tensor]:
    """Make the weights of a tiny CLIP text model, the same every time."""
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(CLIPTextConfig(**TEXT))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items() if "position_ids" not in key}
    state = recipe_weights(shapes, 77, 1.0, True)
    return {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in state.items()}


def _write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
