"""Decoding frame by frame, for networks that keep what their next frames need: no frame is decoded twice."""

from collections.abc import Callable, Iterator, Sequence

import torch

from .pieces import Tile, frames_of, tile_weight
from .sizes import zeros_like

Shown = Callable[[int, int, torch.Tensor | None], None]  # (frames of tiles done, of all, the newest whole one)


@torch.no_grad()
def decode_frames(
    decode: Callable[[Tile], Iterator[torch.Tensor]],
    output: torch.Tensor,
    tiles: Sequence[Tile],
    space: int,
    progress: Shown | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Fill `output` (t, H, W, 3), zeros at its exact size, tile after tile, each from its first frame to its last.

    `decode(tile)` gives frames (1, 3, 1, H, W) in about -1..1, one after the other, to be used up. A latent cell is
    `space` px. Tiles go outermost, so that only one of them is remembered. Raises NotFinite.
    """
    plan, total = [tile.scaled(space) for tile in tiles], len(tiles) * len(output)
    for number, (tile, place) in enumerate(zip(tiles, plan, strict=True)):
        view = output[place.region[0], place.region[1], place.region[2], :]
        weight = tile_weight(place, plan)[: view.shape[1], : view.shape[2], None] if len(plan) > 1 else None
        carrier = None if weight is None else zeros_like(view[0])
        for done, (frame, into) in enumerate(zip(decode(tile), view, strict=True), number * len(output)):
            if check_cancelled is not None:
                check_cancelled()
            picture = frames_of(frame)[0, : into.shape[0], : into.shape[1]]
            if weight is None:
                into.copy_(picture)
            else:
                into += carrier.copy_(picture.mul_(weight.to(picture)))
                into.clamp_(0, 1)
            if progress is not None:
                progress(done + 1, total, into.movedim(-1, 0)[None] if weight is None else None)
    return output
