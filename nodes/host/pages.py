"""Help pages in the editor's language.

The editor asks for docs/NODE/LANGUAGE.md, then for docs/NODE.md. The pages are written once, in English, as the latter.
What it asks for first is answered with what locales/ says of the node, and the English page below.
"""

from __future__ import annotations

import json
from pathlib import Path

from aiohttp import web
from server import PromptServer

ROOT = Path(__file__).absolute().parents[2]  # not resolved: the host calls a linked clone by the name of the link
PAGES = ROOT / "js" / "docs"


def register_pages() -> None:
    """Answer the editor's first question; a host without a server (a test, a script) needs no pages."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get(f"/extensions/{ROOT.name}/docs/{{node:\\w+}}/{{language:[\\w-]+}}.md")(_answer)


async def _answer(request: web.Request) -> web.StreamResponse:
    node, language = request.match_info["node"], request.match_info["language"]
    if not (PAGES / f"{node}.md").is_file():
        raise web.HTTPNotFound
    if (PAGES / node / f"{language}.md").is_file():  # translated as a whole
        return web.FileResponse(PAGES / node / f"{language}.md", headers={"Content-Type": "text/markdown"})
    return web.Response(text=page(node, language), content_type="text/markdown")


def page(node: str, language: str) -> str:
    """Return the English page of a node, below its texts in a language that is not English."""
    english = (PAGES / f"{node}.md").read_text(encoding="utf-8")
    texts = _read(language, "nodeDefs.json").get(node, {})
    if "description" not in texts:
        return english
    own = _read(language, "main.json").get("cascadevsr", {})
    say = own.get
    parts = [f"# {texts['display_name']}", texts["description"]]
    for title, key in ((say("Inputs"), "inputs"), (say("Outputs"), "outputs")):
        rows = [_row(entry) for entry in texts.get(key, {}).values() if "tooltip" in entry]
        parts += [f"## {title}", "\n".join(["| | |", "|---|---|", *rows])] if rows else []
    note = say("All about this node, in English:")
    return "\n\n".join([*parts, "---", f"*{note}*", english])


def _row(entry: dict[str, str]) -> str:
    return f"| **{entry.get('name', '')}** | {entry['tooltip']} |"


def _read(language: str, name: str) -> dict:
    file = ROOT / "locales" / language / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
