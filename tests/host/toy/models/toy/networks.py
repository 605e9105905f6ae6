"""A toy restorer: a network that answers with the LR clip, and an autoencoder that only regroups pixels.

1. Encode: 2x2 px of a frame become the channels of one cell, times a gain.
2. Predict: the velocity that leads from the noisy latent to the LR latent, whatever the noise was.
3. Decode: cells become pixels again.

So what comes out of a whole graph is the LR clip, resized: anything else is a fault on the way.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

SPACE, CHANNELS = 2, 12


class ToyNet(nn.Module):
    """Velocity (noise - clean) of a flow at time t of (b, 12, t, h, w) latents, towards the LR latent."""

    def __init__(self, ops=nn):
        super().__init__()
        self.mix = ops.Conv3d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: torch.Tensor, lr: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.cat((x, lr), 1)) / t.view(-1, 1, 1, 1, 1)


class ToyVAE(nn.Module):
    """Frames (t, 3, h, w) in -1..1 to cells (t, 12, h/2, w/2) and back, times a gain."""

    def __init__(self, ops=nn):
        super().__init__()
        self.gain = ops.Conv2d(CHANNELS, CHANNELS, 1, bias=False)

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        return self.gain(F.pixel_unshuffle(frames, SPACE))

    def decode(self, cells: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(torch.einsum("oi,tohw->tihw", self.gain.weight[..., 0, 0], cells) * 4, SPACE)


def toy_state() -> dict[str, torch.Tensor]:
    """Make the weights: the velocity is (x - lr) / t, the gain one half."""
    one = torch.eye(CHANNELS)
    return {
        "toy.net.mix.weight": torch.cat((one, -one), 1)[..., None, None, None],
        "toy.net.mix.bias": torch.zeros(CHANNELS),
        "toy.vae.gain.weight": 0.5 * one[..., None, None],
    }
