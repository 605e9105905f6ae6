"""A private part of `run.py`, without nodes: ends the host when `run.py` has gone, however it went.

The host's standard input ends then. This folder is linked into `custom_nodes/` of `run.py`'s own base folders only.
"""

import os
import sys
import threading

NODE_CLASS_MAPPINGS: dict = {}


def _end_with_run_py() -> None:
    while os.read(sys.__stdin__.fileno(), 4096):
        pass
    os._exit(1)


threading.Thread(target=_end_with_run_py, daemon=True).start()
