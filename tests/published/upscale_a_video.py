"""Upscale-A-Video's published inference as functions: its tiles and chunks, and the run from LR frames to a clip.

Clips and latents are (b, c, t, h, w), LR frames in -1..1 at the latents' size; spans are half-open (start, stop)
in frames. The host's samplers, tiles and decoder do the same job in a graph; this is the order of the published
program, without a host, and what its recorded numbers are compared with.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from cascadevsr.models.layout.pieces import Tile
from cascadevsr.models.motion.flow import propagate
from cascadevsr.models.schedules import DiffusionSettings, diffuse
from cascadevsr.models.upscale_a_video.published import (
    DECODE_CHUNK,
    SCHEDULE,
    Span,
    published_window_weights,
    published_windows,
)
from cascadevsr.models.upscale_a_video.unet import MAX_NOISE_LEVEL

from .schedules import DDIM

CONTEXT = 64  # LR px that a published tile sees beyond its core, on each side
_FLOW_CHUNKS = ((640, 12), (720, 8), (1280, 4))  # up to this width, this many frames; wider, two


def add_lr_noise(lr: torch.Tensor, noise: torch.Tensor, level: int, alphas: torch.Tensor | None = None) -> torch.Tensor:
    """Mix noise into LR frames at a level of 0..350, with the alphas_cumprod of the low-res scheduler.

    Float32 alphas are right. The published program rounds its table to half precision first, which at low levels
    puts the strength of the noise off by a few percent; give `alphas.half()` for its numbers.
    """
    check_level(level)
    alphas = SCHEDULE.alphas_cumprod() if alphas is None else alphas
    return diffuse(lr, noise, alphas[level])


def check_level(level: int) -> None:
    """Raise a ValueError for a noise level that the network was not trained with."""
    if not 0 <= level <= MAX_NOISE_LEVEL or level != int(level):
        raise ValueError(
            f"Upscale-A-Video: the noise level must be a whole number of 0..{MAX_NOISE_LEVEL}; got {level}. "
            "120 is the published choice."
        )


def decode_chunks(frames: int, chunk: int = DECODE_CHUNK) -> list[Span]:
    """Give the spans that the published program decodes by themselves; the last may be shorter."""
    return [(start, min(start + chunk, frames)) for start in range(0, frames, chunk)]


def flow_chunks(frames: int, width: int) -> list[Span]:
    """Give the spans of LR frames the published program estimates flow in; each but the first repeats a frame."""
    length = next((length for limit, length in _FLOW_CHUNKS if width <= limit), 2)
    return [(max(start - 1, 0), min(start + length, frames)) for start in range(0, frames, length)]


@dataclass(frozen=True)
class PublishedTile:
    """Hold one published tile in LR px: what the networks see, and the part of it that is kept."""

    source: Tile
    core: Tile


def published_tiles(height: int, width: int, tile: int = 256) -> list[PublishedTile]:
    """Give the published tiles, row by row; cores cover the frame once, without blending.

    A side too short for any tile, which the published program leaves black, is one tile.
    """
    rows, columns = _spans(height, tile), _spans(width, tile)
    return [
        PublishedTile(_rectangle(row_source, column_source), _rectangle(row_core, column_core))
        for row_source, row_core in rows
        for column_source, column_core in columns
    ]


def _rectangle(rows: Span, columns: Span) -> Tile:
    return Tile(rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0])


def _spans(size: int, tile: int) -> list[tuple[Span, Span]]:
    """Give the (source, core) spans of one axis."""
    count = -(-size // tile)
    if (count - 1) * tile + CONTEXT >= size:  # the last core would be no wider than its neighbour's context
        count = max(count - 1, 1)
    spans = []
    for start in range(0, count * tile, tile):
        source = max(start - CONTEXT, 0), min(start + tile + CONTEXT, size)
        last = start == (count - 1) * tile
        spans.append((source, (start, size if last and source[1] == size else min(start + tile, size))))
    return spans


def predict_windows(
    unet: Callable[..., torch.Tensor],
    x: torch.Tensor,
    t: int,
    noised: torch.Tensor,
    text: torch.Tensor,
    labels: torch.Tensor,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Run the network over the published windows of a clip and blend them; equal windows are computed once."""
    frames = x.shape[2]
    weights: dict[Span, torch.Tensor] = {}
    for span, row in zip(published_windows(frames), published_window_weights(frames), strict=True):
        weights[span] = weights.get(span, 0) + row
    blended = None
    for (start, stop), row in weights.items():
        if check_cancelled is not None:
            check_cancelled()
        part = unet(x[:, :, start:stop], t, noised[:, :, start:stop], text, labels)
        if len(weights) == 1:
            return part
        if blended is None:
            blended = part.new_zeros((*part.shape[:2], frames, *part.shape[3:]))
        blended[:, :, start:stop] += part * row[start:stop].to(part).view(-1, 1, 1)
    return blended


@torch.no_grad()
def denoise(
    unet: Callable[..., torch.Tensor],
    latents: torch.Tensor,
    noised: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor,
    *,
    steps: int = 30,
    guidance: float = 6.0,
    level: int = 120,
    flows: tuple[torch.Tensor, torch.Tensor] | None = None,
    propagation_steps: Collection[int] = (),
    settings: DiffusionSettings = SCHEDULE,
    progress: Callable[[int, int], None] | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Turn noise (1, 4, t, h, w) into latents, given noised LR frames and text (1, L, d).

    `propagation_steps` count the loop from 0; at those the clean estimate of the whole clip is propagated along
    `flows`, (forward, backward). A guidance of 1 or less uses the positive text alone.
    """
    check_level(level)
    _check_propagation(propagation_steps, steps, flows, latents.shape[2])
    run = DDIM(settings, steps)
    guided = guidance > 1
    if guided:
        text = torch.cat((negative, text))
        noised = torch.cat((noised, noised))
    labels = torch.full((len(text),), level, device=latents.device)
    x = latents
    for i, t in enumerate(run.timesteps):
        both = torch.cat((x, x)) if guided else x
        output = predict_windows(unet, both, t, noised, text, labels, check_cancelled)
        if guided:
            unconditional, conditional = output.chunk(2)
            output = unconditional + guidance * (conditional - unconditional)
        clean = run.predict_clean(x, output, t)
        if i in propagation_steps and flows is not None:
            clean = propagate(clean, *flows)
        x = run.next(x, output, clean, t)
        if progress is not None:
            progress(i + 1, steps)
    return x


@torch.no_grad()
def decode(
    vae: torch.nn.Module,
    latents: torch.Tensor,
    lr: torch.Tensor,
    *,
    lr_weight: float = 1.0,
    chunk: int = DECODE_CHUNK,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Decode latents in the published chunks, each with its clean LR frames, in float32: a clip in -1..1."""
    spans = decode_chunks(latents.shape[2], chunk)
    clip = None
    for start, stop in spans:
        if check_cancelled is not None:
            check_cancelled()
        z = latents[:, :, start:stop].float() / vae.config.scaling_factor
        part = vae.decode(z, lr[:, :, start:stop].float(), lr_weight).clamp_(-1, 1)
        if len(spans) == 1:
            return part
        if clip is None:
            clip = part.new_empty((*part.shape[:2], latents.shape[2], *part.shape[3:]))
        clip[:, :, start:stop] = part
    return clip


def restore(
    unet: Callable[..., torch.Tensor],
    vae: torch.nn.Module,
    lr: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor,
    *,
    latents: torch.Tensor,
    lr_noise: torch.Tensor,
    level: int = 120,
    low_res: DiffusionSettings = SCHEDULE,
    lr_weight: float = 1.0,
    check_cancelled: Callable[[], None] | None = None,
    **options,
) -> torch.Tensor:
    """Restore LR frames (1, 3, t, h, w): the published run of one tile. `options` are those of denoise()."""
    noised = add_lr_noise(lr, lr_noise, level, low_res.alphas_cumprod())
    clean = denoise(unet, latents, noised, text, negative, level=level, check_cancelled=check_cancelled, **options)
    return decode(vae, clean, lr, lr_weight=lr_weight, check_cancelled=check_cancelled)


def _check_propagation(chosen: Collection[int], steps: int, flows: Sequence[torch.Tensor] | None, frames: int) -> None:
    strange = sorted(i for i in chosen if not 0 <= i < steps)
    if strange:
        raise ValueError(
            f"Upscale-A-Video: propagation steps count from 0 to {steps - 1}; got {strange[0]}. "
            "Choose some of the last steps."
        )
    if chosen and flows is None and frames > 1:
        raise ValueError(
            "Upscale-A-Video: propagation needs the flows of the LR frames; got none. "
            "Estimate them, or choose no propagation steps."
        )
