#!/usr/bin/env python3
"""Derive what follows from the editor files: `python3 tools/derive_api.py`.

workflows/api/*.json by the editor itself, and subgraphs/*.json, the blueprints.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from runner.pack import register  # noqa: E402

register()

from cascadevsr.runner.browser import ensure_browser  # noqa: E402
from cascadevsr.runner.paths import scratch_folder, write_atomic  # noqa: E402
from cascadevsr.runner.server import HostServer  # noqa: E402
from cascadevsr.tools.blueprints import BLUEPRINTS, FOLDER, blueprint_text  # noqa: E402
from cascadevsr.tools.editor import WORKFLOWS, api_text, drive, host_here, shipped  # noqa: E402


def main() -> int:
    """Start a ComfyUI, let its editor convert every shipped workflow, store the results, derive blueprints."""
    host = host_here()
    graphs = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in shipped().items()}
    steps = [{"do": "derive", "graph": graph} for graph in graphs.values()]
    with scratch_folder("derive-") as base, HostServer(host, base, cpu=True) as server:
        results = drive(ensure_browser(), server.url, steps)["results"]
    for name, result in zip(graphs, results, strict=True):
        if "error" in result:
            sys.exit(f"{name}: {result['error']}")
        write_atomic(WORKFLOWS / "api" / f"{name}.json", api_text(result["value"]))
        sys.stdout.write(f"workflows/api/{name}.json\n")
    for blueprint in BLUEPRINTS:
        write_atomic(FOLDER / f"{blueprint.name}.json", blueprint_text(blueprint, graphs[blueprint.workflow]))
        sys.stdout.write(f"subgraphs/{blueprint.name}.json\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
