"""The motion of a clip: estimated pair by pair with any estimator, and given out on the grid of any latent.

What estimate_pairs() does with frames (T, H, W, 3) in 0..1:

1. For every pair of neighbours the estimator gives the flow there and the flow back; several pairs are one batch,
   (2 pairs, 2, H, W) px.
2. scene_cuts() compares neighbours on small copies, whatever the estimator: flows into a new scene mean nothing.
3. Flows are kept in half precision on the CPU, (T-1, 2, H, W) each way: 8 bytes a pixel and frame.
4. Motion.on_grid() chains the flows of the frames that one latent frame holds, and resizes them to its cells.

A flow network of a graph (the host's OPTICAL_FLOW) is called as torchvision's RAFT is: two images (b, 3, h, w) in
-1..1, sides multiples of 8 and at least 128 px, and gives a list of flows, the last the best. An estimator takes
frames of any size in 0..1. estimator_of() leads from the first to the second, FlowNetwork back.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..layout.sizes import latent_frames
from .flow import Ways, chain_flows, compose, resize_flow, scene_cuts
from .raft import SMALLEST, STRIDE
from .spynet import SpyNet

_KEPT = 32  # pairs whose flows are remembered: all that the built-in restorer asks for again
# Pixels of a frame times pairs that are estimated together: small frames share the calls of their coarse levels.
# A pair takes 27,000 calls on a device by itself, 1,600 as one of 18.
_CPU_PIXELS, _PIXELS = 1 << 16, 1 << 20


Refine = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # two frames, a flow: BlockFlow.refine


class FlowEstimator(Protocol):
    """Anything that finds the flow (b, 2, h, w) in px from `first` to `second`, (b, 3, h, w) in 0..1."""

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Estimate; any size from 1x1 px."""


class RaftFlow(nn.Module):
    """RAFT for frames of any size: sides below 128 px are enlarged, others rounded up to multiples of 8."""

    def __init__(self, raft: nn.Module, iterations: int = 20, signed: bool = True):
        """Pass frames to the network in -1..1, for which it was made, or not `signed`, in 0..1 (MGLD-VSR does)."""
        super().__init__()
        self.raft, self._iterations = raft.eval(), iterations
        self._scale, self._shift = (2, 1) if signed else (1, 0)

    @torch.no_grad()
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Estimate on the enlarged frames and scale each component back by its own ratio."""
        height, width = first.shape[-2:]
        scale = max(1.0, SMALLEST / min(height, width))
        size = tuple(STRIDE * -(-round(side * scale) // STRIDE) for side in (height, width))
        first, second = (self._scale * _resized(frame.float(), size) - self._shift for frame in (first, second))
        # One at a time: the correlations of a pair fill gigabytes from 720p up.
        pairs = zip(first.split(1), second.split(1), strict=True)
        flow = torch.cat([self.raft(*pair, num_flow_updates=self._iterations)[-1] for pair in pairs])
        return resize_flow(flow, height, width)


class SpyFlow(nn.Module):
    """SpyNet, pair by pair."""

    def __init__(self, spynet: SpyNet):
        super().__init__()
        self.spynet = spynet.eval()

    @torch.no_grad()
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Estimate on the frames as they are."""
        pairs = zip(first.float().split(1), second.float().split(1), strict=True)
        return torch.cat([self.spynet(*pair) for pair in pairs])


class FlowNetwork(nn.Module):
    """An estimator under the calling convention of torchvision's RAFT, which the host's OPTICAL_FLOW has."""

    def __init__(self, estimator: FlowEstimator):
        super().__init__()
        self.estimator = estimator

    def forward(self, image1: torch.Tensor, image2: torch.Tensor, num_flow_updates: int = 12) -> list[torch.Tensor]:
        """Give one flow (b, 2, h, w) in px; images (b, 3, h, w) in -1..1 of any size.

        The number of updates is the estimator's own: `num_flow_updates` has no effect.
        """
        return [self.estimator((image1 + 1) / 2, (image2 + 1) / 2)]


def estimator_of(network: nn.Module) -> FlowEstimator:
    """Give the estimator of a flow network: the one inside FlowNetwork, any other is called as RAFT is.

    The inner one is taken out because frames that went to -1..1 and back differ in their last bits.
    """
    return network.estimator if isinstance(network, FlowNetwork) else RaftFlow(network)


@dataclass(frozen=True)
class Motion:
    """Hold flows of a clip on the CPU in half precision, in px of its frames, (dx, dy).

    ``forward`` and ``backward`` (frames-1, 2, height, width): frame i to i+1, and i+1 to i. ``cuts`` are the
    frames that start a new scene; flows into them mean nothing.
    """

    forward: torch.Tensor
    backward: torch.Tensor
    cuts: tuple[int, ...]
    frames: int
    height: int
    width: int

    def on_grid(
        self, latents: int, height: int, width: int, time: int = 1, device: torch.device | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give (forward, backward), each (1, 2, latents-1, height, width) float32 in cells of the grid.

        A latent holds `time` frames and stands for the last of them: latent k for frame k * time.
        """
        expected = latent_frames(self.frames, time)
        if latents != expected:
            raise ValueError(
                f"the motion must be that of the sampled clip; got motion of {self.frames} frames, which is {expected} "
                f"latent frames, and a latent with {latents}. Estimate the motion on all LR frames of this clip."
            )
        if latents == 1:
            still = torch.zeros(1, 2, 0, height, width, device=device)
            return still, still
        there, back = [], []
        for k in range(latents - 1):
            there.append(self._between(k * time, (k + 1) * time, device))
            back.append(self._between((k + 1) * time, k * time, device))
        return tuple(
            torch.stack([resize_flow(flow, height, width, "area") for flow in flows], 2) for flows in (there, back)
        )

    def pairs(self, device: torch.device) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
        """Give the function from i to the flows of frame i to i + 1 and back, (1, 2, h, w) float32 on a device."""
        ways = (self.forward, self.backward)
        return lambda i: tuple(way[i : i + 1].to(device, torch.float32) for way in ways)

    def latent_cuts(self, time: int = 1) -> tuple[int, ...]:
        """Give the latents that start a new scene, or hold its start among their frames."""
        return tuple(sorted({math.ceil(cut / time) for cut in self.cuts}))

    def _between(self, start: int, stop: int, device: torch.device | None) -> torch.Tensor:
        """Chain the flow (1, 2, h, w) from frame `start` to frame `stop`; past the end nothing moves."""
        pairs = range(min(start, stop), min(max(start, stop), self.frames - 1))
        way, ordered = (self.forward, pairs) if stop > start else (self.backward, reversed(pairs))
        return reduce(compose, (way[pair : pair + 1].to(device, torch.float32) for pair in ordered))


def pair_flows(
    frames: torch.Tensor, estimator: FlowEstimator, device: torch.device
) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """Give a function that estimates, when asked, what Motion.pairs() knows: of frames (T, H, W, 3) in 0..1.

    The last answers are kept as Motion keeps them, in half precision on the CPU.
    """

    @lru_cache(_KEPT)
    @torch.no_grad()
    def estimated(number: int) -> torch.Tensor:
        pair = frames[number : number + 2, ..., :3].movedim(-1, 1).to(device, torch.float32)
        return estimator(pair, pair.flip(0)).to("cpu", torch.float16)  # both ways as one batch

    return lambda number: tuple(estimated(number).to(device, torch.float32).split(1))


class DistantFlows:
    """Gives the flow from one frame to another, by number, and the flow back, (1, 2, h, w) float32 on a device.

    Over more than one frame they are those of join_flows(), over two from frame to frame, over more from every second
    one to the next: chained pair by pair, errors would add up. The last answers are kept as pair_flows() keeps them.
    """

    def __init__(
        self,
        frame: Callable[[int], torch.Tensor],
        pairs: Callable[[int], Ways],
        refine: Refine,
        device: torch.device,
    ):
        """Take what gives frames (1, 3, h, w) in 0..1 and the flows of neighbours, as Motion.pairs() does."""
        self._frame, self._pairs, self._refine, self._device = frame, pairs, refine, device
        self._kept: dict[tuple[int, int], torch.Tensor] = {}  # those asked for last at the end

    @torch.no_grad()
    def __call__(self, start: int, stop: int) -> Ways:
        """Give the flows between two different frames of a scene."""
        if start > stop:
            return self(stop, start)[::-1]
        if stop == start + 1:
            return self._pairs(start)
        flows = self._kept.pop((start, stop), None)
        if flows is None:
            stride = 1 if stop == start + 2 else 2
            parts = [self(number, min(number + stride, stop)) for number in range(start, stop, stride)]
            flows = join_flows(self._frame(start), self._frame(stop), parts, self._refine).to("cpu", torch.float16)
        self._kept[start, stop] = flows
        if len(self._kept) > _KEPT:
            self._kept.pop(next(iter(self._kept)))
        return tuple(flows.to(self._device, torch.float32).split(1))


def join_flows(first: torch.Tensor, last: torch.Tensor, parts: Sequence[Ways], refine: Refine) -> torch.Tensor:
    """Give the flow from first to last and, as the second half of a batch, back, from those over frames between them.

    The parts lead, one after the other, from the first (b, 3, h, w) to the last, each there and back.
    """
    return refine(torch.cat((first, last)), torch.cat((last, first)), torch.cat(chain_flows(parts)))


@torch.no_grad()
def estimate_pairs(
    frames: torch.Tensor,
    estimator: FlowEstimator,
    *,
    device: torch.device | None = None,
    pairs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> Motion:
    """Estimate the motion of frames (T, H, W, 3) in 0..1 on `device`, `pairs` at a time (None: what suits it)."""
    count, height, width = frames.shape[:3]
    forward = torch.zeros(count - 1, 2, height, width, dtype=torch.float16)
    backward = torch.zeros_like(forward)
    cuts = []
    if progress is not None:
        progress(0, count - 1)
    step = pairs or together(frames, device)
    for start in range(0, count - 1, step):
        if check_cancelled is not None:
            check_cancelled()
        part = frames[start : start + step + 1]
        clip = part[..., :3].movedim(-1, 1).to(device, torch.float32)
        first, second = clip[:-1], clip[1:]
        # Both ways of all pairs as one batch: most levels are small, and there the number of calls is what costs.
        there, back = estimator(torch.cat((first, second)), torch.cat((second, first))).chunk(2)
        cuts += [start + cut for cut in scene_cuts(part)]
        stop = start + len(first)
        forward[start:stop], backward[start:stop] = there, back
        if progress is not None:
            progress(stop, count - 1)
    return Motion(forward, backward, tuple(cuts), count, height, width)


def together(frames: torch.Tensor, device: torch.device | None = None) -> int:
    """Say how many pairs of frames (T, H, W, c) to estimate as one batch."""
    pixels = _CPU_PIXELS if torch.device(device or "cpu").type == "cpu" else _PIXELS
    return max(1, pixels // (frames.shape[1] * frames.shape[2]))


def _resized(frame: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if frame.shape[-2:] == size:
        return frame
    return F.interpolate(frame, size, mode="bilinear", align_corners=False)
