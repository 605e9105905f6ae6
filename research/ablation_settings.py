"""Settings, questions with their variants, and outcomes of ablations; REGISTRY lists the questions of this project."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from ..training.curriculum import DIFFICULT_FIRST, EASY_FIRST, FULL, IMAGES, VIDEO

TOKENS, CHANNELS = "tokens", "channels"
SEPARATED, SHARED = "separated", "shared"
BOTH, SYNTHETIC, SDEDIT = "both", "synthetic", "sdedit"
RIGHT, NONE, WRONG = "right", "none", "wrong"
_SAMPLING = ("shown", "sampling_steps", "reference_scale", "reference_steps", "motion", "propagation", "tasks")


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
        return digest(fixed)

    def key(self) -> str:
        """Name the outcome of this config."""
        return digest({**asdict(self), "training": self.training_key()})


def digest(value) -> str:
    """Name a value that json can hold in few letters."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Outcome:
    """Figures of every test sample by name, and a picture (3, h, w) in 0..1 of one of them, or None."""

    figures: Mapping[str, Sequence[float]]
    picture: torch.Tensor | None = None


Outcomes = Mapping[str, Sequence[Outcome]]  # of a question: by variant, one for each seed


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
        return {label: replace(base, **{**self.common, **changes}) for label, changes in self.variants.items()}


_TRAINED = {"given": False}
# Questions about references use the order with most of them: of 2000 steps of the paper's order only 560 have any, and
# a network that has not learned to use references shows no difference between ways of conditioning on them.
_PRACTISED = {"given": False, "order": EASY_FIRST}
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
        "Do references belong among the tokens or on the channels (easy tasks first)?",
        {"token concat": {}, "channel concat": {"references": CHANNELS}, "no references": {"shown": NONE}},
        "Token concat beats channel concat: CLIP-I .726 against .690.",
        "referenced psnr",
        common=_PRACTISED,
    ),
    Ablation(
        "position of references",
        "Should references have a range of time of their own, or the target's (easy tasks first)?",
        {"separated RoPE": {}, "shared RoPE": {"rope": SHARED}},
        "Separated ranges, so that references are used by content and not by copying.",
        "referenced psnr",
        common=_PRACTISED,
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
        "Should references be moved, re-lit and shifted in training (easy tasks first)?",
        {"augmented": {}, "as they are": {"augment": False}},
        "Augmentation removes jitter.",
        "steadiness",
        common=_PRACTISED,
    ),
    Ablation(
        "reference scale",
        "How strong should guidance by references be (all of 8 steps)?",
        {f"s_ref {scale:g}": {"reference_scale": scale, "reference_steps": 8} for scale in (1.0, 0.0, 0.5, 2.0, 4.0)},
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
