"""Load VSR Adapter on a tiny Wan model of the host: what a file does, what it leaves, what is refused."""

import logging
import types

import pytest
import torch
from cascadevsr.models.unimmvsr.adapter import (
    LEVEL_KEYS,
    Adapter,
    AdapterInfo,
    LevelEmbedding,
    lora_entries,
    save_adapter,
)
from cascadevsr.models.unimmvsr.references import AFTER, IMAGE, MODEL, Reference, References, StartRule

from . import tiny_wan
from .tiny_wan import DEPTH, FEATURES, WIDTH

RANK = 4
LAYERS = [f"diffusion_model.blocks.{n}.{name}" for n in range(DEPTH) for name in ("self_attn.q", "cross_attn.o")]


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5


def make(level=False, layers=False, channels=16, **info):
    """Draw an adapter: the clip's channels, and what else is asked for."""
    state = {}
    for number, name in enumerate(LAYERS if layers else ()):
        state |= lora_entries(name, draw(RANK, WIDTH, seed=number), draw(WIDTH, RANK, seed=50 + number), 2.0)
    if layers:
        state["diffusion_model.blocks.0.ffn.0.diff"] = 0.3 * draw(192, WIDTH, seed=90)
        state["diffusion_model.blocks.0.ffn.0.diff_b"] = 0.3 * draw(192, seed=91)
    shapes = ((WIDTH, FEATURES), (WIDTH,), (WIDTH, WIDTH), (WIDTH,))
    mlp = {key: draw(*shape, seed=70 + n) for n, (key, shape) in enumerate(zip(LEVEL_KEYS, shapes, strict=True))}
    base = {16: "wan2.1-t2v", 48: "wan2.2-ti2v"}[channels]
    told = {
        "base": base,
        "latent_channels": channels,
        "rank": RANK,
        "alpha": 2.0,
        "licence": "CC0-1.0",
        **info,
    }
    lr_weight = 0.2 * draw(WIDTH, channels, 1, 2, 2, seed=60)
    return Adapter(AdapterInfo(**told), lr_weight, mlp if level else {}, state)


@pytest.fixture
def folder(core, tmp_path):
    """A folder of adapters that the host lists."""
    import folder_paths
    from cascadevsr.nodes.host import services

    kept = folder_paths.folder_names_and_paths[services.ADAPTER_FOLDER]
    folder_paths.folder_names_and_paths[services.ADAPTER_FOLDER] = ([str(tmp_path)], kept[1])
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.folder_names_and_paths[services.ADAPTER_FOLDER] = kept
    folder_paths.filename_list_cache.clear()


@pytest.fixture
def load(folder):
    """Write an adapter and put it onto a model with the node: load(model, adapter, strength)."""

    def run(model, adapter, strength=1.0, name="tiny.safetensors"):
        from cascadevsr.nodes.adapters import LoadVSRAdapter

        save_adapter(folder / name, adapter)
        return LoadVSRAdapter.execute(model, name, strength).args[0]

    return run


@pytest.fixture
def base(core):
    return tiny_wan.load(tiny_wan.weights())


def condition(level=0.3, references=None, channels=16, text=3):
    from cascadevsr.nodes.conditioning import VSRConditioning

    lr, prompt = {"samples": tiny_wan.latent(channels, 3, 6, 8, seed=7)}, [[tiny_wan.text(text), {}]]
    given = VSRConditioning.execute(lr, level, 1, prompt, prompt, references=references).args
    return types.SimpleNamespace(positive=given[0], negative=given[1], samples=given[2])


def references(policy=AFTER):
    return References((Reference(tiny_wan.latent(16, 1, 4, 6, seed=20), IMAGE),), policy)


def checkpoint(adapter, channels=16):
    """The whole restorer that the base and an adapter without further layers make."""
    from cascadevsr.nodes.adapters import ReferenceTokens

    state = tiny_wan.weights(channels)
    state["patch_embedding.weight"] = torch.cat((state["patch_embedding.weight"], adapter.lr_weight), 1)
    return ReferenceTokens.execute(tiny_wan.load(state)).args[0]


def with_lora(model, strength=0.7):
    """Put a LoRA onto a model as the host's loaders do."""
    import comfy.sd

    name = "diffusion_model.blocks.1.ffn.2"
    lora = lora_entries(name, draw(RANK, 192, seed=101), draw(WIDTH, RANK, seed=102), 4.0)
    lora |= lora_entries(LAYERS[0], draw(RANK, WIDTH, seed=103), draw(WIDTH, RANK, seed=104), 4.0)
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]


# What a file does


@pytest.mark.parametrize("channels", [16, 48])
def test_an_adapter_on_the_base_is_the_whole_checkpoint(load, ksample, channels):
    adapter = make(channels=channels)
    base = tiny_wan.load(tiny_wan.weights(channels))
    given = None if channels == 48 else references()
    clip = condition(references=given, channels=channels)
    result = ksample(load(base, adapter), clip, steps=2, cfg=2.0)["samples"]
    assert torch.equal(result, ksample(checkpoint(adapter, channels), clip, steps=2, cfg=2.0)["samples"])
    plain = ksample(base, condition(0.0, channels=channels), steps=2, cfg=2.0)["samples"]
    assert not torch.allclose(result, plain, atol=1e-3)


def test_it_stacks_with_a_lora_in_either_order(load, base, ksample):
    clip, adapter = condition(references=references()), make()
    whole = ksample(with_lora(checkpoint(adapter)), clip)["samples"]
    assert torch.equal(ksample(with_lora(load(base, adapter)), clip)["samples"], whole)
    assert torch.equal(ksample(load(with_lora(base), adapter), clip)["samples"], whole)
    assert not torch.allclose(whole, ksample(load(base, adapter), clip)["samples"], atol=1e-3)
    full = make(layers=True)
    first, second = with_lora(load(base, full)), load(with_lora(base), full)
    results = [ksample(model, clip)["samples"] for model in (first, second)]
    assert (results[0] - results[1]).abs().max() < 1e-5  # sums of floats in another order


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_layers_change_by_their_formula(load, base, ksample, strength):
    adapter, weights = make(layers=True), tiny_wan.weights()
    ksample(load(base, adapter, strength), condition())
    loaded, state = base.model.state_dict(), adapter.layers
    for name in LAYERS:
        change = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"] * 2.0 / RANK
        wanted = weights[name.removeprefix("diffusion_model.") + ".weight"] + strength * change
        torch.testing.assert_close(loaded[f"{name}.weight"], wanted, rtol=0, atol=1e-6)
    wanted = weights["blocks.0.ffn.0.bias"] + strength * state["diffusion_model.blocks.0.ffn.0.diff_b"]
    assert torch.equal(loaded["diffusion_model.blocks.0.ffn.0.bias"], wanted)
    wide = loaded["diffusion_model.patch_embedding.weight"]
    assert torch.equal(wide[:, :16], weights["patch_embedding.weight"])
    assert torch.equal(wide[:, 16:], strength * adapter.lr_weight)


def test_strength_0_is_the_base(load, base, ksample):
    clip = condition(0.0)
    plain = ksample(base, clip, steps=2)["samples"]
    off = load(base, make(level=True, layers=True), 0.0)
    assert torch.equal(ksample(off, clip, steps=2)["samples"], plain)
    assert not off.patches and not off.additional_models


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_noise_level_joins_the_time_embedding(load, base, ksample, strength):
    adapter, seen = make(level=True), []
    patched, network = load(base, adapter, strength), base.model.diffusion_model
    handle = network.time_projection.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    try:
        for level in (0.2, 0.437):
            ksample(patched, condition(level))
    finally:
        handle.remove()
    mlp = LevelEmbedding(FEATURES, WIDTH)
    mlp.load_state_dict(adapter.level)
    change = strength * (mlp(torch.tensor([200])) - mlp(torch.tensor([437])))
    assert change.abs().max() > 0.01
    torch.testing.assert_close((seen[0] - seen[1]).view(1, -1), change, rtol=0, atol=1e-5)


def test_branches_keep_levels_of_their_own_in_one_batch(load, base, ksample):
    """One step with guidance is the linear combination of its two branches, each with its own noise level."""
    patched, clip, other = load(base, make(level=True)), condition(0.3), condition(0.3)
    for group in (clip.negative, other.positive):  # the same LR latent; the level that is told alone differs
        group[0][1].update(vsr_noise_level=0.6, vsr_lr_noise=None)
    positive, negative = (ksample(patched, each)["samples"] for each in (clip, other))
    assert not torch.allclose(positive, negative, atol=1e-2)
    guided = ksample(patched, clip, cfg=3.0)["samples"]
    torch.testing.assert_close(guided, negative + 3 * (positive - negative), rtol=0, atol=1e-4)


def test_references_begin_where_the_file_says(load, base, ksample):
    from comfy.patcher_extension import WrappersMP

    seen = []

    def wrapper(executor, *args, **kwargs):
        seen.append(next(a for a in args if isinstance(a, dict))["vsr_reference_starts"])
        return executor(*args, **kwargs)

    for rule in (StartRule(None, 5, 2), StartRule(12, 0, 0)):
        patched = load(base, make(rule=rule)).clone()
        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", wrapper)
        ksample(patched, condition(references=references(MODEL)))
    assert seen == [{1: 8}, {1: 12}]


def test_a_level_outside_the_training_is_mentioned(load, base, ksample, caplog):
    patched = load(base, make(level=True))
    with caplog.at_level(logging.WARNING):
        ksample(patched, condition(0.6))
        assert "outside" not in caplog.text
        ksample(patched, condition(0.1), steps=2)
    assert caplog.text.count("noise_level 0.1 is outside the 0.2 to 0.6") == 1


def test_two_adapters_add_up(load, base, ksample):
    adapter = make(level=True)
    twice = load(load(base, adapter, 0.5, "a.safetensors"), adapter, 0.5, "b.safetensors")
    clip = condition()
    once = ksample(load(base, adapter), clip)["samples"]
    assert torch.allclose(ksample(twice, clip)["samples"], once, atol=1e-4)


def test_weights_that_stay_off_the_gpu(load, base, ksample, monkeypatch):
    """The host then patches at every call: the clip's channels must be there all the same, and none afterwards."""
    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher

    clip, adapter = condition(references=references()), make(level=True, layers=True)
    whole = ksample(load(base, adapter), clip, steps=2)["samples"]
    management.unload_all_models()
    weights = {key: value.clone() for key, value in base.model.state_dict().items()}
    original = ModelPatcher.partially_load
    monkeypatch.setattr(ModelPatcher, "partially_load", lambda self, device, *_, **kw: original(self, device, 0.1))
    patched = load(base, adapter)
    for _ in range(2):
        assert torch.allclose(ksample(patched, clip, steps=2)["samples"], whole, atol=1e-5)
        assert base.model.model_lowvram
    monkeypatch.undo()
    assert torch.equal(ksample(patched, clip, steps=2)["samples"], whole), "and whole again where there is room"
    management.unload_all_models()
    after = base.model.state_dict()
    assert all(torch.equal(after[key], weights[key]) for key in weights)


# What it leaves


def test_the_base_is_the_base_again(load, base, ksample):
    import comfy.model_management as management

    plain, clip = condition(0.0), condition(references=references())
    before = ksample(base, plain, steps=2)["samples"]
    weights = {key: value.clone() for key, value in base.model.state_dict().items()}
    time_embedding = base.model.diffusion_model.time_embedding
    hooks = time_embedding._forward_hooks
    patched = load(base, make(level=True, layers=True))
    changed = ksample(patched, clip, steps=2)["samples"]
    assert time_embedding._forward_hooks is not hooks and len(time_embedding._forward_hooks) == 1
    assert torch.equal(ksample(base, plain, steps=2)["samples"], before)
    assert torch.equal(ksample(patched, clip, steps=2)["samples"], changed)
    management.unload_all_models()
    after = base.model.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[key], weights[key]) for key in weights)
    assert time_embedding._forward_hooks is hooks and not hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.model.modules())
    assert not base.injections and not base.object_patches and not base.patches and not base.wrappers


@pytest.mark.parametrize("first", [True, False])
def test_a_forgotten_adapter_leaves_nothing_in_the_hosts_list(load, base, model, ksample, first):
    """Its model died while the host unloaded, and the host stumbled over what was left in every later run."""
    import comfy.model_management as management

    management.unload_all_models()
    clip, others = condition(), [model, tiny_wan.load(tiny_wan.weights())]
    if first:
        management.load_models_gpu(others)
    ksample(load(base, make(level=True, layers=True)), clip, steps=2)
    if not first:
        management.load_models_gpu(others)
    for _ in range(2):
        management.unload_all_models()
    assert not management.current_loaded_models


# Errors


def test_models_that_are_no_base_of_the_adapter(load, base, ksample):
    with pytest.raises(ValueError, match=r"Load VSR Adapter: the model must be a plain Wan 2\.1 or 2\.2 model"):
        load(tiny_wan.other("hunyuan"), make())
    with pytest.raises(ValueError, match=r"must have latents of 48 channels, as wan2\.2-ti2v has; got 16"):
        load(base, make(channels=48))
    with pytest.raises(ValueError, match="must be a text-to-video base with 16 input channels; got 36"):
        load(tiny_wan.load(tiny_wan.weights(16, 36)), make())
    narrow = make()
    narrow = Adapter(narrow.info, narrow.lr_weight[:64])
    with pytest.raises(ValueError, match=r"must be 64 channels wide.* got 128\. Load the size of the base"):
        load(base, narrow)
    deep = lora_entries(f"diffusion_model.blocks.{DEPTH}.ffn.0", draw(2, WIDTH, seed=1), draw(192, 2, seed=2), 1)
    with pytest.raises(ValueError, match=r"must have 'diffusion_model\.blocks\.2\.ffn\.0' .* got no such layer"):
        load(base, Adapter(make().info, make().lr_weight, {}, deep))
    flat = {f"{LAYERS[0]}.diff": torch.zeros(WIDTH, 5)}
    with pytest.raises(ValueError, match=r"must have .*self_attn\.q' of \(128, 5\); got \(128, 128\)"):
        load(base, Adapter(make().info, make().lr_weight, {}, flat))


def test_files_that_are_no_adapter(folder, base):
    from cascadevsr.models.checkpoints import save_state
    from cascadevsr.nodes.adapters import LoadVSRAdapter

    save_state(folder / "lora.safetensors", {"a.lora_A.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="Load VSR Adapter: the file must be a UniMMVSR adapter .*LoRA files"):
        LoadVSRAdapter.execute(base, "lora.safetensors", 1.0)
    (folder / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="Load VSR Adapter: .*must be a safetensors or torch weight file"):
        LoadVSRAdapter.execute(base, "cut.safetensors", 1.0)
    with pytest.raises(ValueError, match="Load VSR Adapter: the adapter must be one of the list; got '../x'"):
        LoadVSRAdapter.execute(base, "../x", 1.0)
    assert "Put the file into models/vsr_adapters" in LoadVSRAdapter.validate_inputs("../x")


def test_nodes_in_a_running_host(host_server, client):
    """A base and an adapter from the host's folders, up to the sampler, which has no prompt here."""
    from cascadevsr.models.checkpoints import save_state
    from cascadevsr.runner.client import ExecutionFailed, PromptRejected

    file = host_server.models_dir / "vsr_adapters" / "tiny.safetensors"
    save_state(host_server.models_dir / "diffusion_models" / "wan.safetensors", tiny_wan.weights())
    save_adapter(file, make(level=True, layers=True))

    def node(kind, **inputs):
        return {"class_type": kind, "inputs": inputs}

    def run(adapter="tiny.safetensors"):
        links = {"positive": ["5", 0], "negative": ["5", 1], "latent_image": ["5", 2]}
        sampler = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
        prompt = {
            "1": node("UNETLoader", unet_name="wan.safetensors", weight_dtype="default"),
            "2": node("VSRLoadAdapter", model=["1", 0], adapter=adapter, strength=1.0),
            "3": node("VSRReferenceTokens", model=["2", 0]),
            "4": node("EmptyHunyuanLatentVideo", width=64, height=48, length=9, batch_size=1),
            "5": node("VSRConditioning", lr_latent=["4", 0], noise_level=0.3, seed=1),
            "6": node("KSampler", model=["3", 0], denoise=1.0, **links, **sampler),
            "7": node("SaveLatent", samples=["6", 0], filename_prefix="adapter"),
        }
        client.run(prompt, timeout=120)

    for _ in range(2):
        with pytest.raises(ExecutionFailed, match="KSampler / SamplerCustomAdvanced: WAN21 needs a prompt"):
            run()
    with pytest.raises(PromptRejected, match="Put the file into models/vsr_adapters"):
        run("missing.safetensors")
    file.unlink()  # other tests look at the lists of this host
