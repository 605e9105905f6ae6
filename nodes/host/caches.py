"""Tiles and windows of a run told apart for caches that other nodes put into it.

Caches that reuse what the network gave a step before (the host's EasyCache, and those of other packs) know a call by
the `uuid` of its conditions. One step calls the network with the same conditions for every tile and window. So a piece
gets, the same at every step,

1. conditions with uuids of their own;
2. a cache of its own, where the run has the host's: that decides for its first call only whether a step is left out,
   and what it compares with has one shape.
"""

from __future__ import annotations

import contextlib
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from .keys import CACHE_KEY

# {cache of a run: {place of a piece: its own cache}}; both end with the run, whose cache is a copy
_pieces: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def as_piece(calc_cond_batch: Callable, place: str) -> Callable:
    """Wrap the host's prediction of conditionings, (model, conds, x, timestep, model_options), for the piece there."""

    def predict(model: Any, conds: list, x: Any, timestep: Any, model_options: Mapping) -> list:
        with _own_cache(model_options, place) as options:
            return calc_cond_batch(model, [_own_ids(group, place) for group in conds], x, timestep, options)

    return predict


def _own_ids(group: list | None, place: str) -> list | None:
    return group and [{**cond, "uuid": _own_id(cond["uuid"], place)} for cond in group]


_own_id = lru_cache(1 << 12)(uuid.uuid5)  # asked for at every step


@contextlib.contextmanager
def _own_cache(model_options: Mapping, place: str) -> Iterator[Mapping]:
    """Yield options in which the cache is that of the piece.

    That of the whole counts the mean of the steps that its pieces left out, which the host tells at the end.
    """
    options = model_options.get("transformer_options", {})
    whole = options.get(CACHE_KEY)
    if getattr(whole, "name", "") != "EasyCache":  # LazyCache acts on whole steps, outside of pieces
        yield model_options
        return
    pieces = _pieces.setdefault(whole, {})
    own = pieces.get(place)
    if own is None:
        own = pieces[place] = whole.clone()
        own.start_t, own.end_t = whole.start_t, whole.end_t
    own.skip_current_step = False  # the host does this outside of tiles where its node stands before Spatial Tiles
    yield {**model_options, "transformer_options": {**options, CACHE_KEY: own}}
    whole.total_steps_skipped = sum(each.total_steps_skipped for each in pieces.values()) / len(pieces)
