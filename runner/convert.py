"""`run.py convert`: published weights of Upscale-A-Video or MGLD-VSR -> one safetensors file with metadata."""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import RunnerError
from .host import Host
from .pack import load


def main(options: argparse.Namespace, host: Host) -> int:
    """Convert, and say what went in; unusable sources end in a sentence."""
    errors = load("models.checkpoints").CheckpointError
    source, target = Path(options.input), Path(options.output)
    if not source.exists():
        raise RunnerError(f"the source must exist; got {source}. Check the path.")
    try:
        if not load("models.mgld_vsr.convert").convert(source, target, options.half, print):
            load("models.upscale_a_video.convert").convert(source, target, options.half, print)
    except errors as error:
        raise RunnerError(str(error)) from error
    return 0
