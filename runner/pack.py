"""Import the pack's code without the host, as package `cascadevsr`."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

from .paths import ROOT

NAME = "cascadevsr"


def register(root: Path = ROOT) -> types.ModuleType:
    """Make `cascadevsr.models...` importable without running the pack's entry file, which needs the host."""
    if NAME not in sys.modules:
        package = types.ModuleType(NAME)
        package.__path__ = [str(root)]
        package.__package__ = NAME
        sys.modules[NAME] = package
    return sys.modules[NAME]


def load(module: str) -> types.ModuleType:
    """Import `cascadevsr.<module>`."""
    register()
    return importlib.import_module(f"{NAME}.{module}")
