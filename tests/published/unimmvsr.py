"""The paper's guidance as one formula (UniMMVSR, appendix A.3), an oracle for the guider and the KSampler patch."""

import torch
from cascadevsr.models.unimmvsr.references import ReferenceGuidance


def guide(
    full: torch.Tensor,
    no_text: torch.Tensor,
    no_references: torch.Tensor,
    guidance: ReferenceGuidance,
    step: int,
) -> torch.Tensor:
    """Give e(txt, ref) + s_txt (e(txt, ref) - e(null, ref)) + s_ref' (e(txt, ref) - e(txt, no ref)) at a step.

    s_ref' is 0 from step N_ref on.
    """
    scale = guidance.references if guidance.acts(step) else 0.0
    return full + guidance.text * (full - no_text) + scale * (full - no_references)
