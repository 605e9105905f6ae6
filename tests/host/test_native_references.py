"""References, the LR clip and its noise on the host's own Wan models; nothing stays behind on the base."""

import gc
import types

import pytest
import torch
from cascadevsr.models.unimmvsr.references import AFTER, IMAGE, MANUAL, PAPER, VIDEO, Reference, References

from . import tiny_wan


@pytest.fixture(scope="module")
def base(core):
    """The tiny text-to-video model, one for all tests: what one leaves behind another sees."""
    return tiny_wan.load(tiny_wan.weights())


@pytest.fixture(scope="module")
def wide(core):
    """A whole restorer checkpoint: 16 channels more for the clip."""
    return tiny_wan.load(tiny_wan.weights(16, 32))


@pytest.fixture
def condition(core):
    """Run VSR Conditioning on a random clip: condition(frames, references=, level=, channels=)."""

    def run(frames=3, references=None, level=0.0, channels=16, size=(6, 8)):
        from cascadevsr.nodes.conditioning import VSRConditioning

        lr = {"samples": 1.5 * tiny_wan.latent(channels, frames, *size, seed=7)}
        prompts = [[[tiny_wan.text(seed), {}]] for seed in (3, 4)]
        given = VSRConditioning.execute(lr, level, 1, *prompts, references=references).args
        return types.SimpleNamespace(positive=given[0], negative=given[1], samples=given[2])

    return run


def attached(model):
    from cascadevsr.nodes.adapters import ReferenceTokens

    return ReferenceTokens.execute(model).args[0]


def references(*shapes, policy=AFTER, manual=(), channels=16):
    items = [
        Reference(1.5 * tiny_wan.latent(channels, *shape, seed=20 + n), IMAGE if shape[0] == 1 else VIDEO)
        for n, shape in enumerate(shapes)
    ]
    return References(tuple(items), policy, manual)


def watch(model):
    """Record input, references and their starts of every call of a model that is attached."""
    from comfy.patcher_extension import WrappersMP

    seen, patched = [], model.clone()

    def wrapper(executor, x, timestep, context, clip_fea, time_concat, options, **kwargs):
        streams = [tuple(r.shape[1:]) for r in kwargs.get("context_latents", ())]
        starts = dict(options["vsr_reference_starts"])
        seen.append(types.SimpleNamespace(shape=tuple(x.shape), x=x, streams=streams, starts=starts))
        return executor(x, timestep, context, clip_fea, time_concat, options, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", wrapper)
    return patched, seen


# Tokens


@pytest.mark.parametrize("channels", [16, 48])
def test_a_reference_that_begins_at_the_end_is_the_hosts_time_concatenation(condition, ksample, channels):
    model = tiny_wan.load(tiny_wan.weights(channels))
    given = references((2, 6, 8), channels=channels)
    ours, plain = condition(references=given, channels=channels), condition(channels=channels)
    for group in (plain.positive, plain.negative):
        group[0][1]["time_dim_concat"] = given.latents[0]
    result = ksample(attached(model), ours, steps=2, cfg=3.0)["samples"]
    assert torch.equal(result, ksample(model, plain, steps=2, cfg=3.0)["samples"])
    without = ksample(model, condition(channels=channels), steps=2, cfg=3.0)["samples"]
    assert not torch.allclose(result, without, atol=1e-3)


def test_without_references_the_node_changes_nothing(base, condition, ksample):
    clip = condition()
    assert torch.equal(ksample(attached(base), clip)["samples"], ksample(base, clip)["samples"])


def test_order_is_irrelevant_at_fixed_starts_and_starts_matter(base, condition, ksample):
    shapes, model = ((1, 4, 6), (2, 6, 8), (1, 8, 2)), attached(base)
    given = references(*shapes, policy=MANUAL, manual=(20, 30, 44))
    turned = References(given.items[::-1], MANUAL, (44, 30, 20))
    moved = References(given.items, MANUAL, (24, 30, 44))
    first, second, third = (ksample(model, condition(references=r))["samples"] for r in (given, turned, moved))
    assert (first - second).abs().max() < 1e-5
    assert (first - third).abs().max() > 1e-4


def test_the_papers_starts_and_those_of_the_policy(base, condition, ksample):
    model, seen = watch(attached(base))
    for policy in (PAPER, AFTER):
        ksample(model, condition(references=references((1, 4, 6), (2, 6, 8), policy=policy)))
    assert [call.starts for call in seen] == [{1: 20, 2: 22}, {1: 3, 2: 4}]


def test_attaching_twice_is_once(base, condition, ksample):
    clip = condition(references=references((1, 4, 6)), level=0.25)
    once, twice = attached(base), attached(attached(base))
    assert len(twice.wrappers["diffusion_model"]["vsr_references"]) == 1
    assert torch.equal(ksample(once, clip)["samples"], ksample(twice, clip)["samples"])


def test_the_hosts_own_context_latents_stay_as_they_are(base, condition, ksample):
    own, clip, plain = tiny_wan.latent(16, 1, 4, 4, seed=9), condition(), condition()
    for group in (clip.positive, plain.positive):
        group[0][1]["context_latents"] = [own]
    assert torch.equal(ksample(attached(base), clip)["samples"], ksample(base, plain)["samples"])
    both = condition(references=references((1, 4, 6)))
    both.positive[0][1]["context_latents"] = [own]
    model, seen = watch(attached(base))
    ksample(model, both)
    assert seen[0].streams == [(16, 1, 4, 4), (16, 1, 4, 6)] and seen[0].starts == {2: 3}


# The clip on channels of its own


def test_references_are_widened_by_zeros_beside_a_clip(wide, condition, ksample):
    """As many zeros as the clip has channels: the host's own path with the same, padded by hand."""
    given, plain = references((2, 6, 8)), condition()
    result = ksample(attached(wide), condition(references=given))["samples"]
    fitted = wide.model.process_latent_in(given.latents[0])
    import comfy.conds

    padded = torch.cat((fitted, torch.zeros_like(fitted)), 1)
    plain.positive[0][1]["model_conds"] = {"time_dim_concat": comfy.conds.CONDRegular(padded)}
    assert torch.equal(result, ksample(wide, plain)["samples"])


@pytest.mark.parametrize("channels", [16, 48])
def test_noise_is_mixed_in_the_networks_own_scale(condition, ksample, channels):
    model, seen = watch(attached(tiny_wan.load(tiny_wan.weights(channels, 2 * channels))))
    clip = condition(level=0.3, channels=channels)
    ksample(model, clip)
    noise, lr = clip.positive[0][1]["vsr_lr_noise"], 1.5 * tiny_wan.latent(channels, 3, 6, 8, seed=7)
    mixed = 0.7 * model.model.process_latent_in(lr) + 0.3 * noise
    assert (seen[0].x[:, channels:] - mixed).abs().max() < 1e-5
    plain = model.model.process_latent_in(0.7 * lr + 0.3 * noise)  # what mixing among the VAE's latents would give
    assert (plain - mixed).abs().max() > 0.1


def test_an_image_to_video_model_takes_clip_and_references(core, condition, ksample):
    state = tiny_wan.weights(16, 36)
    model = tiny_wan.load(state)
    model.model.image_to_video = True
    seen_model, seen = watch(attached(model))
    result = ksample(seen_model, condition(references=references((1, 4, 6))))["samples"]
    assert torch.isfinite(result).all()
    assert seen[0].shape == (1, 36, 3, 6, 8) and seen[0].streams == [(36, 1, 4, 6)]


# Windows, tiles, branches, memory


def _cut(model, order):
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows

    tiles = {"tiling": "manual", "tile_width": 64, "tile_height": 64, "overlap": 32}
    windows = {"windows": "manual", "window": 9, "overlap": 4}
    for step in order:
        if step == "tiles":
            model = SpatialTiles.execute(model, tiles).args[0]
        elif step == "windows":
            model = TemporalWindows.execute(model, windows).args[0]
        else:
            model = attached(model)
    return model


def test_windows_and_tiles_see_references_whole_at_starts_that_stay(wide, condition, ksample):
    given = references((5, 12, 12), (1, 4, 6))  # as long and as large as the clip, and yet no part of it
    model, seen = watch(_cut(wide, ("references", "tiles", "windows")))
    result = ksample(model, condition(5, given, size=(12, 12)), steps=2)["samples"]
    assert torch.isfinite(result).all()
    assert [call.shape[2:] for call in seen] == ([(3, 8, 8)] * 4 + [(4, 8, 8)] * 4) * 2
    assert all(call.streams == [(32, 5, 12, 12), (32, 1, 4, 6)] for call in seen)
    # A window has 3 latent frames, and one more before it from the second on: references begin behind both.
    assert all(call.starts == {1: 4, 2: 9} for call in seen)


def test_whole_tiles_and_windows_are_none(wide, condition, ksample):
    clip = condition(3, references((1, 4, 6)), level=0.2)
    plain = ksample(attached(wide), clip)["samples"]
    assert torch.equal(ksample(_cut(wide, ("tiles", "references", "windows")), clip)["samples"], plain)


def test_branches_with_the_same_references_are_one_call(base, condition, ksample):
    model, seen = watch(attached(base))
    clip = condition(references=references((1, 4, 6)))
    together = ksample(model, clip, cfg=4.0)["samples"]
    assert [call.shape[0] for call in seen] == [2]
    from cascadevsr.nodes.host.keys import REFERENCES_KEY

    seen.clear()
    clip.negative[0][1] = {k: v for k, v in clip.negative[0][1].items() if k not in (REFERENCES_KEY, "model_conds")}
    apart = ksample(model, clip, cfg=4.0)["samples"]
    assert sorted((call.shape[0], len(call.streams)) for call in seen) == [(1, 0), (1, 1)]
    assert not torch.allclose(together, apart, atol=1e-4)


@pytest.mark.parametrize("order", [("references", "tiles", "windows"), ("windows", "tiles", "references")])
def test_memory_is_estimated_with_the_references_in_any_order_of_nodes(wide, condition, ksample, monkeypatch, order):
    shapes = []
    original = type(wide.model).memory_required

    def required(self, input_shape, cond_shapes={}):  # noqa: B006
        shapes.append((tuple(input_shape), {key: value for key, value in cond_shapes.items() if key == "references"}))
        return original(self, input_shape, cond_shapes=cond_shapes)

    monkeypatch.setattr(type(wide.model), "memory_required", required)
    ksample(_cut(wide, order), condition(5, references((1, 4, 6), (2, 8, 10)), size=(12, 12)), cfg=3.0)
    # 24 + 160 cells are 2.9 frames of a tile of 8 x 8 cells, beside the 3 of a window
    assert ((1, 16, 3 + 3, 8, 8), {}) in shapes and ((2, 16, 3 + 3, 8, 8), {}) in shapes
    counted = [conds["references"] for shape, conds in shapes if conds and shape == (2, 16, 3, 8, 8)]
    assert counted and sum(size[2] for size in counted[0]) == 2 * (24 + 160)


# No trace


def _traces(model):
    network = model.model.diffusion_model
    bound = types.MethodType
    assert model.model.extra_conds == bound(type(model.model).extra_conds, model.model)
    assert network.rope_encode == bound(type(network).rope_encode, network)
    assert model.model.memory_usage_factor_conds == ()
    return {key: value.clone() for key, value in model.model.state_dict().items()}


def test_the_base_is_the_base_again(core, base, condition, ksample):
    import comfy.model_management as management

    clip = condition()
    before, weights = ksample(base, clip, cfg=2.0)["samples"], _traces(base)
    patched = attached(base)
    ksample(patched, condition(references=references((1, 4, 6))), cfg=2.0)
    assert base.model.memory_usage_factor_conds == ("references",)  # while it is loaded
    assert torch.equal(ksample(base, clip, cfg=2.0)["samples"], before)
    after = _traces(base)
    assert after.keys() == weights.keys() and all(torch.equal(after[key], weights[key]) for key in weights)
    ksample(patched, condition(references=references((1, 4, 6))), cfg=2.0)
    management.unload_all_models()
    _traces(base)


def test_a_patched_model_that_is_forgotten_while_loaded_leaves_nothing(base, condition, ksample):
    clip = condition()
    before = ksample(base, clip)["samples"]
    patched = attached(base)
    ksample(patched, condition(references=references((1, 4, 6))))
    del patched
    gc.collect()
    assert torch.equal(ksample(base, clip)["samples"], before)
    _traces(base)


# Errors


def test_a_model_that_would_ignore_references_says_so(base, condition, ksample):
    with pytest.raises(ValueError, match=r"references need a model that takes them; got 2 .*Reference Tokens"):
        ksample(base, condition(references=references((1, 4, 6), (1, 4, 4))))


@pytest.mark.parametrize("name", ["hunyuan", "ltxv"])
def test_models_of_other_families_say_so(core, ksample, picture, name):
    from cascadevsr.nodes.conditioning import VSRConditioning

    model = tiny_wan.other(name)
    channels = model.model.latent_format.latent_channels
    lr, prompt = {"samples": tiny_wan.latent(channels, 2, 4, 4)}, tiny_wan.other_prompt(name)
    for given, level, rule in (
        (picture(channels), 0.0, "references need a model that takes them; got 1"),
        (None, 0.2, "needs a model that knows of it; got noise_level 0.2"),
    ):
        positive, negative, samples = VSRConditioning.execute(lr, level, 1, prompt, prompt, references=given).args
        clip = types.SimpleNamespace(positive=positive, negative=negative, samples=samples)
        with pytest.raises(ValueError, match=rule):
            ksample(model, clip)
    plain = VSRConditioning.execute(lr, 0.0, 1, prompt, prompt).args
    clip = types.SimpleNamespace(positive=plain[0], negative=plain[1], samples=plain[2])
    assert torch.isfinite(ksample(model, clip)["samples"]).all()


@pytest.mark.parametrize("name", ["vace", "hunyuan", "ltxv"])
def test_reference_tokens_needs_a_plain_wan(core, name):
    with pytest.raises(ValueError, match=r"Reference Tokens: the model must be a plain Wan 2.1 or 2.2 model .*got"):
        attached(tiny_wan.other(name))


def test_a_host_whose_positions_changed_is_refused(base, monkeypatch):
    import comfy.ldm.wan.model

    monkeypatch.setattr(comfy.ldm.wan.model.WanModel, "rope_encode", lambda self, t, h, w: None)
    with pytest.raises(ValueError, match="Reference Tokens: this ComfyUI must give .*without source_id, t_start"):
        attached(base)


def test_the_built_in_model_needs_no_tokens(model):
    patched = attached(model)
    assert not patched.object_patches and "vsr_references" not in patched.wrappers.get("diffusion_model", {})


def test_latents_of_another_model(base, condition, ksample):
    clip = condition(references=references((1, 4, 6)))
    clip.positive[0][1]["vsr_references"] = references((1, 4, 6), channels=48)
    with pytest.raises(ValueError, match="reference 1 must be a latent of 16 channels for WAN21; got 48"):
        ksample(attached(base), clip)
    clip = condition()
    clip.samples = {"samples": torch.zeros(1, 16, 3, 4, 4)}
    with pytest.raises(ValueError, match=r"must have the grid of the low-resolution latent \(3, 6, 8\)"):
        ksample(attached(base), clip)
    clip = condition(channels=48)
    clip.samples = {"samples": torch.zeros(1, 16, 3, 6, 8)}
    with pytest.raises(ValueError, match=r"WAN21 needs low-resolution latent \(16 channels\).* got .* 48"):
        ksample(attached(base), clip)


def test_time_ranges_that_meet(base, condition, ksample):
    meeting = references((1, 4, 6), (2, 6, 8), policy=MANUAL, manual=(2, 20))
    with pytest.raises(ValueError, match="Reference Set: time ranges must not meet.* begins at 2, before 3"):
        ksample(attached(base), condition(references=meeting))
