"""The page of the ablations: verdicts by paired differences, tables, charts and pictures in markdown."""

from __future__ import annotations

import math
import os
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..models.pixels.chart import COLOURS, PAPER, place, write
from .ablation_settings import Ablation, Outcome, Outcomes

ABOUT = (
    "Mean ± standard error over the test clips, and over trainings (seeds) where there are several: the root "
    "of the sum of both squares. A difference is clear above twice its error."
)
RESTORER = "What neighbours, motion and steps of the built-in decoder gain: [restorer.md](restorer.md)."


def mean_and_error(runs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Give the mean over runs of the same test clips, and its standard error over clips and (of several) over runs.

    `runs` hold one value for each clip, in the same order; what is not finite in one is left out of all.
    """
    clips = [values for values in zip(*runs, strict=True) if all(map(math.isfinite, values))]
    if not clips:
        return math.nan, math.nan
    by_clip = [statistics.fmean(values) for values in clips]
    by_run = [statistics.fmean(values) for values in zip(*clips, strict=True)]
    over_runs = _error(by_run) if len(runs) > 1 else 0.0
    return statistics.fmean(by_clip), math.hypot(_error(by_clip), over_runs)


def _error(values: Sequence[float]) -> float:
    """Give the standard error of a mean; NaN of fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _runs(outcomes: Sequence[Outcome], figure: str) -> list[Sequence[float]]:
    return [outcome.figures[figure] for outcome in outcomes]


def verdict(ablation: Ablation, outcomes: Outcomes) -> str:
    """Say whether the first variant is better than each other, by the paired difference against its error."""
    labels = list(ablation.variants)
    first = _runs(outcomes[labels[0]], ablation.figure)
    words = []
    for label in labels[1:]:
        other = _runs(outcomes[label], ablation.figure)
        paired = [[a - b for a, b in zip(*run, strict=True)] for run in zip(first, other, strict=True)]
        mean, error = mean_and_error(paired)
        if not math.isfinite(error):
            words.append(f"{label}: too few samples to say")
        elif abs(mean) <= 2 * error:
            words.append(f"{label}: no clear difference ({mean:+.3f} ± {error:.3f})")
        else:
            what = "reproduced" if mean > 0 else "**not reproduced**, the opposite"
            words.append(f"{label}: {what} ({mean:+.3f} ± {error:.3f})")
    return f"*{labels[0]}* against " + "; ".join(words) + "."


# Reporting


def report(ablations: Sequence[Ablation], outcomes: Mapping[str, Outcomes], path: Path, about: str) -> None:
    """Write the markdown page, and beside it a folder of pictures."""
    path = Path(path)
    pictures = path.parent / path.stem
    pictures.mkdir(parents=True, exist_ok=True)
    lines = ["# Ablations", "", about, "", ABOUT, "", RESTORER, ""]
    for ablation in ablations:
        lines += _chapter(ablation, outcomes[ablation.name], pictures)
    partial = path.with_name(f".{path.name}.part")
    lines = [line if line.startswith(("|", "!")) else textwrap.fill(line, 120) for line in lines]
    partial.write_text("\n".join(lines), encoding="utf-8")
    os.replace(partial, path)


def _chapter(ablation: Ablation, outcomes: Outcomes, pictures: Path) -> list[str]:
    stem = ablation.name.replace(" ", "-")
    lines = [f"## {ablation.name[0].upper()}{ablation.name[1:]}", "", ablation.question, "", *_table(outcomes)]
    if ablation.finding:
        lines += [f"The paper: {ablation.finding}", "", f"Here ({ablation.figure}): {verdict(ablation, outcomes)}", ""]
    means = {label: mean_and_error(_runs(runs, ablation.figure))[0] for label, runs in outcomes.items()}
    draw_bars(pictures / f"{stem}.png", means, f"{ablation.name}: {ablation.figure}")
    lines += [f"![{ablation.name}]({pictures.name}/{stem}.png)", ""]
    shown = {label: runs[0].picture for label, runs in outcomes.items() if runs[0].picture is not None}
    if shown:
        height = max(picture.shape[1] for picture in shown.values())
        rows = [torch.nn.functional.pad(p, (2, 2, 2, 2 + height - p.shape[1]), value=1.0) for p in shown.values()]
        save_picture(pictures / f"{stem}-clips.png", torch.cat(rows, 2))
        lines += [f"*{', '.join(shown)}, from left to right:*", "", f"![clips]({pictures.name}/{stem}-clips.png)", ""]
    return lines


def _table(outcomes: Outcomes) -> list[str]:
    names = list(next(iter(outcomes.values()))[0].figures)
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for label, runs in outcomes.items():
        cells = [_cell(*mean_and_error(_runs(runs, name))) for name in names]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    trainings = len(next(iter(outcomes.values())))
    return [*lines, "", *([f"Means of {trainings} trainings.", ""] if trainings > 1 else [])]


def _cell(mean: float, error: float) -> str:
    if not math.isfinite(mean):
        return "-"
    return f"{mean:.3f}" + (f" ± {error:.3f}" if math.isfinite(error) else "")


def draw_bars(path: Path, bars: Mapping[str, float], title: str, width: int = 960) -> None:
    """Draw one horizontal bar for each named value as PNG, from 0 on or from a little below the least of them."""
    finite = {name: value for name, value in bars.items() if math.isfinite(value)}
    names, row = max((len(name) for name in bars), default=0), 30
    image = Image.new("RGB", (width, 48 + row * len(bars)), PAPER)
    draw = ImageDraw.Draw(image)
    write(draw, (width // 2, 10), title, "ma")
    low, high = min(finite.values(), default=0.0), max(finite.values(), default=1.0)
    start = min(0.0, low) if low <= 0 or low < 0.5 * high else low - 0.5 * max(high - low, 1e-6)
    first, last = 24 + 8 * names, width - 90
    for number, (name, value) in enumerate(bars.items()):
        y = 40 + row * number
        write(draw, (first - 8, y + 10), name, "rm")
        if name in finite:
            end = place(value, start, max(high, start + 1e-9), first, last)
            draw.rectangle((first, y, max(first + 1, end), y + 20), COLOURS[number % len(COLOURS)])
            write(draw, (max(first, end) + 6, y + 10), f"{value:.4g}", "lm")
        else:
            write(draw, (first, y + 10), "no value", "lm")
    image.save(path, "PNG", optimize=True)


def save_picture(path: Path, picture: torch.Tensor) -> None:
    """Write (3, h, w) in 0..1 as PNG."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(path, "PNG")


def load_picture(path: Path) -> torch.Tensor:
    """Read what save_picture wrote."""
    with Image.open(path) as file:
        return torch.from_numpy(np.asarray(file.convert("RGB")).copy()).permute(2, 0, 1) / 255
