"""A UniMMVSR adapter around a Wan-family transformer of diffusers: what is added, and nothing of the base changed.

Added are: a patch embedding for the LR latent (the channels that widen the base's, zero at the start), a small network
that adds the LR noise level to the time embedding (zero at the start), and low-rank deltas on the linear layers of the
blocks (zero at the start). So an untrained adapter without references equals the base. References join on the token
sequence, clean, without LR, in time ranges of their own.

The forward pass is put together from the base's own modules; latents are (b, c, T, h, w) as the base samples them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn as nn

from ..models.unimmvsr.references import PAPER_RULE, StartRule

# Linear layers of a block that get a delta, by their names in diffusers; the file's names: models.unimmvsr.adapter
LINEARS = (
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "ffn.net.0.proj",
    "ffn.net.2",
)
STEPS = 1000  # the base counts time in thousandths, and the noise level is counted as time is


class AdapterConfig(NamedTuple):
    """Rank of the low-rank deltas (0: none) and where references begin."""

    rank: int = 32
    rule: StartRule = PAPER_RULE


class LowRank(nn.Module):
    """up(down(x)), zero at the start: the delta of one linear layer."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x))


class WanAdapter(nn.Module):
    """Predicts the base's velocity (eps - z_HR) with LR latent, level and references; trains only its own parts."""

    def __init__(self, base: nn.Module, config: AdapterConfig | None = None):
        super().__init__()
        settings, config = base.config, config or AdapterConfig()
        if settings.in_channels != settings.out_channels:
            raise ValueError(
                "Adapter: the base must be a text-to-video model, with as many channels in as out; got "
                f"{settings.in_channels} and {settings.out_channels}. Use a T2V checkpoint."
            )
        self.base = base.requires_grad_(False)
        self.config = config
        width = settings.num_attention_heads * settings.attention_head_dim
        patch = tuple(settings.patch_size)
        self.patch_lr = nn.Conv3d(settings.in_channels, width, patch, patch, bias=False)
        self.level_in = nn.Linear(settings.freq_dim, width)
        self.level_out = nn.Linear(width, width)
        for parameter in (*self.patch_lr.parameters(), *self.level_out.parameters()):
            nn.init.zeros_(parameter)
        self.deltas = nn.ModuleDict()
        self._off = False
        for name, linear in self._linears() if config.rank else ():
            delta = self.deltas[name.replace(".", "/")] = LowRank(linear, config.rank)
            linear.register_forward_hook(self._adds(delta))

    def _linears(self) -> Iterator[tuple[str, nn.Linear]]:
        for number, block in enumerate(self.base.blocks):
            for name in LINEARS:
                yield f"blocks.{number}.{name}", block.get_submodule(name)

    def _adds(self, delta: LowRank):
        def hook(linear: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            if self._off:
                return output
            return output + delta(inputs[0].to(delta.down.weight.dtype)).type_as(output)

        return hook

    @contextlib.contextmanager
    def bare(self):
        """Leave the deltas out for a while: what runs inside is the base itself."""
        self._off = True
        try:
            yield self.base
        finally:
            self._off = False

    def train(self, mode: bool = True) -> WanAdapter:
        """Leave the base as it is: it is not trained."""
        super().train(mode)
        self.base.eval()
        return self

    def forward(
        self,
        z_t: torch.Tensor,
        t: torch.Tensor,
        lr: torch.Tensor | None,
        level: torch.Tensor | None,
        text: torch.Tensor,
        references: Sequence[torch.Tensor] = (),
        starts: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Return eps - z_HR, shaped like z_t.

        t and level (b,) in 0..1; lr: the LR latent, already noised to `level`; text (b, n, width); references:
        latents (b, c, Tr, hr, wr), `starts` their first time indices (None: those of the config's rule).
        Without lr and level this is the base with references. Sides must be multiples of the patch.
        """
        base = self.base
        self._check(z_t, references)
        if starts is None:
            starts = self.config.rule.starts(z_t.shape[2], [r.shape[2] for r in references])
        streams = (z_t, *references)
        tokens = [base.patch_embedding(stream) for stream in streams]
        grid = tokens[0].shape[2:]
        if lr is not None:
            tokens[0] = tokens[0] + self.patch_lr(lr)
        tokens = [part.flatten(2).transpose(1, 2) for part in tokens]
        rotations = [self._rotation(stream, start) for stream, start in zip(streams, (0, *starts), strict=True)]
        rotation = tuple(torch.cat(parts, 1) for parts in zip(*rotations, strict=True))
        time, modulation, text = self._condition(t, level, text)
        x = torch.cat(tokens, 1)
        for block in base.blocks:
            x = block(x, text, modulation, rotation)
        return self._head(x[:, : tokens[0].shape[1]], time, grid)

    def _check(self, z_t: torch.Tensor, references: Sequence[torch.Tensor]) -> None:
        patch = self.base.config.patch_size
        for stream in (z_t, *references):
            if any(side % size for side, size in zip(stream.shape[2:], patch, strict=True)):
                raise ValueError(
                    f"Adapter: latents must have sides that the patch {tuple(patch)} divides; got "
                    f"{tuple(stream.shape[2:])}. Use frames whose sides are multiples of 16 px."
                )

    def _rotation(self, stream: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the base's own rotations of a stream that begins at time index `start`."""
        patch = self.base.config.patch_size
        shape = (*stream.shape[:2], stream.shape[2] + start * patch[0], *stream.shape[3:])
        count = stream[0, 0].numel() // (patch[0] * patch[1] * patch[2])
        longer = stream.new_empty(1).expand(shape)  # only its shape is read
        return tuple(part[:, -count:] for part in self.base.rope(longer))

    def _condition(
        self, t: torch.Tensor, level: torch.Tensor | None, text: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give (time embedding, modulation of the blocks, embedded text), the noise level within the first two."""
        embedder = self.base.condition_embedder
        dtype = embedder.time_proj.weight.dtype
        exact = next(embedder.time_embedder.parameters()).dtype  # diffusers keeps this part in fp32
        time = embedder.time_embedder(embedder.timesteps_proj(t * STEPS).to(exact)).to(dtype)
        if level is not None:
            features = embedder.timesteps_proj(level * STEPS).to(self.level_in.weight.dtype)
            time = time + self.level_out(nn.functional.silu(self.level_in(features))).to(dtype)
        modulation = embedder.time_proj(embedder.act_fn(time)).unflatten(1, (6, -1))
        return time, modulation, embedder.text_embedder(text.to(dtype))

    def _head(self, x: torch.Tensor, time: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
        base, patch = self.base, self.base.config.patch_size
        shift, scale = (base.scale_shift_table + time.unsqueeze(1)).chunk(2, 1)
        x = base.proj_out((base.norm_out(x.float()) * (1 + scale) + shift).type_as(x))
        x = x.unflatten(1, tuple(grid)).unflatten(4, (*patch, -1)).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def flow_matching_loss(
    adapter: nn.Module,
    z: torch.Tensor,
    eps: torch.Tensor,
    t: torch.Tensor,
    lr: torch.Tensor,
    level: torch.Tensor,
    text: torch.Tensor,
    references: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """Give the mean squared error of the velocity, in the base's own sign: eps - z."""
    share = t.view(-1, 1, 1, 1, 1)
    velocity = adapter((1 - share) * z + share * eps, t, lr, level, text, references)
    return (velocity.float() - (eps - z)).square().mean()
