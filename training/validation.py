"""Figures on held-out photographs in motion: PSNR against bicubic, what true neighbours and references add."""

from __future__ import annotations

import torch

from .batches import Batch, BatchMaker
from .stages import read_detail, see

CLIPS, FRAMES, SIDE, SEED = 8, 9, 160, 77


def _psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """PSNR-Y in dB of clips (b,3,t,h,w) in -1..1, without a border of 4 px, averaged over frames."""
    weight = torch.tensor([65.481, 128.553, 24.966], device=a.device).view(1, 3, 1, 1, 1)
    luma = [((x.float().clamp(-1, 1) + 1) / 2 * weight).sum(1)[..., 4:-4, 4:-4] for x in (a, b)]
    error = (luma[0] - luma[1]).square().mean((2, 3))
    return float((10 * torch.log10(255**2 / error.clamp_min(1e-10))).mean())


def one_step(networks: torch.nn.Module, batch: Batch, references=()) -> torch.Tensor:
    """Restore a batch as the default workflow does."""
    vae = networks.vae
    return vae.decode(estimate(networks, batch, references), see(networks, batch))


def estimate(networks: torch.nn.Module, batch: Batch, references=()) -> torch.Tensor:
    """Estimate the clean latent in one step from t = 1, which does not depend on noise."""
    lr = networks.vae.encode(batch.smooth)[0]
    seen = [networks.vae.encode(reference)[0] for reference in references]
    ones, noise = torch.ones(len(lr), device=lr.device), torch.zeros_like(lr)
    return noise + networks.dit(noise, ones, lr, 0 * ones, seen)


def _still(batch: Batch) -> Batch:
    """Replace every frame of a batch by its last one."""
    copies = [x[:, :, -1:].expand_as(x) for x in (batch.clip, batch.base, batch.smooth)]
    return Batch(*copies, batch.flow, batch.visible, [], [low[-1:].expand_as(low) for low in batch.low])


def _latent_figures(networks: torch.nn.Module, batch: Batch) -> dict[str, float]:
    """PSNR over bicubic (dB) of detail read by one convolution from the true latent and from the LR clip's."""
    figures, base = {}, _psnr(batch.base, batch.clip)
    for name, clip in (("true", batch.clip), ("lr", batch.smooth)):
        detail, guess = read_detail(networks, networks.vae.encode(clip)[0])
        figures[f"{name}_latent_gain"] = _psnr(batch.base + detail, batch.clip) - base
        figures[f"{name}_latent_guess"] = _psnr(guess, batch.base)
    return figures


def _reference_figures(networks: torch.nn.Module, maker: BatchMaker) -> dict[str, float]:
    """Mean square error of the estimated latent with right references and wrong ones, as a share of that with none."""
    figures = {}
    for task in ("images", "video"):
        batch = maker.seek(SEED, 1).draw(CLIPS, FRAMES, SIDE, task, preset="bicubic")
        truth = networks.vae.encode(batch.clip)[0].float()
        wrong = [reference.roll(1, 0) for reference in batch.references]
        errors = [
            (estimate(networks, batch, seen).float() - truth).square().mean() for seen in ((), batch.references, wrong)
        ]
        figures[f"{task}_right"], figures[f"{task}_wrong"] = (float(e / errors[0]) for e in errors[1:])
        figures["latent_error"] = float(errors[0])
    return figures


@torch.no_grad()
def validate(networks: torch.nn.Module, maker: BatchMaker, stage: str) -> dict[str, float]:
    """Return dB figures for bicubic and real LR: over bicubic of the restored frames, and of the completed ones.

    `temporal` is what the last frame gains from its true past over copies of itself.
    """
    figures = {}
    for preset in ("bicubic", "real"):
        batch = maker.seek(SEED).draw(CLIPS, FRAMES, SIDE, preset=preset)
        if stage == "latent":
            return {key: round(value, 3) for key, value in _latent_figures(networks, batch).items()}
        baseline, last = _psnr(batch.base, batch.clip), batch.clip[:, :, -1:]
        if stage == "dit" and preset == "bicubic":
            figures |= _reference_figures(networks, maker)
        if stage == "dit":
            continue
        if preset == "bicubic":
            z = networks.vae.encode(batch.clip)[0]
            figures["reconstruction"] = _psnr(networks.vae.decode(z, see(networks, batch)), batch.clip) - baseline
            figures["reconstruction_without_lr"] = _psnr(networks.vae.decode(z), batch.clip)
        output, still = one_step(networks, batch), one_step(networks, _still(batch))
        figures[f"{preset}_baseline"] = baseline
        figures[f"{preset}_restored"] = _psnr(see(networks, batch).restored, batch.clip) - baseline
        figures[f"{preset}_gain"] = _psnr(output, batch.clip) - baseline
        figures[f"{preset}_temporal"] = _psnr(output[:, :, -1:], last) - _psnr(still[:, :, -1:], last)
    if stage == "complete":
        figures |= _reference_figures(networks, maker)
    return {key: round(value, 3) for key, value in figures.items()}
