"""Safe loading and saving of weights: safetensors, and torch files read without executing anything."""

import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

State = dict[str, torch.Tensor]

PLAIN, CONDITIONED = "plain", "lr-conditioned"  # decoders of published releases: without and with LR frames
DECODERS = ("auto", PLAIN, CONDITIONED)
S_LAB = "S-Lab License 1.0, non-commercial use only; commercial use needs the authors' consent."
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")  # in the order in which they are preferred

_QUANTISED = "_quantization_metadata"  # ComfyUI's key for how layers are quantised
_ZIP, _PICKLE = b"PK", b"\x80"  # first bytes of torch files: the zip form, and the one before torch 1.6
_NESTED = ("state_dict", "params_ema", "params", "model")  # where training frameworks put the weights
# Where the classes come from that training frameworks pickle beside weights (callbacks, settings). They are read as
# _Bookkeeping, which does nothing: nothing of these packages, or of any other, is imported or run.
_FRAMEWORKS = ("lightning", "lightning_fabric", "omegaconf", "pytorch_lightning", "torchmetrics")
_PLAIN_TYPES = ("builtins.dict", "builtins.int", "builtins.list", "collections.defaultdict", "typing.Any")
# What torch.load and pickle raise on files cut short or scrambled.
_DAMAGE = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError)


class _Bookkeeping:
    """Stands for an object of a training framework: takes anything, keeps nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state: object):
        pass


class CheckpointError(ValueError):
    """Say that a weight file cannot be used, why, and what to do."""


def load_state(path: str | os.PathLike) -> tuple[State, dict[str, str]]:
    """Read (tensors, metadata) of a weight file on the CPU; code in a file is refused, never executed."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"Checkpoint: the weight file must exist; got {path}. Check name and folder.")
    with path.open("rb") as file:
        head = file.read(9)
    # The length of safetensors' header comes first and may begin like a torch file, so that form is tried first. Of a
    # file that was cut short the header need not fit; lengths below 16 MB are told by their zeros.
    fits = 8 + int.from_bytes(head[:8], "little") <= path.stat().st_size or head[3:8] == bytes(5)
    torch_file = head[:2] == _ZIP or head[:1] == _PICKLE
    if len(head) == 9 and head[8:] == b"{" and (fits or not torch_file):
        return _load_safetensors(path)
    if torch_file:
        return _load_torch(path), {}
    if head[:4] == b"GGUF":
        raise CheckpointError(
            f"Checkpoint: weights must be a safetensors or torch file; got {path.name}, which is GGUF, and ComfyUI "
            "does not read that by itself. Take the file in fp8 or fp16."
        )
    raise CheckpointError(
        f"Checkpoint: the file must be a safetensors or torch weight file; got {path.name} "
        f"({path.stat().st_size} bytes), which is neither. Download it again, or choose another file."
    )


def save_state(
    path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file under a temporary name and put it in place whole, or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    try:
        save_file(whole, partial, dict(metadata or {}))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def strip_prefix(state: Mapping[str, torch.Tensor], prefix: str) -> State:
    """Keep the entries under `prefix` and drop it from their keys."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def shape_of(state: Mapping[str, torch.Tensor], key: str) -> tuple[int, ...]:
    """Give the shape of one entry; a missing key is a CheckpointError that names it."""
    if key not in state:
        raise CheckpointError(
            f"Checkpoint: the weights must have an entry {key!r}; got {len(state)} others. "
            "The file is of another architecture or incomplete: choose another file."
        )
    return tuple(state[key].shape)


def count_blocks(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Count the numbered blocks under `prefix` ("dit.blocks."): one more than the highest number."""
    numbers = re.compile(re.escape(prefix) + r"(\d+)\.")
    return 1 + max((int(match[1]) for match in map(numbers.match, state) if match), default=-1)


def find_weights(folder: Path, *stems: str) -> Path | None:
    """Find a weight file in a folder by its published names, in any format."""
    files = (folder / f"{stem}{suffix}" for suffix in WEIGHT_SUFFIXES for stem in stems)
    return next((file for file in files if file.is_file()), None)


def read_json(path: Path) -> dict | None:
    """Read a json file that holds an object; None where there is no file."""
    return parse_json(path.read_text(encoding="utf-8"), path.name) if path.is_file() else None


def parse_json(text: str, name: str) -> dict:
    """Understand the text of a json object; `name` says in errors where it is from."""
    try:
        content = json.loads(text)
    except ValueError as error:
        message = f"a json file must be readable; got {name}: {error}. Download it again."
        raise CheckpointError(message) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"a json file must hold an object; got {name}. Download it again.")
    return content


def check_options(network: str, options: Mapping, expected: Mapping, ignored: Collection[str] = ()) -> None:
    """Raise a ValueError for an option of a published json that is not as expected; others must be switched off."""
    for key, value in options.items():
        wanted = list(each) if isinstance(each := expected.get(key), tuple) else each
        if key.startswith("_") or key in ignored or (wanted == value if key in expected else _off(value)):
            continue
        rule = f"be {wanted!r}" if key in expected else "not be set"
        raise ValueError(
            f"{network}: {key} in the json must {rule}; got {value!r}. Weights made with it need another network: use "
            "the json that came with these."
        )


def no_such_decoder(name: str, has: list[str], wanted: str, remedy: str) -> CheckpointError:
    """Make the error for a decoder that a release does not have."""
    return CheckpointError(
        f"the decoder must be one that {name} has ({', '.join(has) or 'none'}); got {wanted}. Choose auto, or {remedy}."
    )


def own_copies(state: Mapping[str, torch.Tensor], prefix: str = "", half: bool = False) -> State:
    """Copy entries out of shared storage, which safetensors refuses, under `prefix`; half rounds float32 to float16."""
    return {
        prefix + key: value.half() if half and value.dtype == torch.float32 else value.clone()
        for key, value in state.items()
    }


def check_target(target: Path) -> None:
    """Refuse a name for a converted file before the work begins."""
    if target.suffix != ".safetensors":
        raise CheckpointError(f"the result must be named *.safetensors; got {target.name}. Change the last argument.")


def write_converted(target: Path, tensors: State, metadata: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Write a converted release as safetensors, and say how large it is and under which licence."""
    save_state(target, tensors, metadata)
    say(f"{target}: {len(tensors)} tensors, {target.stat().st_size / 1e9:.2f} GB. {metadata['licence']}")


def _off(value: object) -> bool:
    """Tell whether an option, or all in a group of options, is switched off."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return all(map(_off, value)) if isinstance(value, (list, tuple)) else not value


def _load_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state, metadata = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise _damaged(path, error) from error
    layers = parse_json(metadata.get(_QUANTISED, "{}"), path.name).get("layers", {})
    for name, how in layers.items():  # as entries, where the host's own files have it
        state[f"{name}.comfy_quant"] = torch.tensor(list(json.dumps(how).encode()), dtype=torch.uint8)
    return state, metadata


def _load_torch(path: Path) -> State:
    try:
        with torch.serialization.safe_globals(_bookkeeping_in(path)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None and "Unsupported" not in str(error):
            raise _damaged(path, error) from error
        raise CheckpointError(
            f"Checkpoint: a weight file must hold tensors only; got {path.name}, which carries pickled code"
            f"{f' ({found[1]})' if found else ''}. It was never executed. Use a safetensors file you trust."
        ) from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    state = _find_tensors(content)
    if not state:
        raise CheckpointError(
            f"Checkpoint: a weight file must hold named tensors; got {path.name} with a "
            f"{type(content).__name__} and no tensor. Choose another file."
        )
    return state


def _bookkeeping_in(path: Path) -> list[tuple]:
    """List what to read as _Bookkeeping; nothing where the file names any class of another origin."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (*_DAMAGE, pickle.UnpicklingError):  # older torch files, and damaged ones: torch.load says why
        return []
    known = all(name.split(".")[0] in _FRAMEWORKS or name in _PLAIN_TYPES for name in names)
    return [(_stand_in(name), name) for name in names] if known else []


def _stand_in(name: str):
    """Choose what is read in place of a class: torch fills nothing but its own kinds of dicts with items."""
    if name == "collections.defaultdict":
        return _empty_dict
    return OrderedDict if name.endswith("Dict") else _Bookkeeping


def _empty_dict(*_):
    return OrderedDict()


def _find_tensors(content: object) -> State:
    if not isinstance(content, Mapping):
        return {}
    for name in _NESTED:
        if isinstance(content.get(name), Mapping):
            return _find_tensors(content[name])
    return {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return CheckpointError(
        f"Checkpoint: the weight file must be complete and readable; got {path.name} "
        f"({path.stat().st_size} bytes): {reason}. Download it again."
    )
