"""`run.py serve`: the editor with the pack, over a folder that stays."""

from __future__ import annotations

import argparse
import contextlib
import webbrowser

from .errors import RunnerError
from .host import Host
from .paths import cache_root
from .server import HostServer, choose_port


def main(options: argparse.Namespace, host: Host) -> int:
    """Start ComfyUI, say where it is, and keep it until Ctrl-C."""
    base = cache_root() / "serve"
    server = HostServer(
        host, base, port=choose_port(options.port, preferred=8188), cpu=True if options.cpu else None, echo=True
    )
    with server:
        print(
            f"\nThe editor: {server.url}\nTemplates: on the left; search there for Cascade VSR."
            f"\nYour files and weights: {base}\nCtrl-C ends it.",
            flush=True,
        )
        if not options.no_browser:
            webbrowser.open(server.url)
        with contextlib.suppress(KeyboardInterrupt):
            code = server.process.wait()
            if code:
                raise RunnerError(f"ComfyUI ended by itself (exit {code}); see its messages above.")
    return 0
