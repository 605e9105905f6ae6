"""`run.py bench accelerators`: the host's nodes that patch a model, each on all systems, beside the run without it.

1. Build four tiny MODELs in this process: Upscale-A-Video, MGLD-VSR and Wan of random weights, and the built-in model.
2. Sample each through Spatial Tiles and Temporal Windows, without and with every node of ROWS and SCHEDULERS.
3. Compare the latents (dB) and count the calls of the network, or note the line with which the run was refused.
4. Sample the built-in model as it is shipped, compiled and not: seconds, and how alike the latents are.

They are what docs/accelerators.md promises; tests/host/test_accelerators.py holds it to that.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..runner.host import Host
from ..runner.pack import load
from . import restorers
from .apart import load_host, run_apart

WORKS, IDLE, REFUSED = "works", "no effect", "refused"
UAV, MGLD, BUILT_IN, WAN = "Upscale-A-Video", "MGLD-VSR", "built-in", "Wan 2.1"
_FEW, _MANY = 2, 12  # steps; caches need some before they leave one out
_COMPILED = (128, 224), (192, 320)  # height and width of the clips
_ROUNDS = 3
_WIDTH = 24  # of texts
EXACT = 999.0  # dB of equal latents


@dataclass(frozen=True)
class Row:
    """One node of the host: its class in comfy_extras/nodes_{module}.py, its inputs, and what becomes of it.

    `fixed`: on Upscale-A-Video and MGLD-VSR; `flow`: on the built-in model.
    """

    node: str
    module: str
    fixed: str
    flow: str
    inputs: dict = field(default_factory=dict)
    kind: str = ""  # the class, where it is not called as the node

    def put(self, model: Any) -> Any:
        """Give the MODEL with the node behind it."""
        kind = getattr(importlib.import_module(f"comfy_extras.nodes_{self.module}"), self.kind or self.node)
        if hasattr(kind, "execute"):
            result = kind.execute(model, **self.inputs)
            return getattr(result, "args", result)[0]
        return getattr(kind(), kind.FUNCTION)(model, **self.inputs)[0]

    def sigmas(self, steps: int) -> torch.Tensor:
        """Give the sigmas of a scheduler."""
        kind = getattr(importlib.import_module(f"comfy_extras.nodes_{self.module}"), self.node)
        return kind.execute(steps=steps, **self.inputs).args[0]

    def on(self, system: str) -> str:
        """Give what becomes of the node on one of our systems."""
        return self.flow if system == BUILT_IN else self.fixed


_CACHE = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
_TIMES = {"q": 1.1, "k": 0.9, "v": 1.1, "out": 0.9}
_FREEU = {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}
_SPAN = {"start_percent": 0.0, "end_percent": 1.0}
_EDM = {"sigma_max": 120.0, "sigma_min": 0.002}
_DEEP = {"block_number": 3, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 0.35}
_DEEP |= {"downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic"}
_STRUCTURE = {"self_structural": 1.1, "self_temporal": 0.9, "cross_structural": 1.1, "cross_temporal": 0.9}
_ROPE = {"scale_x": 1.5, "shift_x": 0.0, "scale_y": 1.5, "shift_y": 0.0, "scale_t": 1.0, "shift_t": 0.0}
_ADVANCED = "model_advanced"
ROWS = (
    # What saves calls or time
    Row("EasyCache", "easycache", WORKS, WORKS, _CACHE, "EasyCacheNode"),
    Row("LazyCache", "easycache", REFUSED, WORKS, _CACHE, "LazyCacheNode"),
    Row("HyperTile", "hypertile", IDLE, IDLE, {"tile_size": 32, "swap_size": 2, "max_depth": 0, "scale_depth": False}),
    Row("TomePatchModel", "tomesd", IDLE, IDLE, {"ratio": 0.3}),
    Row("PatchModelAddDownscale", "model_downscale", IDLE, IDLE, _DEEP),
    Row("wanBlockSwap", "nop", IDLE, IDLE),
    Row("ModelComputeDtype", _ADVANCED, WORKS, WORKS, {"dtype": "bf16"}),
    Row("SelectModelDevice", "multigpu", IDLE, IDLE, {"device": "default"}, "SelectModelDeviceNode"),
    Row("MultiGPU_WorkUnits", "multigpu", IDLE, IDLE, {"max_gpus": 1}, "MultiGPUCFGSplitNode"),
    # What replaces the sampling of a model
    Row("ModelSamplingDiscrete", _ADVANCED, REFUSED, REFUSED, {"sampling": "v_prediction", "zsnr": False}),
    Row("ModelSamplingContinuousEDM", _ADVANCED, REFUSED, REFUSED, {"sampling": "edm", **_EDM}),
    Row("ModelSamplingContinuousV", _ADVANCED, REFUSED, REFUSED, {"sampling": "v_prediction", **_EDM}),
    Row("ModelSamplingStableCascade", _ADVANCED, REFUSED, REFUSED, {"shift": 2.0}),
    Row("ModelSamplingSD3", _ADVANCED, REFUSED, WORKS, {"shift": 3.0}),
    Row("ModelSamplingAuraFlow", _ADVANCED, REFUSED, WORKS, {"shift": 1.73}),
    Row("ModelSamplingFlux", _ADVANCED, REFUSED, WORKS, dict(max_shift=1.15, base_shift=0.5, width=1024, height=1024)),
    Row("ModelSamplingLTXV", "lt", REFUSED, WORKS, {"max_shift": 2.05, "base_shift": 0.95}),
    Row("ModelNoiseScale", _ADVANCED, REFUSED, WORKS, {"noise_scale": 1.1}),
    # What guides
    Row("CFGOverride", "custom_sampler", WORKS, WORKS, {"cfg": 1.5, **_SPAN}),
    Row("CFGZeroStar", "cfg", WORKS, WORKS),
    Row("CFGNorm", "cfg", WORKS, WORKS, {"strength": 1.0}),
    Row("APG", "apg", WORKS, WORKS, {"eta": 1.0, "norm_threshold": 5.0, "momentum": -0.5}),
    Row("TCFG", "tcfg", WORKS, WORKS),
    Row("FreSca", "fresca", WORKS, WORKS, {"scale_low": 1.0, "scale_high": 1.25, "freq_cutoff": 4}),
    Row("Mahiro", "mahiro", WORKS, WORKS),
    Row("RescaleCFG", _ADVANCED, WORKS, WORKS, {"multiplier": 0.7}),
    Row("RenormCFG", "lumina2", REFUSED, REFUSED, {"cfg_trunc": 100.0, "renorm_cfg": 1.0}),
    Row("Epsilon Scaling", "eps", WORKS, WORKS, {"scaling_factor": 1.05}, "EpsilonScaling"),
    Row("TemporalScoreRescaling", "eps", WORKS, WORKS, {"tsr_k": 0.95, "tsr_sigma": 1.0}),
    Row("VideoLinearCFGGuidance", "video_model", REFUSED, REFUSED, {"min_cfg": 1.0}),
    Row("VideoTriangleCFGGuidance", "video_model", REFUSED, REFUSED, {"min_cfg": 1.0}),
    Row("PerturbedAttentionGuidance", "pag", IDLE, IDLE, {"scale": 3.0}),
    Row("SelfAttentionGuidance", "sag", REFUSED, REFUSED, {"scale": 0.5, "blur_sigma": 2.0}),
    Row("SkipLayerGuidanceSD3", "sd3", IDLE, IDLE, {"layers": "0", "scale": 3.0, **_SPAN}),
    Row("SkipLayerGuidanceDiT", "slg", IDLE, IDLE, dict(double_layers="0", single_layers="0", scale=3.0, **_SPAN)),
    Row("SkipLayerGuidanceDiTSimple", "slg", IDLE, IDLE, dict(double_layers="0", single_layers="0", **_SPAN)),
    Row("NAGuidance", "nag", IDLE, IDLE, {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}),
    # What changes the network
    Row("FreeU", "freelunch", REFUSED, REFUSED, _FREEU),
    Row("FreeU_V2", "freelunch", REFUSED, REFUSED, _FREEU),
    Row("UNetSelfAttentionMultiply", "attention_multiply", WORKS, IDLE, _TIMES),
    Row("UNetCrossAttentionMultiply", "attention_multiply", WORKS, IDLE, _TIMES),
    Row("UNetTemporalAttentionMultiply", "attention_multiply", WORKS, IDLE, _STRUCTURE),
    Row("ScaleROPE", "rope", IDLE, IDLE, _ROPE),
    Row("DifferentialDiffusion", "differential_diffusion", IDLE, IDLE, {"strength": 1.0}),
)
# Schedulers made for other networks: they give sigmas, and patch nothing
SCHEDULERS = (
    Row("AlignYourStepsScheduler", "align_your_steps", WORKS, REFUSED, {"model_type": "SD1", "denoise": 1.0}),
    Row("GITSScheduler", "gits", WORKS, REFUSED, {"coeff": 1.2, "denoise": 1.0}),
)


@dataclass(frozen=True)
class Subject:
    """A tiny MODEL, what it is sampled with, and the tile (px) and window (frames) that cut its clip."""

    model: Any
    positive: list
    negative: list
    latent: dict
    tile: tuple[int, int, int]  # width, height, overlap
    window: tuple[int, int]  # length, overlap


def make_subjects(folder: Path) -> dict[str, Subject]:
    """Build the four, by name; random weights are written into `folder`."""
    open_restorer = load("nodes.loaders").load_restorer
    restorers.write_upscale_a_video(folder / "uav", False)
    restorers.write_mgld_vsr(folder / "mgld", False)
    model, vae, clip = open_restorer(folder / "uav", "fp32")[:3]
    texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("best quality", "blur")]
    found = {UAV: Subject(model, *_clip(vae, 8, (10, 16), texts, 0.1), (40, 40, 16), (5, 2))}
    model, vae = open_restorer(folder / "mgld", "fp32")[:2]
    vae.shortest = 32  # px; the size that the published networks ask for would take minutes
    texts = [_text(seed, 32) for seed in (1, 2)]
    found[MGLD] = Subject(model, *_clip(vae, 7, (16, 24), texts), (64, 64, 32), (4, 1))
    model, vae = open_restorer(_write_built_in(folder / "built-in.safetensors"), "fp32")[:2]
    texts = [_text(seed, _WIDTH) for seed in (1, 2)]
    found[BUILT_IN] = Subject(model, *_clip(vae, 33, (16, 24), texts, 0.1), (64, 64, 32), (17, 4))
    found[WAN] = Subject(*_wan(), (64, 64, 32), (17, 4))
    return found


def _write_built_in(path: Path) -> Path:
    """Write a restorer like the built-in one of few random weights, with text layers: so there is what to guide."""
    dits, vaes = load("models.unimmvsr.dit"), load("models.unimmvsr.vae")
    small = vaes.VAEConfig(encoder_width=8, latent_width=8, restore_width=8, restore_blocks=1)
    generator, state = torch.Generator().manual_seed(0), {}
    for prefix, network in (
        ("vae.", vaes.CausalVideoVAE(small)),
        ("dit.", dits.UniMMVSRDiT(dits.DiTConfig(width=32, depth=2, heads=2, ffn_ratio=2, text_width=_WIDTH))),
    ):
        for key, value in network.state_dict().items():
            drawn = torch.randn(value.shape, generator=generator)
            state[prefix + key] = drawn * (0.7 / value[0].numel() ** 0.5 if value.ndim > 1 else 0.1)
    load("models.checkpoints").save_state(path, state, {"architecture": "unimmvsr"})
    return path


def _clip(vae: Any, frames: int, small: tuple[int, int], texts: Any, level: float = 0.0) -> tuple:
    """Give (positive, negative, samples) of a clip of noise, enlarged four times."""
    inputs, conditioning = load("nodes.frames").CascadeInput, load("nodes.conditioning").VSRConditioning
    low = torch.rand((frames, *small, 3), generator=torch.Generator().manual_seed(0))
    target = {"target": "exact size", "height": 4 * small[0], "width": 4 * small[1]}
    latent = inputs.execute(vae, target, "bilinear", frames=low).args[0]
    return conditioning.execute(latent, level, 1, *texts).args


def _text(seed: int, width: int) -> list:
    """Draw CONDITIONING of six tokens."""
    return [[torch.randn((1, 6, width), generator=torch.Generator().manual_seed(seed)), {}]]


def _wan() -> tuple:
    """Build the host's own Wan class with few weights: (MODEL, positive, negative, samples)."""
    import comfy.model_patcher
    import comfy.supported_models

    draw = torch.Generator().manual_seed(0)
    sizes = {"dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "in_dim": 16, "out_dim": 16}
    settings = {"image_model": "wan2.1", "model_type": "t2v", "freq_dim": 32, "text_dim": _WIDTH, **sizes}
    config = comfy.supported_models.WAN21_T2V(settings)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=torch.device("cpu"))
    for key, value in model.diffusion_model.named_parameters():
        spread = 0.8 / value[0].numel() ** 0.5 if value.ndim > 1 else 0.1
        spread *= 0.3 if key.startswith("time_") else 1.0  # a step changes little, as in trained models
        drawn = torch.randn(value.shape, generator=draw) * spread
        value.data.copy_(drawn + ("norm" in key and key.endswith("weight")))
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)
    return (
        patcher,
        _text(1, _WIDTH),
        _text(2, _WIDTH),
        {"samples": torch.randn((1, 16, 9, 8, 12), generator=draw) * 0.5},
    )


def cut(subject: Subject, model: Any, tiles: bool = True, windows: bool = True) -> Any:
    """Put Spatial Tiles and Temporal Windows behind a MODEL."""
    nodes = load("nodes.tiling")
    if tiles:
        sizes = dict(zip(("tile_width", "tile_height", "overlap"), subject.tile, strict=True))
        model = nodes.SpatialTiles.execute(model, {"tiling": "manual", **sizes}).args[0]
    if windows:
        sizes = dict(zip(("window", "overlap"), subject.window, strict=True))
        model = nodes.TemporalWindows.execute(model, {"windows": "manual", **sizes}).args[0]
    return model


def sample(
    subject: Subject,
    model: Any,
    steps: int,
    calls: list | None = None,
    sigmas: torch.Tensor | None = None,
    cfg: float = 2.0,
) -> torch.Tensor:
    """Sample as the host's KSampler does, or with the sigmas of a scheduler.

    `calls` receives the shape of every call that reaches the network.
    """
    import comfy_extras.nodes_custom_sampler as custom
    from comfy.patcher_extension import WrappersMP

    def watch(executor: Callable, x: torch.Tensor, *args, **kwargs):
        calls.append(tuple(x.shape))
        return executor(x, *args, **kwargs)

    model = model.clone()
    if calls is not None:  # the last of the wrappers: what a cache answers does not come so far
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "bench", watch)
    if sigmas is None:
        sigmas = custom.BasicScheduler.execute(model, "simple", steps, 1.0).args[0]
    sampler = custom.KSamplerSelect.execute("euler").args[0]
    texts = subject.positive, subject.negative
    done = custom.SamplerCustom.execute(model, True, 1, cfg, *texts, sampler, sigmas, subject.latent)
    return done.args[0]["samples"]


def likeness(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Give the signal of `wanted` over the difference, in dB; EXACT where there is none."""
    error = (found - wanted).double().square().mean()
    return EXACT if error == 0 else float(10 * torch.log10(wanted.double().square().mean() / error))


def accelerators(options: argparse.Namespace, host: Host) -> dict:
    """The host's nodes that patch a model on all systems, tiny: dB to the run without, calls saved (minutes).

    TorchCompileModel apart, on the built-in model as it is shipped: seconds of eight steps for 17 frames, one thread.
    """
    return run_apart("accelerators", {"host": str(host.path)})


def measured(job: dict) -> dict:
    """Give all rows, and print each as it is found on stderr."""
    load_host(job["host"])
    load("nodes.host.folders").register_folders()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        subjects = make_subjects(Path(folder))
        plain = {
            (name, steps): _run(subject, subject.model, steps)
            for name, subject in subjects.items()
            for steps in (_FEW, _MANY)
        }
        result = {}
        for row in ROWS:
            steps = _MANY if row.module == "easycache" else _FEW
            found = {name: _beside(row, each, steps, *plain[name, steps]) for name, each in subjects.items()}
            print(f"  {row.node:28}", " | ".join(found.values()), file=sys.stderr, flush=True)
            result[row.node] = found
        for row in SCHEDULERS:
            sigmas = row.sigmas(_MANY)
            found = {name: _beside(row, each, _MANY, *plain[name, _MANY], sigmas) for name, each in subjects.items()}
            print(f"  {row.node:28}", " | ".join(found.values()), file=sys.stderr, flush=True)
            result[row.node] = found
        result["TorchCompileModel"] = _compiled()
    return result


def _compiled() -> dict[str, dict[str, float]]:
    """Sample with and without the host's node by turns, once it is warm, in clips of several sizes."""
    torch.set_num_threads(1)
    file = Path(__file__).parent.parent / "models" / "weights" / "unimmvsr-tiny.safetensors"
    model, vae = load("nodes.loaders").load_restorer(file, "fp32")[:2]
    compiled = Row("TorchCompileModel", "torch_compile", WORKS, WORKS, {"backend": "inductor"}).put(model)
    found = {}
    for height, width in _COMPILED:
        subject = Subject(model, *_clip(vae, 17, (height // 4, width // 4), ()), (0, 0, 0), (0, 0))
        spent: dict[bool, list[float]] = {False: [], True: []}
        results = {}
        for warm in range(_ROUNDS + 1):
            for turn, each in ((False, model), (True, compiled)):
                begun = time.process_time()
                results[turn] = sample(subject, each, 8, cfg=1.0)
                spent[turn] += [time.process_time() - begun] if warm else []
        plain, fast = (statistics.median(spent[turn]) for turn in (False, True))
        row = {"plain": plain, "compiled": fast, "ratio": plain / fast, "dB": likeness(results[True], results[False])}
        found[f"{width}x{height}"] = {name: round(value, 2) for name, value in row.items()}
        print(f"  TorchCompileModel {width}x{height}", row, file=sys.stderr, flush=True)
    return found


def _run(subject: Subject, model: Any, steps: int, sigmas: torch.Tensor | None = None) -> tuple[torch.Tensor, int]:
    calls: list = []
    return sample(subject, cut(subject, model), steps, calls, sigmas), len(calls)


def _beside(
    row: Row, subject: Subject, steps: int, plain: torch.Tensor, calls: int, sigmas: torch.Tensor | None = None
) -> str:
    """Say what a node does to a run; errors of any kind are what is looked for here."""
    try:
        model = subject.model if sigmas is not None else row.put(subject.model)
        found, count = _run(subject, model, steps, sigmas)
    except Exception as error:
        return f"refused: {type(error).__name__}: {str(error).splitlines()[0][:60]}"
    decibels = likeness(found, plain)
    return f"{'equal' if decibels == EXACT else f'{decibels:.1f} dB'}, {count} of {calls} calls"
