"""Ablations: which parts of the method matter at this scale. One command, resumable; a table and pictures.

`run.py train ablations --photos FOLDER ...`. A setting is a :class:`Config`; an :class:`Ablation` is a question, and a few
small overrides of a base config that answer it. What is built, trained and measured is the world's business:

    build(config) -> networks
    train(networks, config, folder)        # in `folder`, resumable
    evaluate(networks, config) -> Outcome  # figures of every test sample, in the same order for all configs

Configs that differ in how they are sampled only share one training; every outcome is kept in the work folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from .chart import draw_bars
from .curriculum import DIFFICULT_FIRST, EASY_FIRST, FULL, IMAGES, VIDEO

log = logging.getLogger(__name__)
TOKENS, CHANNELS = "tokens", "channels"
SEPARATED, SHARED = "separated", "shared"
BOTH, SYNTHETIC, SDEDIT = "both", "synthetic", "sdedit"
RIGHT, NONE, WRONG = "right", "none", "wrong"
_SAMPLING = (
    "shown",
    "sampling_steps",
    "reference_scale",
    "reference_steps",
    "motion",
    "propagation",
    "tasks",
)


@dataclass(frozen=True)
class Config:
    """One setting: how a network is trained (or "given", with the weights at hand), and how it is sampled."""

    given: bool = True
    steps: int = 2000
    seed: int = 1
    order: str = DIFFICULT_FIRST
    references: str = TOKENS
    rope: str = SEPARATED
    degradation: str = BOTH
    augment: bool = True
    # from here on: sampling
    shown: str = RIGHT
    sampling_steps: int = 1
    reference_scale: float = 0.0
    reference_steps: int = 0
    motion: float = 0.0
    propagation: bool = False
    tasks: tuple[str, ...] = (IMAGES, VIDEO)

    def training_key(self) -> str:
        """Name the training that this config needs."""
        if self.given:
            return "given"
        fixed = {name: value for name, value in asdict(self).items() if name not in _SAMPLING}
        return _digest(fixed)

    def key(self) -> str:
        """Name the outcome of this config."""
        return _digest({**asdict(self), "training": self.training_key()})


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Outcome:
    """Figures of every test sample by name, and a picture (3, h, w) in 0..1 of one of them, or None."""

    figures: Mapping[str, Sequence[float]]
    picture: torch.Tensor | None = None


class World(Protocol):
    """What ablations are run on; `identity` names all that outcomes depend on beside the config."""

    identity: str

    def build(self, config: Config) -> torch.nn.Module:
        """Make the networks of a config, before training; with "given" the trained ones at hand."""

    def train(self, networks: torch.nn.Module, config: Config, folder: Path) -> None:
        """Train them in place; called again after a kill, it goes on."""

    def evaluate(self, networks: torch.nn.Module, config: Config) -> Outcome:
        """Measure them on the test samples."""


@dataclass(frozen=True)
class Ablation:
    """A question, its variants (label -> changes of the base config), what the paper found, and how to judge.

    The first variant is the method's own; `figure` is what the verdict looks at, the higher the better. Without a
    `finding` there is nothing to reproduce, and no verdict.
    """

    name: str
    question: str
    variants: Mapping[str, Mapping[str, object]]
    finding: str = ""
    figure: str = "psnr"
    common: Mapping[str, object] = field(default_factory=dict)

    def configs(self, base: Config) -> dict[str, Config]:
        """Give the config of every variant."""
        return {
            label: replace(base, **{**self.common, **changes}) for label, changes in self.variants.items()
        }


_TRAINED = {"given": False}
_EIGHT = {"sampling_steps": 8}
REGISTRY = (
    Ablation(
        "references",
        "Does the network take detail from references, and from the right ones only?",
        {"right": {}, "none": {"shown": NONE}, "wrong": {"shown": WRONG}},
        "References help: CLIP-I .693 -> .726; PSNR of the unedited area 29.62 -> 31.56.",
        "referenced psnr",
    ),
    Ablation(
        "reference conditioning",
        "Do references belong among the tokens or on the channels?",
        {"token concat": {}, "channel concat": {"references": CHANNELS}, "no references": {"shown": NONE}},
        "Token concat beats channel concat: CLIP-I .726 against .690.",
        "referenced psnr",
        common=_TRAINED,
    ),
    Ablation(
        "position of references",
        "Should references have a range of time of their own, or the target's?",
        {"separated RoPE": {}, "shared RoPE": {"rope": SHARED}},
        "Separated ranges, so that references are used by content and not by copying.",
        "referenced psnr",
        common=_TRAINED,
    ),
    Ablation(
        "degradation",
        "Are SDEdit and the synthetic chain both needed to make training input?",
        {
            "SDEdit + synthetic": {},
            "synthetic alone": {"degradation": SYNTHETIC},
            "SDEdit alone": {"degradation": SDEDIT},
        },
        "Both: without SDEdit references are used less (CLIP-I .717 against .726), without the synthetic part detail "
        "is lost (MUSIQ 59.7 against 62.2).",
        common=_TRAINED,
    ),
    Ablation(
        "order of tasks",
        "In which order should the tasks be learned?",
        {"difficult to easy": {}, "full": {"order": FULL}, "easy to difficult": {"order": EASY_FIRST}},
        "Difficult to easy: QAlign 4.428 / 4.322 / 4.326.",
        common=_TRAINED,
    ),
    Ablation(
        "reference augmentation",
        "Should references be moved, re-lit and shifted in training?",
        {"augmented": {}, "as they are": {"augment": False}},
        "Augmentation removes jitter.",
        "steadiness",
        common=_TRAINED,
    ),
    Ablation(
        "reference scale",
        "How strong should guidance by references be (all of 8 steps)?",
        {
            f"s_ref {scale:g}": {"reference_scale": scale, "reference_steps": 8}
            for scale in (1.0, 0.0, 0.5, 2.0, 4.0)
        },
        "A scale of 1; larger ones over-sharpen and bring artefacts.",
        common=_EIGHT,
    ),
    Ablation(
        "reference threshold",
        "In how many of 8 steps should references guide (s_ref 1)?",
        {f"{steps} of 8": {"reference_scale": 1.0, "reference_steps": steps} for steps in (2, 0, 4, 8)},
        "In the first ones only: 15 of 50.",
        common=_EIGHT,
    ),
    Ablation(
        "sampling steps",
        "What do more steps give?",
        {f"{steps} step{'s' * (steps > 1)}": {"sampling_steps": steps} for steps in (1, 4, 8, 50)},
    ),
    Ablation(
        "motion",
        "Do motion guidance and propagation steady the clip (4 steps)?",
        {
            "neither": {},
            "motion guidance": {"motion": 1.0},
            "propagation": {"propagation": True},
            "both": {"motion": 1.0, "propagation": True},
        },
        figure="steadiness",
        common={"sampling_steps": 4},
    ),
)


# Running


def run(
    ablations: Sequence[Ablation], world: World, base: Config, folder: Path
) -> dict[str, dict[str, Outcome]]:
    """Do what is not done yet, and give all outcomes: {ablation: {variant: outcome}}."""
    outcomes = {}
    for ablation in ablations:
        outcomes[ablation.name] = {}
        for label, config in ablation.configs(base).items():
            log.info("%s: %s", ablation.name, label)
            outcomes[ablation.name][label] = _outcome(config, world, Path(folder))
    return outcomes


def _outcome(config: Config, world: World, folder: Path) -> Outcome:
    home = folder / _digest(world.identity)
    file = home / f"{config.key()}.json"
    if file.exists():
        return _read(file)
    torch.manual_seed(config.seed)
    networks = world.build(config)
    if not config.given:
        world.train(networks, config, home / f"training-{config.training_key()}")
    outcome = world.evaluate(networks, config)
    _write(file, outcome, config)
    return outcome


def _write(file: Path, outcome: Outcome, config: Config) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if outcome.picture is not None:
        _save_picture(file.with_suffix(".png"), outcome.picture)
    figures = {name: [float(value) for value in values] for name, values in outcome.figures.items()}
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps({"config": asdict(config), "figures": figures}, indent=1), encoding="utf-8")
    os.replace(partial, file)


def _read(file: Path) -> Outcome:
    figures = json.loads(file.read_text(encoding="utf-8"))["figures"]
    picture = file.with_suffix(".png")
    return Outcome(figures, _load_picture(picture) if picture.exists() else None)


def _save_picture(path: Path, picture: torch.Tensor) -> None:
    from PIL import Image

    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(path, "PNG")


def _load_picture(path: Path) -> torch.Tensor:
    import numpy as np
    from PIL import Image

    with Image.open(path) as file:
        return torch.from_numpy(np.asarray(file.convert("RGB")).copy()).permute(2, 0, 1) / 255


# Judging


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Give the mean of finite values and its standard error."""
    kept = [value for value in values if math.isfinite(value)]
    if not kept:
        return math.nan, math.nan
    mean = sum(kept) / len(kept)
    if len(kept) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in kept) / (len(kept) - 1) / len(kept))


def verdict(ablation: Ablation, outcomes: Mapping[str, Outcome]) -> str:
    """Say whether the first variant is better than each other, by the paired difference against its error."""
    labels = list(ablation.variants)
    first = outcomes[labels[0]].figures[ablation.figure]
    words = []
    for label in labels[1:]:
        other = outcomes[label].figures[ablation.figure]
        mean, error = mean_and_error([a - b for a, b in zip(first, other, strict=True)])
        if not math.isfinite(error):
            words.append(f"{label}: too few samples to say")
        elif abs(mean) <= 2 * error:
            words.append(f"{label}: no clear difference ({mean:+.3f} ± {error:.3f})")
        else:
            what = "reproduced" if mean > 0 else "**not reproduced**, the opposite"
            words.append(f"{label}: {what} ({mean:+.3f} ± {error:.3f})")
    return f"*{labels[0]}* against " + "; ".join(words) + "."


# Reporting


def report(
    ablations: Sequence[Ablation], outcomes: Mapping[str, Mapping[str, Outcome]], path: Path, about: str
) -> None:
    """Write the markdown page, and beside it a folder of pictures."""
    path = Path(path)
    pictures = path.parent / path.stem
    pictures.mkdir(parents=True, exist_ok=True)
    lines = ["# Ablations", "", about, ""]
    for ablation in ablations:
        lines += _chapter(ablation, outcomes[ablation.name], pictures)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text("\n".join(lines), encoding="utf-8")
    os.replace(partial, path)


def _chapter(ablation: Ablation, outcomes: Mapping[str, Outcome], pictures: Path) -> list[str]:
    stem = ablation.name.replace(" ", "-")
    names = list(dict.fromkeys(name for outcome in outcomes.values() for name in outcome.figures))
    lines = [f"## {ablation.name[0].upper()}{ablation.name[1:]}", "", ablation.question, ""]
    lines += [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for label, outcome in outcomes.items():
        cells = [_cell(outcome.figures.get(name, ())) for name in names]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines.append("")
    if ablation.finding:
        lines += [
            f"The paper: {ablation.finding}",
            "",
            f"Here ({ablation.figure}): {verdict(ablation, outcomes)}",
            "",
        ]
    means = {
        label: mean_and_error(outcome.figures[ablation.figure])[0] for label, outcome in outcomes.items()
    }
    draw_bars(pictures / f"{stem}.png", means, f"{ablation.name}: {ablation.figure}")
    lines += [f"![{ablation.name}]({pictures.name}/{stem}.png)", ""]
    shown = {label: outcome.picture for label, outcome in outcomes.items() if outcome.picture is not None}
    if shown:
        height = max(picture.shape[1] for picture in shown.values())
        rows = [
            torch.nn.functional.pad(p, (2, 2, 2, 2 + height - p.shape[1]), value=1.0) for p in shown.values()
        ]
        _save_picture(pictures / f"{stem}-clips.png", torch.cat(rows, 2))
        lines += [
            f"*{', '.join(shown)}, from left to right:*",
            "",
            f"![clips]({pictures.name}/{stem}-clips.png)",
            "",
        ]
    return lines


def _cell(values: Sequence[float]) -> str:
    mean, error = mean_and_error(values)
    if not math.isfinite(mean):
        return "-"
    return f"{mean:.3f}" + (f" ± {error:.3f}" if math.isfinite(error) else "")


def choose(names: Sequence[str] | None) -> list[Ablation]:
    """Give the ablations of these names, or all."""
    known = {ablation.name: ablation for ablation in REGISTRY}
    for name in names or ():
        if name not in known:
            raise ValueError(
                f"Training: --only takes {', '.join(known)}; got {name!r}. Quote names with spaces."
            )
    return [known[name] for name in names] if names else list(REGISTRY)


def main(
    argv: Sequence[str] | None = None, make_world: Callable[[argparse.Namespace], World] | None = None
) -> None:
    """Run ablations from the command line."""
    from . import ablation_world

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(prog="run.py train ablations", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help=f"of: {', '.join(ablation.name for ablation in REGISTRY)}")
    add("--steps", type=int, default=Config.steps, help="of each training")
    add("--seed", type=int, default=1)
    add(
        "--work",
        type=Path,
        default=Path("output/ablations"),
        help="trainings and outcomes; resumes from here",
    )
    add(
        "--out",
        type=Path,
        default=Path("docs/ablations.md"),
        help="the page; pictures go into a folder beside it",
    )
    ablation_world.add_arguments(parser)
    args = parser.parse_args(argv)
    chosen = choose(args.only)
    world = (make_world or ablation_world.make_world)(args)
    base = Config(steps=args.steps, seed=args.seed)
    outcomes = run(chosen, world, base, args.work)
    report(chosen, outcomes, args.out, f"{world.identity}\n\nMean ± standard error over the test clips.")
    log.info("wrote %s", args.out)
