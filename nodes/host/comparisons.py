"""Comparisons of two clips for the editor: small films made in the background, and parts of frames in full size.

1. `begin` notes a comparison; a thread of its own makes the small film (media/proxy.py) in the host's temporary folder
2. the editor asks the routes how far it is, shows the film, and asks for parts of single frames in full size
3. the small films have a share of the disk: those that were not looked at for the longest time are removed first

The sources stay as they are. IMAGE frames are held until the small film is there; later only while the host keeps them.
"""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import folder_paths
import numpy as np
import torch
from aiohttp import web
from comfy_api.latest import Input, Types
from PIL import Image

from ...media.errors import MediaError
from ...media.proxy import Pairs, Sheet, pair, write_pairs
from ...models.motion.flow import scene_cuts
from .film import Film, even_timeline, film_of, in_graph, joints

TITLE = "Compare Video"
FOLDER = "cascadevsr_compare"  # in the host's temporary folder, which it empties when it starts
MOST_FRAMES = 3000  # of one small film
_EACH, _ALL = 512 << 20, 1 << 30  # bytes of one small film, and of all
_RATE = 24.0  # frames per second of IMAGE frames without anything that says it
_SMALL = 160  # px of the shorter side in which cuts are looked for
_MOST_SIDE = 4096  # px of a part of a frame
_SIDES = ("before", "after")

_known: dict[str, Comparison] = {}  # by key, the one that was looked at last is the last
_places: dict[tuple[str, str], str] = {}  # (graph, node) -> the key of what it shows
_removed: Counter = Counter()  # small films of each node that were removed to make room
_turn = threading.Lock()  # one small film is made at a time
_guard = threading.Lock()  # of `_known`


class _Ended(Exception):
    """Leaves the making of a small film that nobody waits for any more."""


@dataclass(eq=False)
class Comparison:
    """Two clips, IMAGE or VIDEO, that a node shows; `rate`: frames per second of IMAGE frames, 0 where not known."""

    node: str | None
    clips: tuple[torch.Tensor | Input.Video, ...]
    rate: float
    start: int
    count: int
    longest: int
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: str = "waiting"  # then reading, encoding, ready, failed; removed
    done: int = 0
    text: str = ""
    films: tuple[Film, ...] = ()
    pairs: Pairs | None = None
    sheet: Sheet | None = None
    cuts: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def file(self) -> Path:
        """Return where the small film is."""
        return Path(folder_paths.get_temp_directory()) / FOLDER / f"{self.key}.mp4"

    def make(self) -> None:
        """Make the small film; what is wrong with the sources is raised."""
        self._look()
        self.state = "reading"
        self.films = self._films()
        timelines = [film.timeline for film in self.films]
        pairs = pair(*timelines)
        self.pairs = pairs.part(self.start, min(self.count or MOST_FRAMES, MOST_FRAMES))
        self.sheet = Sheet.of(*timelines, self.longest)
        self.state = "encoding"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for count in write_pairs(self.file, self._sheets(), self.pairs, _EACH):
            self.done = count
            self._look()
        self.films = tuple(_released(film, clip) for film, clip in zip(self.films, self.clips, strict=True))
        self.clips = ()
        self.state = "ready"

    def _films(self) -> tuple[Film, ...]:
        """Read the sources; frames without a rate get that of the other clip."""
        films = [None if isinstance(clip, torch.Tensor) else film_of(clip, self._look) for clip in self.clips]
        stated = [float(film.timeline.rate) for film in films if film is not None]
        rate = Fraction(self.rate or (stated or [_RATE])[0])
        for index, clip in enumerate(self.clips):
            if films[index] is None:
                timeline = even_timeline(clip, rate)
                parts = Types.VideoComponents(images=clip[..., :3], audio=None, frame_rate=timeline.rate)
                films[index] = Film(timeline, parts=parts)
        return tuple(films)

    def _sheets(self) -> Iterator[np.ndarray]:
        """Yield the frames of the small film, and note the cuts on the way."""
        walks = [
            _walk(film, numbers, box[:1:-1])
            for film, numbers, box in zip(
                self.films, (self.pairs.before, self.pairs.after), (self.sheet.before, self.sheet.after), strict=True
            )
        ]
        last = None
        for number, (before, after) in enumerate(zip(*walks, strict=True)):
            if not number or self.pairs.before[number] != self.pairs.before[number - 1]:
                less = max(1, min(before.shape[:2]) // _SMALL)
                small = torch.from_numpy(np.array(Image.fromarray(before).reduce(less))).float() / 255
                if last is not None and scene_cuts(torch.stack((last, small))):
                    self.cuts.append(number)
                last = small
            yield self.sheet.fill(before, after)

    def _look(self) -> None:
        if self.ended:
            raise _Ended

    def described(self) -> dict:
        """Return what the editor needs to show it: JSON data."""
        facts = {"key": self.key, "state": self.state, "done": self.done, "text": self.text}
        if self.pairs is None:
            return facts
        times = self.pairs.times
        facts["total"] = len(times)
        if self.state != "ready":
            return facts
        sides = {}
        for name, film, numbers in zip(_SIDES, self.films, (self.pairs.before, self.pairs.after), strict=True):
            clip, box = film.timeline, getattr(self.sheet, name)
            sides[name] = {"box": box, "size": [clip.width, clip.height], "frames": clip.frames}
            sides[name] |= {"rate": float(clip.rate), "first": int(numbers[0])}
            if not np.array_equal(numbers, np.arange(len(numbers)) + numbers[0]):
                sides[name]["numbers"] = numbers.tolist()
        facts["joints"] = self._joints()
        facts |= {"sides": sides, "cuts": self.cuts, "times": [*np.round(times, 5).tolist()]}
        facts["end"] = round(float(times[-1]) + self.pairs.last, 5)
        facts["file"] = {"filename": self.file.name, "subfolder": FOLDER, "type": "temp"}
        return facts

    def _joints(self) -> list[int]:
        """Return where segments of the result meet within a scene, as far as this process has made it."""
        clip = self.films[1].timeline
        found = {start - clip.first for start in joints.get(clip.path, ())}
        numbers, before = self.pairs.after, np.append(-1, self.pairs.after[:-1])
        starts = [index for index in range(1, len(numbers)) if numbers[index] != before[index]]
        return [index for index in starts if int(numbers[index]) in found and index not in self.cuts]

    def part(self, side: str, number: int, box: tuple[float, ...], size: tuple[int, int]) -> bytes | None:
        """Return a part of frame `number` of a clip as PNG, None where the clip is gone.

        `box`: left, top, right, bottom as shares of the frame. `size`: the width and height that it is shown at, in px;
        it comes no larger.
        """
        film = self.films[_SIDES.index(side)]
        number = int(getattr(self.pairs, side)[number])
        if isinstance(film.parts, weakref.ref):
            images = film.parts()
            if images is None:
                return None
            images = images[..., :3]
            film = Film(film.timeline, parts=Types.VideoComponents(images=images, audio=None, frame_rate=Fraction(1)))
        wish = replace(film.wish, depth=8, alpha=False, tonemap=True)
        picture = Image.fromarray(next(film.pictures(wish, number, number + 1)))
        left, top, right, low = (round(share * length) for share, length in zip(box, picture.size * 2, strict=True))
        picture = picture.crop((left, top, max(left + 1, right), max(top + 1, low)))
        if picture.width > size[0] and picture.height > size[1]:
            picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
        data = io.BytesIO()
        picture.save(data, "PNG", compress_level=1)
        return data.getvalue()


def _walk(film: Film, numbers: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield frames by their rising numbers, each read once, at a height and width of `size`."""
    wish = replace(film.wish, depth=8, alpha=False, tonemap=True, size=size)
    reading = film.pictures(wish, int(numbers[0]), int(numbers[-1]) + 1)
    at, frame = int(numbers[0]) - 1, None
    for number in numbers:
        while at < number:
            frame, at = next(reading), at + 1
        yield frame


def _released(film: Film, clip: torch.Tensor | Input.Video) -> Film:
    """Hold frames in memory no longer than anybody else does."""
    if film.parts is None:
        return film
    return Film(film.timeline, parts=weakref.ref(clip if isinstance(clip, torch.Tensor) else film.parts.images))


def begin(comparison: Comparison, graph: str | None) -> str:
    """Make the small film for a node of a graph in the background and return the key of the comparison."""
    with _guard:
        _known[comparison.key] = comparison
    if graph and comparison.node:
        _show(comparison.key, graph, comparison.node)
    threading.Thread(target=_work, args=(comparison,), name=TITLE, daemon=True).start()
    return comparison.key


def _show(key: str, graph: str, node: str) -> None:
    """Note what a node shows; what no node shows any more need not be finished."""
    with _guard:
        before, _places[graph, node] = _places.get((graph, node)), key
        if before in _known and before not in _places.values():
            _known[before].ended = True


def removed(node: str | None) -> int:
    """Return how many small films of a node are gone: another number tells the host that the node must run again."""
    return _removed[node]


def _work(comparison: Comparison) -> None:
    with _turn, torch.inference_mode():
        try:
            comparison.make()
            _make_room(comparison)
        except _Ended:
            _remove(comparison)
        except MediaError as error:
            comparison.state, comparison.text = "failed", in_graph(str(error))
            logging.getLogger(__name__).error("%s: %s", TITLE, comparison.text)
        except Exception as error:  # the end of a thread: nobody else would say it
            comparison.state, comparison.text = "failed", f"{type(error).__name__}: {error}"
            logging.getLogger(__name__).exception("%s: the small film could not be made", TITLE)
        finally:
            comparison.clips = ()


def _make_room(kept: Comparison) -> None:
    """Remove the small films that were not looked at for the longest time while all take too much."""
    with _guard:
        ready = [each for each in _known.values() if each.state == "ready" and each.file.exists()]
    total = sum(each.file.stat().st_size for each in ready)
    for each in ready:
        if total > _ALL and each is not kept:
            total -= each.file.stat().st_size
            _removed[each.node] += 1
            _remove(each)


def _remove(comparison: Comparison) -> None:
    comparison.state, comparison.films, comparison.clips = "removed", (), ()
    with _guard:
        _known.pop(comparison.key, None)
        for place in [place for place, key in _places.items() if key == comparison.key]:
            del _places[place]
    try:
        comparison.file.unlink(missing_ok=True)
    except OSError as error:  # Windows: an editor still shows it; the host empties the folder when it starts
        logging.getLogger(__name__).warning("%s: %s stays (%s)", TITLE, comparison.file, error.strerror)


def looked_at(key: str) -> Comparison | None:
    """Return a comparison that still has its small film, or is making it."""
    with _guard:
        found = _known.pop(key, None)
        if found is not None:
            _known[key] = found
    return found


# Routes


async def _ask(request: web.Request) -> web.Response:
    """Say what a node of a graph shows, after a reload or an undo."""
    with _guard:
        key = _places.get((request.query.get("workflow", ""), request.query.get("node", "")))
    return web.json_response({"key": key})


async def _describe(request: web.Request) -> web.Response:
    """Say how far a comparison is; a node that shows what another one made (the host's cache) gives its place."""
    key, query = request.match_info["key"], request.query
    found = looked_at(key)
    if found is not None and query.get("workflow") and query.get("node"):
        _show(key, query["workflow"], query["node"])
    facts = found.described() if found else {"key": key, "state": "removed"}
    return web.json_response(facts, headers={"Cache-Control": "no-store"})


async def _part(request: web.Request) -> web.Response:
    found, query = looked_at(request.match_info["key"]), request.query
    try:
        side, number = query["side"], int(query["frame"])
        box = tuple(min(1.0, max(0.0, float(share))) for share in query["box"].split(","))
        size = tuple(min(_MOST_SIDE, max(1, int(query[name]))) for name in ("width", "height"))
        if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]) or side not in _SIDES:
            raise ValueError
    except (KeyError, ValueError) as error:
        raise web.HTTPBadRequest(text="side, frame, box (four rising shares), width and height are needed") from error
    if found is None or found.state != "ready" or not 0 <= number < len(found.pairs.times):
        return web.Response(status=204)
    try:
        data = await asyncio.to_thread(_part_of, found, side, number, box, size)
    except (MediaError, OSError) as error:  # the file has been moved or changed: the small film is all there is
        logging.getLogger(__name__).warning("%s: %s", TITLE, error)
        data = None
    if data is None:
        return web.Response(status=204)
    return web.Response(body=data, content_type="image/png", headers={"Cache-Control": "max-age=600"})


_reading = threading.Lock()  # one frame of full size is read at a time


def _part_of(found: Comparison, *wanted: object) -> bytes | None:
    with _reading, torch.inference_mode():
        return found.part(*wanted)


def add_routes() -> None:
    """Let the editor ask; there is no server where none listens."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None:
        server.routes.get("/cascadevsr/comparisons")(_ask)
        server.routes.get("/cascadevsr/comparisons/{key}")(_describe)
        server.routes.get("/cascadevsr/comparisons/{key}/part")(_part)
