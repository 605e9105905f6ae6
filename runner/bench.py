"""`run.py bench`: list and run the benchmarks of research/; results are printed and kept as json in output/."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .errors import RunnerError
from .host import Host
from .pack import load
from .paths import write_atomic

BENCHMARKS = {  # name: (module, function, part of a plain `run.py bench`)
    "builtin": ("research.graphs", "builtin", True),
    "import": ("research.graphs", "import_time", True),
    "memory": ("research.graphs", "memory", False),
    "looks": ("research.looks", "run", False),
    "pace": ("research.pace", "run", False),
    "compare-video": ("research.compare_video", "run", False),
    "quality": ("research.quality", "run", False),
    "references": ("research.reference_gains", "run", False),
    "neighbours": ("research.neighbours", "run", False),
    "steady": ("research.steady", "run", False),
    "upscale_a_video": ("research.restorers", "upscale_a_video", False),
    "mgld_vsr": ("research.restorers", "mgld_vsr", False),
    "macs": ("research.macs", "macs", False),
    "motion": ("research.motion", "motion", False),
    "beside": ("research.beside", "beside", False),
    "overhead": ("research.overhead", "overhead", False),
    "memory-law": ("research.memory_law", "memory_law", False),
    "cascade4k": ("research.cascade4k", "cascade4k", False),
    "accelerators": ("research.accelerators", "accelerators", False),
    "distance": ("research.distance", "distance", False),
    "gpu": ("research.gpu", "gpu", False),
}


def main(options: argparse.Namespace, host: Host) -> int:
    """Run one benchmark; without a name list all of them and run the short ones."""
    if options.name and options.name not in BENCHMARKS:
        raise RunnerError(f"bench: must be one of {', '.join(BENCHMARKS)}; got {options.name!r}.")
    names = [options.name]
    if not options.name:
        for name in BENCHMARKS:
            print(f"{name:15} {_function(name).__doc__.splitlines()[0]}")
        names = [name for name, (_, _, short) in BENCHMARKS.items() if short]
    for name in names:
        print(f"\n{name} ...", flush=True)
        result = _function(name)(options, host)
        print("\n".join(f"  {key.replace('_', ' ')}: {value}" for key, value in result.items()), flush=True)
        write_atomic(Path("output") / f"bench_{name}.json", json.dumps(result, indent=1) + "\n")
    return 0


def _function(name: str):
    module, function, _ = BENCHMARKS[name]
    return getattr(load(module), function)
