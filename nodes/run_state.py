"""What a sampling run needs beside the network: a guard against schedules that break it, and progress."""

import comfy.model_sampling
import torch
from comfy.patcher_extension import WrappersMP

from . import host
from .keys import UNEDITED_KEY

PROGRESS_KEY = "vsr_progress"  # in transformer_options: the SamplingProgress of this run
PART_KEY = "vsr_part"  # in transformer_options: (start, length) of this call within its step, 0..1
_GRAIN = 1000  # progress ticks per step
_FULL = 0.98  # a start sigma from here on counts as full noise (schedulers end within 0.2 % of 1)
_WHO = "KSampler / SamplerCustomAdvanced"

_UNTOUCHED = 0.01  # a start sigma below this leaves the start latent as it is
# On ComfyUI 0.30 one step of uni_pc ends 3.4 away from the prediction, of dpm_fast and dpm_adaptive 4.4 (from
# noise of unit variance). The stochastic ones add noise between steps, and there is no between.
_ONE_STEP_BREAKS = ("unipc", "dpm_fast", "dpm_adaptive", "sde", "seeds", "sa_solver")
_STOPS_EARLY = (
    "dpm_fast",
    "dpm_adaptive",
)  # end at the last sigma but one, and leave its noise in the picture


def attach(patcher) -> None:
    """Give a MODEL the guard and the progress of this module; both travel with its clones."""
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "vsr_run", _outer_sample)


def _outer_sample(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    check_sigmas(sigmas)
    sampling = executor.class_obj.model_patcher.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.CONST):
        check_flow_run(sampler, sigmas, latent_image)
    options = executor.class_obj.model_options.setdefault("transformer_options", {})
    options[PROGRESS_KEY] = SamplingProgress(len(sigmas) - 1)
    return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)


def check_sigmas(sigmas: torch.Tensor) -> None:
    """Raise a ValueError for sigmas that no model can be sampled with."""
    steps, shown = len(sigmas) - 1, _shown(sigmas)
    if steps < 1:
        raise ValueError(
            f"{_WHO}: sampling needs at least one step; got sigmas {shown}. Set steps to 1, denoise to 1."
        )
    if not torch.isfinite(sigmas).all():
        raise ValueError(
            f"{_WHO}: the scheduler must give finite sigmas; got {shown} for {steps} step(s) (kl_optimal does this "
            "at one step). Choose scheduler simple."
        )
    if sigmas.min() < 0 or sigmas[0] <= 0:
        raise ValueError(
            f"{_WHO}: sigmas must start above 0 and not fall below it; got {shown} for {steps} step(s). Choose "
            "scheduler simple, or Refine Sigmas."
        )


def check_flow_run(sampler, sigmas: torch.Tensor, latent_image: torch.Tensor) -> None:
    """Raise a ValueError for sampler, sigmas and start latent that break a flow model, or leave it untouched."""
    steps, shown = len(sigmas) - 1, _shown(sigmas)
    if sigmas.max() > 1.0001 or sigmas[0] < _UNTOUCHED:
        raise ValueError(
            f"{_WHO}: sigmas of this flow model must start between {_UNTOUCHED} and 1 and not fall below "
            f"0; got {shown} "
            f"for {steps} step(s) (ddim_uniform does this at one step). Choose scheduler simple, or "
            "Refine Sigmas."
        )
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
    stops_early = any(part in name for part in _STOPS_EARLY) and sigmas[-2] > _UNTOUCHED
    if stops_early or steps == 1 and any(part in name for part in _ONE_STEP_BREAKS):
        raise ValueError(
            f"{_WHO}: so few steps need a sampler that ends at the prediction; got "
            f"{name.removeprefix('sample_')} "
            f"with {steps} step(s). Choose sampler euler."
        )
    if sigmas[0] < _FULL and torch.count_nonzero(latent_image) == 0:
        raise ValueError(
            f"{_WHO}: an empty latent must start at full noise (sigma 1); got a start sigma of {shown[0]} "
            f"for {steps} "
            "step(s) (scheduler ddim_uniform, or denoise below 1). Choose scheduler simple and denoise 1, "
            "or sample "
            "from Cascade Input's lr_latent."
        )


def _shown(sigmas: torch.Tensor) -> list[float]:
    return [round(float(sigma), 4) for sigma in sigmas[:4]]


def keep_unedited(args: dict) -> None:
    """Store what the network predicted, for the sampler's noise estimate, before a node edits it.

    `args` are those of a post-CFG function; only the first node to edit a prediction stores it.
    """
    kept = args["model_options"].get("transformer_options", {}).get(UNEDITED_KEY)
    if kept is not None and kept["x0"] is None:
        kept["x0"] = args["denoised"]


def clip_prediction(limit: float):
    """Make the post-CFG function that clips predictions, as schedulers with clip_sample do."""

    def clip(args: dict) -> torch.Tensor:
        keep_unedited(args)
        return args["denoised"].clamp(-limit, limit)

    return clip


class SamplingProgress:
    """Turn the network's block ticks into progress of the whole run; it never runs backwards."""

    def __init__(self, steps: int):
        self._steps, self._last = steps, -1
        self._show = host.Progress()

    def blocks(self, options: dict):
        """Give the `progress(done, total)` callback of one network call."""
        grid, now = options.get("sample_sigmas"), options.get("sigmas")
        step = 0 if grid is None or now is None else int((grid > float(now.flatten()[0]) * 1.0001).sum())
        start, length = options.get(PART_KEY, (0.0, 1.0))

        def tick(done: int, total: int) -> None:
            value = int(_GRAIN * (min(step, self._steps - 1) + start + length * done / total))
            self._last = max(self._last, value)
            self._show(self._last, _GRAIN * self._steps)

        return tick


def inside(options: dict, index: int, count: int, together: int = 1) -> dict:
    """Copy model_options for the sub-calls from `index` of `count`, `together` in one, which are a part of the step."""
    options = options.copy()
    inner = options["transformer_options"] = options.get("transformer_options", {}).copy()
    start, length = inner.get(PART_KEY, (0.0, 1.0))
    inner[PART_KEY] = (start + length * index / count, length * together / count)
    return options


def joined(first: dict, last: dict) -> dict:
    """Copy model_options of the first of several sub-calls in a row for all of them up to the last in one."""
    options = first.copy()
    inner = options["transformer_options"] = first["transformer_options"].copy()
    start, (end, length) = inner[PART_KEY][0], last["transformer_options"][PART_KEY]
    inner[PART_KEY] = (start, end + length - start)
    return options
