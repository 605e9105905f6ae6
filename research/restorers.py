"""`run.py bench upscale_a_video | mgld_vsr`: the graphs that users run, in a real ComfyUI, with random weights.

1. Build the networks without memory (device "meta") to learn the names and shapes of their weights.
2. Write random half-precision weights of these shapes, in the layout of the published download, into the models folder
   of a scratch ComfyUI. They cost what trained ones do.
3. Run workflows/api/Restore-with-*.json over a clip of noise.

On a GPU the networks have their published size and the default clip is 33 frames of 320x180 -> 1280x720; on a CPU they
are a hundredth of it, the clip is small and the steps are few: figures to compare versions with, not to plan with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..models.checkpoints import save_state
from ..runner.binding import parse_size
from ..runner.host import Host
from ..runner.pack import load
from ..runner.workflow import Workflow
from .graphs import run_graph, runs_on_cpu, stages

_FULL = 33, "1280x720"  # frames, output size
_SMALL = 5, "128x128"
_SMALL_STEPS = 4
_CONSTANT = "rotary_emb.freqs"  # entries that are constants: the loader makes them


def upscale_a_video(options: argparse.Namespace, host: Host) -> dict:
    """The graph Restore-with-Upscale-A-Video, random weights: seconds a frame and by stage, memory (GPU: minutes)."""
    return _measure(options, host, "Restore-with-Upscale-A-Video", write_upscale_a_video)


def mgld_vsr(options: argparse.Namespace, host: Host) -> dict:
    """The graph Restore-with-MGLD-VSR, random weights: seconds a frame and by stage, memory (GPU: minutes)."""
    return _measure(options, host, "Restore-with-MGLD-VSR", write_mgld_vsr)


def _measure(options: argparse.Namespace, host: Host, name: str, write: Callable[[Path, bool], int]) -> dict:
    cpu, facts = runs_on_cpu(options.device), {}
    frames, size = _SMALL if cpu else _FULL

    def prepare(workflow: Workflow, models: Path) -> None:
        restorer = workflow.prompt[workflow.of_type("VSRLoadVideoRestorer")[0]]["inputs"]["restorer"]
        facts["parameters_m"] = round(write(models / "video_restorers" / restorer, not cpu) / 1e6, 1)
        if cpu:
            shorten(workflow)
        for setting in options.settings:
            workflow.set(setting)
        facts["steps"] = workflow.prompt[workflow.of_type("VSRRefineSigmas")[0]]["inputs"]["steps"]

    size = parse_size(options.size or size)
    outcome = run_graph(host, name, options.frames or frames, size, cpu=cpu, prepare=prepare)
    networks = "random weights, tiny" if cpu else "random weights, published size"
    facts = {"graph": f"{name}.json in ComfyUI {host.version}", "device": outcome.device, "networks": networks} | facts
    return {**facts, **outcome.costs(), **stages(outcome)}


def shorten(workflow: Workflow) -> None:
    """Let a graph take a few steps only, propagation at the last but one included."""
    workflow.set(f"Refine Sigmas.steps={_SMALL_STEPS}")
    if workflow.of_type("VSRLatentPropagation"):
        workflow.set(f"Latent Propagation.steps.step_list={_SMALL_STEPS - 2}")


def write_upscale_a_video(folder: Path, full: bool) -> int:
    """Write random weights as the released folder of Upscale-A-Video; return the number of parameters."""
    unets, vaes = load("models.upscale_a_video.unet"), load("models.upscale_a_video.vae")
    width = 1024 if full else 64
    unet = {"block_out_channels": (32, 64, 64, 128), "heads": (1, 1, 1, 1), "layers_per_block": 1}
    unet = unets.UNetConfig(**{} if full else {**unet, "cross_attention_dim": width})
    vae = vaes.VAEConfig(**{} if full else {"block_out_channels": (32, 64, 64), "layers_per_block": 1})
    text = {"hidden_size": width, "num_hidden_layers": 23 if full else 2, "num_attention_heads": width // 64}
    text |= {"intermediate_size": 4 * width, "vocab_size": 49408, "hidden_act": "gelu", "eos_token_id": 2}
    with torch.device("meta"):
        networks = {
            "unet/unet_video": {"": unets.VideoUNet(unet)},
            "vae/vae_3d": {"": vaes.UpscaleVAE(vae)},
            "text_encoder/model": {"": _clip_text(text)},
        }
    count = _write(folder, networks)
    (folder / "text_encoder" / "config.json").write_text(json.dumps(text), encoding="utf-8")
    return count


def _clip_text(config: dict) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel  # a requirement of the host

    model = CLIPTextModel(CLIPTextConfig(**config))
    if hasattr(model, "text_model"):
        return model
    return nn.ModuleDict({"text_model": model})  # published names begin so, those of newer versions do not


def write_mgld_vsr(folder: Path, full: bool) -> int:
    """Write random weights as the two published files of MGLD-VSR; return the number of parameters."""
    unets, structures, vaes, texts = (load(f"models.mgld_vsr.{name}") for name in ("unet", "structure", "vae", "text"))
    sequence = load("models.mgld_vsr.decoder").SequenceVAE
    levels = {"model_channels": 64, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (1,)}
    unet = unets.UNetConfig(**{} if full else {**levels, "context_dim": 32, "semb_channels": 32})
    structure = structures.StructureConfig(**{} if full else {**levels, "out_channels": 32})
    vae = {} if full else {"ch": 32, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1}
    text = texts.TextConfig(**{} if full else {"width": 32, "layers": 2, "projection": 32})
    with torch.device("meta"):
        networks = {
            "mgldvsr_unet": {
                "model.diffusion_model.": unets.MGLDUNet(unet),
                "structcond_stage_model.": structures.StructureEncoder(structure),
                "first_stage_model.": vaes.FirstStage(vaes.VAEConfig(**vae)),
                "cond_stage_model.model.": texts.OpenCLIPText(text),
            },
            "video_vae_cfw": {"": sequence(vaes.VAEConfig(**vae, sequence=True))},
        }
    return _write(folder, networks)


def _write(folder: Path, files: dict[str, dict[str, nn.Module]]) -> int:
    """Write {file: {prefix: network}} with random weights that keep signals alive; return their number."""
    generator, count = torch.Generator().manual_seed(0), 0
    for file, networks in files.items():
        state = {
            prefix + key: _draw(key, value.shape, generator)
            for prefix, network in networks.items()
            for key, value in network.state_dict().items()
            if not key.endswith((_CONSTANT, "position_ids"))
        }
        save_state(folder / f"{file}.safetensors", state)
        count += sum(value.numel() for value in state.values())
    return count


def _draw(key: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Draw the entry of a network: matrices by their fan-in, biases 0, scales of norms 1."""
    if len(shape) < 2:
        return (torch.zeros if key.endswith("bias") else torch.ones)(shape, dtype=torch.float16)
    deviation = 0.7 / shape[1:].numel() ** 0.5
    return torch.randn(shape, generator=generator).mul_(deviation).half()
