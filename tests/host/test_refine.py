"""The training-free cascade: start sigmas, the tie to the clip's low frequencies, and PNDM in the host's samplers."""

from types import SimpleNamespace

import pytest
import torch

from .families import make_family, text

# Share of the denoising at which start sigmas lie, by the shift of the family (LTX: e to the 2.37).
SHIFTS = {"wan": 8.0, "hunyuan": 7.0, "ltxv": 10.697392}


@pytest.fixture(scope="module")
def family(core):
    """Give a family's MODEL, built once."""
    made = {}

    def get(name):
        if name not in made:
            with torch.inference_mode():
                made[name] = make_family(name)
        return made[name]

    return get


@pytest.fixture
def sample(core):
    """Sample from a start latent as the training-free cascade does: sample(model, start, sigmas, ...) -> latent."""

    def run(model, start, sigmas, sampler="euler", cfg=1.0):
        from cascadevsr.nodes.sampling import AddressedNoise

        guider = core.custom.CFGGuider.execute(model, text(1), text(2), cfg).args[0]
        sampler = core.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
        run = core.custom.SamplerCustomAdvanced.execute
        return run(AddressedNoise(3), guider, sampler, sigmas, {"samples": start}).args[0]["samples"]

    return run


def start_of(model, frames=3, height=8, width=12, seed=0):
    """Make a start latent of a family's channels."""
    channels = model.get_model_object("latent_format").latent_channels
    return torch.randn(1, channels, frames, height, width, generator=torch.Generator().manual_seed(seed))


def _refine(model, start=0.3, steps=4, shift=1.0):
    from cascadevsr.nodes.sampling import RefineSigmas

    return RefineSigmas.execute(model, start, steps, shift).args


@pytest.mark.parametrize("name", list(SHIFTS))
def test_a_start_sigma_is_that_sigma_whatever_the_shift(core, family, name):
    model, shift = family(name), SHIFTS[name]
    for start in (0.3, 0.6, 1.0):
        sigmas, denoise = _refine(model, start)
        assert float(sigmas[0]) == pytest.approx(start) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
        assert denoise == pytest.approx(start / (shift - (shift - 1) * start), abs=1e-5)
    # KSampler's denoise of 0.3 starts near sigma 0.78 at shift 8: the trap this node is for.
    sampler = core.samplers.KSampler(model, 10, "cpu", "euler", "simple", 0.3)
    assert float(sampler.sigmas[0]) == pytest.approx(shift * 0.3 / (1 + (shift - 1) * 0.3), abs=0.03)


@pytest.mark.parametrize("name", list(SHIFTS))
def test_sampling_starts_from_the_noised_clip(family, sample, name):
    from cascadevsr.nodes.sampling import AddressedNoise
    from comfy.patcher_extension import WrappersMP

    model, seen = family(name).clone(), []

    def watch(executor, x, timestep, options, seed=None):
        seen.append((float(timestep[0]), x.clone()))
        return executor(x, timestep, options, seed)

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "watch", watch)
    start = start_of(model)
    result = sample(model, start, _refine(model, 0.4)[0])
    clip = model.get_model_object("latent_format").process_in(start)
    noise = AddressedNoise(3).generate_noise({"samples": start})
    assert seen[0][0] == pytest.approx(0.4) and len(seen) == 4
    assert torch.allclose(seen[0][1], 0.4 * noise + 0.6 * clip, atol=1e-5)
    assert torch.isfinite(result).all() and result.shape == start.shape


def test_a_model_that_is_no_flow_model_is_refused(family):
    with pytest.raises(ValueError, match=r"Refine Sigmas: .*must be a flow model.*CosmosPredict2.*BasicScheduler"):
        _refine(family("cosmos"))


# Low-Frequency Tie


@pytest.fixture
def tied(core):
    """Run Low-Frequency Tie: tied(model, lr, strength, cutoff, (start, end)) -> MODEL."""

    def run(model, lr, strength=1.0, cutoff=4.0, part=(0.0, 1.0)):
        from cascadevsr.nodes.low_frequency import LowFrequencyTie

        return LowFrequencyTie.execute(model, strength, cutoff, *part, {"samples": lr}).args[0]

    return run


def _low(x, cutoff=4.0):
    """Give the amplitudes of the waves with both periods of `cutoff` or more cells."""
    from cascadevsr.models.lowpass import cosines

    rows, columns = (cosines(side) for side in x.shape[-2:])
    kept = [2 * side >= cutoff * torch.arange(side) for side in x.shape[-2:]]
    return (rows @ x.double() @ columns.T)[..., kept[0][:, None] & kept[1][None]]


@pytest.mark.parametrize("name", list(SHIFTS))
def test_a_full_tie_ends_at_the_low_frequencies_of_the_clip(family, sample, tied, name):
    """In the space of the node's own latents, whatever scale and shift the family's format has."""
    model = family(name)
    lr, other = start_of(model), start_of(model, seed=9)
    sigmas = _refine(model, 0.6, 3)[0]
    plain, result = sample(model, other, sigmas), sample(tied(model, lr), other, sigmas)
    scale = _low(lr).abs().max()
    assert (_low(result) - _low(lr)).abs().max() < 1e-5 * scale
    assert (_low(plain) - _low(lr)).abs().max() > 0.1 * scale
    assert not torch.allclose(result, lr, atol=0.1), "the fine frequencies are the model's own"


def test_no_strength_and_no_range_leave_the_run_alone_bit_for_bit(family, sample, tied):
    model = family("wan")
    lr, sigmas = start_of(model), _refine(model, 0.6, 4)[0]
    plain = sample(model, lr, sigmas)
    assert torch.equal(sample(tied(model, lr, strength=0.0), lr, sigmas), plain)
    assert torch.equal(sample(tied(model, lr, part=(0.0, 0.01)), lr, sigmas), plain), "sigma above 0.99 of the start"
    assert not torch.equal(sample(tied(model, lr), lr, sigmas), plain)
    assert torch.equal(sample(model, lr, sigmas), plain), "the model itself is unchanged"


def test_half_the_strength_moves_half_the_way(family, sample, tied):
    model = family("wan")
    lr, other, sigmas = start_of(model), start_of(model, seed=9), torch.tensor([0.5, 0.0])
    ends = [_low(sample(tied(model, lr, strength), other, sigmas)) for strength in (0.0, 0.5, 1.0)]
    assert torch.allclose(ends[1], (ends[0] + ends[2]) / 2, atol=1e-5)


def test_a_tie_goes_with_tiles_windows_propagation_and_motion_guidance(family, sample, tied):
    from cascadevsr.models.motion.estimation import Motion
    from cascadevsr.nodes.motion import LatentPropagation
    from cascadevsr.nodes.motion_guidance import MotionGuidance
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows

    model = family("wan")
    lr = start_of(model, frames=5)
    flow = torch.zeros(16, 2, 16, 24, dtype=torch.float16)
    motion, part = Motion(flow, flow, (), 17, 16, 24), {"start_percent": 0.0, "end_percent": 1.0}
    manual = {"tiling": "manual", "tile_width": 64, "tile_height": 48, "overlap": 16}
    model = SpatialTiles.execute(model, manual).args[0]
    model = TemporalWindows.execute(model, {"windows": "manual", "window": 9, "overlap": 4}).args[0]
    model = tied(model, lr)  # outermost: the last word
    model = LatentPropagation.execute(
        model, motion, {"steps": "percent range", **part}, "both", 0.5, "nearest", 0.001, 0.05
    ).args[0]
    model = MotionGuidance.execute(model, motion, 1.0, 0.0, 1.0, "both", "default").args[0]
    result = sample(model, lr, _refine(model, 0.5, 3)[0], cfg=3.0)
    assert (_low(result) - _low(lr)).abs().max() < 1e-5 * _low(lr).abs().max()


def test_ties_that_cannot_be_are_refused_with_a_reason(family, sample, tied, restorer):
    from cascadevsr.nodes.low_frequency import LowFrequencyTie
    from cascadevsr.nodes.systems.upscale_a_video import SYSTEM

    model = family("wan")
    lr = start_of(model)
    with pytest.raises(ValueError, match="Low-Frequency Tie: lr_latent must have 16 channels; got 4"):
        tied(model, lr[:, :4])
    with pytest.raises(ValueError, match="Low-Frequency Tie: lr_latent must be a video latent"):
        tied(model, lr[:, :, 0])
    with pytest.raises(ValueError, match="strength must be between 0 and 1; got 1.5"):
        tied(model, lr, strength=1.5)
    with pytest.raises(ValueError, match="cutoff must be a positive number of cells; got 0"):
        tied(model, lr, cutoff=0.0)
    with pytest.raises(ValueError, match="start_percent must be below end_percent"):
        tied(model, lr, part=(0.5, 0.5))
    with pytest.raises(ValueError, match="got frames, which Upscale-A-Video takes"):
        LowFrequencyTie.execute(model, 1.0, 4.0, 0.0, 1.0, {"samples": lr, "vsr_system": SYSTEM})
    with pytest.raises(ValueError, match=r"the batch and the grid .* 1 of \(3, 8, 12\); got 1 of \(3, 8, 6\)"):
        sample(tied(model, lr[..., :6]), lr, torch.tensor([0.5, 0.0]))


# PNDM


@pytest.fixture
def evaluations(model):
    """Count network calls of a MODEL: evaluations() -> (MODEL, list of sigmas)."""
    from comfy.patcher_extension import WrappersMP

    patched, seen = model.clone(), []

    def watch(executor, x, timestep, *args, **kwargs):
        seen.append(float(timestep[0]))
        return executor(x, timestep, *args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", watch)
    return SimpleNamespace(model=patched, seen=seen)


def _run(core, model, clip, kind, sigmas):
    from cascadevsr.nodes.sampling import RestorerSampler

    guider = core.custom.BasicGuider.execute(model, clip.positive).args[0]
    hosts = kind in core.samplers.SAMPLER_NAMES
    sampler = core.samplers.sampler_object(kind) if hosts else RestorerSampler.execute(kind).args[0]
    run = core.custom.SamplerCustomAdvanced.execute
    return run(core.custom.Noise_RandomNoise(5), guider, sampler, sigmas, clip.samples).args[0]["samples"]


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_pndm_asks_the_network_once_a_step(core, clip, evaluations, steps):
    sigmas = _refine(evaluations.model, 1.0, steps)[0]
    assert torch.isfinite(_run(core, evaluations.model, clip, "pndm", sigmas)).all()
    assert evaluations.seen == pytest.approx(sigmas[:-1].tolist())


def test_pndm_at_one_step_is_the_prediction(core, model, clip):
    sigmas = torch.tensor([1.0, 0.0])
    assert torch.allclose(_run(core, model, clip, "pndm", sigmas), _run(core, model, clip, "euler", sigmas), atol=1e-5)


@pytest.mark.parametrize("steps", [3, 12])
def test_pndm_on_even_sigmas_is_the_hosts_ipndm_but_for_its_last_step(core, model, clip, steps):
    sigmas = torch.linspace(1, 0.1, steps + 1)
    found, hosts = (_run(core, model, clip, kind, sigmas) for kind in ("pndm", "ipndm"))
    assert torch.allclose(found, hosts, atol=1e-4) and not torch.allclose(
        found, _run(core, model, clip, "euler", sigmas), atol=1e-3
    )


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_pndm_follows_a_known_flow_more_closely_than_euler(core, shift):
    """The flow from noise to a Gaussian of mean 1.3 and deviation 0.3, which keeps every sample's quantile."""
    from cascadevsr.models.schedules import flow_sigmas
    from cascadevsr.nodes.sampling import sample_restorer_euler, sample_restorer_pndm

    def denoise(x, sigma):
        t = sigma.view(-1, 1)
        return 1.3 + (1 - t) * 0.09 / ((1 - t) ** 2 * 0.09 + t**2) * (x - (1 - t) * 1.3)

    start = torch.linspace(-2, 2, 9, dtype=torch.float64)[None]
    errors = {}
    for steps in (25, 50):
        sigmas = flow_sigmas(steps, shift=shift).double()
        for sampler in (sample_restorer_euler, sample_restorer_pndm):
            found = sampler(denoise, start, sigmas)
            errors[sampler, steps] = float((found - 1.3 - 0.3 * start).abs().max())
    assert errors[sample_restorer_pndm, 25] < 0.4 * errors[sample_restorer_euler, 25]
    assert errors[sample_restorer_pndm, 50] < 0.1 * errors[sample_restorer_euler, 50]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_pndm_is_closer_to_many_steps_than_euler(core, model, clip, shift):
    sigmas = _refine(model, 1.0, 24, shift)[0][:-1]
    exact = _run(core, model, clip, "heun", torch.linspace(1, float(sigmas[-1]), 401))
    pndm, euler = ((_run(core, model, clip, kind, sigmas) - exact).norm() for kind in ("pndm", "euler"))
    assert pndm < 0.8 * euler
