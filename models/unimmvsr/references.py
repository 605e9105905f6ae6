"""References - identity pictures and reference videos - as clean latents, and where the time of each begins.

1. A node encodes every picture and video to a latent (`Reference`), and says how starts are chosen (`References`).
2. Before sampling, a `StartRule` gives each a range of time indices of its own, disjoint from the target's
   (0 .. T-1) and from each other's, so that it is used by content and not by copying: "separated conditional RoPE",
   section 3.2 of the UniMMVSR paper.
3. The network appends the tokens of every reference to the target's, at these time indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

IMAGE, VIDEO = "image", "video"
MODEL, PAPER, AFTER, MANUAL = "model", "paper", "after video", "manual"
POLICIES = (MODEL, PAPER, AFTER, MANUAL)
LONGEST = 20  # latent frames of the paper's longest training clips (77 frames): its references begin there


@dataclass(frozen=True)
class Reference:
    """A clean latent (1, c, T, h, w) and its kind: IMAGE (T = 1) or VIDEO."""

    latent: torch.Tensor
    kind: str


@dataclass(frozen=True)
class StartRule:
    """Where references begin: `first` (None: at the target's end) plus `lead`, then `gap` empty indices between."""

    first: int | None = LONGEST
    lead: int = 0
    gap: int = 1

    def starts(self, target_frames: int, reference_frames: Sequence[int]) -> tuple[int, ...]:
        """Give the first time index of every reference, for a target of `target_frames` latent frames."""
        at = self.lead + (target_frames if self.first is None else max(self.first, target_frames))
        starts = []
        for frames in reference_frames:
            starts.append(at)
            at += frames + self.gap
        return tuple(starts)


PAPER_RULE = StartRule()
AFTER_RULE = StartRule(first=None, gap=0)  # what concatenation along time would give
# The built-in model's: empty time indices before each reference. The paper states no number for a network this small.
BUILT_IN_RULE = StartRule(first=None, lead=16, gap=16)


@dataclass(frozen=True)
class References:
    """Hold all references of a run, and the policy by which their time indices are chosen."""

    items: tuple[Reference, ...] = ()
    policy: str = MODEL
    manual: tuple[int, ...] = ()  # starts, one each, of the MANUAL policy

    def __len__(self) -> int:
        return len(self.items)

    @property
    def latents(self) -> tuple[torch.Tensor, ...]:
        """The latents alone."""
        return tuple(item.latent for item in self.items)

    def starts(self, target_frames: int, rule: StartRule) -> tuple[int, ...]:
        """Give every reference its first time index; `rule` is the model's own, for the MODEL policy.

        Raises ValueError where manual starts are not one for each reference, or a range meets another or the target.
        """
        lengths = [item.latent.shape[2] for item in self.items]
        if self.policy != MANUAL:
            chosen = {MODEL: rule, PAPER: PAPER_RULE, AFTER: AFTER_RULE}[self.policy]
            return chosen.starts(target_frames, lengths)
        if len(self.manual) != len(lengths):
            raise ValueError(
                f"starts must name one time index for each of the {len(lengths)} references; got "
                f"{len(self.manual)}. Write them separated by commas."
            )
        ranges = sorted(
            [(0, target_frames), *((n, n + k) for n, k in zip(self.manual, lengths, strict=True))]
        )
        for (_, end), (start, _) in zip(ranges[:-1], ranges[1:], strict=True):
            if start < end:
                raise ValueError(
                    f"time ranges must not meet, the clip's own (0 to {target_frames - 1}) included; "
                    f"got a reference that begins at {start}, before {end}. Choose later starts."
                )
        return self.manual
