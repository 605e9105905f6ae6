"""Figures on held-out photographs in motion: PSNR against bicubic, and what true neighbours add."""

from __future__ import annotations

import numpy as np
import torch

from .batches import Batch, BatchMaker

CLIPS, FRAMES, SIDE, SEED = 8, 9, 160, 77


def _psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """PSNR-Y in dB of clips (b,3,t,h,w) in -1..1, without a border of 4 px, averaged over frames."""
    weight = torch.tensor([65.481, 128.553, 24.966], device=a.device).view(1, 3, 1, 1, 1)
    luma = [((x.float().clamp(-1, 1) + 1) / 2 * weight).sum(1)[..., 4:-4, 4:-4] for x in (a, b)]
    error = (luma[0] - luma[1]).square().mean((2, 3))
    return float((10 * torch.log10(255**2 / error.clamp_min(1e-10))).mean())


def one_step(networks: torch.nn.Module, batch: Batch, stage: str) -> torch.Tensor:
    """Restore a batch as the default workflow does; in stage A the LR latent stands in for the DiT's."""
    vae, dit = networks.vae, networks.dit
    lr = vae.encode(batch.smooth)[0]
    if stage == "vae":
        return vae.decode(lr, batch.base)
    ones = torch.ones(len(lr), device=lr.device)
    noise = torch.zeros_like(lr)  # one step from t = 1 does not depend on it
    return vae.decode(noise + dit(noise, ones, lr, 0 * ones, batch.references), batch.base)


def _still(batch: Batch) -> Batch:
    """The batch with every frame replaced by its last one."""
    copies = [x[:, :, -1:].expand_as(x) for x in (batch.clip, batch.base, batch.smooth)]
    return Batch(*copies, batch.flow, batch.visible, [])


@torch.no_grad()
def validate(networks: torch.nn.Module, maker: BatchMaker, stage: str) -> dict[str, float]:
    """Return dB figures for bicubic and real LR; `temporal` = last frame with its true past minus with copies."""
    figures = {}
    for preset in ("bicubic", "real"):
        maker.rng = np.random.default_rng(SEED)
        batch = maker.draw(CLIPS, FRAMES, SIDE, preset=preset)
        output = one_step(networks, batch, stage)
        still = one_step(networks, _still(batch), stage)
        last = batch.clip[:, :, -1:]
        baseline = _psnr(batch.base, batch.clip)
        figures[f"{preset}_baseline"] = baseline
        figures[f"{preset}_gain"] = _psnr(output, batch.clip) - baseline
        figures[f"{preset}_temporal"] = _psnr(output[:, :, -1:], last) - _psnr(still[:, :, -1:], last)
        if preset == "bicubic":
            z = networks.vae.encode(batch.clip)[0]
            figures["reconstruction"] = _psnr(networks.vae.decode(z, batch.base), batch.clip)
            figures["reconstruction_without_lr"] = _psnr(networks.vae.decode(z), batch.clip)
    return {key: round(value, 3) for key, value in figures.items()}
