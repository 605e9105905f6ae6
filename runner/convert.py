"""`run.py convert`: published weights, of any system or of RAFT -> one safetensors file with metadata."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType

from .errors import RunnerError
from .host import Host
from .pack import load
from .paths import ROOT

_RAFT_LICENCE = "RAFT: BSD 3-Clause License."


def main(options: argparse.Namespace, host: Host) -> int:
    """Convert, and say what went in; unusable sources end in a sentence."""
    checkpoints = load("models.checkpoints")
    source, target = Path(options.input), Path(options.output)
    if not source.exists():
        raise RunnerError(f"the source must exist; got {source}. Check the path.")
    systems = _systems()
    try:
        checkpoints.check_target(target)
        done = any(system.convert(source, target, options.half, print) for system in systems)
        if not done and not _convert_raft(source, target, checkpoints):
            known = "; ".join(f"{system.NAME}: {system.HOLDS}" for system in systems)
            raise RunnerError(
                f"the source must be published weights ({known}; RAFT: its file); got {source.name}. Choose these."
            )
    except checkpoints.CheckpointError as error:
        raise RunnerError(str(error)) from error
    return 0


def _systems() -> list[ModuleType]:
    """Find the systems whose weights can be converted: folders of models/ whose checkpoint.py has `convert`."""
    names = sorted(file.parent.name for file in (ROOT / "models").glob("*/checkpoint.py"))
    modules = (load(f"models.{name}.checkpoint") for name in names)
    return [module for module in modules if hasattr(module, "convert")]


def _convert_raft(source: Path, target: Path, checkpoints: ModuleType) -> bool:
    raft = load("models.motion.raft")
    state = {} if source.is_dir() else raft.raft_state(checkpoints.load_state(source)[0])
    if not raft.is_raft(state):
        return False
    metadata = {"architecture": "raft", "source": source.name, "licence": _RAFT_LICENCE}
    checkpoints.write_converted(target, checkpoints.own_copies(state), metadata, print)
    return True
