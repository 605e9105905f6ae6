"""Upscale-A-Video's recorded cases of sampling: DDIM, noise on the LR frames, latent propagation."""

import torch
from cascadevsr.models.motion.propagation import propagate
from cascadevsr.models.schedules import DDIM, DiffusionSettings

from .cases import Case, Tensors


def ddim(case: Case) -> Tensors:
    """A whole run on given network outputs, some clean samples replaced between the two halves."""
    given, call = case.group("in"), case.meta["call"]
    run = DDIM(DiffusionSettings.from_json(case.meta["config"]), call["num_inference_steps"])
    torch.testing.assert_close(run.alphas, case.group("mid")["alphas_cumprod"], rtol=1e-6, atol=1e-7)
    x, clean_samples, samples = given["init"], [], []
    for i, t in enumerate(run.timesteps):
        output = given["model_outputs"][i]
        clean = run.predict_clean(x, output, t)
        clean_samples.append(clean)
        if i in call["override"]:
            clean = given["x0_overrides"][i]
        fresh = given["variance_noise"][i] if call["eta"] else None
        x = run.next(x, output, clean, t, call["eta"], fresh)
        samples.append(x)
    return {
        "timesteps": torch.tensor(run.timesteps),
        "x0": torch.stack(clean_samples),
        "samples": torch.stack(samples),
    }


def propagation(case: Case) -> Tensors:
    """Every recorded choice of sampling, mixing and limits; both components scaled by the width's ratio."""
    given, produced = case.group("in"), {}
    for i, chosen in enumerate(case.meta["cases"]):
        # An empty choice means the defaults of the published module, which its pipeline overrides.
        options = {
            "mode": chosen.get("interpolation", "bilinear"),
            "fuse": chosen.get("mode", "fuse"),
            "weight": chosen.get("fuse_scale", 0.5),
            "alpha1": chosen.get("alpha1", 0.01),
            "alpha2": chosen.get("alpha2", 0.5),
        }
        flows = given["flow_fwd"], given["flow_bwd"]
        produced[f"y{i}"] = propagate(given["x"], *flows, **options, reference=True)
    return produced


RUNNERS = {
    ("upscale_a_video", "ddim"): ddim,
    ("upscale_a_video", "propagation"): propagation,
}
