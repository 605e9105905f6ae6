"""MGLD-VSR's weights: detect them, open a folder or file, deduce the networks, convert to one file.

1. Detect: a folder with the two Lightning checkpoints, a file that `convert` wrote, or the first checkpoint alone.
   `mgldvsr_unet.ckpt` holds UNet, structure encoder, first stage, text encoder and RAFT under prefixes,
   `video_vae_cfw.ckpt` the sequence decoder and what its training left over.
2. Open: a Release whose `main` and `sequence` read the weights, each file once, under our prefixes.
3. Deduce: every size is read from shapes; numbers of heads are in no weight, and in no json either: the published
   ones are the defaults, a converted file may state others.
4. Convert: what inference needs as one safetensors file, the empty prompt already encoded.

docs/systems/mgld_vsr.md lists the published files.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..checkpoints import (
    CONDITIONED,
    PLAIN,
    S_LAB,
    CheckpointError,
    State,
    count_blocks,
    find_weights,
    load_state,
    no_such_decoder,
    own_copies,
    shape_of,
    strip_prefix,
    write_converted,
)
from .structure import StructureConfig
from .text import OpenCLIPText, TextConfig
from .unet import UNetConfig
from .vae import VAEConfig

NAME, ARCHITECTURE = "MGLD-VSR", "mgld_vsr"
LICENCE = f"{NAME} weights: {S_LAB}"
HOLDS = "mgldvsr_unet.ckpt, a converted file, or the folder of both checkpoints"
MAIN, SEQUENCE = "mgldvsr_unet", "video_vae_cfw"  # names of the two files
EMPTY_PROMPT = "empty_prompt"  # in a converted file: what the text encoder makes of no words
PARTS = {"unet.": "UNet", "structure.": "structure encoder", "first_stage.": "first stage"}
TEXT, SEQUENCE_VAE = "text.", "sequence."
HEADS = {"num_head_channels": 64, "num_heads": 4, "text_heads": 16}  # of UNet, structure and text encoder
_PUBLISHED = {
    "model.diffusion_model.": "unet.",
    "structcond_stage_model.": "structure.",
    "first_stage_model.": "first_stage.",
    "cond_stage_model.model.": TEXT,
}
# Entries that tell a converted file, the published one, and the one with the sequence decoder
MARKS = _CONVERTED, _UNCONVERTED, _DECODER = (
    "structure.fea_tran.",
    "structcond_stage_model.",
    "decoder.temporal_mixing.temporal_alpha",
)
_LEFT_OVER = "loss."  # of the decoder's training
_OPTIONS = "options"


@dataclass(frozen=True)
class Release:
    """What a folder or file holds.

    `main` reads entries under PARTS, and the text encoder under TEXT or EMPTY_PROMPT; `sequence` reads the sequence
    decoder without prefix. `options` are the numbers of heads, named as HEADS.
    """

    name: str
    main: Callable[[], State]
    sequence: Callable[[], State] | None = None
    options: Mapping[str, int] = field(default_factory=lambda: dict(HEADS))

    def decoder(self, wanted: str) -> Callable[[], State] | None:
        """Choose the sequence decoder, which `auto` takes where there is one; None: the first stage decodes."""
        if wanted == CONDITIONED and self.sequence is None:
            raise no_such_decoder(self.name, [PLAIN], wanted, f"put {SEQUENCE}.ckpt beside it")
        return None if wanted == PLAIN else self.sequence


# Detect


def is_sequence_vae(state: Mapping[str, torch.Tensor]) -> bool:
    """Return whether entries are those of the sequence decoder."""
    return _DECODER in state and "encoder.conv_in.weight" in state


def is_release_folder(path: Path) -> bool:
    """Return whether a folder holds the published file that everything but the decoder is in."""
    return path.is_dir() and find_weights(path, MAIN) is not None


# Open


def open_release(path: Path) -> Release:
    """Open a folder or file; what is not of this system is a CheckpointError."""
    release = open_folder(path) if path.is_dir() else open_state(*load_state(path), path)
    if release is None:
        raise CheckpointError(f"the file must hold {NAME} ({HOLDS}); got {path.name}. Choose another file.")
    return release


def open_folder(path: Path) -> Release:
    """Open a folder with the published files; without the first one it is a CheckpointError."""
    main = find_weights(path, MAIN)
    if main is None:
        raise CheckpointError(
            f"a folder of MGLD-VSR must hold {MAIN}.ckpt and {SEQUENCE}.ckpt; got {path.name} without {MAIN}. "
            "Copy both files into it."
        )
    return _published(path.name, lambda: load_state(main)[0], path)


def open_state(state: State, metadata: Mapping[str, str], path: Path) -> Release | None:
    """Understand the entries of one file; None where they are not of this system.

    The published UNet file brings the decoder that is beside it.
    """
    if any(key.startswith(_CONVERTED) for key in state):
        sequence = strip_prefix(state, SEQUENCE_VAE)
        return Release(
            path.name,
            lambda: check_whole(state, path.name),
            (lambda: sequence) if sequence else None,
            _heads(metadata, path.name),
        )
    if any(key.startswith(_UNCONVERTED) for key in state):
        return _published(path.name, lambda: state, path.parent)
    if is_sequence_vae(state):
        raise CheckpointError(
            f"the file must hold the UNet; got {path.name}, which is the sequence decoder of MGLD-VSR. Choose the "
            f"folder that holds it and {MAIN}.ckpt, or a file converted from both."
        )
    return None


def _published(name: str, read: Callable[[], State], folder: Path) -> Release:
    sequence = find_weights(folder, SEQUENCE)

    def read_sequence() -> State:
        state = load_state(sequence)[0]
        if not is_sequence_vae(state):
            raise CheckpointError(
                f"the file {sequence.name} must hold the sequence decoder of MGLD-VSR; got {len(state)} entries such "
                f"as {', '.join(sorted(state)[:2])}. Download it again, or take it away to decode without."
            )
        return {key: value for key, value in state.items() if not key.startswith(_LEFT_OVER)}

    @functools.cache  # MODEL and VAE are both made of it
    def read_main() -> State:
        return check_whole(rename(read()), name)

    return Release(name, read_main, None if sequence is None else read_sequence)


def rename(state: Mapping[str, torch.Tensor]) -> State:
    """Bring published entries to our prefixes; schedule buffers and RAFT, a file of its own here, are left out."""
    return {
        ours + key.removeprefix(published): value
        for published, ours in _PUBLISHED.items()
        for key, value in state.items()
        if key.startswith(published)
    }


def check_whole(state: State, name: str) -> State:
    """Give entries back that hold every part; a missing part is a CheckpointError."""
    missing = [what for prefix, what in PARTS.items() if not any(key.startswith(prefix) for key in state)]
    if EMPTY_PROMPT not in state and not any(key.startswith(TEXT) for key in state):
        missing.append("text encoder")
    if missing:
        raise CheckpointError(
            f"a file of MGLD-VSR must hold the {', the '.join(PARTS.values())} and the text encoder; got {name} "
            f"without the {' and the '.join(missing)}. It is incomplete: download {MAIN}.ckpt again."
        )
    return state


def _heads(metadata: Mapping[str, str], name: str) -> dict[str, int]:
    try:
        return HEADS | {key: int(value) for key, value in json.loads(metadata.get(_OPTIONS, "{}")).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"the options in the metadata of {name} must be numbers by name; got {metadata[_OPTIONS]!r}. Convert "
            "the published files again."
        ) from error


# Deduce


def unet_config(state: Mapping[str, torch.Tensor], num_head_channels: int = HEADS["num_head_channels"]) -> UNetConfig:
    """Deduce the UNet from keys and shapes, without prefix."""
    return UNetConfig(
        out_channels=shape_of(state, "out.2.weight")[0],
        num_head_channels=num_head_channels,
        context_dim=shape_of(state, "middle_block.2.transformer_blocks.0.attn2.to_k.weight")[1],
        semb_channels=shape_of(state, "middle_block.0.spade.mlp_shared.0.weight")[1],
        **_levels(state, "1.proj_in.weight"),
    )


def structure_config(state: Mapping[str, torch.Tensor], num_heads: int = HEADS["num_heads"]) -> StructureConfig:
    """Deduce the structure encoder from keys and shapes, without prefix."""
    return StructureConfig(
        out_channels=shape_of(state, "fea_tran.0.out_layers.3.weight")[0],
        num_heads=num_heads,
        **_levels(state, "1.qkv.weight"),
    )


def vae_config(state: Mapping[str, torch.Tensor]) -> VAEConfig:
    """Deduce an autoencoder, of the first stage or of sequences, from keys and shapes, without prefix."""
    ch, in_channels = shape_of(state, "encoder.conv_in.weight")[:2]
    levels = range(count_blocks(state, "encoder.down."))
    widths = (shape_of(state, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in levels)
    return VAEConfig(
        in_channels=in_channels,
        out_ch=shape_of(state, "decoder.conv_out.weight")[0],
        z_channels=shape_of(state, "post_quant_conv.weight")[0],
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=count_blocks(state, "encoder.down.0.block."),
        sequence=_DECODER in state,
    )


def text_config(state: Mapping[str, torch.Tensor], heads: int = HEADS["text_heads"]) -> TextConfig:
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


def empty_prompt(state: State, heads: int = HEADS["text_heads"]) -> torch.Tensor:
    """Give what the text encoder makes of no words (1, 77, d) float32: stored, or computed once."""
    if EMPTY_PROMPT in state:
        return state[EMPTY_PROMPT].float()
    text = strip_prefix(state, TEXT)
    with torch.device("meta"):
        network = OpenCLIPText(text_config(text, heads)).eval()
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    # The scale has no part in the result: files may lack it, or hold it as a vector of one. Buffers are left out.
    weights = {"logit_scale": torch.zeros(()), **text}
    weights = {name: value.float().view(shapes[name]) for name, value in weights.items() if name in shapes}
    network.load_state_dict(weights, strict=True, assign=True)
    with torch.no_grad():
        return network.empty_prompt()


def _levels(state: Mapping[str, torch.Tensor], attention: str) -> dict:
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


# Convert


def convert(source: Path, target: Path, half: bool, say: Callable[[str], None]) -> bool:
    """Write the two checkpoints of a folder, or the first one, as one file; False where `source` is not of this system.

    half stores UNet and structure encoder as float16; autoencoders stay as they are.
    """
    if source.is_dir() and not is_release_folder(source):
        return False
    release = open_folder(source) if source.is_dir() else open_state(*load_state(source), source)
    if release is None:
        return False
    state = release.main()
    tensors: State = {EMPTY_PROMPT: empty_prompt(state, release.options["text_heads"])}
    for prefix, what in PARTS.items():
        part = strip_prefix(state, prefix)
        say(f"{what}: {len(part)} tensors")
        tensors |= own_copies(part, prefix, half and prefix != "first_stage.")
    sequence = {} if release.sequence is None else release.sequence()
    say(f"sequence decoder: {len(sequence)} tensors" if sequence else "sequence decoder: there is none")
    tensors |= own_copies(sequence, SEQUENCE_VAE)
    metadata = {"architecture": ARCHITECTURE, "source": release.name, "licence": LICENCE}
    write_converted(target, tensors, {**metadata, _OPTIONS: json.dumps(dict(release.options))}, say)
    return True
