#!/usr/bin/env python3
"""Cascade VSR's door: demo, upscale, serve, train and more. `python3 run.py --help` lists the commands."""

import os
import sys

if sys.version_info < (3, 10):
    sys.exit("run.py: needs Python 3.10 or newer; this is %d.%d. Start it with a newer one." % sys.version_info[:2])

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from runner.pack import load  # noqa: E402

if __name__ == "__main__":
    # As part of the pack's package, so that runner, research and training can import each other.
    sys.exit(load("runner.cli").main(sys.argv[1:]))
