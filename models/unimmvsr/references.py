"""References - identity pictures and reference videos - as clean latents, and where the time of each begins.

1. A node encodes every picture and video to a latent (`Reference`), and says how starts are chosen (`References`).
2. Before sampling, a `StartRule` gives each a range of time indices of its own, disjoint from the target's
   (0 .. T-1) and from each other's, so that it is used by content and not by copying: "separated conditional RoPE",
   section 3.2 of the UniMMVSR paper.
3. The network appends the tokens of every reference to the target's, at these time indices.
4. At every step, guidance pushes the prediction by text and, in the first steps, by references (`ReferenceGuidance`).
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
        ranges = sorted([(0, target_frames), *((n, n + k) for n, k in zip(self.manual, lengths, strict=True))])
        for (_, end), (start, _) in zip(ranges[:-1], ranges[1:], strict=True):
            if start < end:
                raise ValueError(
                    f"time ranges must not meet, the clip's own (0 to {target_frames - 1}) included; "
                    f"got a reference that begins at {start}, before {end}. Choose later starts."
                )
        return self.manual


# Guidance by text and by references, with a threshold for the latter (paper, appendix A.3)


@dataclass(frozen=True)
class ReferenceGuidance:
    """How far to go from the null text (`text`) and, in the first `steps` steps, from no references (`references`).

    With e(txt, ref) the prediction from text and references, in order at every step: text, e = e(txt, ref) +
    s_txt (e(txt, ref) - e(null, ref)), which is the usual CFG at cfg = 1 + s_txt; references, in the first N_ref steps
    only, e + s_ref (e(txt, ref) - e(txt, no ref)). Predictions may be of the noise, the velocity or the clean latent.
    """

    text: float = 3.0  # s_txt
    references: float = 1.0  # s_ref
    steps: int = 15  # N_ref

    def __post_init__(self):
        if min(self.text, self.references, self.steps) < 0:
            raise ValueError(
                f"s_txt, s_ref and ref_steps must not be negative; got {self.text:g}, "
                f"{self.references:g} and {self.steps}. The published values are 3, 1 and 15."
            )

    @property
    def cfg(self) -> float:
        """The usual scale that means the same for the text."""
        return 1 + self.text

    def acts(self, step: int) -> bool:
        """Tell whether a step, counted from 0, needs the prediction without references."""
        return self.references > 0 and step < self.steps

    def branches(self, steps: int, has_references: bool) -> tuple[int, ...]:
        """Count the predictions that every one of `steps` steps asks of the network."""
        plain = 2 if self.text > 0 else 1
        return tuple(plain + (has_references and self.acts(step)) for step in range(steps))


def guide_references(
    guided: torch.Tensor, full: torch.Tensor, no_references: torch.Tensor, scale: float
) -> torch.Tensor:
    """Add scale (e(txt, ref) - e(txt, no ref)) to a prediction that is guided by text already."""
    return guided + scale * (full - no_references)
