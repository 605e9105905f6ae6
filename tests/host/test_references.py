"""Reference Set with VAEs of several families, and its references in the built-in model."""

import json

import pytest
import torch
from cascadevsr.models.unimmvsr.references import AFTER, IMAGE, MANUAL, MODEL, PAPER, VIDEO, References


def gather(vae, images=None, videos=None, long_edge=64, policy=None):
    from cascadevsr.nodes.conditioning import ReferenceSet

    return ReferenceSet.execute(vae, images or {}, videos or {}, long_edge, policy).args[0]


def manual(starts):
    return {"start_policy": MANUAL, "starts": starts}


@pytest.fixture(scope="module")
def ltx_vae(core):
    """A VAE of LTX's kind with few channels: 32 px and 8 frames a cell."""
    import comfy.sd
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    blocks = [["res_x", 1], *[["compress_all", 1], ["res_x", 1]] * 3]
    width = {"encoder_base_channels": 8, "decoder_base_channels": 8, "latent_channels": 128, "patch_size": 4}
    kind = {"dims": 3, "in_channels": 3, "out_channels": 3, "norm_layer": "pixel_norm"}
    config = {"blocks": blocks, "latent_log_var": "uniform", "causal_decoder": False, **width, **kind}
    network = VideoVAE(config=config)
    for key, value in network.state_dict().items():
        value.copy_(torch.ones_like(value) if "std" in key else 0.05 * torch.randn_like(value))
    return comfy.sd.VAE(sd=network.state_dict(), metadata={"config": json.dumps({"vae": config})})


def test_kinds_order_and_policy(vae, noise):
    given = gather(vae, {"image_10": noise(1, 8, 8), "image_2": noise(2, 8, 16)}, {"video_0": noise(6, 8, 8)})
    assert isinstance(given, References) and given.policy == MODEL and given.manual == ()
    assert [item.kind for item in given.items] == [IMAGE, IMAGE, IMAGE, VIDEO]
    assert [tuple(latent.shape[2:]) for latent in given.latents] == [(1, 1, 2)] * 2 + [(1, 1, 1), (3, 1, 1)]
    assert gather(vae, policy={"start_policy": PAPER}).policy == PAPER
    chosen = gather(vae, {"image_0": noise(2, 8, 8)}, policy=manual(" 20,  24 "))
    assert (chosen.policy, chosen.manual) == (MANUAL, (20, 24))


def test_a_reference_is_padded_by_the_rule_of_the_vae(ltx_vae, vae, noise, monkeypatch):
    seen = []
    for each in (ltx_vae, vae):
        encode = each.encode
        monkeypatch.setattr(each, "encode", lambda x, encode=encode: seen.append(tuple(x.shape)) or encode(x))
    frames = noise(10, 40, 70)
    latent = gather(ltx_vae, {"image_0": frames[:1]}, {"video_0": frames}, 128).latents[1]
    assert latent.shape == (1, 128, 3, 2, 3)
    gather(vae, {"image_0": frames[:1]}, {"video_0": frames}, 128)
    # LTX: frames 8n + 1, sides 32n. The built-in VAE: 4n + 1 and 8n.
    assert seen == [(1, 64, 96, 3), (17, 64, 96, 3), (1, 40, 72, 3), (13, 40, 72, 3)]


def test_order_is_irrelevant_at_fixed_starts(vae, noise, prepare, ksample, model):
    images = {"image_0": noise(1, 24, 24), "image_1": noise(1, 16, 40, seed=1)}
    given = gather(vae, images, {"video_0": noise(5, 32, 24, seed=2)}, policy=manual("20, 30, 40"))
    turned = References(given.items[::-1], MANUAL, given.manual[::-1])
    moved = References(given.items, MANUAL, (25, 30, 40))
    first, second, third = (
        ksample(model, prepare(9, 12, 20, (48, 80), references=each))["samples"] for each in (given, turned, moved)
    )
    assert (first - second).abs().max() < 1e-5
    assert (first - third).abs().max() > 1e-4


def test_starts_of_the_model_are_those_the_network_takes_alone(vae, noise, prepare, ksample, model):
    from cascadevsr.models.unimmvsr.dit import UniMMVSRDiT

    given = gather(vae, {"image_0": noise(1, 24, 24)}, {"video_0": noise(5, 32, 24)})
    clip = prepare(9, 12, 20, (48, 80), references=given)
    torch.manual_seed(5)
    eps, network = torch.randn(1, 16, 3, 6, 10), model.model.diffusion_model
    velocity = UniMMVSRDiT.forward(network, eps, torch.ones(1), clip.latent["samples"], torch.zeros(1), given.latents)
    assert torch.allclose(ksample(model, clip)["samples"], eps + velocity, atol=1e-5)
    after = prepare(9, 12, 20, (48, 80), references=References(given.items, AFTER))
    assert not torch.allclose(ksample(model, after)["samples"], eps + velocity, atol=1e-4)


def test_every_window_has_the_same_starts(vae, noise, prepare, ksample, model):
    from cascadevsr.nodes.tiling import TemporalWindows
    from comfy.patcher_extension import WrappersMP

    windows = {"windows": "manual", "window": 9, "overlap": 4}
    seen, patched = [], TemporalWindows.execute(model, windows).args[0]

    def wrapper(executor, x, timestep, context, options, **kwargs):
        seen.append((x.shape[2], [r.shape[2] for r in kwargs["references"]], kwargs["reference_starts"]))
        return executor(x, timestep, context, options, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", wrapper)
    given = gather(vae, {"image_0": noise(1, 24, 24)}, {"video_0": noise(17, 32, 24)})
    ksample(patched, prepare(17, 12, 20, (48, 80), references=given))
    # 5 latent frames, as many as the reference video has; windows of 3, the second with one frame before it
    assert seen == [(3, [1, 5], (20, 37)), (4, [1, 5], (20, 37))]


def test_bad_references(core, vae, noise):
    picture = {"image_0": noise(1, 8, 8)}
    for policy, rule in (
        (
            {"start_policy": "later"},
            "start_policy must be one of model, paper, after video, manual; got 'later'",
        ),
        (manual("20; 24"), "starts must be whole numbers separated by commas; got '20; 24'"),
        (manual("-3"), "starts must be whole numbers"),
        (manual(""), "starts must name one time index for each of the 1 references; got 0"),
        (manual("20, 24"), "starts must name one time index for each of the 1 references; got 2"),
    ):
        with pytest.raises(ValueError, match=f"Reference Set: {rule}"):
            gather(vae, picture, policy=policy)
    large = {"video_0": torch.zeros(1, 1, 1, 3).expand(2, 3600, 3600, 3)}
    rule = "references must not be larger than 400000 latent cells together; got 405000, the largest 2 frames of "
    with pytest.raises(ValueError, match=rf"Reference Set: {rule}3600x3600\. Lower long_edge, shorten"):
        gather(vae, {}, large, long_edge=4096)
    with pytest.raises(ValueError, match="Reference Set: the VAE must be a video VAE; got none"):
        gather(None, picture)


def test_a_vae_of_pictures_is_refused(core, noise):
    import comfy.ldm.models.autoencoder as autoencoder
    import comfy.sd

    sides = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 32,
        "in_channels": 3,
        "out_ch": 3,
        "dropout": 0.0,
    }
    settings = {**sides, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": []}
    with torch.device("meta"):
        network = autoencoder.AutoencoderKL(ddconfig=settings, embed_dim=4)
    state = {key: torch.zeros(value.shape, dtype=torch.float16) for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="must be a video VAE; got one of pictures"):
        gather(comfy.sd.VAE(sd=state), {"image_0": noise(1, 16, 16)})


def test_start_policies_through_a_running_host(host_server, client, tiny_file):
    """The host resolves the nested choice; a graph from before it has no such input."""
    from cascadevsr.runner.client import ExecutionFailed

    folder = host_server.models_dir / "video_restorers"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "starts.safetensors").write_bytes(tiny_file.read_bytes())

    def node(kind, **inputs):
        return {"class_type": kind, "inputs": inputs}

    def run(prefix, **policy):
        links = {"positive": ["5", 0], "negative": ["5", 1], "latent_image": ["5", 2]}
        sampler = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
        target = {"target": "scale", "target.scale": 2.0, "filter": "bilinear"}
        prompt = {
            "1": node("EmptyImage", width=32, height=24, batch_size=5, color=0x805020),
            "2": node("VSRLoadVideoRestorer", restorer="starts.safetensors", precision="auto"),
            "3": node("VSRCascadeInput", target_vae=["2", 1], frames=["1", 0], **target),
            "4": node("VSRReferenceSet", vae=["2", 1], long_edge=32, **{"images.image_0": ["1", 0]}, **policy),
            "5": node("VSRConditioning", lr_latent=["3", 0], noise_level=0.0, seed=1, references=["4", 0]),
            "6": node("KSampler", model=["2", 0], denoise=1.0, **links, **sampler),
            "7": node("SaveLatent", samples=["6", 0], filename_prefix=prefix),
        }
        client.run(prompt, timeout=120)
        return sorted(host_server.output_dir.glob(f"{prefix}_*.latent"))[-1].read_bytes()

    starts = {"start_policy": MANUAL, "start_policy.starts": "18, 35, 52, 69, 86"}  # the model's own
    before = run("before")
    assert run("model", start_policy=MODEL)[-3000:] == before[-3000:]
    assert run("same", **starts)[-3000:] == before[-3000:]
    assert run("after", start_policy=AFTER)[-3000:] != before[-3000:]
    with pytest.raises(ExecutionFailed, match="Reference Set: starts must name one time index for each of the 5"):
        run("bad", start_policy=MANUAL, **{"start_policy.starts": "18"})


def test_nothing_runs_without_a_picture_where_one_is_needed(vae, noise):
    from cascadevsr.nodes.conditioning import ReferenceSet

    said = ReferenceSet.validate_inputs(True, {"vae": "VAE"})
    assert said.startswith("Reference Set: at least one picture or video must be linked; got none.")
    assert ReferenceSet.validate_inputs(True, {"vae": "VAE", "images.image_3": "IMAGE"}) is True
    assert ReferenceSet.validate_inputs(True, {"vae": "VAE", "videos.video_0": "*"}) is True
    assert ReferenceSet.validate_inputs(False, {"vae": "VAE"}) is True
    assert "images.image_0 must be linked to IMAGE; got MASK" in ReferenceSet.validate_inputs(
        False, {"images.image_0": "MASK"}
    )
    with pytest.raises(ValueError, match="at least one picture"):
        ReferenceSet.execute(vae, {}, {}, 64, None, True)
