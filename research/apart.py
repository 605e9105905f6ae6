"""Benchmarks in a process of their own: a host is imported once, for one device, and keeps what is done to it."""

import json
import subprocess
import sys

from ..runner.errors import RunnerError
from ..runner.paths import ROOT

_START = """import json, sys
sys.path.insert(0, sys.argv[1])
from runner.pack import load
print(json.dumps(load(sys.argv[2]).measured(json.loads(sys.argv[3]))))
"""


def run_apart(bench: str, job: dict) -> dict:
    """Give what `measured` of a benchmark's file returns for a job; both are written as json on the way.

    What it says meanwhile goes to stderr. Raises RunnerError where the process fails.
    """
    module = f"research.{bench.replace('-', '_')}"
    command = [sys.executable, "-c", _START, str(ROOT), module, json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RunnerError(f"bench {bench}: the measuring process ended with {done.returncode}; see above.")
    return json.loads(done.stdout.splitlines()[-1])


def load_host(path: str):
    """Import the host for the CPU in this process, and give its nodes for samplers."""
    sys.argv = ["main.py", "--cpu", "--disable-api-nodes"]
    sys.path.insert(0, path)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy_extras.nodes_custom_sampler as custom

    return custom
