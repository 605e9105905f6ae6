"""The text encoder of MGLD-VSR: OpenCLIP's, up to its last but one block.

1. Tokens (b, 77) -> embeddings (b, 77, 1024), plus a learned position each.
2. All blocks but the last: layer norm, attention to earlier tokens, plus x; layer norm, feed-forward, plus x.
3. Layer norm -> (b, 77, 1024), what the UNet attends to.

The model was trained on the empty prompt only, so this runs once and its result is a constant. Module names are those
of the published weights; the last block, the projection and the scale are in every file and have no part here.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass(frozen=True)
class TextConfig:
    """Shape of :class:`OpenCLIPText`."""

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 1024
    heads: int = 16  # in no weight
    layers: int = 24
    projection: int = 1024  # of a matrix that is in every file and unused here


class SelfAttention(nn.Module):
    """Multi-head self-attention that sees no later token."""

    def __init__(self, width: int, heads: int, ops: ModuleType):
        super().__init__()
        self.heads = heads
        # Published as bare parameters: query, key and value one after the other.
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = ops.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = F.linear(x, self.in_proj_weight.to(x), self.in_proj_bias.to(x))
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in qkv.chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Feed-forward of four times the width."""

    def __init__(self, width: int, ops: ModuleType):
        super().__init__()
        self.c_fc = ops.Linear(width, 4 * width)
        self.c_proj = ops.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Attention, then feed-forward, each after a norm and with residual."""

    def __init__(self, width: int, heads: int, ops: ModuleType):
        super().__init__()
        self.ln_1 = ops.LayerNorm(width)
        self.attn = SelfAttention(width, heads, ops)
        self.ln_2 = ops.LayerNorm(width)
        self.mlp = FeedForward(width, ops)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Holds the blocks under their published name."""

    def __init__(self, config: TextConfig, ops: ModuleType):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(config.width, config.heads, ops) for _ in range(config.layers))


class OpenCLIPText(nn.Module):
    """Turns tokens into what the UNet attends to."""

    def __init__(self, config: TextConfig, ops: ModuleType = nn):
        super().__init__()
        self.config = config
        self.token_embedding = ops.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.zeros(config.context_length, config.width))
        self.transformer = Transformer(config, ops)
        self.ln_final = ops.LayerNorm(config.width)
        self.text_projection = nn.Parameter(torch.zeros(config.width, config.projection))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (b, context_length) -> (b, context_length, width)."""
        x = self.token_embedding(tokens)
        x = x + self.positional_embedding.to(x)
        for block in self.transformer.resblocks[:-1]:
            x = block(x)
        return self.ln_final(x)

    def empty_prompt(self) -> torch.Tensor:
        """Encode "": (1, context_length, width). Start and end are the last two tokens; zeros fill the rest."""
        tokens = torch.zeros(1, self.config.context_length, dtype=torch.long, device=self.positional_embedding.device)
        tokens[0, 0], tokens[0, 1] = self.config.vocab_size - 2, self.config.vocab_size - 1
        return self(tokens)
