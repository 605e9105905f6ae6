"""Ablations: which parts of the method matter at this scale. One command, resumable; a table and pictures.

`run.py train ablations --photos FOLDER ...`. A setting is a :class:`.ablation_settings.Config`; an Ablation is a
question, and a few small overrides of a base config that answer it. What is built, trained and measured is the world's
business:

    build(config) -> networks
    train(networks, config, folder)        # in `folder`, resumable
    evaluate(networks, config) -> Outcome  # figures of every test sample, in the same order for all configs

Configs that differ in how they are sampled only share one training; every outcome is kept in the work folder. What is
trained is trained once with each seed: two trainings alike but for it differ by more than test clips tell.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from . import ablation_world
from .ablation_page import load_picture, report, save_picture
from .ablation_settings import REGISTRY, Ablation, Config, Outcome, Outcomes, World, digest

log = logging.getLogger(__name__)


def run(
    ablations: Sequence[Ablation], world: World, base: Config, folder: Path, seeds: Sequence[int] = ()
) -> dict[str, Outcomes]:
    """Do what is not done yet, and give all outcomes: {ablation: {variant: [an outcome of each seed]}}.

    Without seeds the base's own is taken. Given networks are measured with the first seed alone.
    """
    outcomes, seeds = {}, seeds or (base.seed,)
    for ablation in ablations:
        outcomes[ablation.name] = {}
        for label, config in ablation.configs(base).items():
            log.info("%s: %s", ablation.name, label)
            drawn = seeds[:1] if config.given else seeds
            runs = [_outcome(replace(config, seed=seed), world, Path(folder)) for seed in drawn]
            outcomes[ablation.name][label] = runs
    return outcomes


def _outcome(config: Config, world: World, folder: Path) -> Outcome:
    home = folder / digest(world.identity)
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
        save_picture(file.with_suffix(".png"), outcome.picture)
    figures = {name: [float(value) for value in values] for name, values in outcome.figures.items()}
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps({"config": asdict(config), "figures": figures}, indent=1), encoding="utf-8")
    os.replace(partial, file)


def _read(file: Path) -> Outcome:
    figures = json.loads(file.read_text(encoding="utf-8"))["figures"]
    picture = file.with_suffix(".png")
    return Outcome(figures, load_picture(picture) if picture.exists() else None)


def choose(names: Sequence[str] | None) -> list[Ablation]:
    """Give the ablations of these names, or all."""
    known = {ablation.name: ablation for ablation in REGISTRY}
    for name in names or ():
        if name not in known:
            raise ValueError(f"Training: --only takes {', '.join(known)}; got {name!r}. Quote names with spaces.")
    return [known[name] for name in names] if names else list(REGISTRY)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ablations from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(prog="run.py train ablations", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help=f"of: {', '.join(ablation.name for ablation in REGISTRY)}")
    add("--steps", type=int, default=Config.steps, help="of each training")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="each setting is trained once with every seed")
    add("--work", type=Path, default=Path("output/ablations"), help="trainings and outcomes; resumes from here")
    add("--out", type=Path, default=Path("docs/ablations.md"), help="the page; pictures go into a folder beside it")
    ablation_world.add_arguments(parser)
    args = parser.parse_args(argv)
    chosen = choose(args.only)
    world = ablation_world.make_world(args)
    outcomes = run(chosen, world, Config(steps=args.steps), args.work, args.seeds)
    report(chosen, outcomes, args.out, world.identity)
    log.info("wrote %s", args.out)
