"""Ablations on paper: verdicts by paired differences, a markdown page, charts and clips."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from .ablation_settings import Ablation, Outcome
from .chart import draw_bars


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
        save_picture(pictures / f"{stem}-clips.png", torch.cat(rows, 2))
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


def save_picture(path: Path, picture: torch.Tensor) -> None:
    """Write (3, h, w) in 0..1 as PNG."""
    from PIL import Image

    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(path, "PNG")


def load_picture(path: Path) -> torch.Tensor:
    """Read what save_picture wrote."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as file:
        return torch.from_numpy(np.asarray(file.convert("RGB")).copy()).permute(2, 0, 1) / 255
