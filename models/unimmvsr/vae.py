"""Causal video VAE, 4 (time) x 8 x 8, whose decoder is conditioned on the LR frames.

Encoding a clip (b, 3, t, H, W) in -1..1, in order:

1. Every 4x4 block of pixels becomes channels: (b, t, 48, H/4, W/4).
2. Convolutions; two causal ones in time halve the frames after the first (t = 4n+1 -> n+1), one in space the sides.
3. Mean and log-variance of the latent (b, 16, T, H/8, W/8), normalised to about zero mean and unit variance.

Decoding a latent:

1. Latent -> features of every frame on the 4x4 grid (b, t, width, H/4, W/4), the reverse of the encoder.
2. *Restore*: every LR frame is restored from itself and its neighbours (restorer.py). The latent has no part in this:
   what cannot look at the latent cannot learn to lean on it, or be spoilt by it. Without LR frames the features give a
   guess of them, which is restored without neighbours.
3. *Complete*, frame by frame: what the latent shows and the LR frames do not is added. The latent frame around a cut
   holds both scenes: the first frame of a scene is completed by the features of its own LR frame instead.

The geometry is that of the Wan-class VAEs (16 channels, 4n+1 frames), so tiles, windows and nodes meet one geometry
only. Two properties carry the rest of the pack. Causal: a frame depends on earlier frames alone, so encoding and
decoding go span by span with small memories. No statistics over time or space: a tile or a span is computed like the
whole. Upscale-A-Video and MGLD-VSR condition their decoders on LR frames too: the latent need not carry what they say.

Tensors inside are (b, t, c, h, w); at the border clips are (b, 3, t, h, w), latents (b, 16, T, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache, partial
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call

from ..layout.pieces import Tile, Window, frames_of
from ..layout.sizes import ClipSize, first_frame, latent_size, pad_clip, padded_size, resize_clip
from ..motion.blockflow import BlockFlow
from ..motion.estimation import DistantFlows, Motion, pair_flows
from .restorer import GRID, Restorers, neighbours_in

SPACE = 8  # output pixels per latent cell, each side
TIME = 4  # frames per latent frame; the first latent frame stands for one frame (4n+1 rule)
SMALLEST_DEVIATION = 0.02  # of local contrast, in -1..1 units: below this it is noise and rounding
COMPLETION_BLOCKS = 3
_KEPT = 24  # frames whose verdicts are remembered
_WEARS = 8  # weights between those for clean and worn frames that are kept
Memory = dict[
    int, torch.Tensor
]  # of a clip's past, keyed by the identity of the layer that left it; empty at its start


@dataclass(frozen=True)
class VAEConfig:
    """Widths and depths of :class:`CausalVideoVAE`."""

    latent_channels: int = 16
    encoder_width: int = 48
    latent_width: int = 64
    feature_width: int = 64
    restore_width: int = 48
    restore_blocks: int = 4
    restore_steps: int = 3


def _per_frame(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply a 2-D layer to every frame of (b, t, c, h, w)."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _act(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, 0.1)


def to_grid(clip: torch.Tensor) -> torch.Tensor:
    """(b, 3, t, H, W) -> (b, t, 48, H/4, W/4): each 4x4 block of pixels becomes channels."""
    return F.pixel_unshuffle(clip.transpose(1, 2), GRID)


class CausalConv(nn.Module):
    """Temporal convolution of three frames (the current and the two before it), optionally every second frame.

    Before the first frame stand copies of it. In a stream the last input frames stay in `memory`.
    """

    def __init__(self, width: int, out: int, stride: int, ops: ModuleType):
        super().__init__()
        self.conv = ops.Conv2d(3 * width, out, 1)
        self.stride = stride

    def forward(self, x: torch.Tensor, memory: Memory) -> torch.Tensor:
        past = memory.get(id(self))
        x = torch.cat((x[:, :1].expand(-1, 2, -1, -1, -1) if past is None else past, x), 1)
        memory[id(self)] = x[:, -(3 - self.stride) :]
        taps = [x[:, k : x.shape[1] - 2 + k : self.stride] for k in range(3)]
        return _per_frame(self.conv, torch.cat(taps, 2))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around an activation, then (optionally) a causal look at the two frames before."""

    def __init__(self, width: int, temporal: bool, ops: ModuleType):
        super().__init__()
        self.conv1 = ops.Conv2d(width, width, 3, padding=1)
        self.conv2 = ops.Conv2d(width, width, 3, padding=1)
        self.temporal = CausalConv(width, width, 1, ops) if temporal else None

    def forward(self, x: torch.Tensor, memory: Memory) -> torch.Tensor:
        x = x + _per_frame(self.conv2, _act(_per_frame(self.conv1, x)))
        return x if self.temporal is None else x + self.temporal(_act(x), memory)


class Encoder(nn.Module):
    """Frames -> mean and log-variance of the latent."""

    def __init__(self, config: VAEConfig, ops: ModuleType):
        super().__init__()
        narrow, wide = config.encoder_width, config.encoder_width * 2
        self.conv_in = ops.Conv2d(3 * GRID**2, narrow, 3, padding=1)
        self.block1 = ResidualBlock(narrow, False, ops)
        self.time_down1 = CausalConv(narrow, narrow, 2, ops)
        self.space_down = ops.Conv2d(narrow, wide, 3, stride=2, padding=1)
        self.block2 = ResidualBlock(wide, True, ops)
        self.time_down2 = CausalConv(wide, wide, 2, ops)
        self.block3 = ResidualBlock(wide, False, ops)
        self.conv_out = ops.Conv2d(wide, 2 * config.latent_channels, 3, padding=1)

    def forward(self, clip: torch.Tensor, memory: Memory) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.block1(_per_frame(self.conv_in, to_grid(clip)), memory)
        x = _per_frame(self.space_down, self.time_down1(x, memory))
        x = self.time_down2(self.block2(x, memory), memory)
        x = _per_frame(self.conv_out, self.block3(x, memory))
        mean, logvar = x.transpose(1, 2).chunk(2, 1)
        return mean, logvar.clamp(-20, 10)


class TimeUp(nn.Module):
    """Doubles the frames; the first frame of a clip stays single (n -> 2n - 1)."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.conv = CausalConv(width, 2 * width, 1, ops)

    def forward(self, x: torch.Tensor, memory: Memory) -> torch.Tensor:
        first = id(self.conv) not in memory
        y = self.conv(x, memory).unflatten(2, (2, -1)) + x.unsqueeze(2)
        y = y.flatten(1, 2)
        return y[:, 1:] if first else y


class LatentDecoder(nn.Module):
    """Latent -> one feature map per frame on the 4x4 grid, and what two convolutions read from it.

    `guess`: the LR frames; `detail`: what bicubic LR frames lack, as 4x4 blocks of pixels.
    """

    def __init__(self, config: VAEConfig, ops: ModuleType):
        super().__init__()
        width = config.latent_width
        self.conv_in = ops.Conv2d(config.latent_channels, width, 3, padding=1)
        self.block1 = ResidualBlock(width, True, ops)
        self.time_up1 = TimeUp(width, ops)
        self.block2 = ResidualBlock(width, True, ops)
        self.time_up2 = TimeUp(width, ops)
        self.space_up = ops.Conv2d(width, 4 * config.feature_width, 1)
        self.guess = ops.Conv2d(config.feature_width, 3, 3, padding=1)
        self.detail = ops.Conv2d(config.feature_width, 3 * GRID**2, 3, padding=1)

    def forward(self, z: torch.Tensor, memory: Memory) -> torch.Tensor:
        x = self.block1(_per_frame(self.conv_in, z.transpose(1, 2)), memory)
        x = self.block2(self.time_up1(x, memory), memory)
        x = self.time_up2(x, memory)
        return F.pixel_shuffle(_per_frame(self.space_up, _act(x)), SPACE // GRID)


class Completion(nn.Module):
    """Adds to a restored frame what the latent shows and the LR frames do not, on the 4x4 grid."""

    def __init__(self, config: VAEConfig, ops: ModuleType):
        super().__init__()
        width, cell = config.feature_width, 3 * GRID**2
        # detail, what was restored, features of the latent and of the restorer
        self.conv_in = ops.Conv2d(2 * cell + width + config.restore_width, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width, False, ops) for _ in range(COMPLETION_BLOCKS))
        self.conv_out = ops.Conv2d(width, cell, 3, padding=1)

    def forward(
        self,
        pixels: torch.Tensor,
        restored: torch.Tensor,
        hidden: torch.Tensor,
        features: torch.Tensor,
        detail: torch.Tensor,
    ) -> torch.Tensor:
        """Complete one `restored` frame of LR `pixels`; all are (b, channels, h, w), `hidden` is the restorer's."""
        deviation = _local_deviation(pixels)
        x = torch.cat((detail / deviation, (restored - pixels) / deviation, features, hidden), 1)
        x = self.conv_in(x)
        for block in self.blocks:
            x = x + block.conv2(_act(block.conv1(x)))
        return restored + self.conv_out(_act(x)) * deviation


def _local_deviation(pixels: torch.Tensor) -> torch.Tensor:
    """Deviation (b,1,h,w), common to the colours, of 3x3 cells of pixels (b,48,h,w)."""
    groups = pixels.unflatten(1, (3, GRID**2)).float()
    mean = F.avg_pool2d(groups.mean(2), 3, 1, 1, count_include_pad=False)
    variance = (groups - mean.unsqueeze(2)).square().mean((1, 2)).unsqueeze(1)
    variance = F.avg_pool2d(variance, 3, 1, 1, count_include_pad=False)
    return (variance + SMALLEST_DEVIATION**2).sqrt().to(pixels)


@dataclass(frozen=True)
class Seen:
    """Hold what LR frames show, for the decoder.

    ``base``, the LR frames resized, and ``restored``, (b, 3, t, H, W) in about -1..1; ``hidden``, the restorer's
    features, (b, t, width, H/4, W/4).
    """

    base: torch.Tensor
    restored: torch.Tensor
    hidden: torch.Tensor


class Decoder(nn.Module):
    """Features of the latent, and what LR frames show -> frames."""

    def __init__(self, config: VAEConfig, ops: ModuleType):
        super().__init__()
        self.latent = LatentDecoder(config, ops)
        self.restore = Restorers(config.restore_width, config.restore_blocks, config.restore_steps, ops)
        self.complete = Completion(config, ops)

    def forward(self, features: torch.Tensor, seen: Seen | None, weight: float = 1.0) -> torch.Tensor:
        """Decode the latent's features (b, t, width, 2h, 2w) to (b, 3, t, 8h, 8w).

        Without LR frames, or with a `weight` below 1 in part, the features' own guess of what they show is taken.
        """
        if seen is None:
            seen = self.guess(features)
        elif weight != 1.0:
            own = self.guess(features)
            pairs = ((own.base, seen.base), (own.restored, seen.restored), (own.hidden, seen.hidden))
            seen = Seen(*(torch.lerp(mine, theirs, weight) for mine, theirs in pairs))
        parts = (to_grid(seen.base), to_grid(seen.restored), seen.hidden, features)
        # frame by frame, so that what is wide here is never held for a whole chunk
        frames = zip(*(part.unbind(1) for part in parts), strict=True)
        completed = [self.complete(*frame, self.latent.detail(frame[-1])) for frame in frames]
        return F.pixel_shuffle(torch.stack(completed, 1), GRID).transpose(1, 2)

    def guess(self, features: torch.Tensor) -> Seen:
        """Guess what LR frames would show, from the latent's features."""
        small = _per_frame(self.latent.guess, features)
        height, width = (GRID * side for side in small.shape[-2:])
        frames = [self.restore.clean(frame.float() / 2 + 0.5, (), height, width) for frame in small.unbind(1)]
        restored, hidden = (
            torch.stack(part, axis) for part, axis in zip(zip(*frames, strict=True), (2, 1), strict=True)
        )
        return Seen(self.guess_base(features), (restored * 2 - 1).to(small), hidden)

    def guess_base(self, features: torch.Tensor) -> torch.Tensor:
        """The learned guess of the resized LR frames where none are given: (b, 3, t, 4h, 4w)."""
        small = _per_frame(self.latent.guess, features)
        large = F.interpolate(small.flatten(0, 1), scale_factor=GRID, mode="bicubic", align_corners=False)
        return large.unflatten(0, small.shape[:2]).transpose(1, 2)


class CausalVideoVAE(nn.Module):
    """The pack's built-in video VAE. Latents leave it with about zero mean and unit variance per channel."""

    def __init__(self, config: VAEConfig, ops: ModuleType = nn):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, ops)
        self.decoder = Decoder(config, ops)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def encode(self, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, 3, 4n+1, 8h, 8w) in -1..1 -> normalised latent mean and log-variance, (b, 16, n+1, h, w) each.

        Raises ValueError for a frame count or size that does not fit the 4n+1 and 8-pixel rules.
        """
        frames, height, width = clip.shape[-3:]
        if frames % TIME != 1 or height % SPACE or width % SPACE:
            raise ValueError(
                f"Causal video VAE: a clip needs 4n+1 frames and sides that are multiples of 8 px; got {frames} "
                f"frames of {width}x{height}. Pad it first (layout.sizes.pad_clip)."
            )
        return self.encode_chunk(clip, {})

    def encode_chunk(self, clip: torch.Tensor, memory: Memory) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode the next frames of a clip whose past is in `memory`: 4k+1 frames at its start, 4k later."""
        mean, logvar = self.encoder(clip, memory)
        shift, scale = self._statistics(mean)
        return (mean - shift) / scale, logvar - 2 * scale.log()

    def decode(self, z: torch.Tensor, seen: Seen | None = None) -> torch.Tensor:
        """(b, 16, T, h, w) -> (b, 3, 4T-3, 8h, 8w), about -1..1; `seen` is what LR frames of that size show."""
        return self.decode_chunk(z, seen, {})

    def decode_chunk(
        self,
        z: torch.Tensor,
        seen: Seen | None,
        memory: Memory,
        lr_weight: float = 1.0,
        cuts: Collection[int] = (),
    ) -> torch.Tensor:
        """Decode the next latent frames of a clip whose past is in `memory`.

        `seen` is given for all of a clip or none; `lr_weight` blends it (1) with a learned guess (0). `cuts`, only
        with `seen`, are the frames of this chunk that start a new scene.
        """
        frames = TIME * z.shape[2] - (0 if memory else TIME - 1)
        wanted = (z.shape[0], 3, frames, SPACE * z.shape[3], SPACE * z.shape[4])
        if seen is not None and seen.base.shape != wanted:
            raise ValueError(
                f"Causal video VAE: the LR frames must be resized to {wanted} for a latent of {tuple(z.shape)}; "
                f"got {tuple(seen.base.shape)}. Resize and pad them to the latent's size first."
            )
        shift, scale = self._statistics(z)
        features = self.decoder.latent(z * scale + shift, memory)
        for cut in cuts:  # features of a picture by itself are better than those of a latent frame shared by four
            own = self.decoder.latent(self.encoder(seen.base[:, :, cut : cut + 1], {})[0], {})
            features[:, cut] = torch.lerp(features[:, cut], own[:, 0], lr_weight)
        return self.decoder(features, seen, lr_weight)

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, -1, 1, 1, 1)
        return self.latent_mean.to(like).view(shape), self.latent_std.to(like).view(shape)


# Clips in pieces: what models/layout/pieces.py walks through


class ResizedFrames:
    """LR frames (t, h, w, 3) in 0..1, resized to `size` and padded when asked for, a stretch of time at once."""

    def __init__(self, frames: torch.Tensor, size: ClipSize, mode: str, device: torch.device, dtype: torch.dtype):
        self._frames, self._size, self._mode, self._place = frames, size, mode, (device, dtype)
        self._held: tuple[Window, torch.Tensor] | None = None

    def read(self, frames: Window, tile: Tile) -> torch.Tensor:
        """Give frames (1, 3, n, 8h, 8w) in -1..1 of a tile in cells; past the end the last frame repeats."""
        if self._held is None or self._held[0] != frames:  # the tiles of one span come one after the other
            device, dtype = self._place
            last = len(self._frames) - 1
            part = self._frames[min(frames.start, last) : frames.stop, ..., :3].to(device, torch.float32)
            clip = part.permute(3, 0, 1, 2).unsqueeze(0) * 2 - 1
            clip = resize_clip(clip, self._size.height, self._size.width, self._mode)
            padded = padded_size(self._size, SPACE, TIME)
            clip = pad_clip(clip, ClipSize(frames.length, padded.height, padded.width))
            self._held = frames, clip.to(dtype)
        return self._held[1][tile.scaled(SPACE).region]


class RestoredFrames:
    """What LR frames (t, h, w, 3) in 0..1 show at `size`: restored, and padded, when asked for.

    Every frame is restored whole, from its neighbours in its scene alone, so that tiles and chunks agree exactly. What
    a stretch of time needs is held on the CPU.
    """

    def __init__(
        self,
        frames: torch.Tensor,
        size: ClipSize,
        restorer: Restorers,
        device: torch.device,
        dtype: torch.dtype,
        cuts: Collection[int] = (),
        motion: Motion | None = None,
        convolutions: torch.dtype | None = None,
    ):
        """Take LR frames; `cuts` are those that start a scene, `motion` is estimated pair by pair where not given.

        The restorer's `convolutions`, and these alone, may compute in another dtype: see Restorers.between().
        """
        self._size, self._restorer = size, restorer
        self._scenes = [0, *sorted(cuts), len(frames)]
        self._device, self._dtype = device, dtype
        self._lr = lr = partial(_on_device, frames, device)
        estimate = BlockFlow(quick=True)
        pairs = pair_flows(frames, estimate, device) if motion is None else motion.pairs(device)
        self._flows = DistantFlows(lr, pairs, estimate.refine, device)
        self._verdict = lru_cache(_KEPT)(lambda number: restorer.judge(lr(number)))
        self._weights = lru_cache(_WEARS)(lambda wear: restorer.between(wear, convolutions))
        self._held: tuple[Window, Seen] | None = None

    def read(self, frames: Window, tile: Tile) -> Seen:
        """Give what frames show in a tile of latent cells; past the end the last frame repeats."""
        if self._held is None or self._held[0] != frames:  # the tiles of one span come one after the other
            last, parts = self._scenes[-1] - 1, []
            for number in range(min(frames.start, last), min(frames.stop, last + 1)):
                restored, hidden = self._restored(number)
                base = resize_clip(self._lr(number).unsqueeze(2), self._size.height, self._size.width)[:, :, 0]
                parts.append([part.to("cpu", self._dtype) for part in (base * 2 - 1, restored * 2 - 1, hidden)])
            size = padded_size(self._size, SPACE, TIME)
            whole = ClipSize(frames.length, size.height, size.width)
            base, restored, hidden = (torch.stack([part[k] for part in parts], 2) for k in range(3))
            hidden = pad_clip(hidden, ClipSize(frames.length, size.height // GRID, size.width // GRID))
            self._held = frames, Seen(pad_clip(base, whole), pad_clip(restored, whole), hidden.transpose(1, 2))
        seen, place = self._held[1], (self._device, self._dtype)
        pixels, cells = tile.scaled(SPACE).region, tile.scaled(SPACE // GRID).region
        return Seen(seen.base[pixels].to(*place), seen.restored[pixels].to(*place), seen.hidden[cells].to(*place))

    def frame(self, number: int) -> torch.Tensor:
        """Give a restored frame (1, 3, H, W) in 0..1, on the CPU."""
        return self._restored(number)[0].cpu().clamp_(0, 1)

    def _restored(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give (restored frame in about 0..1, features) of a frame."""
        start = max(edge for edge in self._scenes[:-1] if edge <= number)
        stop = min(edge for edge in self._scenes[1:] if edge > number)
        near = neighbours_in(number, range(start, stop))
        others = [(self._lr(k), *self._flows(number, k)) for k in near]
        wear = self._restorer.wear_of([self._verdict(k) for k in (number, *near)])
        weights, int8 = self._weights(wear)
        what = self._lr(number), others, self._size.height, self._size.width, wear, int8
        return functional_call(self._restorer.clean, weights, what)


def _on_device(frames: torch.Tensor, device: torch.device, number: int) -> torch.Tensor:
    """Give one of frames (t, h, w, 3) as (1, 3, h, w) float32."""
    return frames[number : number + 1, ..., :3].movedim(-1, 1).to(device, torch.float32)


def piece_encoder(vae: CausalVideoVAE, clip: ResizedFrames) -> Callable[[Window, Tile], torch.Tensor]:
    """Make what encodes one piece of a clip, for `encode_pieces`; every tile has a memory of its own."""
    memories: dict[Tile, Memory] = {}

    def encode(frames: Window, tile: Tile) -> torch.Tensor:
        return vae.encode_chunk(clip.read(frames, tile), memories.setdefault(tile, {}))[0]

    return encode


def piece_decoder(
    vae: CausalVideoVAE,
    latent: torch.Tensor,
    lr: RestoredFrames | None,
    size: ClipSize,
    lr_weight: float,
    device: torch.device,
    dtype: torch.dtype,
    cuts: Collection[int] = (),
    detail: float = 1.0,
) -> Callable[[Window, Tile], torch.Tensor]:
    """Make what decodes one piece of a latent (1, 16, T, h, w), for `decode_pieces`; every tile has its own memory.

    Without `lr` the decoder works from its own guess of it; with it, `cuts` are the frames of the clip that start a
    new scene, found on the whole LR frames, so that all tiles and chunks agree, and `detail` is the share, 0..1, of
    what the latent adds to the restored frames. Raises ValueError where the latent has not the grid of `size`.
    """
    grid = latent_size(size, SPACE, TIME)
    if tuple(latent.shape[2:]) != (grid.frames, grid.height, grid.width):
        raise ValueError(
            f"a clip of {size.frames} frames, {size.width}x{size.height} px, needs a latent of "
            f"{grid.frames}x{grid.height}x{grid.width} cells (t, h, w); got {tuple(latent.shape[2:])}. Decode the "
            "latent that was sampled for this size."
        )
    memories: dict[Tile, Memory] = {}

    def decode(window: Window, tile: Tile) -> torch.Tensor:
        z = latent[:, :, window.span][tile.region].to(device, dtype)
        frames = Window(first_frame(window.start, TIME), first_frame(window.stop, TIME))
        seen = None if lr is None else lr.read(frames, tile)
        inside = [cut - frames.start for cut in cuts if frames.start <= cut < frames.stop]
        clip = vae.decode_chunk(z, seen, memories.setdefault(tile, {}), lr_weight, inside)
        return frames_of(clip if seen is None or detail == 1.0 else torch.lerp(seen.restored, clip, detail))

    return decode
