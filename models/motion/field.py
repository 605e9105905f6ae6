"""The motion of a clip: flows of its frames both ways, kept small, and given out on the grid of any latent."""

import math
from dataclasses import dataclass

import torch

from ..layout.sizes import latent_frames
from .warp import resize_flow, warp


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
        self,
        latents: int,
        height: int,
        width: int,
        time: int = 1,
        device: torch.device | None = None,
        who: str = "Latent Propagation",
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give (forward, backward), each (1, 2, latents-1, height, width) float32 in cells of the grid.

        A latent holds `time` frames and stands for the last of them: latent k for frame k * time. `who` asks, in
        errors.
        """
        self._check(latents, time, who)
        there = [self._between(k * time, (k + 1) * time, device) for k in range(latents - 1)]
        back = [self._between((k + 1) * time, k * time, device) for k in range(latents - 1)]
        return tuple(_stack(flows, height, width, device) for flows in (there, back))

    def latent_cuts(self, time: int = 1) -> tuple[int, ...]:
        """Give the latents that start a new scene, or hold its start among their frames."""
        return tuple(sorted({math.ceil(cut / time) for cut in self.cuts}))

    def _between(self, start: int, stop: int, device) -> torch.Tensor:
        """Compose the flow (1, 2, h, w) from frame `start` to frame `stop`; past the end nothing moves."""
        step = 1 if stop > start else -1
        flow = torch.zeros(1, 2, self.height, self.width, device=device)
        for frame in range(start, stop, step):
            pair = frame if step > 0 else frame - 1
            if pair < self.frames - 1:
                one = (self.forward if step > 0 else self.backward)[pair : pair + 1]
                flow = compose(flow, one.to(flow))
        return flow

    def _check(self, latents: int, time: int, who: str) -> None:
        expected = latent_frames(self.frames, time)
        if latents != expected:
            raise ValueError(
                f"{who}: the motion must be that of the sampled clip; got motion of "
                f"{self.frames} frames, which is {expected} latent frames, and a latent with {latents}. "
                "Estimate Motion from the lr frames of the same Cascade Input."
            )


def compose(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Chain two flows (b, 2, h, w): go by `first`, then by `second` from there."""
    return first + warp(second, first)


def _stack(flows: list[torch.Tensor], height: int, width: int, device) -> torch.Tensor:
    if not flows:
        return torch.zeros(1, 2, 0, height, width, device=device)
    return torch.stack([resize_flow(flow, height, width, "area") for flow in flows], 2)
