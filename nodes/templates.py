"""Templates are opened by the names they had, too: those that links and programs use.

Their files are named for people; the editor takes no blanks in a link, and links of 0.1.0 are out there.
"""

from __future__ import annotations

import json
from pathlib import Path

from aiohttp import web
from server import PromptServer

_PACK = Path(__file__).parent.parent


def serve_old_names() -> None:
    """Answer for every template under its name for programs; the host knows the names of the files only."""
    server = getattr(PromptServer, "instance", None)  # tests import the pack without one
    if server is None:
        return
    for file in sorted((_PACK / "workflows").glob("*.json")):
        name = json.loads(file.read_text(encoding="utf-8"))["extra"]["cascadevsr"]["name"]

        async def answer(request: web.Request, file: Path = file) -> web.FileResponse:
            return web.FileResponse(file)

        server.routes.get(f"/workflow_templates/{_PACK.name}/{name}.json")(answer)
