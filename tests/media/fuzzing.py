"""A program that handles media files in processes of its own; what it does is its first argument.

fuzz FOLDER COUNT: take damaged copies of the files in FOLDER through reader, stage and writer; a line a copy says seed,
file, how it ended, seconds and peak memory in KiB, and the last three of the healthy file. measure IN OUT: print the
peak memory of a whole run in KiB. try FOLDER: say how every file ends. endless OUT: write until killed.
"""

import os
import random
import resource
import signal
import sys
import time
import types
from fractions import Fraction
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    package = types.ModuleType("cascadevsr")
    package.__path__ = [str(Path(__file__).absolute().parent.parent.parent)]
    sys.modules["cascadevsr"] = package

from cascadevsr.media.errors import MediaError
from cascadevsr.media.plan import plan
from cascadevsr.media.reader import Wish, frames, probe, with_transparency
from cascadevsr.media.writer import write, write_video
from cascadevsr.runner.errors import RunnerError
from cascadevsr.runner.stage import stage


def enlarge(source: Path, out: Path, scale: int = 2) -> int:
    """Do what the command does, with pixels repeated in place of a model."""
    timeline = probe(source)
    if timeline.frames * timeline.height * timeline.width > 10**8:
        raise MediaError("too large for this test")
    how = plan(out, timeline, size=(timeline.height * scale, timeline.width * scale))
    stage(timeline, how.wish, out.parent, "staged")
    found = frames(probe(out.parent / "staged.mov"), Wish(how.wish.depth))
    large = (frame.repeat(scale, 0).repeat(scale, 1) for frame in found)
    if how.wish.alpha:
        large = with_transparency(large, timeline, how.wish)
    count = write(out, large, how, timeline)
    assert count == timeline.frames
    return count


def attempt(source: Path, out: Path, seconds: float) -> tuple[str, float, int]:
    """Enlarge in a process of its own; return how it ended, seconds, and peak memory in KiB."""
    reading, writing = os.pipe()
    started, child = time.monotonic(), os.fork()
    if not child:
        signal.alarm(int(seconds) + 1)
        try:
            enlarge(source, out)
            text = "whole"
        except (MediaError, RunnerError) as error:
            text = "refused" if "\n" not in str(error) else f"several lines: {error!r}"
        except BaseException as error:
            text = f"traceback {error!r}"
        left = [file.name for file in out.parent.iterdir() if file.name.startswith(".cascadevsr-")]
        os.write(writing, (text + (f", left {left}" if left else "")).encode(errors="replace"))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    _, status, used = os.wait4(child, 0)
    return text or f"died with status {status}", time.monotonic() - started, used.ru_maxrss


def damaged(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Flip bits, cut, zero, or take another file's beginning."""
    data, kind = bytearray(data), chance.choice("flip head cut zero swap".split())
    if kind in ("flip", "head"):
        for _ in range(chance.choice([1, 4, 20, 100])):
            data[chance.randrange(len(data) if kind == "flip" else min(600, len(data)))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del data[chance.randrange(10, len(data)) :]
    elif kind == "zero":
        place, length = chance.randrange(len(data)), chance.choice([16, 200, 1500])
        data[place : place + length] = bytes(len(data[place : place + length]))
    else:
        length = chance.choice([8, 64, 300])
        data[:length] = other[:length]
    return bytes(data)


def main(folder: Path, count: int) -> None:
    """Print a line for every damaged copy."""
    sources, work = sorted(file for file in folder.iterdir() if file.is_file()), folder / "work"
    work.mkdir()
    outs = {
        file: f"out{'.mkv' if file.suffix in ('.mp4', '.mkv', '.ts', '.avi', '.mov', '.webm') else '.png'}"
        for file in sources
    }
    healthy = {file: attempt(file, work / outs[file], 60) for file in sources}
    for seed in range(count):
        chance = random.Random(seed)
        file, other = chance.choice(sources), chance.choice(sources)
        copy = work / f"in{file.suffix}"
        copy.write_bytes(damaged(file.read_bytes(), other.read_bytes(), chance))
        how, seconds, memory = attempt(copy, work / outs[file], 60)
        text, usual, room = healthy[file]
        print(f"{seed}\t{file.name}\t{how}\t{seconds}\t{memory}\t{text}\t{usual}\t{room}", flush=True)


def endless():
    """Yield noise for ever."""
    while True:
        yield np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)


if __name__ == "__main__":
    what, first, *rest = sys.argv[1:]
    if what == "fuzz":
        main(Path(first), int(rest[0]))
    elif what == "measure":
        enlarge(Path(first), Path(rest[0]), 1)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    elif what == "try":
        for file in sorted(Path(first).iterdir()):
            print(attempt(file, Path(first) / "out.mkv", 20)[0])
    else:
        write_video(Path(first), endless(), Fraction(25))
