"""Reproduce the recorded optical flow of Upscale-A-Video: RAFT alone, and both ways between all frames."""

import torch
import torch.nn as nn
from cascadevsr.models.motion.estimation import RaftFlow, estimate_pairs
from cascadevsr.models.motion.raft import build_raft, raft_state

from .cases import Case, Tensors, check_weight_sums, recipe_weights


def raft(case: Case) -> Tensors:
    """Flow of one pair at both resolutions, after all iterations and after one."""
    network, given = _network(case), case.group("in")
    steps = []  # of the flow at an eighth of the size, which the network keeps to itself
    network.update_block.register_forward_hook(lambda *call: steps.append(call[-1][1]))
    flows = network(given["image1"], given["image2"], num_flow_updates=case.meta["call"]["iters"])
    low = torch.stack(steps).cumsum(0)
    return {"flow_low": low[-1], "flow_up": flows[-1], "flow_low_iter1": low[0], "flow_up_iter1": flows[0]}


def raft_bi(case: Case) -> Tensors:
    """Flows both ways between consecutive frames, with the recorded defect put back in.

    Where sides are no multiples of 8 the recorded code leaves both components at the size of the enlarged
    frames, and scales row 0 by the ratio of heights, row 1 by that of widths. Ours scales components.
    """
    clip = case.group("in")["frames"].float()
    frames = (clip[0].movedim(0, -1) + 1) / 2
    motion = estimate_pairs(frames, RaftFlow(_network(case), case.meta["call"]["iters"]))
    flows = {"fwd": motion.forward, "bwd": motion.backward}
    flows = {name: _with_defect(flow).transpose(0, 1)[None] for name, flow in flows.items()}
    flows |= {f"{name}_sub4": flow[..., ::4, ::4] for name, flow in flows.items()}
    return {name: flows[name] for name in case.group("out")}


def _with_defect(flow: torch.Tensor) -> torch.Tensor:
    height, width = flow.shape[-2:]
    ratios = torch.tensor([width / _up8(width), height / _up8(height)])
    if (ratios == 1).all():
        return flow
    flow = flow.float() / ratios.view(1, 2, 1, 1)
    flow[..., 0, :] *= ratios[1]
    flow[..., 1, :] *= ratios[0]
    return flow


def _up8(side: int) -> int:
    return -(-side // 8) * 8


def _network(case: Case) -> nn.Module:
    network = build_raft()
    entries = network.state_dict()
    published = {key: next(iter(raft_state({key: None}))) for key in case.meta["weight_sums"]}
    shapes = {key: tuple(entries[name].shape) for key, name in published.items()}
    weights = recipe_weights(shapes, case.meta["recipe_seed"], case.meta["recipe_gain"])
    check_weight_sums(case, weights)
    network.load_state_dict(raft_state(weights))
    return network


RUNNERS = {("upscale_a_video", "raft"): raft, ("upscale_a_video", "raft_bi"): raft_bi}
