"""The one door to host services: devices, memory, progress, interruption, folders, layers, attention."""

import contextlib
import logging
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import comfy.ldm.modules.attention
import comfy.model_management as management
import comfy.ops
import comfy.utils
import folder_paths
import torch
import torch.nn.functional as F

RESTORER_FOLDER = "video_restorers"
BUILT_IN = "built-in"
CATEGORY = "video/upscaling/Cascade VSR"
BUILT_IN_FILE = Path(__file__).parent.parent / "models" / "weights" / "unimmvsr-tiny.safetensors"
_EXTENSIONS = {".safetensors", ".sft", ".ckpt", ".pt", ".pth"}
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


# Folders


def register_folders() -> None:
    """Make `models/video_restorers` known to the host, with the extensions of weight files."""
    # add_model_folder_path alone would leave the set of extensions empty, which means "every file".
    folder = str(Path(folder_paths.models_dir) / RESTORER_FOLDER)
    known = folder_paths.folder_names_and_paths
    if RESTORER_FOLDER not in known:
        known[RESTORER_FOLDER] = ([folder], set(_EXTENSIONS))
        return
    paths, extensions = known[RESTORER_FOLDER]
    known[RESTORER_FOLDER] = ([*paths, *([] if folder in paths else [folder])], {*extensions, *_EXTENSIONS})


def restorer_names() -> list[str]:
    """List what Load Video Restorer offers: the built-in model, then the files of the folder."""
    return [BUILT_IN, *folder_paths.get_filename_list(RESTORER_FOLDER)]


def restorer_path(name: str) -> Path:
    """Find a restorer by the name in the list; names come from outside and may point nowhere."""
    if name == BUILT_IN:
        return BUILT_IN_FILE
    if name not in restorer_names():
        raise ValueError(
            f"Load Video Restorer: the restorer must be one of the list; got {name!r}. "
            f"Put the file into models/{RESTORER_FOLDER} and refresh, or choose {BUILT_IN!r}."
        )
    return Path(folder_paths.get_full_path_or_raise(RESTORER_FOLDER, name))


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
    names = ("Linear", "Conv2d", "Conv3d")
    return SimpleNamespace(
        **{name: partial(getattr(operations, name), dtype=dtype, device=device) for name in names}
    )


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend over (b, heads, n, d): the host's optimised attention on a GPU, PyTorch's own on the CPU.

    The host's default on a CPU was measured 3 to 4.5 times slower than PyTorch's.
    """
    if q.device.type == "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    optimized = comfy.ldm.modules.attention.optimized_attention
    return optimized(q, k, v, q.shape[1], skip_reshape=True, skip_output_reshape=True)


def free_bytes(device: torch.device) -> int:
    """Ask the host how much memory a device has left."""
    return management.get_free_memory(device)


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
