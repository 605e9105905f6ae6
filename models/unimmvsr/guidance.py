"""Guidance by text and by references, with a threshold for the latter (paper, appendix A.3).

With e(txt, ref) the prediction from text and references, e(null, ref) that without text and e(txt, no ref) that without
references, in order at every step:

1. text: e = e(txt, ref) + s_txt (e(txt, ref) - e(null, ref)), which is the usual CFG at cfg = 1 + s_txt;
2. references, in the first N_ref steps only: e + s_ref (e(txt, ref) - e(txt, no ref)).

The predictions may be of the noise, the velocity or the clean latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ReferenceGuidance:
    """How far to go from the null text (`text`) and, in the first `steps` steps, from no references (`references`)."""

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
