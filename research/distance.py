"""`run.py bench distance`: how far results with work left out are from the full run, and whether joints show.

1. Upscale-A-Video and MGLD-VSR with few random weights at their published steps, and the built-in model with its own.
2. The sample clip is sampled whole, in windows that share frames (the full run), and with every saving.
3. The latents are compared with the full run (dB), and the change from frame to frame at joints with that elsewhere, as
   a share of the same in the whole run: the seam ratio, of the joints of both turns the larger.

Random weights see little beyond a frame, so seams of theirs are small; the built-in model's windows side by side, the
row *without shared frames*, say what a visible seam measures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..runner.host import Host
from ..runner.pack import load
from ..runner.sample import make_sample
from . import restorers
from .accelerators import likeness
from .apart import load_host, run_apart

_ALONE = "without shared frames"
Faster = tuple[int, float, float]  # inputs of Faster Sampling
Savings = dict[str, tuple[str, Faster | int | None]]  # {name: (joints, what else)}


@dataclass(frozen=True)
class Run:
    """A MODEL and what it is sampled with, as its template does."""

    model: Any
    conditions: tuple  # positive, negative, latent
    cfg: float
    sampler: str
    steps: int
    window: tuple[int, int]  # frames, shared
    time: int = 1  # frames of a latent frame

    def sample(self, joints: str | None = "shared frames", faster: Faster | int | None = None) -> torch.Tensor:
        """Give the latent; `joints` None: in one window; `faster` a number: the steps that a turn lasts."""
        import comfy_extras.nodes_custom_sampler as custom

        tiling, sampling = load("nodes.tiling"), load("nodes.sampling")
        model, (length, shared) = self.model, self.window
        if joints is not None:
            sizes = {"windows": "manual", "window": length, "overlap": 0 if joints == _ALONE else shared}
            joints = "shared frames" if joints == _ALONE else joints
            model = tiling.TemporalWindows.execute(model, sizes, joints).args[0]
        if isinstance(faster, int):  # as if the deep half were kept so long
            model = model.clone()
            saving = load("nodes.host.deep").Saving(faster)
            model.model_options.setdefault("transformer_options", {})[load("nodes.host.keys").SAVING_KEY] = saving
        elif faster is not None:
            model = load("nodes.faster").FasterSampling.execute(model, *faster).args[0]
        positive, negative, start = self.conditions
        guider = custom.CFGGuider.execute(model, positive, negative, self.cfg).args[0]
        sigmas = sampling.RefineSigmas.execute(model, 1.0, self.steps, 1.0).args[0]
        sampler = sampling.RestorerSampler.execute(self.sampler).args[0]
        noise = sampling.AddressedNoise(0)
        return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, start).args[0]["samples"]

    def joints(self, frames: int, alone: bool) -> list[list[int]]:
        """Give the latent frames that begin a window: of both turns, or of windows side by side."""
        length = 1 + (self.window[0] - 1) // self.time
        if alone:
            return [[each.start for each in load("models.layout.pieces").plan_windows(frames, length, 0)[1:-1]]]
        turns = load("models.layout.turns").alternating_windows
        return [[each.start for each in turns(frames, length, turn)[1:]] for turn in (0, 1)]


def seam(clip: torch.Tensor, whole: torch.Tensor, joints: Sequence[int]) -> float:
    """Compare the change of (b, c, t, h, w) from frame to frame at joints with that elsewhere, beside the whole run."""

    def ratio(each: torch.Tensor) -> float:
        changes = each.diff(dim=2).abs().mean((0, 1, 3, 4))
        at = torch.zeros(len(changes), dtype=torch.bool)
        at[torch.tensor(joints) - 1] = True
        return float(changes[at].mean() / changes[~at].mean())

    return ratio(clip) / ratio(whole)


def measure(run: Run, savings: Savings) -> dict[str, dict[str, float]]:
    """Measure every saving: {its name: {dB to the full run, seam ratio}}."""
    whole, full = run.sample(None), run.sample()
    found = {"in one window": {"db_to_full_run": round(likeness(whole, full), 1)}}
    for name, (joints, faster) in savings.items():
        result, row = run.sample(joints, faster), {}
        if joints != _ALONE:
            row["db_to_full_run"] = round(likeness(result, full), 1)
        if joints != "shared frames":
            places = run.joints(full.shape[2], joints == _ALONE)
            row["seam_ratio"] = round(max(seam(result, whole, each) for each in places), 3)
        found[name] = row
    return found


def distance(options: argparse.Namespace, host: Host) -> dict:
    """Results with work left out beside the full run (dB), and seam ratios at joints: random and trained (minutes)."""
    return run_apart("distance", {"host": str(host.path)})


def measured(job: dict) -> dict:
    """Give the figures of all systems."""
    load_host(job["host"])
    load("nodes.host.folders").register_folders()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        result = {}
        for name, make in SYSTEMS.items():
            result[name] = measure(*make(Path(folder)))
            print(f"  {name}: {result[name]}", file=sys.stderr, flush=True)
    return result


def _conditions(vae: Any, frames: int, width: int, height: int, texts: Sequence = (), level: float = 0.0) -> tuple:
    """Prepare the sample clip, of the LR size, four times as large."""
    clip = torch.from_numpy(np.stack(make_sample(frames, 4 * width, 4 * height).low)).float() / 255
    target = {"target": "scale", "scale": 4.0}
    latent = load("nodes.frames").CascadeInput.execute(vae, target, "bilinear", frames=clip).args[0]
    return load("nodes.conditioning").VSRConditioning.execute(latent, level, 1, *texts).args


def _savings(every: int, guidance: float | None = None) -> Savings:
    """List the savings of a system, and all of them together."""
    found = {"joints alternating": ("alternating", None)}
    found[f"deep half every {every}"] = "shared frames", (every, 0.0, 1.0)
    if guidance is not None:
        found[f"guidance to {guidance}"] = "shared frames", (1, 0.0, guidance)
    return {**found, "fastest": ("alternating", (every, 0.0, guidance or 1.0))}


def upscale_a_video(folder: Path) -> tuple[Run, dict]:
    """Prepare 32 frames of Upscale-A-Video, tiny."""
    restorers.write_upscale_a_video(folder / "uav", False)
    model, vae, clip = load("nodes.loaders").load_restorer(folder / "uav", "fp32")[:3]
    texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("best quality", "blur")]
    return Run(model, _conditions(vae, 32, 24, 16, texts, 0.12), 6.0, "ddim", 30, (8, 2)), _savings(3, 0.5)


def mgld_vsr(folder: Path) -> tuple[Run, dict]:
    """Prepare 25 frames of MGLD-VSR, tiny."""
    restorers.write_mgld_vsr(folder / "mgld", False)
    model, vae = load("nodes.loaders").load_restorer(folder / "mgld", "fp32")[:2]
    vae.shortest = 32  # px; the size that the published networks ask for would take minutes
    texts = [[[torch.randn((1, 6, 32), generator=torch.Generator().manual_seed(seed)), {}]] for seed in (1, 2)]
    return Run(model, _conditions(vae, 25, 24, 16, texts), 1.0, "ddpm", 50, (5, 1)), _savings(6)


def built_in(steps: int, every: int) -> tuple[Run, Savings]:
    """Prepare 65 frames of the built-in model, at 128x80, in many windows; a turn lasts a step, and `every`."""
    model, vae = load("nodes.loaders").load_restorer(load("nodes.loaders").restorer_path("built-in"), "fp32")[:2]
    run = Run(model, _conditions(vae, 65, 32, 20, (), 0.1), 1.0, "euler", steps, (17, 4), 4)
    found: Savings = {"joints alternating": ("alternating", None)}
    found[f"joints alternating every {every} steps"] = "alternating", every
    return run, {**found, _ALONE: (_ALONE, None)}


SYSTEMS = {
    "upscale_a_video": upscale_a_video,
    "mgld_vsr": mgld_vsr,
    "built_in_30_steps": lambda folder: built_in(30, 3),
    "built_in_50_steps": lambda folder: built_in(50, 6),
}
