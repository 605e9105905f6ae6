"""The world in which ablations run: photographs in motion, the latents of a given VAE, a small DiT.

Trainings work on latents that are made once; test clips come from held-out photographs, degraded by both halves, with
references of their tasks. Latents are judged as pictures, decoded without the low-resolution frames: with them a
decoder would hide much of what the latent lacks.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from ..models.checkpoints import load_state, strip_prefix
from ..models.motion.blockflow import BlockFlow
from ..models.motion.estimation import estimate_pairs
from ..models.motion.flow import propagate, warp
from ..models.motion.guidance import Flows, guide_clean
from ..models.pixels.metrics import detail_ratio, psnr_y
from ..models.schedules import flow_sigmas
from ..models.unimmvsr.checkpoint import dit_config, vae_config
from ..models.unimmvsr.dit import DiTConfig, UniMMVSRDiT, patchify
from ..models.unimmvsr.sdedit import SDEdit
from ..models.unimmvsr.vae import TIME, CausalVideoVAE
from ..training.augment import Dropout, noise_latent, normal
from ..training.curriculum import VIDEO, rng_at, stage_at, stages, task_at
from ..training.latents import LatentSample, LatentStore, encode_pair
from ..training.loop import Loop, LoopSettings
from ..training.muon import Muon
from ..training.pairs import Pair, PhotoTakes, Recipe, make_pair, without_augmentation
from ..training.photos import corpus_hash, find_photos, load_photo
from ..training.sdedit import BuiltInBase, SDEditTransform
from ..training.stages import attention
from .ablation_settings import BOTH, CHANNELS, NONE, SDEDIT, SHARED, SYNTHETIC, WRONG, Config, Outcome

WEIGHTS = Path(__file__).parent.parent / "models" / "weights" / "unimmvsr-tiny.safetensors"
_MAKE, _STEP, _TEST = 3, 4, 5  # streams of random numbers


@dataclass(frozen=True)
class Scale:
    """How large trainings and tests are."""

    side: int = 128  # px
    frames: tuple[int, int] = (5, 9)  # of short and of long training clips
    test_frames: int = 9
    batch: int = 4
    kept: int = 64  # samples of each task, length and degradation
    tests: int = 8  # test clips of each task
    width: int = 96
    depth: int = 3
    heads: int = 4
    rate: float = 0.012


class ChannelReferences(nn.Module):
    """A DiT whose references join on the channels of the patch embedding instead of the token sequence.

    A reference is brought to the target's grid and its last frame repeated; several are averaged. This is what the
    paper compares token concatenation with; the shipped network has no such path.
    """

    def __init__(self, dit: UniMMVSRDiT):
        super().__init__()
        self.dit, self.config = dit, dit.config
        self.reference_in = nn.Linear(4 * dit.config.latent_channels, dit.config.width, bias=False)
        nn.init.zeros_(self.reference_in.weight)

    def forward(
        self,
        z_t: torch.Tensor,
        t: torch.Tensor,
        lr: torch.Tensor,
        noise_level: torch.Tensor,
        references: Sequence[torch.Tensor] = (),
        **_,
    ) -> torch.Tensor:
        if not references:
            return self.dit(z_t, t, lr, noise_level)
        fitted = torch.stack([_on_grid(reference, z_t.shape[2:]) for reference in references]).mean(0)
        tokens = self.reference_in(patchify(fitted)[0])
        hook = self.dit.patch_in.register_forward_hook(lambda layer, given, out: out + tokens)
        try:
            return self.dit(z_t, t, lr, noise_level)
        finally:
            hook.remove()


def _on_grid(reference: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Bring a latent to a grid (T, h, w): resized in space, cut or its last frame repeated in time."""
    frames, *sides = grid
    flat = F.interpolate(reference.transpose(1, 2).flatten(0, 1), sides, mode="bilinear")
    fitted = flat.unflatten(0, (len(reference), -1)).transpose(1, 2)[:, :, :frames]
    return torch.cat((fitted, fitted[:, :, -1:].expand(-1, -1, frames - fitted.shape[2], -1, -1)), 2)


def fresh_dit(config: DiTConfig) -> UniMMVSRDiT:
    """Make a DiT that starts as its own average: outputs and modulation at zero, gates a little open."""
    dit = UniMMVSRDiT(config, attention=attention)
    for layer in (dit.patch_out, dit.condition_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for block in dit.blocks:
        nn.init.constant_(block.modulation[2::3], 0.1)
    return dit


def velocity(
    network: nn.Module,
    config: Config,
    z_t: torch.Tensor,
    t: torch.Tensor,
    lr: torch.Tensor,
    level: torch.Tensor,
    references: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Predict with references placed as the config says."""
    starts = (0,) * len(references) if config.rope == SHARED else None
    return network(z_t, t, lr, level, references, starts=starts).float()


@torch.no_grad()
def restore(
    network: nn.Module, config: Config, sample: LatentSample, references: Sequence[torch.Tensor], noise: torch.Tensor
) -> torch.Tensor:
    """Sample from noise in straight steps; on every clean estimate guidance by references, then motion tools."""
    lr, level, z = sample.lr, torch.zeros(1), noise
    flows = (sample.extra["forward"], sample.extra["backward"])
    sigmas = flow_sigmas(config.sampling_steps).tolist()
    for step, (now, after) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        t = torch.full((1,), now)
        clean = z + now * velocity(network, config, z, t, lr, level, references)
        if references and config.reference_scale and step < config.reference_steps:
            without = z + now * velocity(network, config, z, t, lr, level, ())
            clean = clean + config.reference_scale * (clean - without)
        if config.motion:
            clean = guide_clean(clean, Flows(*flows), config.motion)
        if config.propagation and step < len(sigmas) - 2:  # the last step keeps its own detail
            clean = propagate(clean, *flows)
        z = clean if after == 0 else clean + after / now * (z - clean)
    return z


class LatentWorld:
    """Builds, trains and measures on the latents of a VAE, with a DiT that is given, or made anew for each training."""

    def __init__(
        self, vae: CausalVideoVAE, dit: UniMMVSRDiT, photos: Sequence, held_out: Sequence, scale: Scale, folder: Path
    ):
        self.vae, self.dit, self.scale, self.folder = vae.eval(), dit.eval(), scale, Path(folder)
        self.takes = {True: PhotoTakes(photos, scale.side), False: PhotoTakes(held_out, scale.side)}
        self.redraw = SDEditTransform(BuiltInBase(vae, dit), SDEdit(2, 5, 10))
        names = corpus_names((*photos, *held_out))
        self.identity = (
            f"Toy scale: clips of {scale.side} px and {scale.test_frames} frames from photographs in motion "
            f"({len(photos)} to train on, {len(held_out)} held out for the test; {names}), latents decoded without the "
            f"low-resolution frames. {scale}."
        )

    def build(self, config: Config) -> nn.Module:
        """Return the given DiT, or a new small one."""
        if config.given:
            return self.dit
        scale = self.scale
        channels = self.vae.config.latent_channels
        dit = fresh_dit(DiTConfig(channels, scale.width, scale.depth, scale.heads, ffn_ratio=3))
        return ChannelReferences(dit) if config.references == CHANNELS else dit

    def train(self, networks: nn.Module, config: Config, folder: Path) -> None:
        """Train by flow matching along the curriculum."""
        store = self._store(config.degradation, config.augment, training=True)
        plan, dropout = stages(config.order, *self.scale.frames), Dropout(0.0, 0.1)

        def draw(number: int):
            rng = rng_at(config.seed, number, _STEP)
            task = task_at(number, config.steps, plan, config.seed)
            frames = stage_at(number, config.steps, plan).frames
            chosen = rng.integers(self.scale.kept, size=self.scale.batch)
            samples = [store.get(task, frames, int(index)) for index in chosen]
            references = () if dropout.draw(rng)[1] else _joined([sample.references for sample in samples])
            z, lr = (torch.cat([getattr(sample, name) for sample in samples]) for name in ("z", "lr"))
            lr, level = noise_latent(lr, rng, (0.0, 0.6))
            t = np.where(rng.random(len(z)) < 0.3, 1.0, 1 / (1 + np.exp(-rng.standard_normal(len(z)))))
            return z, normal(z, rng), torch.tensor(t, dtype=torch.float32), lr, level, references

        def loss(network: nn.Module, batch) -> torch.Tensor:
            z, eps, t, lr, level, references = batch
            share = t.view(-1, 1, 1, 1, 1)
            made = velocity(network, config, (1 - share) * z + share * eps, t, lr, level, references)
            # of the clean estimate: the velocity's error grows without bound as t falls
            return (share * (made - (z - eps))).square().mean()

        settings = LoopSettings(
            config.steps, self.scale.rate, largest_gradient=0.5, average=0.99, precision="bf16", seed=config.seed
        )
        loop = Loop(networks, draw, loss, folder, settings, optimiser=Muon)  # as the built-in model is trained
        loop.run()
        loop.average.apply()

    @torch.no_grad()
    def evaluate(self, networks: nn.Module, config: Config) -> Outcome:
        """Restore the test clips of the config's tasks and measure them; every sample has its own fixed noise."""
        networks.eval()
        store = self._store(BOTH, True, training=False)
        rows, picture = [], None
        for task in config.tasks:
            samples = [store.get(task, self.scale.test_frames, number) for number in range(self.scale.tests)]
            for number, sample in enumerate(samples):
                other = samples[(number + 1) % len(samples)]
                shown = {NONE: (), WRONG: other.references}.get(config.shown, sample.references)
                noise = normal(sample.z, rng_at(config.seed, number, _TEST))
                restored = restore(networks, config, sample, shown, noise)
                frames = self._decoded(restored)
                rows.append(_figures(frames, restored, sample, task))
                if picture is None:
                    picture = _column(frames, sample)
        return Outcome({name: [row[name] for row in rows] for name in rows[0]}, picture)

    def _decoded(self, latent: torch.Tensor) -> torch.Tensor:
        return ((self.vae.decode(latent)[0].float() + 1) / 2).clamp(0, 1).transpose(0, 1)

    def _store(self, degradation: str, augment: bool, training: bool) -> LatentStore:
        recipe = Recipe(presets=() if degradation == SDEDIT else ("bicubic", "real", "generated"))
        if degradation != SYNTHETIC:
            # At a quarter of 128 px a clip is 4x4 latent cells; the base redraws at half the size instead.
            recipe = replace(recipe, redraw=self.redraw, redraw_scale=2)
        if not augment:
            recipe = without_augmentation(recipe)

        def make(task: str, frames: int, number: int) -> LatentSample:
            rng = np.random.default_rng([_MAKE, training, number, frames, *task.encode()])
            pair = make_pair(self.takes[training].make(task, frames, rng), task, recipe, rng)
            sample = encode_pair(pair, lambda clip: self.vae.encode(_to_clip(clip))[0].float())
            return sample if training else replace(sample, extra=_test_extra(pair))

        identity = f"{self.identity} {degradation} {augment} {training}"
        return LatentStore(make, self.folder / "samples", identity)


def corpus_names(photos: Sequence) -> str:
    """Name a set of photographs in few letters."""
    return hashlib.sha256(" ".join(photo.name for photo in photos).encode()).hexdigest()[:8]


def _to_clip(frames: torch.Tensor) -> torch.Tensor:
    return frames.transpose(0, 1).unsqueeze(0) * 2 - 1


def _joined(groups: Sequence[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, ...]:
    """Stack the references of several samples: as many as the one with the fewest has."""
    count = min(len(group) for group in groups)
    return tuple(torch.cat([group[index] for group in groups]) for index in range(count))


def _test_extra(pair: Pair) -> dict[str, torch.Tensor]:
    """Keep what a test needs beside latents: the truth, its exact flow, and flow estimated on the LR frames."""
    cells = [side // 8 for side in pair.frames.shape[-2:]]
    motion = estimate_pairs(pair.low.movedim(1, -1), BlockFlow())
    forward, backward = motion.on_grid(1 + (len(pair.frames) - 1) // TIME, *cells, time=TIME)
    return {
        "frames": pair.frames,
        "low": pair.low,
        "flow": pair.flow,
        "visible": pair.visible,
        "layer": pair.layer,
        "forward": forward,
        "backward": backward,
    }


def _figures(frames: torch.Tensor, latent: torch.Tensor, sample: LatentSample, task: str) -> dict[str, float]:
    """Measure: PSNR of all, of what the references show, of the latent; detail; steadiness, which is how little the
    error flickers along the exact motion, in dB."""
    truth, flow, visible = (sample.extra[name] for name in ("frames", "flow", "visible"))
    ours, real = frames.movedim(1, -1), truth.movedim(1, -1)
    error = frames - truth
    change = ((error[:-1] - warp(error[1:], flow)).abs() * visible).mean()
    layer = sample.extra["layer"]  # what an identity image shows, and what an edit changed
    region = 1 - layer if task == VIDEO else layer
    inside = (error.square() * region).sum() / (3 * region.sum()).clamp_min(1)
    return {
        "psnr": psnr_y(ours, real),
        "referenced psnr": float(-10 * torch.log10(inside.clamp_min(1e-10))) if region.any() else float("nan"),
        "latent psnr": float(-10 * torch.log10((latent - sample.z).square().mean().clamp_min(1e-10))),
        "detail": detail_ratio(ours, real),
        "steadiness": float(-20 * torch.log10(change.clamp_min(1e-10))),
    }


def _column(frames: torch.Tensor, sample: LatentSample) -> torch.Tensor:
    """Stack the middle frames of the LR clip, the result and the truth, top to bottom."""
    middle, size = len(frames) // 2, frames.shape[-2:]
    low = F.interpolate(sample.extra["low"][middle : middle + 1], size, mode="bicubic", antialias=True).clamp(0, 1)
    return torch.cat((low[0], frames[middle], sample.extra["frames"][middle]), 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this world to a command line."""
    add = parser.add_argument
    add("--photos", type=Path, nargs="+", required=True, help="folders of photographs you may use")
    add("--hold-out", nargs="*", default=[], help="file stems kept for the test (default: every fifth photograph)")
    add("--weights", type=Path, default=WEIGHTS, help="the given VAE and DiT (default: the built-in model)")
    add("--side", type=int, default=Scale.side, help="px of a square clip, a multiple of 16")
    add("--kept", type=int, default=Scale.kept, help="training samples of each task and length")
    add("--tests", type=int, default=Scale.tests, help="test clips of each task")


def load_networks(path: Path) -> tuple[CausalVideoVAE, UniMMVSRDiT]:
    """Read a UniMMVSR file: (VAE, DiT) in fp32."""
    state = load_state(path)[0]
    parts = [{key: value.float() for key, value in strip_prefix(state, prefix).items()} for prefix in ("vae.", "dit.")]
    vae, dit = CausalVideoVAE(vae_config(parts[0])), UniMMVSRDiT(dit_config(parts[1]))
    vae.load_state_dict(parts[0])
    dit.load_state_dict(parts[1])
    return vae.eval().requires_grad_(False), dit.eval().requires_grad_(False)


def make_world(args: argparse.Namespace) -> LatentWorld:
    """Put the world together from the command line."""
    if args.side % 16:
        raise ValueError(f"Training: --side must be a multiple of 16; got {args.side}. Use 128.")
    paths = find_photos(args.photos)
    stems = args.hold_out or [path.stem for path in paths[::5]]
    groups = ([p for p in paths if p.stem not in stems], [p for p in paths if p.stem in stems])
    photos, held_out = ([photo for p in group if (photo := load_photo(p))] for group in groups)
    if not photos or not held_out:
        raise ValueError(
            f"Training: needs photographs to train on and others to test on; got {len(photos)} and {len(held_out)}. "
            "Name a folder with more pictures of at least 200 px a side."
        )
    scale = Scale(side=args.side, kept=args.kept, tests=args.tests)
    world = LatentWorld(*load_networks(args.weights), photos, held_out, scale, args.work)
    world.identity += f" Weights: {args.weights.name}, sha256 {corpus_hash([args.weights])[:12]}."
    return world
