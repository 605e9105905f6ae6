"""MGLD-VSR's published inference as functions: segments, tiles, guided sampling, and the run from frames to a clip.

Clips and latents are (b, c, t, h, w), frames in -1..1 at the target's size; latents are scaled (by 0.18215). The
host's samplers, tiles and decoder do the same job in a graph; this is the order of the published program, without
a host, and what its recorded numbers are compared with. Its crash on small frames and its drifting flow tiles
are not repeated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from cascadevsr.models.layout.pieces import Tile
from cascadevsr.models.layout.sizes import resize_clip
from cascadevsr.models.mgld_vsr.published import (
    FLOW_ITERATIONS,
    SCHEDULE,
    SHORTEST,
    TILE,
    TILE_OVERLAP,
    published_segments,
    published_tiles,
    tile_weights,
)
from cascadevsr.models.mgld_vsr.vae import LATENT_SCALE, SPACE
from cascadevsr.models.motion.flow import occlusion, resize_flow
from cascadevsr.models.motion.guidance import (
    PUBLISHED,
    PUBLISHED_STRENGTH,
    Flows,
    motion_gradient,
    published_update,
)
from cascadevsr.models.motion.raft import STRIDE
from cascadevsr.models.pixels.color import adain, wavelet
from cascadevsr.models.schedules import DiffusionSettings

from .schedules import SpacedDDPM

STEPS = 50
PIXEL_TILE = 960  # px; larger frames go through the whole pipeline in parts
PIXEL_STRIDE = 744  # px; published 750 is no whole number of latent cells, so that its flow tiles drift
PADDING = 32  # px; padded sides are multiples of it
FLOW_SHRINK = 4  # motion is estimated on frames of about the LR size
COLOUR = {"adain": adain, "wavelet": wavelet, "none": None}


def enlarge(clip: torch.Tensor, upscale: float = 4.0) -> torch.Tensor:
    """Enlarge LR frames by `upscale`, or to 512 px on the shorter side if that is more; bicubic, clamped."""
    height, width = clip.shape[-2:]
    scale = max(SHORTEST / min(height, width), upscale)
    return _per_frame(clip, lambda frames: _bicubic(frames, int(height * scale), int(width * scale)).clamp_(-1, 1))


def pad(clip: torch.Tensor) -> torch.Tensor:
    """Reflect the right and lower borders up to multiples of 32 px.

    As published, a side that divides already grows by 32 px when the other one does not.
    """
    height, width = clip.shape[-2:]
    if height % PADDING == 0 and width % PADDING == 0:
        return clip
    rows, columns = (PADDING - side % PADDING for side in (height, width))
    return _per_frame(clip, lambda frames: F.pad(frames, (0, columns, 0, rows), mode="reflect"))


def flow_frames(clip: torch.Tensor) -> torch.Tensor:
    """Reduce padded frames to what the motion is seen on: a quarter of the sides, in 0..1."""
    height, width = (side // FLOW_SHRINK for side in clip.shape[-2:])
    return _per_frame(clip, lambda frames: _bicubic(((frames + 1) / 2).clamp_(0, 1), height, width))


def raft_flow(
    raft: Callable[..., torch.Tensor],
    first: torch.Tensor,
    second: torch.Tensor,
    iterations: int = FLOW_ITERATIONS,
) -> torch.Tensor:
    """Estimate the flow first -> second as published: RAFT on (b, 3, h, w) in 0..1, not the -1..1 it was made for."""
    height, width = first.shape[-2:]
    rows, columns = (-side % STRIDE for side in (height, width))
    border = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    flow = raft(*(F.pad(image, border, mode="replicate") for image in (first, second)), iterations)[-1]
    return flow[..., border[2] : border[2] + height, border[0] : border[0] + width]


@torch.no_grad()
def estimate_flows(clip: torch.Tensor, estimator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Flows:
    """Estimate the flows of padded frames on the grid of their latents, and what is seen again along them.

    `estimator` gives the flow (b, 2, h, w) in px from a first to a second image in 0..1; pairs come one by one.
    """
    frames = flow_frames(clip)
    height, width = (side // SPACE for side in clip.shape[-2:])
    found: list[list[torch.Tensor]] = [[], [], [], []]
    for i in range(clip.shape[2] - 1):
        first, second = frames[:, :, i], frames[:, :, i + 1]
        ahead, behind = (resize_flow(estimator(*pair), height, width) for pair in ((first, second), (second, first)))
        pair = (ahead, behind, 1 - occlusion(ahead, behind), 1 - occlusion(behind, ahead))
        for stack, part in zip(found, pair, strict=True):
            stack.append(part)
    if not found[0]:
        empty = clip.new_zeros((clip.shape[0], 2, 0, height, width))
        return Flows(empty, empty, empty[:, :1], empty[:, :1])
    return Flows(*(torch.stack(stack, 2) for stack in found))


def _per_frame(clip: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return torch.stack([change(clip[:, :, i]) for i in range(clip.shape[2])], 2)


def _bicubic(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(frames, (height, width), mode="bicubic", align_corners=False)


def pixel_tiles(height: int, width: int, tile: int = PIXEL_TILE, stride: int = PIXEL_STRIDE) -> list[Tile]:
    """Give the parts of a padded frame, in px, that go through the whole pipeline by themselves."""
    return published_tiles(height, width, tile, tile - stride)


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
    for each in published_tiles(*x.shape[-2:], tile, overlap):
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
    for frames in published_segments(clip.shape[2]):
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
