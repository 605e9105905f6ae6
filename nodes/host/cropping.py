"""Conditionings cut to tiles: every tensor on the latent's grid is cropped, whatever else a model needs stays whole."""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch

from ...models.layout.pieces import Tile
from .services import has_guides


def crop_conds(group: list | None, tiles: tuple[Tile, ...], shape: torch.Size) -> list | None:
    """Copy a conditioning with every tensor on the latent's grid cropped; lists (references) stay whole."""
    if group is None:
        return None
    cropped = []
    for cond in group:
        cond = cond.copy()
        if isinstance(cond.get("mask"), torch.Tensor) and cond["mask"].shape[-2:] == shape[-2:]:
            cond["mask"] = _cut(cond["mask"], tiles, shape[0])
        cond["model_conds"] = {key: _crop(value, tiles, shape) for key, value in cond["model_conds"].items()}
        cropped.append(cond)
    return cropped


def refuse_regions(who: str, conds: list) -> None:
    """Raise where a conditioning depends on places of the whole frame, which a tile does not have."""
    rule = f"{who}: conditioning in tiles must not depend on places of the whole frame; got"
    if has_guides(conds):
        raise ValueError(f"{rule} guide frames. Take them out (LTXVCropGuides), or set tiling to off.")
    for cond in (cond for group in conds for cond in group or ()):
        for key in ("area", "control", "gligen"):
            if cond.get(key) is not None:
                raise ValueError(f"{rule} {key!r}. Remove it, or set tiling to off.")


def _crop(value: Any, tiles: tuple[Tile, ...], shape: torch.Size) -> Any:
    tensor = getattr(value, "cond", None)
    if not isinstance(tensor, torch.Tensor) or tensor.ndim < 4 or tensor.shape[-2:] != shape[-2:]:
        return value
    return value._copy_with(_cut(tensor, tiles, shape[0]))


def _cut(tensor: torch.Tensor, tiles: tuple[Tile, ...], batch: int) -> torch.Tensor:
    """Cut tiles out and put them one after the other in the batch, as the latents are."""
    if len(tiles) == 1:
        return tensor[tiles[0].region]
    whole = comfy.utils.repeat_to_batch_size(tensor, batch)
    return torch.cat([whole[tile.region] for tile in tiles])
