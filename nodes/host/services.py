"""The door between the nodes and the host.

On the way in, checks: bad input ends here, with the node, the rule, the value and the remedy. Inside, the host's
services: folders, devices, layers, attention, memory and interruption. On the way out, tensors as the host keeps them.
What a running node shows is in progress.py.
"""

from __future__ import annotations

import contextlib
import math
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.latent_formats
import comfy.ldm.modules.attention
import comfy.model_management as management
import comfy.model_patcher
import folder_paths
import torch
import torch.nn.functional as F

from ...media.memory import free_memory
from ...models.layout.sizes import ClipSize, zeros
from ...models.motion.estimation import Motion
from .keys import DEFAULT, PADDED_TO_KEY, PRESET_KEY, PUBLISHED, SIZE_KEY, WORK_KEY

CATEGORY = "video/upscaling/Cascade VSR"
SAMPLER = "KSampler / SamplerCustomAdvanced"  # who is named where the host's samplers are used wrongly
DECODE, REFERENCE_SET = "Temporal Decode", "Reference Set"  # nodes whose inputs others find wrong
BUILT_IN = "built-in"
RESTORER_FOLDER = "video_restorers"
FLOW_FOLDER = "optical_flow"  # the host's own
ADAPTER_FOLDER = "vsr_adapters"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_PAIRS, _BLOCK = (
    1 << 27,
    512,
)  # query-key pairs that a CPU attends to at once, under a second; queries it takes together
_CHECK_FRAMES = 16  # frames looked at together; bounds the scratch memory of the NaN test
_finite: dict[int, weakref.ref] = {}  # tensors that were found finite, by id: none is looked through twice


# Checks


@contextlib.contextmanager
def titled(title: str) -> Iterator[None]:
    """Name the node in errors of the core, which knows none: "overlap must be" becomes "Title: overlap must be".

    Kinds of ValueError that the core has become plain ones: the editor writes the module path of any other above the
    message.
    """
    try:
        yield
    except ValueError as error:
        text = str(error) if str(error).startswith(f"{title}: ") else f"{title}: {error}"
        if type(error) is not ValueError:
            raise ValueError(text) from error
        error.args = (text,)
        raise


def check_choice(title: str, name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise where the value of a combo is none of its options: the host does not check those of every kind."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{title}: {name} must be one of {', '.join(allowed)}; got {value!r}. Choose {allowed[0]}.")


def check_frames(title: str, name: str, frames: object) -> torch.Tensor:
    """Return IMAGE `frames` (B, H, W, 3): not empty, at least 2 px a side, finite; alpha is left out."""
    if not isinstance(frames, torch.Tensor) or frames.ndim != 4:
        got = tuple(frames.shape) if isinstance(frames, torch.Tensor) else type(frames).__name__
        raise ValueError(
            f"{title}: {name} must be an IMAGE (frames, height, width, channels); got {got}. Link an image."
        )
    count, height, width, channels = frames.shape
    if count < 1:
        raise ValueError(f"{title}: {name} must have at least one frame; got 0. Check the video's range and path.")
    if min(height, width) < 2:
        raise ValueError(f"{title}: {name} must be at least 2 px a side; got {width}x{height}. Use a larger picture.")
    if channels not in (3, 4):
        raise ValueError(f"{title}: {name} must have 3 channels (RGB); got {channels}. Convert it to RGB first.")
    rgb = frames[..., :3]
    if not _known_finite(frames):
        for start in range(0, count, _CHECK_FRAMES):
            part = rgb[start : start + _CHECK_FRAMES]
            if not _is_finite(part):
                broken = next(number for number, frame in enumerate(part, start) if not _is_finite(frame))
                raise ValueError(
                    f"{title}: {name} must be finite numbers; got NaN or infinity in frame {broken}. A node before "
                    "this one broke the picture: look at its settings."
                )
        mark_finite(frames)
    return mark_finite(rgb)


def check_latent(title: str, name: str, latent: object, channels: int | None = None) -> torch.Tensor:
    """Return the samples of a video LATENT, (b, c, T, h, w) and finite; `channels` names what is required."""
    samples = unpacked(title, name, latent)
    if not isinstance(samples, torch.Tensor) or samples.ndim != 5:
        got = tuple(samples.shape) if isinstance(samples, torch.Tensor) else type(samples).__name__
        raise ValueError(
            f"{title}: {name} must be a video latent (batch, channels, T, height, width); got {got}. Link the latent "
            "of a video model."
        )
    if samples.numel() == 0:
        raise ValueError(f"{title}: {name} must not be empty; got {tuple(samples.shape)}. Check the clip's length.")
    if channels is not None and samples.shape[1] != channels:
        raise ValueError(
            f"{title}: {name} must have {channels} channels; got {samples.shape[1]}. Latent and VAE come from "
            "different models: use the pair of one loader."
        )
    return check_finite(title, name, samples)


def unpacked(title: str, name: str, latent: object) -> object:
    """Return the samples of a LATENT, or None where there are none; refuses those packed with sound."""
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if getattr(samples, "is_nested", False):
        shapes = ", ".join(str(tuple(part.shape)) for part in samples.unbind())
        raise ValueError(
            f"{title}: {name} must be the video latent alone; got one packed with sound ({shapes}). Put the host's "
            "Separate AV Latent before this node and link its video_latent."
        )
    return samples


def check_finite(title: str, name: str, samples: torch.Tensor) -> torch.Tensor:
    """Return a latent without NaN and infinity."""
    if not _known_finite(samples) and not _is_finite(samples):
        raise ValueError(
            f"{title}: {name} must be finite numbers; got NaN or infinity. The sampler before this "
            "node produced invalid values: try sampler euler, scheduler simple, precision fp32."
        )
    return mark_finite(samples)


def mark_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Remember, as long as it lives, that a tensor was found finite; returns it."""
    key = id(tensor)
    _finite[key] = weakref.ref(tensor, lambda _: _finite.pop(key, None))
    return tensor


def _is_finite(tensor: torch.Tensor) -> bool:
    lowest, highest = torch.aminmax(tensor)  # NaN where there is any; a mask of isfinite() takes 12 times as long
    return math.isfinite(float(highest) - float(lowest))


def _known_finite(tensor: torch.Tensor) -> bool:
    known = _finite.get(id(tensor))
    return known is not None and known() is tensor


def check_clip(title: str, shape: tuple[int, ...]) -> None:
    """Raise where what is sampled is no clip (b, c, T, h, w), but packs sound or other data with it."""
    if len(shape) != 5:
        raise ValueError(
            f"{title}: the sampled latent must be a video latent (5 dimensions); got {shape}, which packs sound or "
            "other data. Set this node to off, or sample the video latent alone (Separate AV Latent)."
        )


def check_count(title: str, name: str, count: int, wanted: int) -> None:
    """Raise where two clips that belong together have different numbers of frames."""
    if count != wanted:
        raise ValueError(
            f"{title}: {name} must have as many frames as the clip ({wanted}); got {count}. Link the frames of this "
            "clip."
        )


def check_motion(title: str, motion: object, other: type = Motion) -> None:
    """Raise where `motion` is neither what Estimate Motion gives nor an `other`."""
    if not isinstance(motion, (Motion, other)):
        raise ValueError(
            f"{title}: motion must come from Estimate Motion; got {type(motion).__name__}. Link that node."
        )


def check_motion_of(title: str, motion: object, name: str, clip: torch.Tensor) -> None:
    """Raise where `motion` is not the motion of the input `name`, a `clip` (T, h, w, c)."""
    check_motion(title, motion)
    frames, height, width = clip.shape[:3]
    if (motion.frames, motion.height, motion.width) != (frames, height, width):
        raise ValueError(
            f"{title}: motion must be that of {name}, {frames} of {width}x{height}; got {motion.frames} of "
            f"{motion.width}x{motion.height}. Link to Estimate Motion what {name} is linked to."
        )


def video_format(title: str, model: comfy.model_patcher.ModelPatcher) -> comfy.latent_formats.LatentFormat:
    """Give the latent format of a MODEL; raise where its latents have no time axis."""
    latent_format = model.get_model_object("latent_format")
    if latent_format.latent_dimensions != 3:
        raise ValueError(
            f"{title}: the model must be a video model; got {type(model.model).__name__} with "
            f"{latent_format.latent_dimensions}-dimensional latents. Link the restorer."
        )
    return latent_format


def refuse_published(title: str, model: comfy.model_patcher.ModelPatcher, what: str) -> None:
    """Raise where a MODEL was loaded to repeat the published numbers, which `what` would change."""
    if model.model_options.get(PRESET_KEY, DEFAULT) == PUBLISHED:
        raise ValueError(
            f"{title}: the preset {PUBLISHED} of Load Video Restorer repeats the published numbers; got {what}. Choose "
            "the preset default there."
        )


def frames_a_latent(model: comfy.model_patcher.ModelPatcher) -> int:
    """Give how many frames of a clip a latent frame of a MODEL holds: what its VAE says, where its format does not."""
    latent_format = model.get_model_object("latent_format")
    told = getattr(latent_format, "temporal_downscale_ratio", 1)
    seedvr2 = sys.modules.get("comfy.ldm.seedvr.constants")
    if told == 1 and seedvr2 is not None and isinstance(latent_format, comfy.latent_formats.SeedVR2):
        return seedvr2.BYTEDANCE_VAE_TEMPORAL_DOWNSAMPLE
    return told


def has_guides(conds: Iterable) -> bool:
    """Tell whether processed conditionings (groups of dicts) bring guide frames at the end of a clip, as LTX's do."""
    return any("keyframe_idxs" in cond.get("model_conds", {}) for group in conds for cond in group or ())


# The exact size that a padded latent stands for


def size_dict(size: ClipSize) -> dict[str, int]:
    """Write a size the way it travels in a LATENT."""
    return {"frames": size.frames, "height": size.height, "width": size.width}


def latent_target(title: str, latent: Mapping, space: int, time: int) -> tuple[ClipSize, ClipSize]:
    """Read (the exact size a LATENT stands for, the size of the picture in it); without our entry, all it holds.

    The two differ where a system enlarges small pictures to work on them.
    """
    samples = latent["samples"]
    whole = ClipSize(1 + time * (samples.shape[2] - 1), samples.shape[3] * space, samples.shape[4] * space)
    if SIZE_KEY not in latent:
        return whole, whole
    size = ClipSize(**latent[SIZE_KEY])
    work = ClipSize(size.frames, *latent[WORK_KEY]) if WORK_KEY in latent else size
    slack = (whole.frames - work.frames, whole.height - work.height, whole.width - work.width)
    if min(slack) < 0 or slack[0] >= time or max(slack[1:]) >= latent.get(PADDED_TO_KEY, space):
        remedy = (
            "A node between Cascade Input and this one cropped or resized the latent: do that before Cascade Input."
        )
        if slack[0] >= time:  # too long by whole latent frames: it may carry guides
            counts = ", ".join(str(whole.frames + step * time) for step in (-1, 0, 1))
            remedy = (
                f"Its frame counts are 1 + {time} n ({counts}). Remove guide frames that a node appended with "
                "LTXVCropGuides after the sampler; lengthen a clip before Cascade Input."
            )
        raise ValueError(
            f"{title}: the latent must have the grid of its target size {size.frames} x {size.width}x{size.height}; "
            f"got room for {whole.frames} x {whole.width}x{whole.height}. {remedy}"
        )
    return size, work


# Folders


def listed_path(title: str, what: str, folders: Mapping[str, Iterable[str]], name: str, remedy: str) -> Path:
    """Find a file or folder by the name in a list; names come from outside and may point nowhere.

    `folders` gives the names that each of the host's model folders offers.
    """
    for folder, names in folders.items():
        if name in names:
            for root in folder_paths.get_folder_paths(folder):
                if (Path(root) / name).exists():
                    return Path(root) / name
    raise ValueError(
        f"{title}: the {what} must be one of the list; got {name!r}. Put the file into models/{next(iter(folders))} "
        f"and refresh{remedy}."
    )


def newest_change(path: Path) -> int | str:
    """Give the time in ns of the last change to a file, or to any file of a released folder."""
    if not path.exists():
        return "missing"
    parts = [path, *(each for each in path.iterdir() if each.is_dir())] if path.is_dir() else []
    files = (file for part in parts for file in part.iterdir() if file.is_file())
    return max((file.stat().st_mtime_ns for file in files), default=path.stat().st_mtime_ns)


# Interruption


def check_cancelled() -> None:
    """Raise the host's interruption (not an Exception) when the user pressed stop."""
    if not torch.compiler.is_compiling():  # its lock would cut a compiled graph
        management.throw_exception_if_processing_interrupted()


# Devices, layers, attention


def pick_dtypes(precision: str, device: torch.device) -> tuple[torch.dtype, torch.dtype | None]:
    """Choose (storage dtype, compute dtype or None for the same) of a diffusion network on `device`."""
    supported = list(PRECISIONS.values())
    if precision != "auto":
        storage = PRECISIONS[precision]
    elif management.is_device_cpu(device):
        storage = torch.float32
    else:
        storage = management.unet_dtype(device=device, supported_dtypes=supported)
    return storage, management.unet_manual_cast(storage, device, supported)


def layers(operations: Any, dtype: torch.dtype | None, device: torch.device | None) -> SimpleNamespace:
    """Bind dtype and device to the host's layers, as the core builds layers without either."""
    names = ("Linear", "Conv1d", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm", "Embedding")
    return SimpleNamespace(**{name: partial(getattr(operations, name), dtype=dtype, device=device) for name in names})


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, precision: torch.dtype | None = None) -> torch.Tensor:
    """Attend over (b, heads, n, d): the host's optimised attention on a GPU, PyTorch's own on the CPU.

    `precision` is that of the scores, for those of the host's kernels that do not keep them in fp32 anyway.
    The host's default on a CPU was measured 3 to 4.5 times slower than PyTorch's.
    """
    if q.is_meta:  # only counted
        return F.scaled_dot_product_attention(q, k, v)
    if q.device.type == "cpu":
        step = max(_BLOCK, _PAIRS // (q.shape[:-2].numel() * k.shape[-2]) // _BLOCK * _BLOCK)
        parts = []
        for part in q.split(step, -2):  # a large clip takes minutes here: Interrupt must find a way out
            check_cancelled()
            parts.append(F.scaled_dot_product_attention(part, k, v))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -2)
    optimized = comfy.ldm.modules.attention.optimized_attention
    shapes = {"skip_reshape": True, "skip_output_reshape": True}
    return optimized(q, k, v, q.shape[1], attn_precision=precision, **shapes)


def main_device() -> torch.device:
    """Ask the host for the device that computes."""
    return management.get_torch_device()


def roomy_device(scratch: int) -> torch.device:
    """Give the device that computes, with `scratch` bytes free on it where it is a GPU."""
    device = management.get_torch_device()
    if not management.is_device_cpu(device):
        management.free_memory(scratch, device)
    return device


def wrap_network(network: torch.nn.Module) -> comfy.model_patcher.ModelPatcher:
    """Put a network behind a patcher, so that the host moves and unloads it as it does its own."""
    return comfy.model_patcher.ModelPatcher(
        network, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )


def load_network(patcher: comfy.model_patcher.ModelPatcher, scratch: int = 0) -> None:
    """Bring a network to its device, with `scratch` bytes beside it."""
    management.load_models_gpu([patcher], memory_required=scratch)


def free_bytes(device: torch.device) -> int:
    """Tell how much memory a device has left; of RAM, what a container leaves to this process."""
    return free_memory() if device.type == "cpu" else management.get_free_memory(device)


def out_of_memory(title: str, width: int, height: int) -> RuntimeError:
    """Make the error that ends a run when the smallest allowed tile, in px, did not fit either."""
    return RuntimeError(
        f"{title}: a tile must fit into memory; got out of memory even at {width}x{height} px. Choose smaller tiles, "
        "fewer frames at once or a smaller output, or free memory in other programs."
    )


# Results


def output_tensor(shape: tuple[int, ...]) -> torch.Tensor:
    """Make a tensor of zeros where and how the host keeps IMAGE and LATENT tensors."""
    device, dtype = management.intermediate_device(), management.intermediate_dtype()
    return zeros(shape, dtype) if device.type == "cpu" else torch.zeros(shape, device=device, dtype=dtype)


def to_output(tensor: torch.Tensor) -> torch.Tensor:
    """Move a result to where and how the host keeps IMAGE and LATENT tensors."""
    return tensor.to(device=management.intermediate_device(), dtype=management.intermediate_dtype())
