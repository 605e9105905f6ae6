"""Motion of a clip: flow models, their estimate on the LR frames, and latent propagation.

1. Load Flow Model builds the network of a file, as the host's OPTICAL_FLOW, or the estimator without weights.
2. Estimate Motion runs it on every pair of frames, both ways, finds scene cuts, and paints the flows.
3. Latent Propagation puts a wrapper on a MODEL that mixes neighbours into its predictions at chosen steps.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePath

import comfy.ops
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..models.checkpoints import load_state, strip_prefix
from ..models.motion.blockflow import BlockFlow
from ..models.motion.estimation import (
    FlowEstimator,
    FlowNetwork,
    Motion,
    RaftFlow,
    SpyFlow,
    estimate_pairs,
    estimator_of,
)
from ..models.motion.flow import DIRECTIONS, flow_picture, propagate
from ..models.motion.raft import build_raft, is_raft, raft_state
from ..models.motion.spynet import SpyNet, is_spynet, spynet_state
from ..models.schedules import step_index
from .host import services
from .host.progress import watched_layers
from .prediction import MotionEdit, Wanted, percent_inputs, percent_range
from .recognise import what_flow
from .systems import all_systems

# The host's own type: a ModelPatcher around a network that is called as torchvision's RAFT is.
FlowModelType = io.Custom("OPTICAL_FLOW")
MotionType = io.Custom("VSR_MOTION")
_KEY = "vsr_propagation"
_LOAD, _ESTIMATE, _PROPAGATE = "Load Flow Model", "Estimate Motion", "Latent Propagation"
_PICTURE_SIDE = 1024  # px; flow pictures of larger frames are made smaller


class LoadFlowModel(io.ComfyNode):
    """Loads a network that estimates motion, or the estimator without weights."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSRLoadFlowModel",
            display_name=_LOAD,
            category=services.CATEGORY,
            description=(
                "Loads a motion estimator: the built-in one, which needs no download and "
                "works at any size, or RAFT or SpyNet from models/optical_flow."
            ),
            search_aliases=["optical flow", "raft", "spynet", "motion", "flow loader", "propagator", "cascade vsr"],
            inputs=[
                io.Combo.Input(
                    "flow_model",
                    options=flow_names(),
                    default=services.BUILT_IN,
                    tooltip=(
                        "built-in: needs no weights. Otherwise RAFT (raft-things.pth, "
                        "raft_large) or SpyNet from the folder models/optical_flow or from a "
                        "released Upscale-A-Video folder, or the RAFT inside mgldvsr_unet.ckpt."
                    ),
                )
            ],
            outputs=[
                FlowModelType.Output(
                    display_name="flow_model",
                    tooltip="For Estimate Motion, or any node of the host that takes an optical flow model.",
                )
            ],
        )

    @classmethod
    def execute(cls, flow_model: str):
        """Load the file behind the name."""
        if flow_model == services.BUILT_IN:
            return io.NodeOutput(services.wrap_network(FlowNetwork(BlockFlow())))
        return io.NodeOutput(load_flow_model(flow_path(flow_model)))

    @classmethod
    def fingerprint_inputs(cls, flow_model: str):
        """Load again when the file changed."""
        return flow_model if flow_model == services.BUILT_IN else services.newest_change(flow_path(flow_model))


def flow_names() -> list[str]:
    """List what the node offers: the weight-free estimator, flow models, those of released systems."""
    return [services.BUILT_IN, *(name for names in _listed().values() for name in names)]


def flow_path(name: str) -> Path:
    """Find a flow model by the name in the list."""
    remedy = f", or choose {services.BUILT_IN!r}"
    return services.listed_path(_LOAD, "flow model", _listed(), name, remedy)


def _listed() -> dict[str, list[str]]:
    """Give the files with a flow network of every folder of the host that may have some."""
    flows = [system.flow for system in all_systems() if system.flow is not None]
    released = folder_paths.get_filename_list(services.RESTORER_FOLDER)
    return {
        services.FLOW_FOLDER: folder_paths.get_filename_list(services.FLOW_FOLDER),
        services.RESTORER_FOLDER: [n for n in released if any(PurePath(n).match(flow.pattern) for flow in flows)],
    }


def load_flow_model(path: Path) -> ModelPatcher:
    """Read RAFT or SpyNet as the host's OPTICAL_FLOW; of every other file the error says what it is."""
    with services.titled(_LOAD):
        state = load_state(path)[0]
    # A system's file may hold RAFT among its own networks, and show it frames in a way of its own.
    flows = [system.flow for system in all_systems() if system.flow is not None]
    inside = {flow: strip_prefix(state, flow.prefix) for flow in flows if flow.prefix}
    flow = next((flow for flow, entries in inside.items() if entries), None)
    if is_raft(weights := raft_state(inside.get(flow) or state)):
        network, what = build_raft(), "the large RAFT"
    elif is_spynet(weights := spynet_state(state)):
        network, what = SpyNet(services.layers(comfy.ops.disable_weight_init, torch.float32, None)), "SpyNet"
    else:
        raise ValueError(
            f"{_LOAD}: the file must hold the large RAFT (raft-things.pth, or torchvision's raft_large) or SpyNet; "
            f"got {path.name}, {what_flow(state)}. Choose another file, or {services.BUILT_IN!r}."
        )
    expected = {key: value.shape for key, value in network.state_dict().items() if "num_batches" not in key}
    wrong = [key for key, shape in expected.items() if key not in weights or weights[key].shape != shape]
    if wrong:
        raise ValueError(
            f"{_LOAD}: the entries must be those of {what}; got {path.name} with {len(wrong)} missing or of another "
            f"shape, such as {wrong[0]}. Download it again."
        )
    network.load_state_dict({key: weights[key] for key in expected}, strict=False)
    logging.getLogger(__name__).info("Loaded %s (%s)", path.name, type(network).__name__)
    if isinstance(network, SpyNet):
        network = FlowNetwork(SpyFlow(network))
    elif flow is not None:
        network = FlowNetwork(RaftFlow(network, flow.iterations, flow.signed))
    return services.wrap_network(network.eval())


class EstimateMotion(io.ComfyNode):
    """Estimates the motion of the LR frames, pair by pair."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        return io.Schema(
            node_id="VSREstimateMotion",
            display_name=_ESTIMATE,
            category=services.CATEGORY,
            description=(
                "Estimates the motion of every pixel from frame to frame, in both directions, and finds scene cuts. It "
                "works on the low-resolution frames, pair by pair, which is fast and needs little memory."
            ),
            search_aliases=["optical flow", "motion", "flow", "scene cut", "raft", "cascade vsr"],
            inputs=[
                io.Image.Input("frames", tooltip="The lr_frames of Cascade Input: all frames of the clip."),
                FlowModelType.Input(
                    "flow_model",
                    tooltip="The optical flow model, from Load Flow Model or the host's Load Optical Flow Model.",
                ),
            ],
            outputs=[
                MotionType.Output(display_name="motion", tooltip="For Latent Propagation and Motion Guidance."),
                io.Image.Output(
                    display_name="flow_picture",
                    tooltip="The motion to the next frame. The hue is the direction: red moves right, yellow down, "
                    "light blue left, violet up. The depth of the colour is the speed; white stands still.",
                ),
            ],
        )

    @classmethod
    def execute(cls, frames: torch.Tensor, flow_model: ModelPatcher):
        """Estimate, and paint the flows."""
        frames = services.check_frames(_ESTIMATE, "frames", frames)
        check_flow_model(_ESTIMATE, flow_model)
        with services.titled(_ESTIMATE), watched_layers(flow_model.model, _ESTIMATE, len(frames)) as show:
            motion = estimated(frames, flow_model, show)
        return io.NodeOutput(motion, services.to_output(_pictures(motion)))


def check_flow_model(title: str, flow_model: object) -> None:
    """Raise where `flow_model` holds no network."""
    if not isinstance(getattr(flow_model, "model", None), torch.nn.Module):
        raise ValueError(
            f"{title}: flow_model must come from Load Flow Model or Load Optical Flow Model; got "
            f"{type(flow_model).__name__}. Link one of them."
        )


def loaded_estimator(patcher: ModelPatcher, height: int, width: int) -> FlowEstimator:
    """Bring a flow network to its device and give its estimator of frames of a size."""
    estimator = estimator_of(patcher.model)
    cells = max(16, -(-height // 8)) * max(16, -(-width // 8))
    if isinstance(estimator, SpyFlow):
        services.load_network(patcher, 4 * 64 * 250 * cells)  # features of a few layers at full size
    elif isinstance(estimator, RaftFlow):
        # Correlation of all pairs; features and the flow of every update. Measured on the CPU: 243 MB at 640x360,
        # 1,689 MB at 1280x720, of 250 and 2,186 MB reserved.
        services.load_network(patcher, 4 * (2 * cells**2 + 11000 * cells))
    return estimator  # the built-in one has no weights


def estimated(frames: torch.Tensor, patcher: ModelPatcher, progress: Callable[[int, int], None]) -> Motion:
    """Estimate the motion of frames (T, H, W, 3) in 0..1, and log the cuts."""
    estimator, device = loaded_estimator(patcher, *frames.shape[1:3]), services.main_device()
    motion = estimate_pairs(
        frames, estimator, device=device, progress=progress, check_cancelled=services.check_cancelled
    )
    if motion.cuts:
        logging.getLogger(__name__).info("Scene cuts before frames %s", ", ".join(map(str, motion.cuts)))
    return motion


def _pictures(motion: Motion) -> torch.Tensor:
    """Paint one picture a frame; the last frame and the last of a scene have no next one and are white."""
    step = max(1, max(motion.height, motion.width) // _PICTURE_SIDE)
    forward = motion.forward[..., ::step, ::step]
    flows = torch.cat((forward, forward.new_zeros(1, *forward.shape[1:])))
    flows[[cut - 1 for cut in motion.cuts]] = 0
    return flow_picture(flows)


class LatentPropagation(io.ComfyNode):
    """Carries latents along the motion at chosen steps."""

    @classmethod
    def define_schema(cls):
        """Describe the node."""
        listed = io.String.Input(
            "step_list",
            default="24,26,28",
            tooltip="Steps of this sampling run, counted from 0 and separated by commas.",
        )
        threshold = {"min": 0.0, "max": 10.0, "step": 0.001, "round": False, "advanced": True}
        return io.Schema(
            node_id="VSRLatentPropagation",
            display_name=_PROPAGATE,
            category=services.CATEGORY,
            description=(
                "Carries predictions from frame to frame along the motion, where the motion is certain, so that "
                "texture stays on its object. For any video model; it restarts at scene cuts."
            ),
            search_aliases=["temporal consistency", "flicker", "flow propagation", "upscale-a-video", "cascade vsr"],
            inputs=[
                io.Model.Input("model", tooltip="The video model to sample with propagation."),
                motion_input(),
                io.DynamicCombo.Input(
                    "steps",
                    options=[
                        io.DynamicCombo.Option("percent range", percent_inputs("propagation")),
                        io.DynamicCombo.Option("step list", [listed]),
                    ],
                    tooltip=(
                        "percent range: every step in a part of the sampling; step list: the "
                        "steps you list, as in the published program."
                    ),
                ),
                io.Combo.Input(
                    "direction",
                    options=list(DIRECTIONS),
                    default="both",
                    tooltip=(
                        "both: from the last frame to the first, then from the first to the "
                        "last, as published; backward or forward: only one of the two."
                    ),
                ),
                io.Float.Input(
                    "weight",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=("Share of the neighbouring frame in the mix: 0 changes nothing, 1 copies the neighbour."),
                ),
                io.Combo.Input(
                    "sampling",
                    options=["nearest", "bilinear"],
                    default="nearest",
                    tooltip="How the neighbour is sampled: nearest keeps texture sharp, as published; bilinear is "
                    "smoother.",
                ),
                io.Float.Input(
                    "alpha1",
                    default=0.001,
                    tooltip="Relative tolerance of the forward-backward check; raise it to propagate in less certain "
                    "areas.",
                    **threshold,
                ),
                io.Float.Input(
                    "alpha2",
                    default=0.05,
                    tooltip="Absolute tolerance of the forward-backward check, in squared latent cells; raise it to "
                    "propagate in less certain areas.",
                    **threshold,
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with propagation.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        motion: Motion | ModelPatcher,
        steps: dict,
        direction: str,
        weight: float,
        sampling: str,
        alpha1: float,
        alpha2: float,
    ):
        """Clone the model and edit its prediction of the clean latent."""
        services.check_motion(_PROPAGATE, motion, ModelPatcher)
        wanted = _choose_steps(model, steps)
        patched = model.clone()
        carry = partial(propagate, direction=direction, weight=weight, mode=sampling, alpha1=alpha1, alpha2=alpha2)
        _Propagation(motion, services.frames_a_latent(model), wanted, carry).attach(patched, _KEY)
        return io.NodeOutput(patched)


class _Propagation(MotionEdit):
    """Propagates the prediction."""

    title = _PROPAGATE

    def __init__(self, source: Motion | ModelPatcher, time: int, wanted: Wanted, carry: Callable[..., torch.Tensor]):
        super().__init__(source, time, wanted)
        self._carry = carry

    def edit(self, clip: torch.Tensor) -> torch.Tensor:
        """Propagate."""
        return self._carry(clip, *self._flows, cuts=self._cuts)


def motion_input() -> io.MultiType.Input:
    """Describe where a patch takes the motion from."""
    return io.MultiType.Input(
        "motion",
        types=[MotionType, FlowModelType],
        tooltip="The motion of this clip, from Estimate Motion. In Upscale Film: a flow model, from Load Flow Model, "
        "which then estimates it for each part of the film.",
    )


def _choose_steps(model: ModelPatcher, steps: dict) -> Wanted:
    """Make the rule that chooses the steps to propagate at."""
    if steps["steps"] == "percent range":
        return percent_range(_PROPAGATE, model, steps["start_percent"], steps["end_percent"])
    if steps["steps"] != "step list":
        raise ValueError(
            f"{_PROPAGATE}: steps must be percent range or step list; got {steps['steps']!r}. Choose percent range."
        )
    listed = _parse_steps(steps["step_list"])

    def wanted(sigma: float, sigmas: torch.Tensor) -> bool:
        count = len(sigmas) - 1
        if max(listed) >= count:
            raise ValueError(
                f"{_PROPAGATE}: a run of {count} steps has the steps 0 to {count - 1}; got {max(listed)}. Name lower "
                "steps, or sample more."
            )
        return step_index(sigma, sigmas) in listed

    return wanted


def _parse_steps(text: str) -> frozenset[int]:
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(
            f"{_PROPAGATE}: step_list must be whole numbers from 0, separated by commas; got {text!r}. Write for "
            "example 24,26,28."
        )
    return frozenset(map(int, words))
