"""Says what a weight file is, by its entries: a wrong file is answered with its name and the remedy."""

from collections.abc import Iterable, Mapping
from pathlib import PurePath

from ..models.checkpoints import CheckpointError
from .systems.base import System

_KNOWN = (  # (what an entry contains or begins with, what the file is, what to do)
    (
        ("fnet.conv1.", "module.fnet.", "feature_encoder."),
        "the optical flow network RAFT",
        "choose it in Load Flow Model",
    ),
    (
        ("model.diffusion_model.", "first_stage_model."),
        "a Stable Diffusion checkpoint",
        "open it with the host's Load Checkpoint",
    ),
    (
        ("text_model.encoder.", "text_model.embeddings."),
        "a CLIP text encoder",
        "choose the released folder that it belongs to",
    ),
    (("lora_down.", "lora_up.", "lora_A.", "lora_B."), "a LoRA", "open it with the host's Load LoRA"),
    (("encoder.block.0.layer.0.SelfAttention",), "a T5 text encoder", "open it with the host's Load CLIP"),
    (("RRDB_trunk.", "conv_body.", "model.1.sub."), "a picture upscaler", "open it with Load Upscale Model"),
    (
        ("encoder.down_blocks.", "decoder.up_blocks."),
        "a VAE of diffusers' layout",
        "if it is one of Upscale-A-Video's, choose the released folder instead",
    ),
    (
        ("down_blocks.0.", "mid_block."),
        "a diffusers UNet without the temporal layers of Upscale-A-Video",
        "download the video UNet",
    ),
    (("transformer.resblocks.",), "an OpenCLIP text encoder", "MGLD-VSR's is inside mgldvsr_unet.ckpt"),
    (("basic_module.",), "the optical flow network SpyNet", "choose it in Load Flow Model"),
    (("patch_embedding.", "blocks.0.self_attn"), "a video diffusion transformer", "use Load Diffusion Model"),
)


def recognise(state: Mapping | Iterable[str]) -> tuple[str, str] | None:
    """Name (what the file is, what to do with it) by its entries; None where nothing is known of it."""
    keys = list(state)
    for marks, what, remedy in _KNOWN:
        if any(mark in key for key in keys for mark in marks):
            return what, remedy
    return None


def what_flow(state: Mapping) -> str:
    """Say what a file is that was taken for an optical flow network."""
    keys = {key.removeprefix("module.") for key in state}
    if keys & {"fnet.conv1.weight", "feature_encoder.convnormrelu.0.weight"}:
        return "which is the small RAFT or a variant of it"
    if any(key.startswith("basic_module.") for key in keys):
        return "which is a part or a variant of the optical flow network SpyNet"
    if found := recognise(state):
        return f"which is {found[0]}"
    return f"with {len(keys)} entries such as {', '.join(sorted(keys)[:2])}"


def refuse(path: PurePath, state: Mapping | Iterable[str], systems: Iterable[System]) -> CheckpointError:
    """Make the error for a file or folder that holds no restorer."""
    keys, name = sorted(state), path.name
    wanted = "; ".join(f"{system.name}: {system.holds}" for system in systems)
    if found := recognise(keys):
        return CheckpointError(
            f"the file must hold a video restorer ({wanted}); got {name}, which is {found[0]}: {found[1]}."
        )
    return CheckpointError(
        f"the file must hold a video restorer ({wanted}); got {name} with {len(keys)} entries such as "
        f"{', '.join(keys[:2]) or 'none'}. Choose another file."
    )
