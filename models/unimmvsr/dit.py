"""The UniMMVSR diffusion transformer at small size (paper sections 3.1 and 3.2; docs/systems/unimmvsr.md).

From a noisy latent (b, c, T, h, w) to its velocity, in order:

1. The noisy latent, scaled by how much signal it holds, and the LR latent are joined on the channels (2c); a reference
   (b, c, Tr, hr, wr), which is clean, is joined with zeros.
2. Every stream is cut into 2x2 patches: tokens (b, T * h/2 * w/2, width). A learned vector says whether a token is of
   the target, an identity picture or a reference video. Odd sides are padded to the patch and cropped at the end.
3. All tokens of all streams make one sequence (b, n, width). Each has a position (time, row, column): the target's time
   begins at 0, every reference has a range of its own.
4. Time step and LR noise level make one condition, which shifts, scales and gates every part of every block.
5. Blocks: self-attention inside each frame, self-attention over the whole sequence, cross-attention to text where the
   weights have it, feed-forward.
6. The target's tokens alone become latent patches again: a change of the clean estimate, from which the velocity
   z_HR - eps follows (paper, equation 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..schedules import timestep_features
from ..transformer import Attention
from .references import BUILT_IN_RULE

PATCH = 2
TIME_CHANNELS = 128
USUAL_TOKENS = 256  # attention is as sharp as trained at any number of tokens: scores grow with its logarithm
SMALLEST_T = 1e-3  # the velocity divides by t; no sampler asks for less
TARGET, IMAGE, VIDEO = 0, 1, 2  # rows of the kind embedding

THETA = 100.0  # base of the rotary frequencies: grids here are tens of tokens a side, not thousands

Grid = tuple[int, int, int]  # tokens of one stream along time, rows, columns


@dataclass(frozen=True)
class DiTConfig:
    """Widths and depths of the network; `text_width` 0 means weights without text layers."""

    latent_channels: int = 16
    width: int = 192
    depth: int = 6
    heads: int = 6
    ffn_ratio: int = 3
    text_width: int = 0


def patchify(z: torch.Tensor) -> tuple[torch.Tensor, Grid]:
    """(b, c, T, h, w) -> (b, T*ceil(h/2)*ceil(w/2), 4c) and the token grid; odd sides repeat their last cell."""
    height, width = z.shape[-2:]
    if height % PATCH or width % PATCH:
        z = F.pad(z, (0, width % PATCH, 0, height % PATCH, 0, 0), mode="replicate")
    x = F.pixel_unshuffle(z.transpose(1, 2), PATCH)
    grid = (x.shape[1], x.shape[3], x.shape[4])
    return x.flatten(3).transpose(2, 3).flatten(1, 2), grid


def unpatchify(tokens: torch.Tensor, grid: Grid, height: int, width: int) -> torch.Tensor:
    """Inverse of :func:`patchify`; crops to height x width."""
    x = tokens.unflatten(1, (grid[0], grid[1] * grid[2])).transpose(2, 3).unflatten(3, grid[1:])
    return F.pixel_shuffle(x, PATCH).transpose(1, 2)[..., :height, :width]


def positions(frames: int, rows: int, cols: int, start: int, device: torch.device) -> torch.Tensor:
    """Positions (time, row, column) of a grid of tokens, time outermost: (frames*rows*cols, 3) float32."""
    axes = (torch.arange(n, device=device, dtype=torch.float32) for n in (frames, rows, cols))
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    grid[..., 0] += start
    return grid.view(-1, 3)


def rotation(position: torch.Tensor, head_width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, (tokens, head_width/2) each, of the rotation at each position.

    A head's channels are split over (time, row, column); each part is even, and time takes the remainder.
    """
    side = head_width // 3 // 2 * 2
    angles = []
    for axis, width in enumerate((head_width - 2 * side, side, side)):
        steps = torch.arange(0, width, 2, device=position.device, dtype=torch.float32)
        angles.append(position[:, axis : axis + 1] * THETA ** (-steps / width))
    angle = torch.cat(angles, 1)
    return angle.cos(), angle.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate channel i with channel i + head_width/2 of x (..., tokens, head_width)."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)


class SelfAttention(nn.Module):
    """Multi-head self-attention with RMS-normalised queries and keys and rotary positions.

    A clip at 4K with references has a hundred times the tokens of a training clip. With plain scores the one token
    that matters would drown among them; scaled by log(tokens) its share stays (Chiang and Cholak 2022).
    """

    def __init__(self, config: DiTConfig, ops: ModuleType, attention: Attention):
        super().__init__()
        self.heads = config.heads
        self.qkv = ops.Linear(config.width, 3 * config.width)
        self.out = ops.Linear(config.width, config.width)
        self.q_norm = nn.Parameter(torch.ones(config.width // config.heads))
        self.k_norm = nn.Parameter(torch.ones(config.width // config.heads))
        self.attention = attention

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = rotate(F.rms_norm(q, q.shape[-1:], self.q_norm.to(q), 1e-6), cos, sin)
        k = rotate(F.rms_norm(k, k.shape[-1:], self.k_norm.to(k), 1e-6), cos, sin)
        q = q * (math.log(x.shape[1]) / math.log(USUAL_TOKENS))
        return self.out(self.attention(q, k, v).transpose(1, 2).flatten(2))


class TextAttention(nn.Module):
    """Cross-attention from tokens to text."""

    def __init__(self, config: DiTConfig, ops: ModuleType, attention: Attention):
        super().__init__()
        self.heads = config.heads
        self.q = ops.Linear(config.width, config.width)
        self.kv = ops.Linear(config.width, 2 * config.width)
        self.out = ops.Linear(config.width, config.width)
        self.attention = attention

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(text).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(self.attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """2-D attention, 3-D attention, text attention (if any), feed-forward."""

    def __init__(self, config: DiTConfig, ops: ModuleType, attention: Attention):
        super().__init__()
        width = config.width
        self.attn_frame = SelfAttention(config, ops, attention)
        self.attn_clip = SelfAttention(config, ops, attention)
        self.attn_text = TextAttention(config, ops, attention) if config.text_width else None
        self.ffn_in = ops.Linear(width, config.ffn_ratio * width)
        self.ffn_out = ops.Linear(config.ffn_ratio * width, width)
        self.modulation = nn.Parameter(torch.zeros(_modulations(config), width))

    def forward(
        self,
        x: torch.Tensor,
        condition: torch.Tensor,
        text: torch.Tensor | None,
        grids: Sequence[Grid],
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        parts = (self.modulation.to(condition) + condition).unsqueeze(2).unbind(1)
        shift, scale, gate = parts[:3]
        x = x + gate * self._inside_frames(_modulate(x, shift, scale), grids, cos, sin)
        shift, scale, gate = parts[3:6]
        x = x + gate * self.attn_clip(_modulate(x, shift, scale), cos, sin)
        if self.attn_text is not None and text is not None:
            shift, scale, gate = parts[9:12]
            x = x + gate * self.attn_text(_modulate(x, shift, scale), text)
        shift, scale, gate = parts[6:9]
        return x + gate * self.ffn_out(F.gelu(self.ffn_in(_modulate(x, shift, scale))))

    def _inside_frames(
        self, x: torch.Tensor, grids: Sequence[Grid], cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        outputs, start = [], 0
        for frames, rows, cols in grids:
            count = rows * cols
            part = x[:, start : start + frames * count].reshape(-1, count, x.shape[2])
            # inside a frame every token has the same time, so the first frame's rotation serves all of them
            part = self.attn_frame(part, cos[start : start + count], sin[start : start + count])
            outputs.append(part.view(x.shape[0], frames * count, x.shape[2]))
            start += frames * count
        return torch.cat(outputs, 1)


def _modulations(config: DiTConfig) -> int:
    return 12 if config.text_width else 9  # shift, scale, gate of each part


def _modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class UniMMVSRDiT(nn.Module):
    """Predicts the velocity z_HR - eps (paper, equation 1) from the noisy latent, the LR latent and references."""

    def __init__(self, config: DiTConfig, ops: ModuleType = nn, attention: Attention = F.scaled_dot_product_attention):
        super().__init__()
        self.config = config
        self.patch_size = (1, PATCH, PATCH)  # latent frames, rows, columns of a token, under the host's own name
        cell = PATCH**2 * config.latent_channels
        self.patch_in = ops.Linear(2 * cell, config.width)
        self.kind = nn.Parameter(torch.zeros(3, config.width))
        self.time_in = ops.Linear(TIME_CHANNELS, config.width)
        self.level_in = ops.Linear(TIME_CHANNELS, config.width)
        self.condition_out = ops.Linear(config.width, _modulations(config) * config.width)
        self.text_in = ops.Linear(config.text_width, config.width) if config.text_width else None
        self.blocks = nn.ModuleList(Block(config, ops, attention) for _ in range(config.depth))
        self.patch_out = ops.Linear(config.width, cell)

    def forward(
        self,
        z_t: torch.Tensor,
        t: torch.Tensor,
        lr: torch.Tensor,
        noise_level: torch.Tensor,
        references: Sequence[torch.Tensor] = (),
        text: torch.Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
        starts: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Return the velocity z_HR - eps, shaped like z_t (b, 16, T, h, w).

        t (b,) in 0..1; lr: the LR latent, already noised to `noise_level` (b,) in 0..1; references: latents
        (b, 16, Tr, hr, wr) of any size, one frame = an image; `starts`: their first time indices, None: those of
        BUILT_IN_RULE; text (b, n, text_width), ignored by weights without text layers. `progress(done, total)` is
        called after every block.

        Inside, the network estimates the clean latent and the velocity follows from it. The noisy latent enters
        through its Wiener gain (1-t) / ((1-t)^2 + t^2), which is 0 at t = 1: pure noise is silent, so one step
        from t = 1 gives the posterior mean, whatever the seed.
        """
        self._check(z_t, lr, references)
        column = (-1, 1, 1, 1, 1)
        at = t.to(z_t).view(column)
        signal = z_t * (1 - at) / ((1 - at) ** 2 + at**2)
        tokens, grids, cos, sin = self._tokens(signal, lr, references, starts)
        condition = self._condition(t, noise_level, tokens.dtype)
        if self.text_in is not None and text is not None:
            text = self.text_in(text.to(tokens))
        for done, block in enumerate(self.blocks, 1):
            tokens = block(tokens, condition, text, grids, cos, sin)
            if progress is not None:
                progress(done, len(self.blocks))
        target = math.prod(grids[0])
        change = self.patch_out(F.rms_norm(tokens[:, :target], tokens.shape[-1:], eps=1e-6))
        change = unpatchify(change, grids[0], *z_t.shape[-2:])
        trust = at**2 / ((1 - at) ** 2 + at**2)  # in the LR latent: all of it at t = 1, none at t = 0
        clean = signal + trust * (1 - noise_level.to(lr).view(column)) * lr + change
        return (clean - z_t) / at.clamp_min(SMALLEST_T)

    def _check(self, z_t: torch.Tensor, lr: torch.Tensor, references: Sequence[torch.Tensor]) -> None:
        channels = self.config.latent_channels
        if lr.shape != z_t.shape:
            raise ValueError(
                f"UniMMVSR: the LR latent must have the shape of the sampled latent {tuple(z_t.shape)}; got "
                f"{tuple(lr.shape)}. Sample the latent that belongs to this LR clip."
            )
        for number, reference in enumerate(references, 1):
            if reference.ndim != 5 or reference.shape[1] != channels:
                raise ValueError(
                    f"UniMMVSR: reference {number} must be a latent of {channels} channels (b, {channels}, T, h, w); "
                    f"got {tuple(reference.shape)}. Encode it with the VAE that came with this restorer."
                )

    def _tokens(
        self, signal: torch.Tensor, lr: torch.Tensor, references: Sequence[torch.Tensor], starts: Sequence[int] | None
    ) -> tuple[torch.Tensor, list[Grid], torch.Tensor, torch.Tensor]:
        streams = [torch.cat((signal, lr), 1)]
        streams += [torch.cat((r, torch.zeros_like(r)), 1).to(signal) for r in references]
        if not references:
            starts = ()
        elif starts is None:
            starts = BUILT_IN_RULE.starts(signal.shape[2], [r.shape[2] for r in references])
        kinds = [TARGET] + [IMAGE if r.shape[2] == 1 else VIDEO for r in references]
        tokens, grids, places = [], [], []
        for stream, start, kind in zip(streams, (0, *starts), kinds, strict=True):
            patches, grid = patchify(stream)
            tokens.append(self.patch_in(patches) + self.kind[kind].to(patches))
            grids.append(grid)
            places.append(positions(*grid, start, signal.device))
        cos, sin = rotation(torch.cat(places), self.config.width // self.config.heads)
        return torch.cat(tokens, 1), grids, cos.to(signal), sin.to(signal)

    def _condition(self, t: torch.Tensor, noise_level: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        # Both are values in 0..1, scaled by 1000 as time steps are.
        time, level = (
            timestep_features(value * 1000, TIME_CHANNELS, sines_first=True).to(dtype)
            for value in (t.float(), noise_level.float())
        )
        time, level = self.time_in(time), self.level_in(level)
        return self.condition_out(F.silu(time + level)).unflatten(1, (-1, self.config.width))
