"""The restoration systems: every file of this folder but base.py describes one, as `SYSTEM`."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from ..host.model import RestorerModel
from ..host.vae import RestorerVAE
from .base import System


@functools.cache
def all_systems() -> dict[str, System]:
    """List the systems by key. A new file in this folder is found by itself; nothing else needs an entry."""
    names = sorted(each.name for each in pkgutil.iter_modules(__path__) if each.name != "base")
    found = [importlib.import_module(f".{name}", __name__).SYSTEM for name in names]
    return {system.key: system for system in found}


def system_of(owner: object) -> System | None:
    """Give the system that a MODEL or VAE is of; None for those of the host and of other packs."""
    owner = getattr(owner, "model", owner)  # of a patcher
    return all_systems()[owner.system_key] if isinstance(owner, (RestorerModel, RestorerVAE)) else None
