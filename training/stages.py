"""The stages in which the built-in model is trained, in this order, each as a loss on one batch.

1. latent: the encoder and the first half of the decoder learn to encode what LR frames do not show. The detail read
   from a noised latent is added to the bicubic LR clip and compared with the truth.
2. clean, worn, judge: the restorer learns to restore LR frames without a latent (training/restorer.py): its weights for
   clean frames, then those for worn ones, then to tell such frames apart. It is independent of stage 1.
3. dit: the transformer learns to predict latents, in latent space: flow matching (UniMMVSR paper, equation 1) on noised
   latents (b, 16, T, h, w) with noised LR latents and reference latents. Its tasks come in the paper's order, difficult
   to easy. It needs stage 1.
4. complete: the rest of the decoder learns to combine restored frames with latents as the transformer estimates them.
   It needs all others.

Clips are (b, 3, t, h, w) in -1..1 (see :class:`.batches.Batch`); latents have a quarter of the frames (4n+1 -> n+1) and
an eighth of each side. Every loss takes (networks, batch, generator) and returns a scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..models.layout.pieces import Tile, Window
from ..models.layout.sizes import ClipSize
from ..models.unimmvsr.dit import DiTConfig, UniMMVSRDiT
from ..models.unimmvsr.restorer import GRID
from ..models.unimmvsr.vae import SPACE, CausalVideoVAE, RestoredFrames, Seen, VAEConfig
from .batches import Batch
from .losses import charbonnier, laplacian, lattice, pixel_loss, texture
from .restorer import Windows, judge_loss, window_loss

# Deviation of what is added to latents while the VAE learns: latents must bear small errors.
LATENT_NOISE = 0.1
# Weight of missing detail in the last stage. With 1.6, as in 0.1.0, pictures were sharper than what can be known: two
# tenths of a decibel below the restored frames that they were made from.
TEXTURE = 0.3
# Of dit steps with references: the share that leaves them out; the weight there of what unrelated references change.
ALONE_SHARE, NEUTRAL = 0.35, 5.0


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend over (b, heads, n, d). On a CPU PyTorch's fused backward pass takes 2 to 5 times as long as this."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    q, k = q.to(v), k.to(v)
    with torch.autocast("cpu", enabled=False):
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v


class Networks(torch.nn.Module):
    """The two networks under the key prefixes of the shipped file."""

    def __init__(self, vae_config: VAEConfig, dit_config: DiTConfig):
        super().__init__()
        self.vae = CausalVideoVAE(vae_config)
        self.dit = UniMMVSRDiT(dit_config, attention=attention)
        decoder = self.vae.decoder
        quiet = [self.dit.patch_out, self.dit.condition_out]
        quiet += [decoder.latent.detail, decoder.complete.conv_out]
        for name, module in self.named_modules():
            if name.endswith((".conv2", ".temporal.conv", ".second", ".out")):  # residual branches start at zero
                quiet.append(module)
        for module in quiet:
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
        halves = self.vae.encoder.conv_out.bias.shape[0] // 2
        # the spread that the encoder states is that of LATENT_NOISE, and is not trained
        with torch.no_grad():
            self.vae.encoder.conv_out.bias[halves:] = 2 * np.log(LATENT_NOISE)
            self.vae.encoder.conv_out.weight[halves:] = 0.0
        for block in self.dit.blocks:  # gates start open a little: no dead start
            torch.nn.init.constant_(block.modulation[2::3], 0.1)


@dataclass(frozen=True)
class Latents:
    """A batch in latent space: truth and bilinear LR clip (b, 16, T, h, w), references (b, 16, Tr, h, w) each.

    ``unrelated`` are references of other clips, which must not change the result.
    """

    truth: torch.Tensor
    lr: torch.Tensor
    references: list[torch.Tensor]
    unrelated: list[torch.Tensor]


def latent_loss(networks: Networks, batch: Batch, rng: np.random.Generator) -> torch.Tensor:
    """Stage latent: detail that one convolution reads from the latent's features must complete the bicubic LR clip.

    Trained together with the refinement from the start, the decoder learned to ignore the latent.
    """
    mean = networks.vae.encode(batch.clip)[0]
    detail, guess = read_detail(networks, mean + LATENT_NOISE * torch.randn_like(mean))
    error = batch.base + detail - batch.clip
    size = mean.float().square().mean()
    return charbonnier(error) + 0.1 * laplacian(error) + 0.1 * charbonnier(guess - batch.base) + 1e-3 * size


def read_detail(networks: Networks, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Read from a latent (detail missing from the bicubic LR clip, a guess of that clip), both (b, 3, t, h, w)."""
    decoder, features = networks.vae.decoder, features_of(networks, z)
    cells = decoder.latent.detail(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    return pixels_of(cells), decoder.guess_base(features)


def features_of(networks: Networks, z: torch.Tensor) -> torch.Tensor:
    """Decode a latent to features on the 4x4 grid (b,t,width,2h,2w)."""
    mean, deviation = (x.view(1, -1, 1, 1, 1) for x in (networks.vae.latent_mean, networks.vae.latent_std))
    return networks.vae.decoder.latent(z * deviation + mean, {})


def _conditions(latents: Latents, rng: np.random.Generator):
    """Draw (time, noise level, noised LR latent, noise, noised truth) of every clip; 60 % of the times are 1."""
    z, column = latents.truth, (-1, 1, 1, 1, 1)
    count = len(z)
    t = np.where(rng.random(count) < 0.6, 1.0, 1 / (1 + np.exp(-rng.standard_normal(count))))
    level = np.where(rng.random(count) < 0.5, 0.0, rng.uniform(0.02, 0.6, count))
    t, level = (torch.tensor(v, dtype=torch.float32, device=z.device) for v in (t, level))
    lr = (1 - level.view(column)) * latents.lr + level.view(column) * torch.randn_like(z)
    eps = torch.randn_like(z)
    return t, level, lr, eps, (1 - t.view(column)) * z + t.view(column) * eps


def dit_loss(networks: Networks, latents: Latents, rng: np.random.Generator) -> torch.Tensor:
    """Stage dit: flow matching on the velocity z_HR - eps, small times weighted down.

    In a share of steps references are left out, and unrelated references must give the same result as none. Without
    this any picture attracts some attention, which weakens the added detail; where the network adds too much, even a
    wrong picture then improved the result.
    """
    t, level, lr, eps, noisy = _conditions(latents, rng)
    alone = bool(latents.unrelated) and rng.random() < ALONE_SHARE
    velocity = networks.dit(noisy, t, lr, level, () if alone else latents.references).float()
    error = (velocity - (latents.truth - eps)).square().mean((1, 2, 3, 4))
    if alone:
        distracted = networks.dit(noisy, t, lr, level, latents.unrelated).float()
        error = error + NEUTRAL * (distracted - velocity.detach()).square().mean((1, 2, 3, 4))
    return (error * t.square() / t.clamp_min(0.4).square()).mean()


def clean_loss(networks: Networks, windows: Windows, rng: np.random.Generator):
    """Stage clean: compare restored windows with the truth."""
    return window_loss(networks.vae.decoder.restore.clean, windows)


def worn_loss(networks: Networks, windows: Windows, rng: np.random.Generator):
    """Stage worn: the same with the other weights."""
    return window_loss(networks.vae.decoder.restore.worn, windows, wear=1.0)


def verdict_loss(networks: Networks, seen: tuple[torch.Tensor, torch.Tensor], rng: np.random.Generator):
    """Stage judge: compare verdicts on LR windows with which of them are worn."""
    return judge_loss(networks.vae.decoder.restore.judge, seen)


def pixels_of(cells: torch.Tensor) -> torch.Tensor:
    """(b, t, 48, h, w) -> (b, 3, t, 4h, 4w)."""
    return F.pixel_shuffle(cells, GRID).transpose(1, 2)


def complete_loss(networks: Networks, both: tuple[Batch, Seen], rng: np.random.Generator) -> torch.Tensor:
    """Stage complete: decode estimates of the transformer, partly mixed with the true latent; compare with the truth.

    The guess of the LR frames is trained, too, for hosts that decode without LR frames; 6 % of steps decode like that.
    """
    decoder, (batch, seen) = networks.vae.decoder, both
    with torch.no_grad():
        latents = encode_batch(networks, batch)
        t, level, lr, _, noisy = _conditions(latents, rng)
        velocity = networks.dit(noisy, t, lr, level, latents.references).float()
        clean = noisy + t.view(-1, 1, 1, 1, 1) * velocity
        true = _true_share(clean, rng)
        clean = torch.lerp(clean, latents.truth + LATENT_NOISE * torch.randn_like(clean), true)
    features = features_of(networks, clean)
    if rng.random() < 0.06:
        seen = None
    return _look(decoder(features, seen), batch) + 0.1 * charbonnier(decoder.guess_base(features) - batch.base)


def _true_share(like: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Draw the share of the true latent (b,16,T,h,w): 0 for half of the clips, 1 for a quarter, else by region."""
    parts = torch.from_numpy(4 * rng.standard_normal((len(like), 1, 1, 4, 4))).to(like)
    parts = F.interpolate(parts, like.shape[2:], mode="trilinear").sigmoid()
    kind = torch.from_numpy(rng.random(len(like))).to(like).view(-1, 1, 1, 1, 1)
    return torch.where(kind < 0.5, 0.0, torch.where(kind < 0.75, 1.0, parts))


def _look(output: torch.Tensor, batch: Batch) -> torch.Tensor:
    pixels = pixel_loss(output, batch.clip, batch.flow, batch.visible)
    return pixels + TEXTURE * texture(output, batch.clip) + lattice(output, batch.clip)


@torch.no_grad()
def see(networks: Networks, batch: Batch) -> Seen:
    """Restore the LR frames of a batch, as the decoder does at run time, with the motion that is found on them."""
    shown, place = [], (batch.clip.device, torch.float32)
    count, height, width = batch.clip.shape[-3:]
    for clip in batch.low:
        frames = clip.movedim(1, -1)
        size = ClipSize(count, height, width)
        restored = RestoredFrames(frames, size, networks.vae.decoder.restore, *place)
        shown.append(restored.read(Window(0, count), Tile(0, 0, height // SPACE, width // SPACE)))
    return Seen(*(torch.cat([getattr(seen, part) for seen in shown]) for part in ("base", "restored", "hidden")))


@torch.no_grad()
def encode_batch(networks: Networks, batch: Batch, unrelated: Sequence[torch.Tensor] = ()) -> Latents:
    """Encode the clips, LR clips and references of a batch: all that the transformer sees."""
    clips = (batch.clip, batch.smooth, *batch.references, *unrelated)
    truth, lr, *seen = [networks.vae.encode(clip)[0].float() for clip in clips]
    count = len(batch.references)
    return Latents(truth, lr, seen[:count], seen[count:])


LOSSES: dict[str, Callable] = {
    "latent": latent_loss,
    "clean": clean_loss,
    "worn": worn_loss,
    "judge": verdict_loss,
    "dit": dit_loss,
    "complete": complete_loss,
}


def trained_parts(networks: Networks, stage: str) -> list[torch.nn.Module]:
    """List the modules that a stage trains."""
    vae = networks.vae
    return {
        "latent": [vae.encoder, vae.decoder.latent],
        "clean": [vae.decoder.restore.clean],
        "worn": [vae.decoder.restore.worn],
        "judge": [vae.decoder.restore.judge],
        "dit": [networks.dit],
        "complete": [vae.decoder.latent, vae.decoder.complete],
    }[stage]
