"""VSR Plan: its counts are those of real runs, and those worked out by hand for 720p to 4K."""

import pytest
import torch

from .families import make_family, text

MANUAL = {"tiling": "manual", "tile_width": 64, "tile_height": 48, "overlap": 16}


@pytest.fixture
def model(worded):
    return worded[0]


@pytest.fixture(scope="module")
def wan(core):
    with torch.inference_mode():
        return make_family("wan")


def _cut(model, tiles=MANUAL, window=9, overlap=4):
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows

    cut = SpatialTiles.execute(model, tiles).args[0]
    return TemporalWindows.execute(cut, {"windows": "manual", "window": window, "overlap": overlap}).args[0]


def _plan(model=None, guider=None, samples=None, references=None, steps=4, cfg=1.0, size=(0, 0, 0), sigmas=None):
    """Give (the plan, the node's text)."""
    from cascadevsr.models.layout.sizes import ClipSize
    from cascadevsr.nodes import plan as node

    width, height, length = size
    shown = node.VSRPlan.execute(steps, cfg, width, height, length, model, guider, samples, references, sigmas)
    patcher = model if guider is None else guider.model_patcher
    clip = ClipSize(length, height, width) if width else None
    conds = node._conditions(guider, cfg, references)
    made = node.make_plan(patcher, guider, conds, *node._measure(patcher, samples, clip), steps)
    assert shown.ui.as_dict()["text"][0] == shown.args[0]
    return made, shown.args[0]


@pytest.fixture
def watched(core):
    """Record what the network is called with: watched(model) -> (model, [(batch, tokens), ...])."""
    from comfy.patcher_extension import WrappersMP

    def watch(model):
        from cascadevsr.models.layout.plan import count_tokens

        seen, patched = [], model.clone()

        def wrapper(executor, x, *args, **kwargs):
            references = kwargs.get("references", ())
            tokens = [count_tokens(each.shape[2:], (1, 2, 2)) for each in (x, *references)]
            seen.append((len(x), tokens[0], sum(tokens[1:])))
            return executor(x, *args, **kwargs)

        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", wrapper)
        return patched, seen

    return watch


def _compare(plan, seen):
    """Every pass was planned, and the largest is as large as planned."""
    assert sum(batch for batch, _, _ in seen) == plan.passes
    assert max(tokens for _, tokens, _ in seen) == plan.pass_tokens
    assert max(references for _, _, references in seen) == plan.reference_tokens


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_the_counts_are_those_of_ksampler(model, scene, ksample, watched, cfg):
    clip = scene(frames=17)
    cut, seen = watched(_cut(model))
    given = clip.positive[0][1]["vsr_references"]
    plan, shown = _plan(cut, samples=clip.samples, references=given, steps=3, cfg=cfg)
    ksample(cut, clip, steps=3, cfg=cfg)
    _compare(plan, seen)
    assert (len(plan.tiles), plan.windows) == (2, (3, 4)) and plan.reference_tokens > 0
    assert "2 (2 x 1) of 64x48 px" in shown and "17 frames of 80x48" in shown


@pytest.mark.parametrize("which", ["guider", "patch"])
def test_the_counts_are_those_of_guidance_by_references(core, model, scene, watched, which):
    from cascadevsr.nodes.guidance import ReferenceCFG, ReferenceCFGGuider

    clip = scene(frames=17)
    cut, seen = watched(_cut(model))
    if which == "guider":
        guider = ReferenceCFGGuider.execute(cut, clip.positive, 3.0, 1.0, 2, clip.negative).args[0]
    else:
        patched = ReferenceCFG.execute(cut, 1.0, 2).args[0]
        guider = core.custom.CFGGuider.execute(patched, clip.positive, clip.negative, 4.0).args[0]
    sigmas = torch.linspace(1, 0, 6)
    plan, shown = _plan(guider=guider, samples=clip.samples, steps=5, sigmas=sigmas)
    sampler, noise = core.samplers.sampler_object("euler"), core.custom.Noise_RandomNoise(5)
    core.custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, clip.samples)
    _compare(plan, seen)
    assert plan.branches == (3, 3, 2, 2, 2) and plan.passes == 12 * 2 * 2
    assert "3 branches in 2, then 2 branches in 3 = 12 predictions" in shown and "12 x 2 x 2 = 48" in shown


def test_the_counts_are_those_of_a_native_model_and_of_the_host_guiders(core, wan, watched):
    cut, seen = watched(_cut(wan))
    start = torch.randn(1, 16, 5, 6, 10)
    guiders = (
        (core.custom.BasicGuider.execute(cut, text(1)).args[0], 1),
        (core.custom.CFGGuider.execute(cut, text(1), text(2), 1.0).args[0], 1),
        (core.custom.CFGGuider.execute(cut, text(1), text(2), 3.0).args[0], 2),
        (core.custom.DualCFGGuider.execute(cut, text(1), text(3), text(2), 3.0, 2.0, "regular").args[0], 3),
    )
    for guider, branches in guiders:
        seen.clear()
        sigmas, noise = torch.linspace(0.5, 0, 3), core.custom.Noise_RandomNoise(5)
        sampler = core.samplers.sampler_object("euler")
        core.custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, {"samples": start})
        plan, _ = _plan(guider=guider, samples={"samples": start}, steps=2, sigmas=sigmas)
        _compare(plan, seen)
        assert plan.branches == (branches,) * 2 and plan.size.frames == 17


def test_81_frames_of_4k(wan):
    from cascadevsr.nodes.tiling import SpatialTiles

    for size, tokens in (((1280, 720, 81), 75_600), ((1920, 1088, 81), 171_360), ((3840, 2160, 81), 680_400)):
        plan, shown = _plan(wan, size=size)
        assert plan.clip_tokens == tokens and f"{tokens:,} the clip" in shown
        assert len(plan.tiles) == len(plan.windows) == 1
    assert plan.frame_bytes == 12 * 81 * 3840 * 2160 and "7.5 GiB of RAM" in shown
    assert "a pass sees 3840x2160 px at once" in shown
    tiles = {"tiling": "manual", "tile_width": 1280, "tile_height": 720, "overlap": 96}
    plan, shown = _plan(_cut(wan, tiles, 33, 8), size=(3840, 2160, 81), steps=50, cfg=4.0)
    assert len(plan.tiles) == 16 and plan.windows == (9, 10, 10) and plan.pass_tokens == 10 * 45 * 80
    assert plan.passes == 100 * 16 * 3 and "at once, more than" not in shown
    assert len(_plan(SpatialTiles.execute(wan, {"tiling": "off"}).args[0], size=(3840, 2160, 81))[0].tiles) == 1


def test_the_memory_is_the_hosts_own_estimate_for_the_largest_pass(core, model, scene, wan, monkeypatch):

    assert _plan(wan, size=(96, 64, 9))[0].memory.one == int(wan.memory_required([1, 16, 3, 8, 12]))
    assert _plan(wan, size=(96, 64, 9))[0].memory.two == int(wan.memory_required([2, 16, 3, 8, 12]))
    cut = _plan(_cut(wan), size=(96, 64, 17))[0].memory
    assert cut.one == int(wan.memory_required([1, 16, 3, 6, 8])) and cut.weights == wan.model_size()
    clip = scene(frames=1)
    given = clip.positive[0][1]["vsr_references"]
    bare, full = (_plan(model, samples=clip.samples, references=each)[0].memory.one for each in (None, given))
    cells = sum(latent[0, 0].numel() for latent in getattr(given, "latents", given))
    assert full == pytest.approx(bare * (1 + cells / (6 * 10)), rel=1e-5), "reference cells count as the clip's do"
    from cascadevsr.nodes.host import services

    monkeypatch.setattr(services, "free_bytes", lambda device: 1000)
    assert "use Spatial Tiles" in _plan(wan, size=(96, 64, 9))[1]
    assert "smaller tiles in Spatial Tiles" in _plan(_cut(wan), size=(96, 64, 17))[1]


def test_planning_changes_nothing_and_loads_nothing(core, model, scene, ksample, monkeypatch):
    import comfy.model_management as management

    clip = scene(frames=17)
    cut = _cut(model)
    before = ksample(cut, clip, steps=2)["samples"]
    loaded = []
    monkeypatch.setattr(management, "load_models_gpu", lambda *given, **options: loaded.append(given))
    _plan(cut, samples=clip.samples)
    monkeypatch.undo()
    assert not loaded and torch.equal(ksample(cut, clip, steps=2)["samples"], before)
    assert "transformer_options" not in cut.model_options or not [
        key for key in cut.model_options["transformer_options"] if key == "vsr_tiles"
    ]


def test_the_patch_is_read_from_the_network(core, model):
    from cascadevsr.nodes.plan import patch_of

    sizes = {"wan": (1, 2, 2), "hunyuan": (1, 2, 2), "ltxv": (1, 1, 1), "cosmos": (1, 2, 2)}
    for name, patch in sizes.items():
        assert patch_of(make_family(name).model.diffusion_model) == patch
    assert patch_of(model.model.diffusion_model) == (1, 2, 2) and patch_of(torch.nn.Identity()) == (1, 1, 1)


def test_what_cannot_be_planned_is_refused_with_a_reason(model, scene):
    samples = scene(frames=1).samples
    with pytest.raises(ValueError, match="VSR Plan: needs a model or a guider; got neither"):
        _plan()
    with pytest.raises(ValueError, match="VSR Plan: needs samples, or width, height and length above 0; got neither"):
        _plan(model)
    with pytest.raises(ValueError, match="VSR Plan: needs samples, .*; got both"):
        _plan(model, samples=samples, size=(80, 48, 1))
    with pytest.raises(ValueError, match="VSR Plan: samples must be a video latent"):
        _plan(model, samples={"samples": samples["samples"][:, :, 0]})
