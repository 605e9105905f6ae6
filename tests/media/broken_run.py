"""A film that a stand-in upscaler makes by segments, in a process of its own that may be killed at any moment.

usage: python broken_run.py IN OUT [I/N]
"""

import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(source: Path, out: Path, part: str = "", pause: float = 0.02) -> int:
    """Make OUT, or part I/N of its segments, and return how many were made now."""
    from cascadevsr.media.files import check_output
    from cascadevsr.media.join import join, write_segment
    from cascadevsr.media.journal import Journal, identity
    from cascadevsr.media.plan import plan
    from cascadevsr.media.reader import frames, probe
    from cascadevsr.media.segments import cut_film, share

    check_output(out, [source])
    timeline = probe(source)
    how = plan(out, timeline)
    journal, _ = Journal.begin(out, {"IN": identity(source)}, lambda: cut_film(timeline.frames, (20,), 6, 2))
    mine = share(len(journal.segments), *map(int, part.split("/"))) if part else range(len(journal.segments))
    made = [index for index in journal.missing() if index in mine]
    for index in made:
        segment = journal.segments[index]

        def upscaled(segment=segment):
            everything = frames(timeline, how.wish, segment.first, segment.end)
            for number, frame in enumerate(everything, segment.first):
                if segment.start <= number < segment.stop:
                    time.sleep(pause)
                    yield frame.repeat(2, 0).repeat(2, 1)

        with journal.writing(index) as file:
            write_segment(file, upscaled(), out, how, timeline, segment)
        print(f"made {index}", flush=True)
    if part:
        return len(made)
    print("join", flush=True)
    journal.require_all()
    join(out, [journal.file(index) for index in range(len(journal.segments))], how, timeline)
    print("joined", flush=True)
    journal.finish(out)
    return len(made)


if __name__ == "__main__":
    package = types.ModuleType("cascadevsr")
    package.__path__ = [str(ROOT)]
    sys.modules["cascadevsr"] = package
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
