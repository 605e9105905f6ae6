"""A trained adapter as the file that Load VSR Adapter reads: the host's names, half precision."""

from __future__ import annotations

from pathlib import Path

import torch

from ..models.unimmvsr.adapter import FAMILIES, Adapter, AdapterInfo, host_name, lora_entries, save_adapter
from .augment import LEVELS
from .wan_adapter import WanAdapter


def to_adapter(
    adapter: WanAdapter, steps: int, licence: str = "unknown", made_from: str = "", dtype: torch.dtype = torch.float16
) -> Adapter:
    """Give the adapter's tensors under their names in the file."""
    channels = adapter.base.config.in_channels
    families = [name for name, count in FAMILIES.items() if count == channels]
    if not families:
        raise ValueError(
            f"Adapter: the base's latents must have {' or '.join(map(str, FAMILIES.values()))} channels; got "
            f"{channels}. Train on a Wan 2.1 or 2.2 text-to-video model."
        )
    rank = adapter.config.rank
    layers = {}
    for name, delta in adapter.deltas.items():
        down, up = (part.weight.detach().to("cpu", dtype) for part in (delta.down, delta.up))
        layers.update(lora_entries(host_name(name.replace("/", ".")), down, up, rank))
    parts = {"0": adapter.level_in, "2": adapter.level_out}
    level = {
        f"{number}.{key}": value.to("cpu", dtype)
        for number, part in parts.items()
        for key, value in part.state_dict().items()
    }
    info = AdapterInfo(
        base=families[0],
        latent_channels=channels,
        rule=adapter.config.rule,
        level_min=LEVELS[0],
        level_max=LEVELS[1],
        rank=rank,
        alpha=float(rank),
        steps=steps,
        licence=licence,
        made_from=made_from,
    )
    return Adapter(info, adapter.patch_lr.weight.detach().to("cpu", dtype), level, layers)


def export(adapter: WanAdapter, path: Path, steps: int, licence: str = "unknown", made_from: str = "", **kind) -> None:
    """Write the adapter file."""
    save_adapter(Path(path), to_adapter(adapter, steps, licence, made_from, **kind))
