"""MGLD-VSR's published inference as functions: segments, tiles, guided sampling, and the run from frames to a clip.

Clips and latents are (b, c, t, h, w), frames in -1..1 at the target's size; latents are scaled (by 0.18215). The
host's samplers, tiles and decoder do the same job in a graph; this is the order of the published program, without
a host, and what its recorded numbers are compared with. Its crash on small frames and its drifting flow tiles
are not repeated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..layout.sizes import resize_clip
from ..layout.tiles import Tile
from ..layout.windows import plan_windows
from ..motion.guidance import PUBLISHED, PUBLISHED_STRENGTH, Flows, motion_gradient, published_update
from ..pixels.color import adain, wavelet
from ..schedules import DiffusionSettings, SpacedDDPM
from .config import LATENT_SCALE, SEGMENT, SPACE, TILE
from .preparation import enlarge, estimate_flows, pad

SCHEDULE = DiffusionSettings(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="epsilon",
    clip_sample=False,
)
STEPS = 50
TILE_OVERLAP = 32  # latent cells
PIXEL_TILE = 960  # px; larger frames go through the whole pipeline in parts
PIXEL_STRIDE = (
    744  # px; published 750, which is no whole number of latent cells, so that its flow tiles drift
)
COLOUR = {"adain": adain, "wavelet": wavelet, "none": None}

_SPREAD = 0.01  # variance of the tile weights' bell, in shares of the tile's squared side


def tile_weights(height: int, width: int) -> torch.Tensor:
    """Give the published (h, w) float64 bell; its middle is that of the columns, but half a row below the rows'."""
    rows, columns = _bell(height, height / 2), _bell(width, (width - 1) / 2)
    return rows[:, None] * columns


def _bell(side: int, middle: float) -> torch.Tensor:
    distance = (torch.arange(side, dtype=torch.float64) - middle) / side
    return torch.exp(-distance.square() / (2 * _SPREAD)) / math.sqrt(2 * math.pi * _SPREAD)


def reference_tiles(height: int, width: int, tile: int = TILE, overlap: int = TILE_OVERLAP) -> list[Tile]:
    """Give the published tiles, column by column; the last of an axis is shifted back to be full."""
    rows, columns = (plan_windows(side, tile, min(overlap, tile - 1)) for side in (height, width))
    return [Tile(row.start, column.start, row.length, column.length) for column in columns for row in rows]


def pixel_tiles(height: int, width: int, tile: int = PIXEL_TILE, stride: int = PIXEL_STRIDE) -> list[Tile]:
    """Give the parts of a padded frame, in px, that go through the whole pipeline by themselves."""
    return reference_tiles(height, width, tile, tile - stride)


def reference_segments(frames: int, length: int = SEGMENT) -> list[list[int]]:
    """Give the frames of each published segment; the last repeats the clip's last frame until it is full."""
    return [
        [min(frame, frames - 1) for frame in range(start, start + length)]
        for start in range(0, frames, length)
    ]


@dataclass(frozen=True)
class Networks:
    """Hold the networks of a run, and the embedding (1, 77, d) of the empty prompt."""

    unet: Callable[..., torch.Tensor]
    structure: Callable[..., Sequence[torch.Tensor]]
    text: torch.Tensor
    first_stage: torch.nn.Module | None = None
    decoder: torch.nn.Module | None = None


def predict_noise(
    networks: Networks,
    x: torch.Tensor,
    lr: torch.Tensor,
    t: int,
    tile: int | None = TILE,
    overlap: int = TILE_OVERLAP,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Predict the noise in x (1, 4, t, h, w), tile by tile; each sees its own part of the LR latent. None: no tiles."""
    time = torch.full((1,), t, device=x.device)

    def run(part: torch.Tensor, lr_part: torch.Tensor) -> torch.Tensor:
        if check_cancelled is not None:
            check_cancelled()
        return networks.unet(part, time, networks.structure(lr_part, time), networks.text)

    if tile is None:
        return run(x, lr)
    total = torch.zeros_like(x, dtype=torch.float32)
    count = torch.zeros(x.shape[-2:], device=x.device)
    for each in reference_tiles(*x.shape[-2:], tile, overlap):
        weights = tile_weights(each.height, each.width).to(x.device)
        total[each.region] += run(x[each.region], lr[each.region]) * weights
        count[each.region] += weights
    return total / count


@torch.no_grad()
def sample(
    networks: Networks,
    lr: torch.Tensor,
    noise: torch.Tensor,
    step_noise: Sequence[torch.Tensor] | torch.Tensor,
    *,
    steps: int = STEPS,
    flows: Flows | None = None,
    strength: float = PUBLISHED_STRENGTH,
    form: str = PUBLISHED,
    tile: int | None = TILE,
    overlap: int = TILE_OVERLAP,
    settings: DiffusionSettings = SCHEDULE,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Turn the LR latent of a segment and noise into a latent; `step_noise` holds the noise of every step.

    Starts from the noised LR latent. With flows, every sample is moved along the gradient of the motion loss, after
    the noise of the step was added. on_step(step, x) sees every sample.
    """
    run = SpacedDDPM(settings, steps)
    x = run.noised(lr, noise)
    for step, t in enumerate(run.timesteps):
        output = predict_noise(networks, x, lr, t, tile, overlap, check_cancelled)
        x = run.next(x, run.predict_clean(x, output, step), step_noise[step], step)
        if flows is not None and x.shape[2] > 1:
            gradient = motion_gradient(x, flows, form=form)[1]
            x = published_update(x, gradient, run.log_variance(step), strength)
        if on_step is not None:
            on_step(step, x)
    return x


@torch.no_grad()
def encode(networks: Networks, clip: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Encode frames to a scaled latent: a draw from the posterior, as published."""
    mean, log_variance = networks.first_stage.encode(clip)
    return LATENT_SCALE * (mean + (log_variance / 2).exp() * noise)


@torch.no_grad()
def decode(networks: Networks, latent: torch.Tensor, clip: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """Decode a scaled latent with the features of its LR frames, which count by `weight`; not clamped."""
    features = networks.decoder.features(clip) if weight else None
    return networks.decoder.decode(latent / LATENT_SCALE, features, weight)


def match_colour(clip: torch.Tensor, lr: torch.Tensor, method: str) -> torch.Tensor:
    """Give a clip (1, 3, t, h, w) the colours of its LR frames by one of COLOUR; not clamped."""
    function = COLOUR[method]
    if function is None:
        return clip
    frames, style = ((each[0].permute(1, 2, 3, 0) + 1) / 2 for each in (clip, lr))
    return (2 * function(frames, style) - 1).permute(3, 0, 1, 2)[None]


def to_bytes(clip: torch.Tensor) -> torch.Tensor:
    """Give (t, h, w, 3) uint8 of a clip (1, 3, t, h, w), cut off after the whole number, as published."""
    return (((clip[0].permute(1, 2, 3, 0) + 1) / 2).clamp(0, 1) * 255).to(torch.uint8)


@dataclass(frozen=True)
class Noise:
    """Hold the noise of one segment and tile: of the posterior, of the start, and of every step."""

    posterior: torch.Tensor
    start: torch.Tensor
    steps: Sequence[torch.Tensor] | torch.Tensor


def draw_noise(shape: Sequence[int], steps: int, seed: int = 42, device: torch.device | None = None) -> Noise:
    """Draw noise in the published order, the same for every segment and tile of one seed."""
    generator = torch.Generator().manual_seed(seed)
    posterior, start, *rest = (torch.randn(*shape, generator=generator).to(device) for _ in range(steps + 2))
    return Noise(posterior, start, rest)


def restore_segment(
    networks: Networks,
    clip: torch.Tensor,
    noise: Noise,
    *,
    lr_weight: float = 1.0,
    colour: str = "adain",
    **options,
) -> torch.Tensor:
    """Restore enlarged, padded frames (1, 3, t, H, W) of one segment and tile. `options` are those of sample()."""
    latent = sample(networks, encode(networks, clip, noise.posterior), noise.start, noise.steps, **options)
    return match_colour(decode(networks, latent, clip, lr_weight), clip, colour)


def restore(
    networks: Networks,
    clip: torch.Tensor,
    *,
    estimator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    upscale: float = 4.0,
    steps: int = STEPS,
    seed: int = 42,
    pixel_tile: int = PIXEL_TILE,
    pixel_stride: int = PIXEL_STRIDE,
    **options,
) -> torch.Tensor:
    """Restore LR frames (1, 3, t, h, w): a clip of exactly `upscale` times their size. No estimator: no guidance.

    `options` are those of restore_segment().
    """
    height, width = clip.shape[-2:]
    large = enlarge(clip, upscale)
    padded = pad(large)
    parts = []
    for frames in reference_segments(clip.shape[2]):
        segment = padded[:, :, frames]
        flows = estimate_flows(segment, estimator) if estimator is not None else None
        total, count = torch.zeros_like(segment), torch.zeros_like(segment[0, 0, 0])
        for tile in pixel_tiles(*segment.shape[-2:], pixel_tile, pixel_stride):
            shape = (1, 4, len(frames), tile.height // SPACE, tile.width // SPACE)
            noise = draw_noise(shape, steps, seed, clip.device)
            inside = _cut(flows, tile) if flows is not None else None
            total[tile.region] += restore_segment(
                networks, segment[tile.region], noise, flows=inside, steps=steps, **options
            )
            count[tile.region] += 1
        parts.append((total / count)[..., : large.shape[-2], : large.shape[-1]].clamp_(-1, 1))
    restored = torch.cat(parts, 2)[:, :, : clip.shape[2]]
    return resize_clip(restored, round(height * upscale), round(width * upscale), "bicubic").clamp_(-1, 1)


def _cut(flows: Flows, tile: Tile) -> Flows:
    """Cut flows at a tile given in px."""
    inside = Tile(*(side // SPACE for side in (tile.top, tile.left, tile.height, tile.width)))
    return Flows(*(part[inside.region] for part in flows))
