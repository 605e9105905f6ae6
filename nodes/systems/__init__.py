"""The restoration systems: every file of this folder but base.py describes one, as `SYSTEM`."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from .base import System


@functools.cache
def all_systems() -> tuple[System, ...]:
    """List the systems, by the names of their files. A new file here is found by itself; no list needs an entry."""
    names = sorted(each.name for each in pkgutil.iter_modules(__path__) if each.name != "base")
    return tuple(importlib.import_module(f".{name}", __name__).SYSTEM for name in names)
