"""Train the built-in model: `python3 run.py train --photos FOLDER [FOLDER ...]`.

In order:

1. Read the photographs and divide them into training and held-out ones.
2. For each of the stages latent, clean, worn, judge, dit and complete (training/stages.py): build the networks, load
   the results of the stages it needs, train its part in WORK/STAGE, validate at every checkpoint, and write result.pt
   with the averaged weights that later stages need.
3. Write the result of the last stage as one safetensors file, and beside it a json with settings and figures.

`--only STAGE` runs one stage, so that independent ones can run at the same time. `--start FILE` continues from existing
weights: the dit stage then skips the first parts of its curriculum, and results of earlier stages in the work folder
replace the corresponding parts of these weights.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..models.checkpoints import load_state, save_state
from ..models.unimmvsr.checkpoint import packed, unpacked
from ..models.unimmvsr.dit import DiTConfig
from ..models.unimmvsr.restorer import GRID
from ..models.unimmvsr.vae import VAEConfig
from .batches import WRONG_SHARE, BatchMaker, Pool
from .curriculum import TASKS, TEXT, rng_at, stage_at, stages
from .loop import PRECISIONS, Loop, LoopSettings
from .muon import Muon
from .photos import corpus_hash, find_photos, load_photo
from .restorer import CLEAN_SHARES, REACH, Draws, JudgeDraws, Maker, figures_of, judge_figures_of
from .stages import LOSSES, Networks, encode_batch, see, trained_parts
from .validation import validate

log = logging.getLogger(__name__)
NORMALISING = 32  # batches from which the statistics of latents are taken
HELD_OUT = ("rocket", "chelsea", "hubble_deep_field", "carmine_de_fazio")
UNLICENSED = ("page", "motorcycle_left", "motorcycle_right")  # scikit-image states no licence for these
RESTORER = ("clean", "worn", "judge")  # the stages that train parts of the restorer
STAGES = {  # name: the stages whose result it starts from
    "latent": (),
    "clean": (),
    "worn": ("clean",),
    "judge": (),
    "dit": ("latent",),
    "complete": ("latent", "clean", "worn", "judge", "dit"),
}
RESULTS = {  # the entries that later stages, or the shipped file, take from one
    "latent": ("vae.encoder.", "vae.decoder.latent.", "vae.latent_"),
    **{name: (f"vae.decoder.restore.{name}.",) for name in RESTORER},
    "dit": ("dit.",),
    "complete": ("vae.", "dit."),
}
# The paper's order of tasks. In its last part a share of the draws has longer or larger clips.
CURRICULUM = stages(short=9, long=17, parts=(0.15, 0.2, 0.25, 0.4))
LONG_SHARE = 0.5
# (clips, factor of frames, factor of the side) of such draws: about as many tokens as a batch of small clips
LARGER = ((2, 2.0, 1.0), (1, 4.0, 1.0), (1, 2.0, 1.5), (1, 1.0, 2.0), (1, 0.5, 3.0))
# Shares of (no references, images, video): where a trained transformer continues, and in the complete stage
MORE_REFERENCES = (0.15, 0.5, 0.35)
LAST_SHARES = (0.35, 0.25, 0.4)


@dataclass(frozen=True)
class Plan:
    """How long and with what one stage is trained."""

    steps: int
    batch: tuple[int, int, int]  # clips, frames, side in px
    rate: float
    pool: int  # draws that are kept and used again
    fresh: int  # steps between new draws
    optimiser: type | None  # None: AdamW
    average: float = 0.998  # decay of the average of the weights


PLANS = {
    "latent": Plan(2500, (8, 5, 64), 0.015, 300, 3, Muon),
    "clean": Plan(20000, (6, 13, 160), 6e-4, 400, 16, None, 0.9995),
    "worn": Plan(12000, (6, 13, 160), 3e-4, 400, 16, None, 0.9995),
    "judge": Plan(4000, (12, 5, 240), 2e-3, 150, 25, None),
    "dit": Plan(4200, (5, 9, 128), 0.012, 1000, 5, Muon),
    "complete": Plan(1600, (4, 9, 128), 0.01, 240, 4, Muon),
}


@torch.no_grad()
def normalise_latent(networks: Networks, maker: BatchMaker) -> None:
    """Set the VAE's latent statistics from NORMALISING batches, so that latents have zero mean and unit variance."""
    vae = networks.vae
    batches = (maker.seek(0, number).draw(4, 9, 128) for number in range(NORMALISING))
    latents = torch.cat([vae.encode(batch.clip)[0] for batch in batches]).float()
    vae.latent_mean.copy_(latents.mean((0, 2, 3, 4)))
    vae.latent_std.copy_(latents.std((0, 2, 3, 4)).clamp_min(1e-3))


class Stage:
    """One stage of the training: its networks, its batches, and a loop in a folder of its own."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        seed: int,
        makers: Sequence[BatchMaker] | Sequence[Maker],
        folder: Path,
        device: str,
        start: Path | None = None,
        shares: Sequence[float] = MORE_REFERENCES,
        precision: str = "bf16",
    ):
        self.name, self.plan, self.folder, self.precision = name, plan, folder, precision
        (self.maker, self.held_out), self.device = makers, torch.device(device)
        self.seed = 10 * seed + list(STAGES).index(name)
        torch.manual_seed(seed)
        self.networks = Networks(VAEConfig(), DiTConfig()).to(self.device)
        self.goes_on, self.shares = start is not None, shares
        if start is not None:
            state = {key: value.float() for key, value in unpacked(load_state(start)[0]).items()}
            self.networks.load_state_dict(_without_refinement(state), strict=False)
        for earlier in STAGES[name]:
            self.networks.load_state_dict(self._result(earlier), strict=False)
        restorers = self.networks.vae.decoder.restore
        if name == "worn" and start is None:
            restorers.worn.load_state_dict(restorers.clean.state_dict())
        self.networks.requires_grad_(False)
        for part in trained_parts(self.networks, name):
            part.requires_grad_(True)
        if name == "judge":
            self.pool = JudgeDraws(self.maker, self.seed, plan.pool, plan.fresh)
        elif name in RESTORER:
            self.pool = Draws(self.maker, plan.batch, self.seed, plan.pool, plan.fresh)
        else:
            self.pool = Pool(self._draw, self.seed, plan.pool, plan.fresh)

    def _result(self, stage: str) -> dict[str, torch.Tensor]:
        """Read the result of an earlier stage."""
        file = self.folder / stage / "result.pt"
        if not file.exists() and self.goes_on:
            return {}
        if not file.exists():
            raise ValueError(
                f"Training: stage {stage} must be done before {self.name}; got no {file}. Run "
                f"`run.py train --only {stage}` first, or name weights with --start."
            )
        return torch.load(file, map_location=self.device, weights_only=True)

    def _draw(self, number: int):
        """Make draw `number`: clips in half precision, for stage complete with what is restored, for dit latents."""
        maker, (size, count, side) = self.maker.seek(self.seed, number), self.plan.batch
        shares = LAST_SHARES
        if self.name == "dit":
            first = number * self.plan.fresh  # the first step that uses the draw
            mix = CURRICULUM[-1] if self.goes_on else stage_at(first, self.plan.steps, CURRICULUM)
            shares = self.shares if self.goes_on else mix.shares
            if mix is CURRICULUM[-1] and maker.rng.random() < LONG_SHARE:
                size, count, side = larger(maker.rng, size, count, side)
        task = str(maker.rng.choice(TASKS, p=shares)) if self.name in ("dit", "complete") else TEXT
        batch = maker.draw(size, count, side, task)
        if self.name == "complete":
            return batch, see(self.networks, batch)
        if self.name != "dit":
            return batch.map(torch.Tensor.half)
        unrelated = [] if task == TEXT else maker.unrelated(size, count, side, task)
        with torch.autocast(self.device.type, torch.bfloat16):
            return encode_batch(self.networks, batch, unrelated)

    def _batch(self, step: int):
        """Return the batch of a step, and the generator for the random numbers of its loss."""
        rng, batch = rng_at(self.seed, step, 1), self.pool.at(step)
        return (batch.map(torch.Tensor.float).turned(rng) if self.name == "latent" else batch), rng

    def run(self, every: int) -> list[dict]:
        """Train to the end, with a checkpoint and a validation every `every` steps; return the validations."""
        settings = LoopSettings(
            self.plan.steps,
            self.plan.rate,
            largest_gradient=0.5,
            average=self.plan.average,
            precision=self.precision,
            seed=self.seed,
            save_every=every,
        )
        loss = LOSSES[self.name]
        loop = Loop(
            self.networks,
            self._batch,
            lambda networks, batch: loss(networks, *batch),
            self.folder / self.name,
            settings,
            optimiser=self.plan.optimiser,
        )
        figures = []
        while loop.step < self.plan.steps:
            done = loop.run(until=(loop.step // every + 1) * every)
            log.info("%s %d/%d loss %.4f", self.name, loop.step, self.plan.steps, np.mean(done[-100:] or [np.nan]))
            with loop.average.applied(self.networks):
                if self.name == "latent" and loop.step == self.plan.steps:
                    normalise_latent(self.networks, self.maker)
                figures.append({"stage": self.name, "step": loop.step, **self._figures()})
                log.info("%s", json.dumps(figures[-1]))
                self._keep()
        return figures

    def _figures(self) -> dict[str, float]:
        restorers = self.networks.vae.decoder.restore
        if self.name == "judge":
            return judge_figures_of(restorers.judge, self.held_out)
        if self.name in RESTORER:
            return figures_of(getattr(restorers, self.name), self.held_out, float(self.name == "worn"))
        return validate(self.networks, self.held_out, self.name)

    def _keep(self) -> None:
        """Write the entries that later stages need."""
        kept = {key: value for key, value in self.networks.state_dict().items() if key.startswith(RESULTS[self.name])}
        torch.save(kept, self.folder / self.name / "result.tmp")
        (self.folder / self.name / "result.tmp").replace(self.folder / self.name / "result.pt")


def _without_refinement(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out of weights of 0.1.0 the refinement that the restorer replaced, and what completion read of it."""
    kept = {key: value for key, value in state.items() if not key.startswith("vae.decoder.refine.")}
    if len(kept) < len(state):
        config, name = VAEConfig(), "vae.decoder.complete.conv_in.weight"
        old = kept[name][:, : 6 * GRID**2 + config.feature_width]
        kept[name] = torch.cat((old, old.new_zeros(len(old), config.restore_width, *old.shape[2:])), 1)
    return kept


def larger(rng: np.random.Generator, size: int, count: int, side: int) -> tuple[int, int, int]:
    """Draw a batch of fewer clips that are longer or larger: (clips, frames, side), side a multiple of 16 px."""
    most, longer, wider = LARGER[int(rng.integers(len(LARGER)))]
    count = 1 + int(longer * (count - 1)) // 4 * 4
    return min(size, most), max(5, count), int(wider * side) // 16 * 16


def _name(plan: Plan) -> str:
    return plan.optimiser.__name__ if plan.optimiser else "AdamW"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py train", description=__doc__.split("\n\n")[0])
    folder, file = Path("output/training"), Path("output/unimmvsr-tiny.safetensors")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of photographs you may use")
    parser.add_argument("--exclude", nargs="*", default=list(UNLICENSED), help="file stems never to train on")
    parser.add_argument("--hold-out", nargs="*", default=list(HELD_OUT), help="file stems kept for validation")
    parser.add_argument("--work", type=Path, default=folder, help="checkpoints and logs; resumes from here")
    parser.add_argument("--out", type=Path, default=file, help="the file of the final weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    half = "of a step's convolutions; fp32 takes half as long on a CPU without AMX"
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help=half)
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, help="weights to continue from")
    parser.add_argument(
        "--shares",
        type=float,
        nargs=3,
        default=MORE_REFERENCES,
        metavar=("NONE", "IMAGES", "VIDEO"),
        help="shares of samples by their references in a continued dit stage; they add up to 1",
    )
    parser.add_argument("--wrong", type=float, default=WRONG_SHARE, help="share of references that show something else")
    parser.add_argument("--only", choices=list(STAGES), help="run this stage alone")
    for name, plan in PLANS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=plan.steps)
        parser.add_argument(f"--{name}-rate", type=float, default=plan.rate)
        meaning = {
            "metavar": ("CLIPS", "FRAMES", "SIDE"),
            "help": "frames (4n+1 where latents are made), side a multiple of 16 px",
        }
        parser.add_argument(f"--{name}-batch", type=int, nargs=3, default=plan.batch, **meaning)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = _arguments(argv)
    if abs(sum(args.shares) - 1) > 1e-6 or min(args.shares) < 0:
        raise ValueError(f"Training: --shares must add up to 1; got {args.shares}. Use 0.15 0.5 0.35.")
    for name in ("clean", "worn"):
        frames, least = getattr(args, f"{name}_batch")[1], 2 * REACH + 1
        if frames < least:
            raise ValueError(
                f"Training: --{name}-batch needs clips of at least {least} frames, {REACH} to each side of the one "
                f"that is restored; got {frames}. Use {least}."
            )
    paths = find_photos(args.photos, args.exclude)
    train = [path for path in paths if path.stem not in args.hold_out]
    held = [path for path in paths if path.stem in args.hold_out] or train[:1]
    photos = [[p for p in (load_photo(path, args.device) for path in group) if p] for group in (train, held)]
    batches = [
        BatchMaker(photos[0], args.seed, wrong=args.wrong),
        BatchMaker(photos[1], args.seed, textures=0, wrong=0.0, soft=0.0),
    ]
    plans, figures = {}, []
    for name in [args.only] if args.only else STAGES:
        chosen = {key: getattr(args, f"{name}_{key}") for key in ("steps", "rate", "batch")}
        plans[name] = replace(PLANS[name], **chosen)
        makers = batches
        if name in RESTORER:
            _, frames, side = plans[name].batch
            settings = (args.seed, side, frames, CLEAN_SHARES[name])
            makers = [Maker(photos[0], *settings), Maker(photos[1], *settings, textures=0)]
        stage = Stage(
            name, plans[name], args.seed, makers, args.work, args.device, args.start, args.shares, args.precision
        )
        figures += stage.run(args.every)
    if name != "complete":
        return
    state = torch.load(args.work / name / "result.pt", map_location="cpu", weights_only=True)
    save_state(args.out, packed(state), {"architecture": "unimmvsr", "format": "1"})
    facts = {
        "corpus_sha256": corpus_hash(train),
        "photographs": [path.name for path in train],
        "held_out": [path.name for path in held],
        "device": args.device,
        "precision": args.precision,
        "torch": torch.__version__,
        "seed": args.seed,
        "stages": {name: {**asdict(plan), "optimiser": _name(plan)} for name, plan in plans.items()},
        "figures": figures,
    }
    args.out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    log.info("wrote %s", args.out)


if __name__ == "__main__":
    main()
