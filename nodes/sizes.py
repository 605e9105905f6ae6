"""How the size of a result is asked for, in every node that changes it: the inputs, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io

from ..models.layout.sizes import target_size
from .host import services

_SIZE_KINDS = ("scale", "short side", "largest edge", "exact size")
FILTERS = ("bilinear", "bicubic", "lanczos")
_MULTIPLE = "Sides of the result are rounded to multiples of this many px; H.264 needs 2."


def target_input(optional: bool = False, tooltip: str = "How the size of the result is given."):
    """Describe how the size of a result is given."""
    return size_input("target", _SIZE_KINDS, 4.0, (1920, 1080), 16384, tooltip, optional)


def size_input(
    name: str,
    kinds: Sequence[str],
    scale: float,
    size: tuple[int, int],
    most: int,
    tooltip: str,
    optional: bool = False,
) -> io.DynamicCombo.Input:
    """Describe how a size is given: `kinds` in their order; `scale` and `size` (width, height) at first; `most` px."""

    def px(name: str, default: int, what: str) -> io.Int.Input:
        return io.Int.Input(name, default=default, min=2, max=most, tooltip=what)

    kept = "in px; the aspect ratio is kept."
    low, high, step = (0.1, 16.0, 0.1) if scale >= 1 else (0.01, 4.0, 0.01)
    inputs = {
        "scale": [
            io.Float.Input(
                "scale",
                default=scale,
                min=low,
                max=high,
                step=step,
                tooltip="Output size as a multiple of the input's.",
            )
        ],
        "short side": [px("short_side", min(size), f"Shorter side of the output {kept}")],
        "largest edge": [px("largest_edge", max(size), f"Longer side of the output {kept}")],
        "exact size": [
            px("width", size[0], "Exact output width in px."),
            px("height", size[1], "Exact output height in px."),
        ],
    }
    options = [io.DynamicCombo.Option(kind, inputs[kind]) for kind in kinds]
    return io.DynamicCombo.Input(name, options=options, optional=optional, tooltip=tooltip)


def filter_input() -> io.Combo.Input:
    """Describe the filter that brings the clip to its size."""
    return io.Combo.Input(
        "filter",
        options=list(FILTERS),
        default="bilinear",
        tooltip=(
            "Filter that resizes the clip before it is encoded. The built-in restorer was trained with bilinear, "
            "MGLD-VSR with bicubic."
        ),
    )


def multiple_input(tooltip: str = _MULTIPLE) -> io.Int.Input:
    """Describe `multiple`, the last input: optional, because graphs of 0.1.0 lack it and keep sizes that are not even.

    The editor gives it 1 there (js/cascadevsr.js), `execute` does for programs.
    """
    return io.Int.Input(
        "multiple",
        default=2,
        min=1,
        max=64,
        optional=True,
        advanced=True,
        tooltip=tooltip,
    )


def asked_size(title: str, name: str, asked: dict, height: int, width: int, multiple: int) -> tuple[int, int]:
    """Work out the (height, width) that the size combo `name` asks for, of a clip of height x width px."""
    kind = asked[name]
    with services.titled(title):
        services.check_choice(title, name, kind, _SIZE_KINDS)
        if kind == "exact size":
            rule = {"exact": (asked["height"], asked["width"])}
        elif kind == "largest edge":
            rule = {"long_side": asked["largest_edge"]}
        else:
            rule = {"scale": asked["scale"]} if kind == "scale" else {"short_side": asked["short_side"]}
        return target_size(height, width, multiple=multiple, **rule)
