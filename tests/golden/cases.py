"""Recorded cases: where they are, how their two formats are read, and when a result counts as reproduced.

A case is NAME.json, with NAME.safetensors where it has tensors. Two formats exist. The dotted one has tensors
`in.`, `out.`, and weights `w.KEY` (int8) times a power of two `s.KEY`; its kind is its name, and
`weights_from` borrows the weights of other cases. The slashed one has `in/`, `out/`, `mid/` (debugging aids),
`weights/KEY` (float16 to be read as float32), a `kind`, and may state a recipe for its weights.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
COMMITTED = HERE / "cases"
ENVIRONMENT = "VSR_GOLDEN_DIR"

Tensors = dict[str, torch.Tensor]

# What the README of a recorded set asks for where a case states nothing: the default hides a wrong epsilon or GELU.
_TIGHTER = {
    r"mgld_vsr/(spade|resblock_dual|fuse_block)/": 1e-6,
    r"mgld_vsr/(spatial_transformer|temporal_blocks)/": 1.5e-6,
    r"mgld_vsr/(first_stage/decode|video_vae/dec)": 1e-5,
    r"mgld_vsr/(structcond|unet|first_stage|video_vae|text_encoder)/": 3e-6,
    r"mgld_vsr/(flownet_raft|preprocess_flow)/": 1e-5,
}


@dataclass(frozen=True)
class Tolerance:
    """Hold what may differ: |a - b| <= atol + rtol |b| + absmax max|b|, save for a fraction of elements."""

    rtol: float = 0.0
    atol: float = 0.0
    absmax: float = 0.0
    fraction: float = 0.0


@dataclass(frozen=True)
class Case:
    """Hold one recorded case; the tensors are read when first asked for."""

    path: Path  # without suffix
    meta: Mapping = field(hash=False, compare=False)

    @property
    def family(self) -> str:
        """Name the folder, which is the system the case was recorded from."""
        return self.path.parent.name

    @property
    def name(self) -> str:
        """Give the file's name."""
        return self.path.name

    @property
    def slashed(self) -> bool:
        """Tell which of the two formats this is."""
        return "kind" in self.meta

    @property
    def kind(self) -> str:
        """Name what is recorded: the stated kind, or in the dotted format the name."""
        return self.meta.get("kind", self.name)

    @cached_property
    def tensors(self) -> Tensors:
        """Read the file as it is; no file, no tensors."""
        path = self.path.with_suffix(".safetensors")
        return load_file(path) if path.is_file() else {}

    def group(self, name: str) -> Tensors:
        """Give the tensors of group in, out or mid, without the prefix."""
        prefix = name + ("/" if self.slashed else ".")
        return {key.removeprefix(prefix): x for key, x in self.tensors.items() if key.startswith(prefix)}

    def weights(self, borrowed: str | None = None) -> Tensors:
        """Give the stored weights in float32; `borrowed` picks one of several `weights_from` files."""
        source = self.meta.get("weights_from")
        if source is not None:
            file = source[borrowed] if isinstance(source, Mapping) else source
            return read_case(self.path.with_name(file).with_suffix(".json")).weights()
        if self.slashed:
            return {key: value.float() for key, value in self.group("weights").items()}
        stored = self.group("w")
        scales = self.group("s")
        return {key: value.float() * scales[key] if key in scales else value for key, value in stored.items()}

    def tolerance(self, output: str) -> Tolerance:
        """Give the tolerance the case states for one of its outputs."""
        place = f"{self.family}/{self.name}/{output}"
        tight = next((bound for names, bound in _TIGHTER.items() if re.match(names, place)), None)
        if tight is not None and "tolerance" not in self.meta:
            return Tolerance(absmax=tight)
        return parse_tolerance(self.meta.get("tolerance"), output, self.group("out").get(output))


def read_case(path: Path) -> Case:
    """Read one case by its json file."""
    return Case(path.with_suffix(""), json.loads(path.read_text(encoding="utf-8")))


def find_cases() -> list[Case]:
    """Find the cases of $VSR_GOLDEN_DIR, else of ../shared/golden, and the committed ones that these lack."""
    given = os.environ.get(ENVIRONMENT)
    roots = [Path(given)] if given else [HERE.parent.parent.parent / "shared" / "golden"]
    if given and not cases_under(Path(given)):
        raise ValueError(f"Golden cases: ${ENVIRONMENT} must hold NAME.json cases; got none in {given}. Unset it.")
    found: dict[tuple[str, str], Case] = {}
    for root in (*roots, COMMITTED):
        for case in cases_under(root):
            found.setdefault((case.family, case.name), case)
    return [found[key] for key in sorted(found)]


def cases_under(root: Path) -> list[Case]:
    """Read a folder of cases, or a folder of such folders; a missing folder has none."""
    files = sorted(root.glob("*.json")) or sorted(root.glob("*/*.json"))
    return [read_case(file) for file in files]


def parse_tolerance(statement, output: str, recorded: torch.Tensor | None) -> Tolerance:
    """Understand a stated tolerance, which is a dict, one of a few sentences, or missing; else ValueError."""
    whole = recorded is not None and not recorded.is_floating_point()
    if statement is None:
        return Tolerance(absmax=1e-4)  # the default of the dotted format
    if isinstance(statement, Mapping):
        if whole:
            return Tolerance()
        return Tolerance(
            float(statement.get("rtol", 0)),
            float(statement.get("atol", 0)),
            fraction=float(statement.get("max_mismatch_fraction", 0)),
        )
    if statement == "exact":
        return Tolerance()
    if whole and (part := re.search(r"u8 within (\S+) for ([\d.]+)% of pixels", statement)):
        return Tolerance(atol=float(part[1]), fraction=_share(part[2]))
    if whole and "exact" in statement:
        return Tolerance()
    if "occ" in output and (part := re.search(r"masks may differ on <([\d.]+)% of pixels", statement)):
        return Tolerance(fraction=float(part[1]) / 100)
    if part := re.search(r"at least ([\d.]+)% of elements within (\S+?)\*absmax", statement):
        return Tolerance(absmax=float(part[2]), fraction=_share(part[1]))
    if part := re.search(r"max abs error <= (\S+?)\*absmax", statement):
        return Tolerance(absmax=float(part[1]))
    if part := re.search(r"rtol (\S+) of absmax", statement):
        return Tolerance(absmax=float(part[1]))
    if part := re.search(r"\b([ra]tol) ([\d.]+e?-?\d*)", statement):
        return Tolerance(**{part[1]: float(part[2])})
    raise ValueError(f"Golden case: the tolerance must be understood; got {statement!r}. Teach parse_tolerance().")


def compare(case: Case, produced: Mapping[str, torch.Tensor]) -> None:
    """Raise an AssertionError naming every recorded output that is missing or out of its tolerance."""
    wrong = []
    for name, recorded in case.group("out").items():
        problem = "missing" if name not in produced else _difference(case, name, recorded, produced[name])
        if problem:
            wrong.append(f"{name}: {problem}")
    if wrong or not case.group("out"):
        raise AssertionError(f"{case.family}/{case.name}: " + ("; ".join(wrong) or "no recorded output"))


def recipe_weights(shapes: Mapping[str, tuple[int, ...]], seed: int, gain: float, round_fp16: bool = False) -> Tensors:
    """Make the weights of a case that states a recipe, from the shapes of the network's state dict."""
    return {key: _recipe_entry(key, tuple(shape), seed, gain, round_fp16) for key, shape in shapes.items()}


def check_weight_sums(case: Case, weights: Mapping[str, torch.Tensor], tolerance: float = 1e-3) -> None:
    """Raise an AssertionError where weights differ from the recorded sums or keys are missing."""
    sums = case.meta.get("weight_sums", {})
    wrong = [
        key
        for key, total in dict(sums).items()
        if key not in weights or not abs(float(weights[key].double().sum()) - total) <= tolerance
    ]
    if wrong:
        raise AssertionError(f"{case.family}/{case.name}: {len(wrong)} weight sums differ, first {wrong[:3]}")


def _recipe_entry(key: str, shape: tuple[int, ...], seed: int, gain: float, round_fp16: bool) -> torch.Tensor:
    key = key.replace("downsample.1.", "norm3.").removeprefix("module.")
    if key.endswith("rotary_emb.freqs"):
        return torch.from_numpy((10000.0 ** (-np.arange(16) / 16)).astype(np.float32)).view(shape)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    generator = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    noise = generator.standard_normal(math.prod(shape)).astype(np.float32).reshape(shape)
    value = _recipe_scale(key, noise, gain)
    if "flow_head.conv2." in key:
        value = value * np.float32(0.1)
    if round_fp16:
        value = value.astype(np.float16).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(value))


def _recipe_scale(key: str, noise: np.ndarray, gain: float) -> np.ndarray:
    if key.endswith("running_mean"):
        return np.float32(0.1) * noise
    if key.endswith("running_var"):
        return np.float32(1) + np.float32(0.25) * np.abs(noise)
    if key.endswith("bias"):
        return np.float32(0.1) * noise
    if key.endswith(("relative_attention_bias.weight", "class_embedding.weight")):
        return np.float32(0.5) * noise
    if noise.ndim == 1:
        return np.float32(1) + np.float32(0.2) * noise
    return noise * np.float32(gain / math.sqrt(math.prod(noise.shape[1:])))


def _difference(case: Case, name: str, recorded: torch.Tensor, produced: torch.Tensor) -> str:
    if produced.shape != recorded.shape:
        return f"shape {tuple(produced.shape)}, recorded {tuple(recorded.shape)}"
    rule = case.tolerance(name)
    expected, got = recorded.double(), produced.double()
    peak = float(expected.abs().max()) if expected.numel() else 0.0
    error = (got - expected).abs()
    outside = ~(error <= rule.atol + rule.rtol * expected.abs() + rule.absmax * peak)  # NaN is outside
    share = float(outside.double().mean())
    if share <= rule.fraction:
        return ""
    return f"{share:.2%} of elements off, worst by {float(error.max()):.3g} (peak {peak:.3g}, {rule})"


def _share(percent: str) -> float:
    return 1 - float(percent) / 100
