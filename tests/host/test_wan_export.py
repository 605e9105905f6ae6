"""An adapter trained on diffusers' Wan, exported, on the host's Wan: the same numbers, and they moved."""

import pytest
import torch

from . import small_wan

# Whole names from diffusers to the host: what the adapter file's table does not need because it never changes
NAMES = (
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("proj_out", "head.head"),
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_out.0.", ".o."),
    (".to_", "."),
    (".norm2.", ".norm3."),
    (".ffn.net.0.proj.", ".ffn.0."),
    (".ffn.net.2.", ".ffn.2."),
)


def host_key(key):
    if key == "scale_shift_table":
        return "head.modulation"
    key = key.replace(".scale_shift_table", ".modulation")
    for ours, theirs in NAMES:
        key = key.replace(ours, theirs)
    return key


@pytest.fixture(scope="module")
def trained(core, tmp_path_factory):
    """Train a few steps outside inference mode: (adapter, file, losses)."""
    from cascadevsr.training.augment import normal
    from cascadevsr.training.curriculum import rng_at
    from cascadevsr.training.loop import Loop, LoopSettings
    from cascadevsr.training.wan_adapter import AdapterConfig, WanAdapter, flow_matching_loss
    from cascadevsr.training.wan_export import export
    from diffusers import WanTransformer3DModel

    folder = tmp_path_factory.mktemp("adapter")
    with torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        base = WanTransformer3DModel(
            num_attention_heads=small_wan.HEADS,
            attention_head_dim=small_wan.DIM // small_wan.HEADS,
            text_dim=small_wan.TEXT_WIDTH,
            freq_dim=small_wan.FREQUENCIES,
            ffn_dim=small_wan.FFN,
            num_layers=small_wan.DEPTH,
        )
        adapter = WanAdapter(base, AdapterConfig(rank=4))
        like = torch.zeros(1, 16, 3, 4, 6)
        z = normal(like, rng_at(0, 0))

        def draw(number):
            rng = rng_at(1, number)
            return normal(like, rng), torch.tensor([rng.uniform(0.1, 0.9)], dtype=torch.float32)

        def loss(adapter, batch):
            eps, t = batch
            more = (torch.full((1,), 0.3), torch.zeros(1, 1, small_wan.TEXT_WIDTH), [z[:, :, :1]])
            return flow_matching_loss(adapter, z, eps, t, z, *more)

        settings = LoopSettings(60, 2e-2, warmup=5)
        losses = Loop(adapter, draw, loss, folder, settings).run()
        export(adapter, folder / "adapter.safetensors", 60, "Apache-2.0", dtype=torch.float32)
    return adapter.eval(), folder / "adapter.safetensors", losses


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "z": draw(1, 16, 3, 4, 6),
        "lr": draw(1, 16, 3, 4, 6),
        "text": draw(1, 5, small_wan.TEXT_WIDTH),
        "references": [draw(1, 16, 1, 6, 4), draw(1, 16, 2, 4, 4)],
    }


def host_network(adapter, in_dim):
    """The host's Wan with the base's weights."""
    model = small_wan.make_model(in_dim=in_dim).model.diffusion_model
    state = {host_key(key): value for key, value in adapter.base.state_dict().items()}
    if in_dim > 16:
        state["patch_embedding.weight"] = torch.nn.functional.pad(
            state["patch_embedding.weight"], (0, 0, 0, 0, 0, 0, 0, in_dim - 16)
        )
    model.load_state_dict(state, strict=True)
    return model


def apply_file(network, file):
    """Apply an adapter file to the host's network by its own words: what docs say a loader does."""
    from cascadevsr.models.unimmvsr.adapter import LevelEmbedding, load_adapter

    adapter = load_adapter(file)
    weights = dict(network.named_parameters())
    weights["patch_embedding.weight"].data[:, 16:] += adapter.lr_weight
    for name in adapter.modules:
        down, up, alpha = (adapter.layers[f"{name}.{part}"] for part in ("lora_A.weight", "lora_B.weight", "alpha"))
        weights[f"{name.removeprefix('diffusion_model.')}.weight"].data += alpha / down.shape[0] * up @ down
    level = LevelEmbedding(adapter.level["0.weight"].shape[1], adapter.width)
    level.load_state_dict(adapter.level)
    return adapter, level


def run_host(network, level, rule, inputs, t, value):
    """Predict as the host does, with references in time ranges of their own and the level in the time embedding."""
    starts = rule.starts(3, [r.shape[2] for r in inputs["references"]])
    plain = network.rope_encode

    def rope_encode(t, h, w, source_id=0, **more):
        return plain(t, h, w, **{**more, "t_start": starts[source_id - 1] if source_id else 0})

    network.rope_encode = rope_encode
    hook = network.time_embedding.register_forward_hook(lambda m, i, out: out + level(torch.tensor([1000 * value])))
    padded = [torch.cat((r, torch.zeros_like(r)), 1) for r in inputs["references"]]
    x = torch.cat((inputs["z"], inputs["lr"]), 1)
    try:
        return network(x, torch.tensor([1000 * t]), inputs["text"], context_latents=padded)
    finally:
        hook.remove()
        network.rope_encode = plain


def test_the_loss_fell(trained):
    losses = trained[2]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_both_sides_agree_before_and_after(trained, inputs):
    adapter, file, _ = trained
    with adapter.bare() as base:
        ours = base(inputs["z"], torch.tensor([700.0]), inputs["text"], return_dict=False)[0]
    host = host_network(adapter, 16)(inputs["z"], torch.tensor([700.0]), inputs["text"])
    assert (ours - host).abs().max() < 1e-4, "the two bases are one"
    network = host_network(adapter, 32)
    read, level = apply_file(network, file)
    moved = run_host(network, level, read.info.rule, inputs, 0.7, 0.3)
    level_now = torch.tensor([0.3])
    expected = adapter(inputs["z"], torch.tensor([0.7]), inputs["lr"], level_now, inputs["text"], inputs["references"])
    assert (moved - expected).abs().max() < 1e-4
    assert (moved - host).abs().mean() > 0.1 * host.abs().mean(), "and it does something"


def test_the_file_says_what_it_is(trained):
    from cascadevsr.models.unimmvsr.adapter import load_adapter

    adapter = load_adapter(trained[1])
    info = adapter.info
    assert (info.base, info.latent_channels, info.rank, info.alpha, info.steps) == (
        "wan2.1-t2v",
        16,
        4,
        4.0,
        60,
    )
    assert (info.level_min, info.level_max, info.licence) == (0.2, 0.6, "Apache-2.0")
    assert len(adapter.modules) == 10 * small_wan.DEPTH
    assert "diffusion_model.blocks.1.cross_attn.o" in adapter.modules


def test_load_vsr_adapter_samples_what_was_trained(core, trained, inputs):
    """Through the graph's nodes: one step from noise is noise - velocity, and strength 0 is the base."""
    from cascadevsr.models.unimmvsr.adapter import load_adapter
    from cascadevsr.models.unimmvsr.references import IMAGE, VIDEO, Reference, References
    from cascadevsr.nodes import adapters as nodes
    from cascadevsr.nodes.conditioning import VSRConditioning

    adapter, file, _ = trained
    base = small_wan.make_model()
    base.model.diffusion_model.load_state_dict(
        {host_key(key): value for key, value in adapter.base.state_dict().items()}
    )
    space = base.get_model_object("latent_format")
    latents = [space.process_out(reference) for reference in inputs["references"]]
    kinds = (IMAGE, VIDEO)
    references = References(tuple(Reference(*pair) for pair in zip(latents, kinds, strict=True)))
    lr = {"samples": space.process_out(inputs["lr"])}
    prompt = [[inputs["text"], {}]]
    positive, negative, start = VSRConditioning.execute(lr, 0.3, 7, prompt, prompt, references).args

    def sample(model):
        return core.nodes.common_ksampler(model, 11, 1, 1.0, "euler", "simple", positive, negative, start, denoise=1.0)[
            0
        ]["samples"]

    patched = base.clone()
    nodes.apply_adapter(patched, file, load_adapter(file), 1.0)
    found = space.process_in(sample(patched))
    import comfy.sample

    noise = comfy.sample.prepare_noise(start["samples"], 11)
    drawn = positive[0][1]["vsr_lr_noise"]
    noised = 0.7 * inputs["lr"] + 0.3 * drawn
    one, level = torch.ones(1), torch.tensor([0.3])
    velocity = adapter(noise, one, noised, level, inputs["text"], inputs["references"])
    assert (found - (noise - velocity)).abs().max() < 1e-4
    with adapter.bare() as plain:
        alone = noise - plain(noise, torch.tensor([1000.0]), inputs["text"], return_dict=False)[0]
    assert (found - alone).abs().mean() > 0.1 * alone.abs().mean(), "the output moved away from the base"
