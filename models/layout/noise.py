"""Noise addressed by (seed, frame, row, column, channel): the same wherever a tile or window begins.

1. Philox, a counter-based generator, is keyed with the seed.
2. Its counter is set to (frame, row); the values of that row are drawn from column 0 on.
3. So length, size, tiles, windows and a resumed run do not change any value.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from .sizes import ClipSize

_SEEDS = 1 << 64
_THREADS, _MANY = 4, 1 << 18  # threads that draw, and the values from which they are worth their start
# Xor with the seed of a run: its several noises must not repeat each other.
LR_STREAM = 0x5A5A_1F2E_9D3C_7B41  # mixed into the LR clip
STEP_STREAM = 0x1D0C_77E3_A4B2_596F  # added between the steps of a sampler
SDEDIT_LR_STREAM = 0x3C6E_F372_FE94_F82B  # mixed into the condition while SDEdit draws a clip again
_TAG = 0x4353_5652  # second half of the Philox key: keeps our streams apart from other users of the same seed


def addressed_noise(
    seed: int,
    size: tuple[int, ClipSize],
    *,
    frame0: int = 0,
    row0: int = 0,
    col0: int = 0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Draw (channels, T, h, w) standard normal values for size = (channels, ClipSize of the latent).

    Each value depends on its absolute address only: Philox is a counter-based generator, (frame, row) is the
    counter, and a row is drawn from column 0 on, so a column's values do not depend on how far the row goes.
    Another channel count is another noise.
    """
    channels, grid = size
    if not 0 <= seed < _SEEDS:
        raise ValueError(f"the seed must be within 0 .. 2^64 - 1; got {seed}. Choose another.")
    if channels < 1 or min(frame0, row0, col0) < 0:
        raise ValueError(
            f"noise needs at least one channel and no negative position; got {channels} channels at frame "
            f"{frame0}, row {row0}, column {col0}. Count positions from the start of the whole clip."
        )
    noise = np.empty((channels, grid.frames, grid.height, grid.width), np.float32)

    def draw(frames: range) -> None:
        philox = np.random.Philox(key=np.array([seed, _TAG], np.uint64))
        fill, state, single = np.random.Generator(philox).standard_normal, philox.state, np.dtype(np.float32)
        counter = state["state"]["counter"]  # the two low words run within a row; the high ones hold the address
        drawn = np.empty((grid.height, col0 + grid.width, channels), np.float32)  # a frame at a time: it stays in cache
        for frame in frames:
            counter[3] = frame0 + frame
            for row, values in enumerate(drawn, row0):
                counter[2] = row
                philox.state = state  # one generator, set to every row: making one costs nearly as much as the drawing
                fill(None, single, values)
            noise[:, frame] = np.moveaxis(drawn[:, col0:], -1, 0)

    hands = min(_THREADS, torch.get_num_threads(), grid.frames) if noise.size >= _MANY else 1
    if hands < 2:
        draw(range(grid.frames))
    else:  # while a row is drawn, the interpreter is free for another
        with ThreadPoolExecutor(hands) as pool:
            list(pool.map(draw, (range(first, grid.frames, hands) for first in range(hands))))
    return torch.from_numpy(noise).to(dtype)
