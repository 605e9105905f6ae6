"""Guidance by references in the host: the formula, guider against patch, cost, threshold, tiles, windows, errors."""

from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def model(worded):
    return worded[0]


@pytest.fixture
def counted(core):
    """Count the branches the network is asked for: counted(model) -> (model, [(batch, has references)])."""
    from comfy.patcher_extension import WrappersMP

    def watch(model):
        seen, patched = [], model.clone()

        def wrapper(executor, x, timestep, context, options, **kwargs):
            seen.append((len(x), bool(kwargs.get("references"))))
            return executor(x, timestep, context, options, **kwargs)

        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", wrapper)
        return patched, seen

    return watch


@pytest.fixture
def guide(core):
    """Sample with our guider: guide(model, scene, s_txt, s_ref, ref_steps, steps, sampler) -> latent."""

    def run(model, scene, s_txt=3.0, s_ref=1.0, ref_steps=2, steps=4, sampler="euler", negative=True, sigmas=None):
        from cascadevsr.nodes.guidance import ReferenceCFGGuider

        given = scene.negative if negative else None
        guider = ReferenceCFGGuider.execute(model, scene.positive, s_txt, s_ref, ref_steps, given).args[0]
        if isinstance(sampler, str):
            sampler = core.samplers.sampler_object(sampler)
        if sigmas is None:
            sigmas = core.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
        noise = core.custom.Noise_RandomNoise(5)
        run = core.custom.SamplerCustomAdvanced.execute
        return run(noise, guider, sampler, sigmas, scene.samples).args[0]["samples"]

    return run


@pytest.fixture
def patch(core, ksample):
    """Sample with the patch in KSampler: patch(model, scene, cfg, s_ref, ref_steps, steps, sampler) -> latent."""

    def run(model, scene, cfg=4.0, s_ref=1.0, ref_steps=2, steps=4, sampler="euler"):
        from cascadevsr.nodes.guidance import ReferenceCFG

        patched = ReferenceCFG.execute(model, s_ref, ref_steps).args[0]
        return ksample(patched, scene, steps=steps, cfg=cfg, sampler=sampler)["samples"]

    return run


def _branch(model, conditioning, x, sigma, references=True):
    """Ask the core network itself, with the host's sign, for the clean latent of one branch."""
    from cascadevsr.models.unimmvsr.dit import UniMMVSRDiT

    text, values = conditioning[0]
    level = torch.tensor([values["vsr_noise_level"]])
    latents = getattr(values["vsr_references"], "latents", values["vsr_references"]) if references else ()
    lr, network = values["concat_latent_image"], model.model.diffusion_model
    return x + sigma * UniMMVSRDiT.forward(network, x, torch.tensor([sigma]), lr, level, latents, text)


@pytest.mark.parametrize(("s_txt", "s_ref"), [(3.0, 1.0), (1.5, 2.0), (0.0, 1.0)])
def test_one_step_is_the_formula(model, scene, guide, s_txt, s_ref):
    from cascadevsr.models.unimmvsr.references import ReferenceGuidance
    from cascadevsr.tests.published.unimmvsr import guide as formula
    from comfy.patcher_extension import WrappersMP

    clip = scene()
    torch.manual_seed(5)
    x = torch.randn(1, 16, 3, 6, 10)
    branches = (
        _branch(model, clip.positive, x, 1.0),
        _branch(model, clip.negative, x, 1.0),
        _branch(model, clip.positive, x, 1.0, references=False),
    )
    assert all((branches[0] - other).abs().max() > 1e-2 for other in branches[1:])
    watched, asked = model.clone(), []

    def keep(executor, *args):
        asked.extend(executor(*args))
        return list(asked)

    watched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "keep", keep)
    result = guide(watched, clip, s_txt, s_ref, ref_steps=1, steps=1)
    guidance = ReferenceGuidance(s_txt, s_ref, 1)
    exact = formula(*(branch.double() for branch in asked), guidance, 0)
    assert (result - exact).abs().max() <= 1e-6, "the formula on the host's own branches"
    expected = formula(*branches, guidance, 0)
    assert (result - expected).abs().max() <= 1e-5, "and on those of the core network, called one by one"


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_guider_and_patch_are_equal_to_the_last_bit(model, scene, guide, patch, sampler):
    clip = scene()
    guided = guide(model, clip, sampler=sampler)
    assert torch.equal(guided, patch(model, clip, sampler=sampler))
    assert not torch.allclose(guided, guide(model, clip, s_ref=0.0, sampler=sampler), atol=1e-2)


def test_no_weight_for_references_is_the_hosts_cfg(model, scene, guide, patch, ksample):
    clip = scene()
    native = ksample(model, clip, steps=4, cfg=4.0)["samples"]
    assert torch.equal(guide(model, clip, s_ref=0.0), native)
    assert torch.equal(guide(model, clip, ref_steps=0), native)
    assert torch.equal(patch(model, clip, s_ref=0.0), native)
    bare = scene(references=False)
    native = ksample(model, bare, steps=4, cfg=4.0)["samples"]
    assert torch.equal(guide(model, bare), native) and torch.equal(patch(model, bare), native)


def test_without_text_guidance_the_negative_is_not_asked(model, scene, guide, patch, ksample, counted):
    clip = scene()
    watched, seen = counted(model)
    alone = guide(watched, clip, s_txt=0.0, ref_steps=2, negative=False)
    assert seen == [(1, True), (1, False)] * 2 + [(1, True)] * 2
    assert torch.equal(alone, guide(model, clip, s_txt=0.0, ref_steps=2))
    assert torch.equal(alone, patch(model, clip, cfg=1.0, ref_steps=2))
    assert torch.equal(guide(model, clip, s_txt=0.0, s_ref=0.0), ksample(model, clip, steps=4)["samples"])
    kept = model.clone()
    kept.set_model_sampler_post_cfg_function(lambda args: args["denoised"], disable_cfg1_optimization=True)
    assert torch.allclose(guide(kept, clip, s_txt=0.0, ref_steps=2), alone, atol=1e-5)


@pytest.mark.parametrize("which", ["guider", "patch"])
def test_the_published_run_is_115_calls_and_ends_its_third_branch_in_time(core, model, scene, guide, counted, which):
    from cascadevsr.nodes.guidance import ReferenceCFG
    from cascadevsr.nodes.sampling import RefineSigmas, RestorerSampler

    clip = scene(frames=1)
    watched, seen = counted(model)
    sampler, sigmas = (
        RestorerSampler.execute("pndm").args[0],
        RefineSigmas.execute(model, 1.0, 50, 1.0).args[0],
    )
    if which == "guider":
        guide(watched, clip, 3.0, 1.0, 15, sampler=sampler, sigmas=sigmas)
    else:
        watched = ReferenceCFG.execute(watched, 1.0, 15).args[0]
        guider = core.custom.CFGGuider.execute(watched, clip.positive, clip.negative, 4.0).args[0]
        noise = core.custom.Noise_RandomNoise(5)
        core.custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, clip.samples)
    branches = [has for batch, has in seen for _ in range(batch)]
    assert len(branches) == 115 == 15 * 3 + 35 * 2
    assert branches.count(False) == 15 and not any(not has for has in branches[45:])


def test_more_reference_steps_than_steps_are_all(model, scene, guide, counted):
    watched, seen = counted(model)
    guide(watched, scene(frames=1), ref_steps=99, steps=3)
    assert sum(batch for batch, _ in seen) == 9


def test_tiles_and_windows_hold_the_third_branch_too(model, scene, guide, patch, counted):
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows

    clip = scene(frames=17)
    manual = {"tiling": "manual", "tile_width": 64, "tile_height": 48, "overlap": 16}
    cut = SpatialTiles.execute(model, manual).args[0]
    cut = TemporalWindows.execute(cut, {"windows": "manual", "window": 9, "overlap": 4}).args[0]
    watched, seen = counted(cut)
    guided = guide(watched, clip, ref_steps=1, steps=2)
    assert sum(batch for batch, _ in seen) == (3 + 2) * 2 * 2, "two tiles in two windows"
    assert sum(batch for batch, has in seen if not has) == 2 * 2
    assert torch.equal(guided, patch(cut, clip, ref_steps=1, steps=2))
    whole = {"tiling": "manual", "tile_width": 4096, "tile_height": 4096, "overlap": 96}
    assert torch.equal(guide(SpatialTiles.execute(model, whole).args[0], clip), guide(model, clip)), (
        "a tile that covers everything is none"
    )


def test_nodes_that_edit_predictions_see_the_guided_one(model, scene, guide, patch):
    from cascadevsr.models.motion.estimation import Motion
    from cascadevsr.nodes.motion import LatentPropagation
    from cascadevsr.nodes.motion_guidance import MotionGuidance

    clip = scene()
    flow = torch.zeros(8, 2, 12, 20, dtype=torch.float16)
    motion, part = Motion(flow, flow, (), 9, 12, 20), {"start_percent": 0.0, "end_percent": 1.0}
    edited = LatentPropagation.execute(
        model, motion, {"steps": "percent range", **part}, "both", 0.5, "nearest", 0.001, 0.05
    ).args[0]
    edited = MotionGuidance.execute(edited, motion, 1.0, 0.0, 1.0, "both", "default").args[0]
    plain, result = guide(model, clip), guide(edited, clip)
    assert torch.equal(result, patch(edited, clip))
    assert result.diff(dim=2).abs().mean() < 0.9 * plain.diff(dim=2).abs().mean(), "a still clip is stiller"


def test_functions_of_other_packs_are_called_with_two_branches(model, scene, guide):
    seen, patched, clip = [], model.clone(), scene()

    def before(args):
        seen.append(("pre", len(args["conds"]), len(args["conds_out"]), args["cond_scale"]))
        return args["conds_out"]

    def scale(args):
        seen.append(("cfg", args["cond_scale"]))
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    patched.set_model_sampler_pre_cfg_function(before)
    patched.set_model_sampler_cfg_function(scale)
    assert torch.allclose(guide(patched, clip, steps=1), guide(model, clip, steps=1), atol=1e-4)
    assert seen == [("pre", 2, 2, 4.0), ("cfg", 4.0)]


def test_a_second_patch_replaces_the_first_and_the_model_is_left_alone(model, scene, patch, ksample):
    from cascadevsr.nodes.guidance import ReferenceCFG

    clip = scene()
    before = ksample(model, clip, steps=2, cfg=4.0)["samples"]
    twice = ReferenceCFG.execute(model, 5.0, 99).args[0]
    assert torch.equal(patch(twice, clip), patch(model, clip))
    assert torch.equal(ksample(model, clip, steps=2, cfg=4.0)["samples"], before)


def test_split_schedules_count_within_their_own_run(core, model, scene, guide, counted):
    sigmas, clip = torch.linspace(1, 0, 7), scene(frames=1)
    watched, seen = counted(model)
    clip.samples = {**clip.samples, "samples": torch.randn(1, 16, 1, 6, 10)}
    guide(watched, clip, ref_steps=2, sigmas=sigmas[3:])
    assert [has for _, has in seen].count(False) == 2


def test_inputs_are_refused_with_a_reason(core, model, scene, guide, patch):
    from cascadevsr.nodes.guidance import ReferenceCFG, ReferenceCFGGuider

    clip = scene()
    for values in ((-1.0, 1.0, 15), (3.0, -1.0, 15), (3.0, 1.0, -1)):
        with pytest.raises(ValueError, match="Reference CFG .*must not be negative; got"):
            ReferenceCFGGuider.execute(model, clip.positive, *values, clip.negative)
    with pytest.raises(ValueError, match="Reference CFG Guider: s_txt above 0 needs a negative"):
        ReferenceCFGGuider.execute(model, clip.positive, 3.0, 1.0, 15)
    with pytest.raises(ValueError, match=r"must come without Reference CFG \(KSampler\)"):
        guide(ReferenceCFG.execute(model, 1.0, 15).args[0], clip)
    lonely = SimpleNamespace(**{**vars(clip), "negative": scene(references=False).negative})
    for run in (guide, patch):
        with pytest.raises(ValueError, match="the negative must see the references"):
            run(model, lonely)


def test_a_model_that_ignores_references_is_refused(guide, patch):
    from .families import make_family, text

    model, latent = make_family("ltxv"), torch.randn(1, 128, 2, 4, 6)
    positive, negative = (
        [[tokens, {**values, "vsr_references": (latent[:, :, :1],)}]] for tokens, values in (text(1)[0], text(2)[0])
    )
    clip = SimpleNamespace(positive=positive, negative=negative, samples={"samples": latent})
    for run, who in ((guide, "Reference CFG Guider"), (patch, r"Reference CFG \(KSampler\)")):
        with pytest.raises(ValueError, match=f"{who}: the model must take references"):
            run(model, clip)
