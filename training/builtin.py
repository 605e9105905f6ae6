"""Train the built-in model: `python3 run.py train --photos FOLDER [FOLDER ...]`.

Stage A trains the VAE: its decoder is shown no latent (0), the LR latent, the true latent and a noisy one in turn,
so that it works with whatever the DiT can tell it. Stage B freezes the encoder and trains the DiT (flow matching,
paper equation 1, with noised LR latents and references) together with the decoder through decoded one-step outputs.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ..models.checkpoints import save_state
from ..models.unimmvsr.config import DiTConfig, VAEConfig
from ..models.unimmvsr.dit import UniMMVSRDiT
from ..models.unimmvsr.vae import CausalVideoVAE
from .batches import TASKS, Batch, BatchMaker
from .losses import lattice, pixel_loss, texture
from .photos import corpus_hash, find_photos, load_photo
from .validation import validate

log = logging.getLogger(__name__)
LARGEST_GRADIENT = 0.1  # norm; steps are at about 0.02, rare ones at 5
HELD_OUT = ("rocket", "chelsea", "hubble_deep_field", "carmine_de_fazio")
UNLICENSED = ("page", "motorcycle_left", "motorcycle_right")  # scikit-image states no licence for these


@dataclass(frozen=True)
class Settings:
    """What a run depends on, next to the photographs."""

    seed: int = 1
    vae_steps: int = 6500
    dit_steps: int = 4150
    vae_batch: tuple[int, int, int] = (8, 5, 64)  # clips, frames, side in px: many small steps first ...
    dit_batch: tuple[int, int, int] = (6, 9, 96)  # ... then longer and larger clips
    vae_rate: float = 1e-3
    dit_rate: float = 6e-4
    ema: float = 0.998


class Networks(torch.nn.Module):
    """The two networks under the key prefixes of the shipped file."""

    def __init__(self, vae_config: VAEConfig, dit_config: DiTConfig):
        super().__init__()
        self.vae = CausalVideoVAE(vae_config)
        self.dit = UniMMVSRDiT(dit_config)
        quiet = [self.dit.patch_out, self.dit.condition_out, self.vae.decoder.refine.conv_out]
        for name, module in self.named_modules():
            if name.endswith((".conv2", ".temporal.conv")):  # residual branches start at zero
                quiet.append(module)
        for module in quiet:
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
        halves = self.vae.encoder.conv_out.bias.shape[0] // 2
        with torch.no_grad():  # latents start nearly noiseless, or the decoder would learn to ignore them
            self.vae.encoder.conv_out.bias[halves:] = -6.0
            self.vae.encoder.conv_out.weight[halves:] *= 0.1
        for block in self.dit.blocks:  # gates start open a little: no dead start
            torch.nn.init.constant_(block.modulation[2::3], 0.1)


class Average:
    """Exponential moving average of a module's parameters and buffers."""

    def __init__(self, module: torch.nn.Module, decay: float):
        self.decay = decay
        self.state = {key: value.detach().clone().float() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            self.state[key].lerp_(value.float(), 1 - decay)


def rate_share(step: int, steps: int) -> float:
    """Share of the learning rate: linear warm-up over 100 steps, then a cosine down to 2 %."""
    return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def vae_loss(networks: Networks, batch: Batch, rng: np.random.Generator) -> torch.Tensor:
    """Stage A on one batch: pixel loss, KL 1e-6; each clip gets one of four latents."""
    vae = networks.vae
    mean, logvar = vae.encode(batch.clip)
    kl = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
    truth = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
    low = vae.encode(batch.smooth)[0]
    level = torch.rand(len(mean), 1, 1, 1, 1, device=mean.device)
    noisy = (1 - level) * truth + level * torch.randn_like(mean) * truth.detach().float().std()
    if rng.random() < 0.1:  # no LR frames: the latent alone must do
        kinds, base = np.zeros(len(mean), int), None
    else:
        kinds, base = rng.choice(4, len(mean), p=[0.25, 0.1, 0.35, 0.3]), batch.base
    options = (truth, noisy, low, torch.zeros_like(mean))
    z = torch.stack([options[kind][i] for i, kind in enumerate(kinds)])
    return pixel_loss(vae.decode(z, base), batch.clip, batch.flow, batch.visible) + 1e-6 * kl


def cascade_loss(networks: Networks, batch: Batch, rng: np.random.Generator) -> torch.Tensor:
    """Stage B on one batch: flow matching in latent space, pixel and texture loss of the decoded clean estimate."""
    vae, dit = networks.vae, networks.dit
    with torch.no_grad():
        z = vae.encode(batch.clip)[0].float()
        lr = vae.encode(batch.smooth)[0].float()
        references = [vae.encode(reference)[0].float() for reference in batch.references]
    count, column = len(z), (-1, 1, 1, 1, 1)
    t = np.where(rng.random(count) < 0.45, 1.0, 1 / (1 + np.exp(-rng.standard_normal(count))))
    level = np.where(rng.random(count) < 0.5, 0.0, rng.uniform(0.02, 0.6, count))
    t, level = (torch.tensor(v, dtype=torch.float32, device=z.device) for v in (t, level))
    noised_lr = (1 - level.view(column)) * lr + level.view(column) * torch.randn_like(lr)
    eps = torch.randn_like(z)
    z_t = (1 - t.view(column)) * z + t.view(column) * eps
    velocity = dit(z_t, t, noised_lr, level, references).float()
    matching = (velocity - (z - eps)).square().mean((1, 2, 3, 4)) * t.square() / t.clamp_min(0.4).square()
    clean = z_t + t.view(column) * velocity
    base = None if rng.random() < 0.08 else batch.base
    output = vae.decode(clean, base)
    pixels = pixel_loss(output, batch.clip, batch.flow, batch.visible)
    look = 1.6 * texture(output, batch.clip) + 1.0 * lattice(output, batch.clip)
    return pixels + look + 0.02 * matching.mean()


@torch.no_grad()
def normalise_latent(networks: Networks, maker: BatchMaker, settings: Settings) -> None:
    """Set the VAE's latent statistics from 16 batches, so that latents have zero mean and unit variance."""
    vae = networks.vae
    latents = [vae.encode(maker.draw(*settings.dit_batch).clip)[0] for _ in range(16)]
    latents = torch.cat(latents).float()
    vae.latent_mean.copy_(latents.mean((0, 2, 3, 4)))
    vae.latent_std.copy_(latents.std((0, 2, 3, 4)).clamp_min(1e-3))


class Trainer:
    """Runs the two stages, keeps checkpoints in `folder`, and resumes from the last one."""

    def __init__(
        self, settings: Settings, maker: BatchMaker, held_out: BatchMaker, folder: Path, device: str
    ):
        torch.manual_seed(settings.seed)
        self.settings, self.maker, self.held_out, self.folder = settings, maker, held_out, folder
        self.device = torch.device(device)
        self.networks = Networks(VAEConfig(refine_width=64, refine_blocks=10), DiTConfig()).to(self.device)
        self.average = Average(self.networks, settings.ema)
        self.figures: list[dict] = []
        self.optimiser: torch.optim.Optimizer | None = None
        self.stage, self.step = "vae", 0

    def parameters(self) -> list[torch.nn.Parameter]:
        """What the current stage trains: all of the VAE, or the DiT and the VAE's decoder."""
        if self.stage == "vae":
            return list(self.networks.vae.parameters())
        return [*self.networks.dit.parameters(), *self.networks.vae.decoder.parameters()]

    def run(self, every: int) -> None:
        """Train to the end of both stages, with a checkpoint and a validation every `every` steps."""
        if (self.folder / "state.pt").exists():
            self._load()
        for stage, steps in (("vae", self.settings.vae_steps), ("cascade", self.settings.dit_steps)):
            if self.stage == "vae" and stage == "cascade":
                self.networks.load_state_dict(self.average.state)
                normalise_latent(self.networks, self.maker, self.settings)
                self.stage, self.step, self.optimiser = stage, 0, None
                self.average = Average(self.networks, self.settings.ema)
            if self.stage == stage:
                self._run_stage(steps, every)

    def _run_stage(self, steps: int, every: int) -> None:
        if self.optimiser is None:
            self.optimiser = torch.optim.AdamW(self.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
        started, losses = time.monotonic(), []
        while self.step < steps:
            losses.append(self._step(steps))
            self.step += 1
            if self.step % 100 == 0:
                pace = (time.monotonic() - started) / len(losses)
                loss = np.mean(losses[-100:])
                log.info("%s %d/%d loss %.4f  %.2f s/step", self.stage, self.step, steps, loss, pace)
            if self.step % every == 0 or self.step == steps:
                self._validate()
                self._save()

    def _step(self, steps: int) -> float:
        settings, rng, first = self.settings, self.maker.rng, self.stage == "vae"
        for group in self.optimiser.param_groups:
            group["lr"] = (settings.vae_rate if first else settings.dit_rate) * rate_share(self.step, steps)
        task = "none" if first else str(rng.choice(list(TASKS), p=list(TASKS.values())))
        batch = self.maker.draw(*(settings.vae_batch if first else settings.dit_batch), task)
        loss_of = vae_loss if first else cascade_loss
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = loss_of(self.networks, batch, rng)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), LARGEST_GRADIENT)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.average.update(self.networks, self.step)
        return float(loss.detach())

    def _validate(self) -> None:
        current = {key: value.clone() for key, value in self.networks.state_dict().items()}
        self.networks.load_state_dict(self.average.state)
        figures = {
            "stage": self.stage,
            "step": self.step,
            **validate(self.networks, self.held_out, self.stage),
        }
        self.networks.load_state_dict(current)
        self.figures.append(figures)
        log.info("%s", json.dumps(figures))

    def _save(self) -> None:
        state = {
            "networks": self.networks.state_dict(),
            "average": self.average.state,
            "optimiser": self.optimiser.state_dict(),
            "stage": self.stage,
            "step": self.step,
            "figures": self.figures,
        }
        temporary = self.folder / "state.tmp"
        torch.save(state, temporary)
        temporary.replace(self.folder / "state.pt")

    def _load(self) -> None:
        state = torch.load(self.folder / "state.pt", map_location=self.device, weights_only=True)
        self.networks.load_state_dict(state["networks"])
        self.average.state = state["average"]
        self.stage, self.step, self.figures = state["stage"], state["step"], state["figures"]
        self.optimiser = torch.optim.AdamW(self.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
        self.optimiser.load_state_dict(state["optimiser"])
        self.maker.rng = np.random.default_rng([self.settings.seed, self.step, len(self.stage)])
        log.info("resumed at %s step %d", self.stage, self.step)

    def export(self, path: Path, facts: dict) -> None:
        """Write the averaged weights (fp16) and a json with the run's facts beside them."""
        state = {key: value.half().contiguous() for key, value in self.average.state.items()}
        save_state(path, state, {"architecture": "unimmvsr", "format": "1"})
        facts = {**facts, "settings": asdict(self.settings), "figures": self.figures}
        path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="run.py train", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--photos", type=Path, nargs="+", required=True, help="folders of photographs you may use"
    )
    parser.add_argument("--exclude", nargs="*", default=list(UNLICENSED), help="file stems never to train on")
    parser.add_argument(
        "--hold-out", nargs="*", default=list(HELD_OUT), help="file stems kept for validation"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("output/training"), help="checkpoints; resumes from here"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("output/unimmvsr-tiny.safetensors"), help="final weights"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    for name in ("vae_batch", "dit_batch"):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            nargs=3,
            default=getattr(defaults, name),
            metavar=("CLIPS", "FRAMES", "SIDE"),
            help="frames 4n+1, side a multiple of 8 px",
        )
    for name in ("seed", "vae_steps", "dit_steps"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = _arguments(argv)
    counts = {name: getattr(args, name) for name in ("seed", "vae_steps", "dit_steps")}
    settings = Settings(**counts, vae_batch=tuple(args.vae_batch), dit_batch=tuple(args.dit_batch))
    paths = find_photos(args.photos, args.exclude)
    train = [path for path in paths if path.stem not in args.hold_out]
    held = [path for path in paths if path.stem in args.hold_out] or train[:1]
    photos = [[p for p in (load_photo(path, args.device) for path in group) if p] for group in (train, held)]
    args.work.mkdir(parents=True, exist_ok=True)
    makers = [BatchMaker(photos[0], settings.seed), BatchMaker(photos[1], settings.seed, textures=0)]
    trainer = Trainer(settings, *makers, args.work, args.device)
    started = time.monotonic()
    trainer.run(args.every)
    facts = {
        "corpus_sha256": corpus_hash(train),
        "photographs": [path.name for path in train],
        "held_out": [path.name for path in held],
        "device": args.device,
        "seconds_of_this_run": round(time.monotonic() - started),
        "torch": torch.__version__,
    }
    trainer.export(args.out, facts)
    log.info("wrote %s", args.out)


if __name__ == "__main__":
    main()
