"""Motion of a clip for the network: flow models, their estimate on the LR frames, and latent propagation."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import comfy.ops
import folder_paths
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..models.checkpoints import CheckpointError, load_state, strip_prefix
from ..models.layout.sizes import latent_frames
from ..models.mgld_vsr.published import FLOW_ITERATIONS
from ..models.motion.estimation import BlockFlow, Motion, RaftFlow, SpyFlow, estimate_pairs
from ..models.motion.picture import flow_picture
from ..models.motion.propagation import DIRECTIONS, propagate
from ..models.motion.raft import RAFT, is_raft, raft_state
from ..models.motion.spynet import SpyNet, is_spynet, spynet_state
from ..models.schedules import step_index
from .host import services
from .host.model import keep_unedited
from .host.services import check_frames, has_guides
from .recognise import recognise
from .systems import all_systems

# The host's OPTICAL_FLOW is a patcher around torchvision's network; its nodes could not use ours.
FlowModelType = io.Custom("VSR_FLOW_MODEL")
MotionType = io.Custom("VSR_MOTION")
_KEY = "vsr_propagation"
_LOADER = "Load Flow Model"
_SAME = 1.0001  # sigmas closer than this are one step
_IN_MGLD = "flownet_model."  # prefix of RAFT in the published file of MGLD-VSR, which feeds it as follows
_AS_MGLD = {"iterations": FLOW_ITERATIONS, "signed": False}
_PICTURE_SIDE = 1024  # px; flow pictures of larger frames are made smaller


@dataclass(frozen=True)
class FlowModel:
    """Hold a flow network in the host's care, or the weight-free estimator, which has none."""

    name: str
    patcher: object = None
    options: Mapping = field(default_factory=dict)  # of the estimator

    def estimator(self, height: int, width: int):
        """Give the estimator for frames of a size, its network on the device."""
        if self.patcher is None:
            return BlockFlow()
        cells = max(16, -(-height // 8)) * max(16, -(-width // 8))
        if isinstance(self.patcher.model, SpyNet):
            services.load_network(self.patcher, 4 * 64 * 250 * cells)  # features of a few layers at full size
            return SpyFlow(self.patcher.model)
        services.load_network(self.patcher, 4 * (2 * cells**2 + 6000 * cells))  # all-pairs correlation, features
        return RaftFlow(self.patcher.model, **self.options)


class LoadFlowModel(io.ComfyNode):
    """Loads the network that sees motion, or the estimator that needs none."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRLoadFlowModel",
            display_name="Load Flow Model",
            category=services.CATEGORY,
            description="Loads what estimates the motion between frames: the built-in estimator, which needs no "
            "download and works at any size, or RAFT or SpyNet from models/optical_flow.",
            search_aliases=["optical flow", "raft", "spynet", "motion", "flow loader", "propagator"],
            inputs=[
                io.Combo.Input(
                    "flow_model",
                    options=flow_names(),
                    default=services.BUILT_IN,
                    tooltip="built-in: no weights; otherwise RAFT (raft-things.pth, raft_large) or SpyNet from the "
                    "folder models/optical_flow or of a released Upscale-A-Video folder, or the RAFT inside "
                    "mgldvsr_unet.ckpt.",
                ),
            ],
            outputs=[FlowModelType.Output(display_name="flow_model", tooltip="For Estimate Motion.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, flow_model):
        """Load the file behind the name."""
        if flow_model == services.BUILT_IN:
            return io.NodeOutput(FlowModel(services.BUILT_IN))
        return io.NodeOutput(load_flow_model(flow_path(flow_model)))

    @classmethod
    def fingerprint_inputs(cls, flow_model):
        """Load again when the file changed."""
        return flow_model if flow_model == services.BUILT_IN else services.newest_change(flow_path(flow_model))


def flow_names() -> list[str]:
    """List what the node offers: the weight-free estimator, flow models, those of released folders."""
    return [services.BUILT_IN, *(name for names in _listed().values() for name in names)]


def flow_path(name: str) -> Path:
    """Find a flow model by the name in the list."""
    remedy = f", or choose {services.BUILT_IN!r}"
    return services.listed_path(_LOADER, "flow model", _listed(), name, remedy)


def _listed() -> dict[str, list[str]]:
    """Give the files with a flow network of every folder of the host that may have some."""
    released = folder_paths.get_filename_list(services.RESTORER_FOLDER)
    with_flow = [n for n in released if any(s.has_flow(PurePath(n)) for s in all_systems().values())]
    return {
        services.FLOW_FOLDER: folder_paths.get_filename_list(services.FLOW_FOLDER),
        services.RESTORER_FOLDER: with_flow,
    }


def load_flow_model(path: Path) -> FlowModel:
    """Read RAFT or SpyNet; every other file is a CheckpointError that says what it is."""
    try:
        state = load_state(path)[0]
    except CheckpointError as error:
        raise CheckpointError(f"Load Flow Model: {error}") from error
    inside = strip_prefix(state, _IN_MGLD)
    if is_raft(weights := raft_state(inside or state)):
        kind, what = RAFT, "the large RAFT"
    elif is_spynet(weights := spynet_state(state)):
        kind, what = SpyNet, "SpyNet"
    else:
        raise CheckpointError(
            "Load Flow Model: the file must hold the large RAFT (raft-things.pth, or torchvision's raft_large) or "
            f"SpyNet; got {path.name}, {_what(state)}. Choose another file, or {services.BUILT_IN!r}."
        )
    network = kind(services.layers(comfy.ops.disable_weight_init, torch.float32, None)).eval()
    expected = {key: value.shape for key, value in network.state_dict().items() if "num_batches" not in key}
    wrong = [key for key, shape in expected.items() if key not in weights or weights[key].shape != shape]
    if wrong:
        raise CheckpointError(
            f"Load Flow Model: the entries must be those of {what}; got {path.name} with "
            f"{len(wrong)} missing or of another shape, such as {wrong[0]}. Download it again."
        )
    network.load_state_dict({key: weights[key] for key in expected}, strict=False)
    logging.getLogger(__name__).info("Loaded %s (%s)", path.name, kind.__name__)
    return FlowModel(path.name, services.wrap_network(network), _AS_MGLD if inside else {})


def _what(state: dict[str, torch.Tensor]) -> str:
    keys = {key.removeprefix("module.") for key in state}
    if "fnet.conv1.weight" in keys:
        return "which is the small RAFT or a relative of it"
    if any(key.startswith("basic_module.") for key in keys):
        return "which is a part or a relative of the optical flow network SpyNet"
    found = recognise(state)
    return (
        f"which is {found[0]}" if found else f"with {len(keys)} entries such as {', '.join(sorted(keys)[:2])}"
    )


class EstimateMotion(io.ComfyNode):
    """Estimates the motion of the LR frames, pair by pair."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSREstimateMotion",
            display_name="Estimate Motion",
            category=services.CATEGORY,
            description="Estimates where every pixel moves from frame to frame, both ways, and where scenes are "
            "cut. Motion is estimated on the low-resolution frames, pair by pair, so that it is quick and small.",
            search_aliases=["optical flow", "motion", "flow", "scene cut", "raft"],
            inputs=[
                io.Image.Input("frames", tooltip="The lr_frames of Cascade Input: all frames of the clip."),
                FlowModelType.Input("flow_model", tooltip="What estimates, from Load Flow Model."),
            ],
            outputs=[
                MotionType.Output(display_name="motion", tooltip="For Latent Propagation and Motion Guidance."),
                io.Image.Output(
                    display_name="flow_picture",
                    tooltip="The motion to the next frame: the hue is its direction, the depth its speed, white "
                    "stands still.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, frames, flow_model):
        """Estimate, and paint the flows."""
        frames = check_frames("Estimate Motion", "frames", frames)
        if not isinstance(flow_model, FlowModel):
            raise ValueError(
                f"Estimate Motion: flow_model must come from Load Flow Model; got {type(flow_model).__name__}. "
                "Link that node."
            )
        motion = estimate_pairs(
            frames,
            flow_model.estimator(*frames.shape[1:3]),
            device=services.main_device(),
            progress=services.Progress(),
            check_cancelled=services.check_cancelled,
        )
        if motion.cuts:
            logging.getLogger(__name__).info("Scene cuts before frames %s", ", ".join(map(str, motion.cuts)))
        return io.NodeOutput(motion, services.to_output(_pictures(motion)))


def _pictures(motion: Motion) -> torch.Tensor:
    """Paint one picture a frame; the last frame and the last of a scene, which lead nowhere, are white."""
    step = max(1, max(motion.height, motion.width) // _PICTURE_SIDE)
    flows = torch.zeros(motion.frames, 2, motion.height, motion.width, dtype=torch.float16)[
        ..., ::step, ::step
    ]
    flows[:-1] = motion.forward[..., ::step, ::step]
    flows[[cut - 1 for cut in motion.cuts]] = 0
    return flow_picture(flows)


class LatentPropagation(io.ComfyNode):
    """Carries latents along the motion at chosen steps."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        listed = io.String.Input(
            "step_list", default="24,26,28",
            tooltip="Steps of this sampling run, counted from 0 and separated by commas.",
        )  # fmt: skip
        part = [
            io.Float.Input(
                name, default=default, min=0.0, max=1.0, step=0.01,
                tooltip=f"Where in the denoising propagation {what}: 0 is the start, 1 the end.",
            )
            for name, default, what in (("start_percent", 0.0, "begins"), ("end_percent", 1.0, "ends"))
        ]  # fmt: skip
        threshold = {"min": 0.0, "max": 10.0, "step": 0.001, "round": False, "advanced": True}
        return io.Schema(
            node_id="VSRLatentPropagation",
            display_name="Latent Propagation",
            category=services.CATEGORY,
            description="Carries what the network predicts from frame to frame along the motion, where the motion "
            "is certain, so that texture stays on its object. For any video model; it restarts at scene cuts.",
            search_aliases=["temporal consistency", "flicker", "flow propagation", "upscale-a-video"],
            inputs=[
                io.Model.Input("model", tooltip="The video model to sample with propagation."),
                MotionType.Input("motion", tooltip="The motion of this clip, from Estimate Motion."),
                io.DynamicCombo.Input(
                    "steps",
                    options=[
                        io.DynamicCombo.Option("percent range", part),
                        io.DynamicCombo.Option("step list", [listed]),
                    ],
                    tooltip="percent range: every step of a part of the denoising; step list: the steps you name, "
                    "as the published program does.",
                ),
                io.Combo.Input(
                    "direction", options=list(DIRECTIONS), default="both",
                    tooltip="both: from the last frame to the first, then back, as published; backward or forward: "
                    "one of the two.",
                ),
                io.Float.Input(
                    "weight", default=0.5, min=0.0, max=1.0, step=0.05,
                    tooltip="Share of the neighbour in every mix: 0 changes nothing, 1 copies the neighbour.",
                ),
                io.Combo.Input(
                    "sampling", options=["nearest", "bilinear"], default="nearest",
                    tooltip="How the neighbour is fetched: nearest keeps texture sharp, as published; bilinear is "
                    "smoother.",
                ),
                io.Float.Input(
                    "alpha1", default=0.001,
                    tooltip="Share of the squared motion by which going there and back may miss.", **threshold,
                ),
                io.Float.Input(
                    "alpha2", default=0.05,
                    tooltip="Squared latent cells by which going there and back may always miss.", **threshold,
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, with propagation.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, motion, steps, direction, weight, sampling, alpha1, alpha2):
        """Clone the model and edit its prediction of the clean latent."""
        if not isinstance(motion, Motion):
            raise ValueError(
                f"Latent Propagation: motion must come from Estimate Motion; got {type(motion).__name__}. "
                "Link that node."
            )
        wanted = _choose_steps(model, steps)
        options = {
            "direction": direction,
            "weight": weight,
            "mode": sampling,
            "alpha1": alpha1,
            "alpha2": alpha2,
        }
        patched = model.clone()
        time = getattr(model.get_model_object("latent_format"), "temporal_downscale_ratio", 1)
        # Around the whole prediction, not after CFG: guiders of several models show that a part of it only.
        wrapper = _Propagation(motion, time, wanted, options)
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, _KEY, wrapper)
        return io.NodeOutput(patched)


class _Propagation:
    """The wrapper around a model's prediction; keeps the flows on the latent's grid between steps."""

    def __init__(self, motion: Motion, time: int, wanted, options: dict):
        self._motion, self._time, self._wanted, self._options = motion, time, wanted, options
        self._grid, self._flows = None, None

    def __call__(self, executor, x, timestep, model_options, seed=None):
        if not self._wanted(
            float(timestep.flatten()[0]), model_options["transformer_options"]["sample_sigmas"]
        ):
            return executor(x, timestep, model_options, seed)
        frames, *grid = clip_shape("Latent Propagation", x)
        time = self._time if x.ndim == 5 else 1
        guides = guide_frames(executor, x, latent_frames(self._motion.frames, time))
        shape = (frames - guides, *grid)
        if self._grid != shape:  # before the network runs: motion of another clip is an error at once
            self._flows = self._motion.on_grid(*shape, time)
            self._grid = shape
        clean = executor(x, timestep, model_options, seed)
        keep_unedited(model_options["transformer_options"], clean)
        clip = clean if clean.ndim == 5 else clean.transpose(0, 1)[None]
        cuts = self._motion.latent_cuts(time)
        moved = propagate(clip[:, :, : shape[0]], *self._flows, cuts=cuts, **self._options)
        clip = torch.cat((moved, clip[:, :, shape[0] :]), 2) if guides else moved
        return clip if clean.ndim == 5 else clip[0].transpose(0, 1)


def clip_shape(who: str, x: torch.Tensor) -> tuple[int, int, int]:
    """Give (frames, height, width); picture models have their frames in the batch."""
    if x.ndim not in (4, 5):
        raise ValueError(
            f"{who}: the latent must be that of a video or picture model (5 or 4 dimensions); got "
            f"{tuple(x.shape)}, which packs sound or other data. Use a model without."
        )
    return (x.shape[2] if x.ndim == 5 else x.shape[0], *x.shape[-2:])


def guide_frames(executor, x: torch.Tensor, frames: int) -> int:
    """Count the guide frames that a latent has (LTX appends them) behind the `frames` latent frames of its clip."""
    surplus = x.shape[2] - frames if x.ndim == 5 else 0
    conds = getattr(getattr(executor, "class_obj", None), "conds", None) or {}
    return surplus if surplus > 0 and has_guides(conds.values()) else 0


def percent_range(who: str, model, start: float, end: float):
    """Make the rule (sigma, all sigmas of the run) -> whether it lies in a part of the denoising."""
    if start >= end:
        raise ValueError(
            f"{who}: start_percent must lie below end_percent; got {start} and {end}. Take 0 and 1 for all steps."
        )
    sampling = model.get_model_object("model_sampling")
    first, last = sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)
    return lambda sigma, sigmas: last / _SAME <= sigma <= first * _SAME


def _choose_steps(model, steps: dict):
    """Make the rule (sigma, all sigmas of the run) -> whether to propagate."""
    if steps["steps"] == "percent range":
        return percent_range("Latent Propagation", model, steps["start_percent"], steps["end_percent"])
    if steps["steps"] != "step list":
        raise ValueError(
            f"Latent Propagation: steps must be percent range or step list; got {steps['steps']!r}. "
            "Choose percent range."
        )
    listed = _parse_steps(steps["step_list"])

    def wanted(sigma: float, sigmas: torch.Tensor) -> bool:
        count = len(sigmas) - 1
        if max(listed) >= count:
            raise ValueError(
                f"Latent Propagation: a run of {count} steps has the steps 0 to {count - 1}; got "
                f"{max(listed)}. Name lower steps, or sample more."
            )
        return step_index(sigma, sigmas) in listed

    return wanted


def _parse_steps(text: str) -> frozenset[int]:
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(
            "Latent Propagation: step_list must be whole numbers from 0, separated by commas; got "
            f"{text!r}. Write for example 24,26,28."
        )
    return frozenset(map(int, words))
