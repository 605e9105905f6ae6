"""Quantised weights of a network, as the host offers them: fp8 and int8 matrices, each with a scale.

1. A layer is quantised where an entry NAME.comfy_quant says in which format; older files have an entry scaled_fp8.
2. Matrices stored as fp8 without a scale are taken for such with scale 1: the host keeps them as they are, too.
3. The MODEL is then built of the host's layers for mixed precision, which hold these matrices as they are and compute
   in the precision asked for. All other entries, those of convolutions among them, are stored in that precision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import comfy.utils
import torch

from ...models.checkpoints import CheckpointError, State

QUANTISED = ".comfy_quant"  # ends the entry that says how a layer is quantised
_FORMATS = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2", torch.int8: "int8_tensorwise"}


def quantised_state(state: Mapping[str, torch.Tensor]) -> State:
    """Give the entries of a network with every quantised layer marked; CheckpointError for formats not offered."""
    found = comfy.utils.convert_old_quants(dict(state), "", {})[0]
    for key, value in list(found.items()):
        layer = key.removesuffix(".weight")
        small = value.ndim == 2 and value.is_floating_point() and value.itemsize == 1
        if small and key.endswith(".weight") and layer + QUANTISED not in found:
            how = {"format": _FORMATS[value.dtype], "full_precision_matrix_mult": True}
            found[layer + QUANTISED] = torch.tensor(list(json.dumps(how).encode()), dtype=torch.uint8)
            found[layer + ".weight_scale"] = torch.ones(())
    for key in found:
        if key.endswith(QUANTISED):
            name = json.loads(bytes(found[key].tolist())).get("format")
            if name not in _FORMATS.values():
                raise CheckpointError(
                    f"quantised weights must be {', '.join(_FORMATS.values())}; got {name}. Take a file in one of "
                    "these, or in fp16."
                )
            weight = found.get(key.removesuffix(QUANTISED) + ".weight")
            if weight is None or weight.ndim != 2:
                raise CheckpointError(
                    "only matrices may be quantised, as the host offers it; got the layer "
                    f"{key.removesuffix(QUANTISED)}. Take a file whose convolutions are in fp16."
                )
    return found


def stored(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> State:
    """Give entries in the number format of storage; what belongs to a quantised matrix stays as it is."""
    kept = tuple(key.removesuffix(QUANTISED) + "." for key in state if key.endswith(QUANTISED))
    return {
        key: value if key.startswith(kept) and not key.endswith(".bias") else value.to(dtype)
        for key, value in state.items()
    }
