"""The one door to host services: devices, memory, progress, interruption, folders, layers, attention."""

import contextlib
import logging
from functools import partial
from pathlib import Path, PurePath
from types import SimpleNamespace

import comfy.ldm.modules.attention
import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch
import torch.nn.functional as F

from ..models.mgld_vsr.checkpoint import MAIN, SEQUENCE

RESTORER_FOLDER = "video_restorers"
FLOW_FOLDER = "optical_flow"  # the host's own
ADAPTER_FOLDER = "vsr_adapters"
BUILT_IN = "built-in"
CATEGORY = "video/upscaling/Cascade VSR"
BUILT_IN_FILE = Path(__file__).parent.parent / "models" / "weights" / "unimmvsr-tiny.safetensors"
_EXTENSIONS = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin"}
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "low_res_scheduler", "scheduler", "propagator")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


# Folders


def register_folders() -> None:
    """Make the folders of our models known to the host, with the extensions of weight files."""
    # add_model_folder_path alone would leave the set of extensions empty, which means "every file".
    known = folder_paths.folder_names_and_paths
    for name in (RESTORER_FOLDER, FLOW_FOLDER, ADAPTER_FOLDER):
        folder = str(Path(folder_paths.models_dir) / name)
        paths, extensions = known.get(name, ([], set()))
        paths = [*paths, *([] if folder in paths else [folder])]
        known[name] = (paths, {*extensions, *_EXTENSIONS})


def flow_names() -> list[str]:
    """List what Load Flow Model offers: the weight-free estimator, flow models, those of released folders."""
    released = folder_paths.get_filename_list(RESTORER_FOLDER)
    files = (PurePath(name) for name in released)
    released = [str(file) for file in files if file.parent.name == "propagator" or file.stem == MAIN]
    return [BUILT_IN, *folder_paths.get_filename_list(FLOW_FOLDER), *released]


def flow_path(name: str) -> Path:
    """Find a flow model by the name in the list; names come from outside and may point nowhere."""
    for folder in (FLOW_FOLDER, RESTORER_FOLDER):
        if name in flow_names() and folder_paths.get_full_path(folder, name):
            return Path(folder_paths.get_full_path_or_raise(folder, name))
    raise ValueError(
        f"Load Flow Model: the flow model must be one of the list; got {name!r}. Put the file into "
        f"models/{FLOW_FOLDER} and refresh, or choose {BUILT_IN!r}."
    )


def adapter_names() -> list[str]:
    """List what Load VSR Adapter offers."""
    return folder_paths.get_filename_list(ADAPTER_FOLDER)


def adapter_path(name: str) -> Path:
    """Find an adapter by the name in the list; names come from outside and may point nowhere."""
    if name in adapter_names():
        return Path(folder_paths.get_full_path_or_raise(ADAPTER_FOLDER, name))
    raise ValueError(
        f"Load VSR Adapter: the adapter must be one of the list; got {name!r}. Put the file into "
        f"models/{ADAPTER_FOLDER} and refresh."
    )


def restorer_names() -> list[str]:
    """List what Load Video Restorer offers: the built-in model, released folders, then other weight files."""
    files = [PurePath(name) for name in folder_paths.get_filename_list(RESTORER_FOLDER)]
    inside = {
        part: {file.parent.parent for file in files if file.parent.name == part} for part in ("unet", "vae")
    }
    folders = inside["unet"] & inside["vae"]  # "." where the folder itself is the release
    hidden = {folder / part for folder in folders for part in _PARTS}
    pairs = {file.parent for file in files if file.stem == MAIN} - {PurePath()}
    others = [
        str(file)
        for file in files
        if file.parent not in hidden and not (file.parent in pairs and file.stem in (MAIN, SEQUENCE))
    ]
    return [BUILT_IN, *sorted(str(folder) for folder in folders | pairs), *others]


def restorer_path(name: str) -> Path:
    """Find a restorer by the name in the list; names come from outside and may point nowhere."""
    if name == BUILT_IN:
        return BUILT_IN_FILE
    if name not in restorer_names():
        raise ValueError(
            f"Load Video Restorer: the restorer must be one of the list; got {name!r}. "
            f"Put the file or released folder into models/{RESTORER_FOLDER} and refresh, or choose "
            f"{BUILT_IN!r}."
        )
    for root in folder_paths.get_folder_paths(RESTORER_FOLDER):
        if (Path(root) / name).is_dir():
            return Path(root) / name
    return Path(folder_paths.get_full_path_or_raise(RESTORER_FOLDER, name))


def newest_change(path: Path) -> int | str:
    """Give the time in ns of the last change to a file, or to any file of a released folder."""
    if not path.exists():
        return "missing"
    parts = [path / part for part in _PARTS if (path / part).is_dir()] or [path] * path.is_dir()
    return max(
        (file.stat().st_mtime_ns for part in parts for file in part.iterdir()),
        default=path.stat().st_mtime_ns,
    )


# Progress and interruption


def check_cancelled() -> None:
    """Raise the host's interruption (not an Exception) when the user pressed stop."""
    management.throw_exception_if_processing_interrupted()


class Progress:
    """Show `done` of `total` on the running node; every tick is a place to interrupt."""

    def __init__(self):
        self._bar = comfy.utils.ProgressBar(1)

    def __call__(self, done: int, total: int) -> None:
        check_cancelled()
        self._bar.update_absolute(done, max(1, total))


# Devices, memory, layers, attention


def pick_dtypes(precision: str, device: torch.device) -> tuple[torch.dtype, torch.dtype | None]:
    """Choose (storage dtype, compute dtype or None for the same) of a diffusion network on `device`."""
    supported = list(PRECISIONS.values())
    if precision != "auto":
        if precision not in PRECISIONS:
            raise ValueError(
                f"Load Video Restorer: precision must be auto, {', '.join(PRECISIONS)}; got "
                f"{precision!r}. Use auto."
            )
        storage = PRECISIONS[precision]
    elif management.is_device_cpu(device):
        storage = torch.float32
    else:
        storage = management.unet_dtype(device=device, supported_dtypes=supported)
    return storage, management.unet_manual_cast(storage, device, supported)


def pick_vae_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Choose the dtype of a VAE: fp32 unless asked otherwise, and always on a CPU."""
    asked = PRECISIONS.get(precision, torch.float32)
    return asked if management.supports_dtype(device, asked) else torch.float32


def layers(operations, dtype: torch.dtype | None, device: torch.device | None) -> SimpleNamespace:
    """Bind dtype and device to the host's layers, as the core builds layers without either."""
    names = ("Linear", "Conv1d", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm", "Embedding")
    return SimpleNamespace(
        **{name: partial(getattr(operations, name), dtype=dtype, device=device) for name in names}
    )


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, precision: torch.dtype | None = None
) -> torch.Tensor:
    """Attend over (b, heads, n, d): the host's optimised attention on a GPU, PyTorch's own on the CPU.

    `precision` is that of the scores, for those of the host's kernels that do not keep them in fp32 anyway.
    The host's default on a CPU was measured 3 to 4.5 times slower than PyTorch's.
    """
    if q.device.type == "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    optimized = comfy.ldm.modules.attention.optimized_attention
    shapes = {"skip_reshape": True, "skip_output_reshape": True}
    return optimized(q, k, v, q.shape[1], attn_precision=precision, **shapes)


def main_device() -> torch.device:
    """Ask the host for the device that computes."""
    return management.get_torch_device()


def wrap_network(network: torch.nn.Module):
    """Put a network behind a patcher, so that the host moves and unloads it as it does its own."""
    return comfy.model_patcher.ModelPatcher(
        network, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )


def load_network(patcher, scratch: int = 0) -> None:
    """Bring a network to its device, with `scratch` bytes beside it."""
    management.load_models_gpu([patcher], memory_required=scratch)


def free_bytes(device: torch.device) -> int:
    """Ask the host how much memory a device has left."""
    return management.get_free_memory(device)


def out_of_memory(title: str, side: tuple[int, int], space: int) -> RuntimeError:
    """Make the error that ends a run when the smallest allowed tile did not fit either."""
    rows, columns = (space * cells for cells in side)
    return RuntimeError(
        f"{title}: a tile must fit into memory; got out of memory even at {columns}x{rows} px. Choose smaller "
        "tiles, fewer frames at once or a smaller output, or free memory in other programs."
    )


def output_tensor(shape: tuple[int, ...]) -> torch.Tensor:
    """Allocate a result where and how the host keeps IMAGE and LATENT tensors."""
    return torch.empty(shape, device=management.intermediate_device(), dtype=management.intermediate_dtype())


def to_output(tensor: torch.Tensor) -> torch.Tensor:
    """Move a result to where and how the host keeps IMAGE and LATENT tensors."""
    return tensor.to(device=management.intermediate_device(), dtype=management.intermediate_dtype())


@contextlib.contextmanager
def quiet(start: str):
    """Drop log lines of the host that begin with `start` and do not apply to what runs inside."""

    def wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(start)

    logger = logging.getLogger()
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
