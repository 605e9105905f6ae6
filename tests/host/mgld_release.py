"""Tiny MGLD-VSR networks as the published checkpoints, and as the converted file of recorded weights."""

import json
from pathlib import Path

import pytest
import torch
from cascadevsr.models.checkpoints import save_state
from cascadevsr.models.mgld_vsr.structure import StructureConfig
from cascadevsr.models.mgld_vsr.text import TextConfig
from cascadevsr.models.mgld_vsr.unet import UNetConfig
from cascadevsr.models.mgld_vsr.vae import VAEConfig
from cascadevsr.tests.golden.cases import Case, find_cases

LEVELS = {"model_channels": 64, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (1,)}
UNET = UNetConfig(**LEVELS, context_dim=32, semb_channels=32)
STRUCTURE = StructureConfig(**LEVELS, out_channels=32)
VAE = VAEConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1)
TEXT = TextConfig(vocab_size=49408, width=32, layers=2, projection=32)
_PUBLISHED = {
    "unet.": "model.diffusion_model.",
    "structure.": "structcond_stage_model.",
    "first_stage.": "first_stage_model.",
    "text.": "cond_stage_model.model.",
}


def recorded(name: str) -> Case:
    """Read a recorded run; where the recordings are not at hand, skip."""
    found = [case for case in find_cases() if (case.family, case.name) == ("mgld_vsr", name)]
    if not found:
        pytest.skip(f"the recorded case mgld_vsr/{name} is not here: too large to lie in the repository")
    return found[0]


def random_parts(seed: int = 0) -> dict[str, torch.Tensor]:
    """Make the weights of all tiny networks, the same every time, under the loader's prefixes."""
    from cascadevsr.models.mgld_vsr.decoder import SequenceVAE
    from cascadevsr.models.mgld_vsr.structure import StructureEncoder
    from cascadevsr.models.mgld_vsr.text import OpenCLIPText
    from cascadevsr.models.mgld_vsr.unet import MGLDUNet
    from cascadevsr.models.mgld_vsr.vae import FirstStage

    networks = {
        "unet.": MGLDUNet(UNET),
        "structure.": StructureEncoder(STRUCTURE),
        "first_stage.": FirstStage(VAE),
        "text.": OpenCLIPText(TEXT),
        "sequence.": SequenceVAE(VAEConfig(**{**vars(VAE), "sequence": True})),
    }
    maker, state = torch.Generator().manual_seed(seed), {}
    for prefix, network in networks.items():
        for key, value in network.state_dict().items():
            drawn = torch.randn(value.shape, generator=maker)
            scaled = drawn * 0.7 / value[0].numel() ** 0.5 if value.ndim > 1 else 1 + 0.1 * drawn
            state[prefix + key] = scaled if not key.endswith("bias") else 0.1 * drawn
    return state


def write_checkpoints(folder: Path, sequence: bool = True, drop: str = "nothing") -> Path:
    """Write the two Lightning checkpoints, with what training leaves in them; `drop` leaves a part out."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = random_parts()
    main = {
        published + key.removeprefix(ours): value
        for ours, published in _PUBLISHED.items()
        for key, value in parts.items()
        if key.startswith(ours) and ours != drop
    }
    main |= {"betas": torch.zeros(1000), "flownet_model.fnet.conv1.weight": torch.zeros(2)}
    torch.save({"state_dict": main, "global_step": 42000, "epoch": 1}, folder / "mgldvsr_unet.ckpt")
    if sequence:
        state = {key.removeprefix("sequence."): v for key, v in parts.items() if key.startswith("sequence.")}
        state |= {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(2)}
        torch.save({"state_dict": state}, folder / "video_vae_cfw.ckpt")
    return folder


def write_recorded(case: Case, path: Path) -> Path:
    """Write the networks of a recorded run as a converted file; the ones it does not have are random."""
    state = {key: value for key, value in random_parts().items() if not key.startswith("text.")}
    parts = {"unet": "unet.", "structcond": "structure."}
    parts |= {"first_stage": "first_stage.", "video_vae": "sequence."}
    for name, prefix in parts.items():
        if name in case.meta["weights_from"]:
            weights = case.weights(name)
            state = {key: value for key, value in state.items() if not key.startswith(prefix)}
            state |= {prefix + key: value for key, value in weights.items()}
    state["empty_prompt"] = case.group("in")["context"]
    metadata = {"architecture": "mgld_vsr", "options": json.dumps({"num_head_channels": 32, "num_heads": 2})}
    save_state(path, state, metadata)
    return path
