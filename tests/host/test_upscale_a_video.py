"""Upscale-A-Video in the host: recorded runs through the graph, loading, sizes, memory, sampling, errors."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from .uav_release import TEXT, recorded, text_state, write_release

SCALE = {"target": "scale", "scale": 4.0}


class Given:
    """A NOISE that is given."""

    seed = 0

    def __init__(self, noise):
        self.noise = noise

    def generate_noise(self, latent):
        return self.noise


@pytest.fixture(scope="module")
def case():
    return recorded("pipeline_short_3d")


@pytest.fixture(scope="module")
def folder(core, case, tmp_path_factory):
    """A released folder of tiny networks, with a text encoder and both VAEs."""
    path = write_release(case, tmp_path_factory.mktemp("releases") / "upscale_a_video")
    other = write_release(recorded("pipeline_windowed_video"), tmp_path_factory.mktemp("other"), text=False)
    for name in ("vae_video.bin", "vae_video_config.json"):
        (path / "vae" / name).write_bytes((other / "vae" / name).read_bytes())
    return path


def _load(path, *options):
    from cascadevsr.nodes.loaders import load_restorer

    return SimpleNamespace(**dict(zip(("model", "vae", "clip"), load_restorer(path, *options), strict=True)))


@pytest.fixture(scope="module")
def loaded(folder):
    with torch.inference_mode():
        return _load(folder, "auto")


@pytest.fixture(scope="module")
def steady(folder):
    """The same with the decoder that takes LR frames."""
    with torch.inference_mode():
        return _load(folder, "auto", "lr-conditioned")


def _words(loaded, text):
    return loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(text))


def _prepare(loaded, frames, level=0.12, target=SCALE, prompts=("best quality", "blur"), noise=None):
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.frames import CascadeInput

    positive, negative = (_words(loaded, text) if isinstance(text, str) else text for text in prompts)
    latent, low, *_ = CascadeInput.execute(loaded.vae, target, "bilinear", frames=frames).args
    conditions = VSRConditioning.execute(latent, level, 3, positive, negative, noise=noise).args
    names = ("positive", "negative", "samples")
    return SimpleNamespace(lr=latent, low=low, **dict(zip(names, conditions, strict=True)))


def _ddim(core, model, clip, steps=3, cfg=6.0, noise=None, sigmas=None, samples=None, **options):
    from cascadevsr.nodes.sampling import AddressedNoise, RefineSigmas, RestorerSampler

    sigmas = RefineSigmas.execute(model, 1.0, steps, 1.0).args[0] if sigmas is None else sigmas
    sampler = RestorerSampler.execute("ddim", **options).args[0]
    guider = core.custom.CFGGuider.execute(model, clip.positive, clip.negative, cfg).args[0]
    start = clip.samples if samples is None else samples
    return core.custom.SamplerCustomAdvanced.execute(
        AddressedNoise(5) if noise is None else noise, guider, sampler, sigmas, start
    ).args[0]


def _decode(latent, vae, low=None, weight=1.0, chunk=16, tile=0):
    from cascadevsr.nodes.frames import TemporalDecode

    return TemporalDecode.execute(latent, vae, weight, chunk, tile, low).args[0]


def _windows(model, **manual):
    from cascadevsr.nodes.tiling import TemporalWindows

    return TemporalWindows.execute(model, {"windows": "manual" if manual else "auto", **manual}).args[0]


# Recorded runs


@pytest.mark.parametrize("name", ["pipeline_noguidance", "pipeline_short_3d", "pipeline_windowed_video"])
def test_a_recorded_run_comes_out_of_the_graph(core, tmp_path, name):
    case = recorded(name)
    given, call, expected = case.group("in"), case.meta["call"], case.group("out")
    run = _load(write_release(case, tmp_path), "fp32", "auto", "reference")
    frames = (given["image"][0].permute(1, 2, 3, 0) + 1) / 2
    texts = [[[given[key], {}]] for key in ("pos", "neg")]
    clip = _prepare(run, frames, call["noise_level"] / 1000, prompts=texts, noise=Given(given["lr_noise"]))
    model = _windows(run.model)
    if call["propagation_steps"]:
        model = _propagate(model, given, call["propagation_steps"])
    cfg, steps = float(call["guidance_scale"]), call["num_inference_steps"]
    sampled = _ddim(core, model, clip, steps, cfg, Given(given["latents"]))
    video = _decode(sampled, run.vae, clip.low, float(call["w_lr"])) * 2 - 1
    scaled = sampled["samples"] * case.meta["vae_config"]["scaling_factor"]
    assert (scaled - expected["latents"]).abs().max() < 2e-4
    assert (video.permute(3, 0, 1, 2)[None] - expected["video"]).abs().max() < 2e-4  # asked for: 2e-3


def _propagate(model, given, steps):
    """Propagate along the recorded flows at the recorded steps."""
    from cascadevsr.models.motion.estimation import Motion
    from cascadevsr.nodes.motion import LatentPropagation

    forward, backward = (given[name][0].transpose(0, 1) for name in ("flow_fwd", "flow_bwd"))
    motion = Motion(forward, backward, (), len(forward) + 1, *forward.shape[-2:])
    choice = {"steps": "step list", "step_list": ",".join(map(str, steps))}
    return LatentPropagation.execute(model, motion, choice, "both", 0.5, "nearest", 0.001, 0.05).args[0]


# Text


def test_text_is_the_last_layer_after_its_norm_padded_as_the_tokenizer_says(loaded):
    from transformers import CLIPTextConfig, CLIPTextModel

    tokens = loaded.clip.tokenize("best quality, extremely detailed")["h"][0]
    numbers = [token for token, _ in tokens]
    assert len(numbers) == 77 and numbers[0] == 49406 and numbers[-1] == 0 and 49407 in numbers
    model = CLIPTextModel(CLIPTextConfig(**TEXT)).eval()
    names = {key: f"text_model.{key}".replace("text_model.text_model.", "text_model.") for key in model.state_dict()}
    state = text_state()
    model.load_state_dict({key: state[name] for key, name in names.items() if name in state}, strict=False)
    with torch.no_grad():
        expected = model(torch.tensor([numbers])).last_hidden_state
    found = _words(loaded, "best quality, extremely detailed")[0][0]
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.isfinite(_words(loaded, "a (bright:1.3) day")[0][0]).all()


def test_a_vocabulary_of_the_release_is_used(core, folder, tmp_path):
    from cascadevsr.models.upscale_a_video.checkpoint import open_folder
    from cascadevsr.nodes.systems.base import Loading
    from cascadevsr.nodes.systems.upscale_a_video import SYSTEM

    letters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    part = {
        "vocab.json": json.dumps({word: i for i, word in enumerate(words)}),
        "merges.txt": "#version: 0.2\n",
    }
    part["tokenizer_config.json"] = json.dumps({"pad_token": {"content": "!"}})
    release = open_folder(folder)
    release.tokenizer.update(part)
    state = release.text.read()
    key = "text_model.embeddings.token_embedding.weight"
    config = {**TEXT, "vocab_size": len(words)}
    small = type(release.text)(lambda: {**state, key: state[key][: len(words)].clone()}, config)
    object.__setattr__(release, "text", small)
    clip = SYSTEM.load_clip(release, Loading(), False)
    numbers = [token for token, _ in clip.tokenize("ab")["h"][0]]
    assert numbers[0] == 0 and numbers[-1] == words.index("!") and 1 in numbers
    assert clip.encode_from_tokens(clip.tokenize("ab (c:1.2)")).shape == (1, 77, 40)
    release.tokenizer["tokenizer_config.json"] = json.dumps({"pad_token": "<none>"})
    with pytest.raises(ValueError, match="must have the token '<none>'"):
        SYSTEM.load_clip(release, Loading(), False)


# Sizes, samplers, windows


@pytest.mark.parametrize(
    ("count", "height", "width", "target", "size"),
    [
        (1, 17, 19, SCALE, (68, 76)),
        (9, 8, 9, SCALE, (32, 36)),
        (2, 16, 12, {"target": "exact size", "height": 30, "width": 27}, (30, 27)),
        (3, 5, 3, {"target": "scale", "scale": 2.0}, (10, 6)),
    ],
)
def test_any_size_comes_out_of_ksampler_and_decoder(core, steady, noise, ksample, count, height, width, target, size):
    clip = _prepare(steady, noise(count, height, width), target=target)
    grid = (-(-size[0] // 4), -(-size[1] // 4))
    assert clip.samples["samples"].shape == (1, 4, count, *grid) and clip.lr["samples"].shape[1] == 3
    assert set(clip.samples) == {"samples", "vsr_size"}
    sampled = ksample(_windows(steady.model), clip, steps=2, cfg=6.0, sampler="ddim", scheduler="normal")
    frames = _decode(sampled, steady.vae, clip.low)
    assert frames.shape == (count, *size, 3) and torch.isfinite(frames).all() and frames.std() > 0.01


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "dpmpp_2m_sde", "uni_pc"])
def test_host_samplers_run(loaded, noise, ksample, sampler):
    clip = _prepare(loaded, noise(2, 8, 8))
    result = ksample(loaded.model, clip, steps=3, cfg=3.0, sampler=sampler, scheduler="karras")["samples"]
    assert torch.isfinite(result).all() and torch.equal(
        ksample(loaded.model, clip, steps=3, cfg=3.0, sampler=sampler, scheduler="karras")["samples"], result
    )


def test_lr_frames_at_four_times_are_untouched(loaded, noise):
    frames = noise(3, 9, 7)
    clip = _prepare(loaded, frames, level=0.0)
    assert torch.allclose(clip.lr["samples"][0].permute(1, 2, 3, 0), frames * 2 - 1, atol=1e-6)


def test_published_steps_and_split_runs(core, loaded, noise):
    from cascadevsr.nodes.sampling import RefineSigmas

    sampling = loaded.model.get_model_object("model_sampling")
    sigmas, denoise = RefineSigmas.execute(loaded.model, 1.0, 30, 1.0).args
    times = sampling.timestep(sigmas).tolist()
    assert times == [29 * 33 + 1 - 33 * i for i in range(30)] + [0] and denoise == 1.0
    part, denoise = RefineSigmas.execute(loaded.model, 0.5, 4, 1.0).args
    assert len(part) == 5 and float(part[0]) <= 1.0 and 0.2 < denoise < 0.6
    clip, sigmas = _prepare(loaded, noise(2, 8, 8)), RefineSigmas.execute(loaded.model, 1.0, 4, 1.0).args[0]
    whole = _ddim(core, loaded.model, clip, sigmas=sigmas)["samples"]
    first = _ddim(core, loaded.model, clip, sigmas=sigmas[:3])
    none = Given(torch.zeros_like(whole))
    second = _ddim(core, loaded.model, clip, sigmas=sigmas[2:], samples=first, noise=none)["samples"]
    assert torch.allclose(second, whole, atol=2e-3 * float(whole.abs().max()))
    with pytest.raises(ValueError, match="only flow models have a shift"):
        RefineSigmas.execute(loaded.model, 1.0, 4, 3.0)


def test_eta_adds_repeatable_noise(core, loaded, noise):
    clip = _prepare(loaded, noise(2, 8, 8))
    plain, fresh, again = (_ddim(core, loaded.model, clip, eta=eta)["samples"] for eta in (0.0, 1.0, 1.0))
    assert torch.equal(fresh, again) and not torch.allclose(plain, fresh, atol=1e-2)


def test_ddim_refuses_a_flow_model(core, model, clip):
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="Restorer Sampler: ddim needs a model that predicts v or noise"):
        _ddim(core, model, clip, cfg=1.0, sigmas=sigmas)


@pytest.fixture
def watched(loaded):
    """The model, and a list of the (frames, rows, columns) its network was called with."""
    from comfy.patcher_extension import WrappersMP

    seen, patched = [], loaded.model.clone()

    def wrapper(executor, x, *args, **kwargs):
        seen.append(tuple(x.shape[2:]))
        return executor(x, *args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    return patched, seen


def test_windows_are_of_eight_frames_and_a_preset_decides_their_weights(core, loaded, watched, noise):
    from cascadevsr.nodes.host.keys import PRESET_KEY, PUBLISHED

    model, seen = watched
    clip = _prepare(loaded, noise(13, 8, 8))
    smooth = _ddim(core, _windows(model), clip, 1, 1.0)["samples"]
    assert seen == [(8, 8, 8)] * 2
    reference = model.clone()
    reference.model_options[PRESET_KEY] = PUBLISHED
    published = _ddim(core, _windows(reference), clip, 1, 1.0)["samples"]
    assert seen == [(8, 8, 8)] * 4
    assert torch.equal(smooth[:, :, :5], published[:, :, :5]) and torch.equal(smooth[:, :, 8:], published[:, :, 8:])
    assert not torch.equal(smooth[:, :, 5:8], published[:, :, 5:8])


# Memory


def _short_of_memory(largest):
    """Make a network wrapper that has memory for tiles of `largest` cells at most."""

    def wrapper(executor, x, *args, **kwargs):
        if x.shape[-1] * x.shape[-2] > largest:
            raise torch.cuda.OutOfMemoryError("pretended")
        return executor(x, *args, **kwargs)

    return wrapper


def test_out_of_memory_halves_the_tile_once(core, loaded, watched, noise):
    from cascadevsr.nodes.tiling import SpatialTiles
    from comfy.patcher_extension import WrappersMP

    clip = _prepare(loaded, noise(2, 24, 20))
    model, seen = watched
    tiled = SpatialTiles.execute(model, {"tiling": "auto"}).args[0]
    assert torch.isfinite(_ddim(core, tiled, clip, 1, 1.0)["samples"]).all() and seen == [(2, 24, 20)]
    tiled.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "short", _short_of_memory(12 * 10))
    seen.clear()
    result = _ddim(core, tiled, clip, 2, 1.0)["samples"]
    assert torch.isfinite(result).all() and result.flatten(3).std(-1).min() > 0, "a black tile"
    assert seen[0] == (2, 24, 20) and set(seen[1:]) == {(2, 12, 10)}, "halved once, for the whole run"
    assert (len(seen) - 1) % 2 == 0
    tiled.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "short", _short_of_memory(50))
    with pytest.raises(RuntimeError, match=r"Spatial Tiles: a tile must fit .* even at 40x48 px\. Choose smaller"):
        _ddim(core, tiled, clip, 2, 1.0)


@pytest.mark.parametrize("with_lr", [False, True])
def test_decoder_out_of_memory_halves_the_tile_once(steady, noise, monkeypatch, with_lr):
    latent = {"samples": steady.vae.encode(noise(5, 80, 64))}
    low = noise(5, 20, 16) if with_lr else None
    network, seen, limit = steady.vae.first_stage_model, [], [20 * 16]
    whole, real = _decode(latent, steady.vae, low), network.decode

    def short(z, lr, weight):
        seen.append(tuple(z.shape[-2:]))
        if z.shape[-1] * z.shape[-2] > limit[0]:
            raise torch.cuda.OutOfMemoryError("pretended")
        return real(z, lr, weight)

    monkeypatch.setattr(network, "decode", short)
    assert torch.equal(_decode(latent, steady.vae, low), whole) and set(seen) == {(20, 16)}
    seen.clear()
    limit[0] = 10 * 8
    tiled = _decode(latent, steady.vae, low)
    assert tiled.shape == whole.shape and torch.isfinite(tiled).all()
    whole_ones = seen.count((20, 16))
    assert whole_ones == 3 and set(seen[:3]) == {(20, 16)}, "whole frames with ever shorter spans first"
    assert set(seen[whole_ones:]) == {(10, 8)}
    assert tiled.unfold(1, 8, 8).unfold(2, 8, 8).std((-1, -2)).min() > 1e-4, "a black tile"
    limit[0] = 20
    with pytest.raises(RuntimeError, match=r"VAE: a tile must fit .* even at 32x40 px"):
        _decode(latent, steady.vae, low)


def test_few_memory_means_short_chunks_then_tiles(loaded, noise, monkeypatch):
    from cascadevsr.nodes.host import services

    latent = {"samples": loaded.vae.encode(noise(9, 32, 288))}
    network, seen = loaded.vae.first_stage_model, []
    real = network.decode
    monkeypatch.setattr(network, "decode", lambda z, *rest: seen.append(tuple(z.shape[2:])) or real(z, *rest))
    frame = 32 * 288 * loaded.vae.law.decode_bytes
    for free, shapes in ((99, {(8, 8, 72)}), (5.5, {(5, 8, 72)}), (2.9, {(3, 8, 64)})):
        monkeypatch.setattr(services, "free_bytes", lambda device, free=free: free * frame)
        seen.clear()
        assert _decode(latent, loaded.vae).shape == (9, 32, 288, 3)
        assert set(seen) == shapes


def test_reference_decodes_threes_and_default_blends(core, folder, noise):
    reference = _load(folder, "auto", "auto", "reference")
    default = _load(folder, "auto")
    latent = {"samples": default.vae.encode(noise(7, 16, 16))}
    parts = [{"samples": latent["samples"][:, :, start : start + 3]} for start in (0, 3, 6)]
    expected = torch.cat([_decode(part, reference.vae) for part in parts])
    assert torch.equal(_decode(latent, reference.vae), expected)
    whole = _decode(latent, default.vae)
    assert not torch.allclose(whole, expected, atol=1e-4)
    assert torch.equal(_decode(latent, default.vae, chunk=8), whole)


def test_native_vae_nodes(core, loaded, noise):
    latent = core.nodes.VAEEncode().encode(loaded.vae, noise(3, 18, 21))[0]
    assert latent["samples"].shape == (1, 4, 3, 5, 6)
    frames = core.nodes.VAEDecode().decode(loaded.vae, latent)[0]
    assert frames.shape == (3, 20, 24, 3) and torch.isfinite(frames).all()
    tiled = core.nodes.VAEDecodeTiled().decode(loaded.vae, latent, 64, 16)[0]
    assert tiled.shape == frames.shape
    assert core.nodes.VAEEncodeTiled().encode(loaded.vae, noise(3, 96, 80), 64, 16)[0]["samples"].shape == (
        1, 4, 3, 24, 20,
    )  # fmt: skip
    assert (loaded.vae.spacial_compression_decode(), loaded.vae.temporal_compression_decode()) == (4, 1)


def test_lr_frames_guide_the_conditioned_decoder_only(loaded, steady, noise):
    low = noise(3, 8, 8)
    for run, matters in ((loaded, False), (steady, True)):
        latent = {"samples": run.vae.encode(noise(3, 32, 32))}
        without, zero, full = (
            _decode(latent, run.vae, lr, weight) for lr, weight in ((None, 1.0), (low, 0.0), (low, 1.0))
        )
        assert torch.allclose(without, zero, atol=1e-6)
        assert torch.allclose(full, zero, atol=1e-6) != matters


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_picture_is_an_error_and_not_black(loaded, noise, monkeypatch, value):
    latent = {"samples": loaded.vae.encode(noise(2, 16, 16))}
    network = loaded.vae.first_stage_model
    monkeypatch.setattr(network, "decode", lambda z, *rest: torch.full((1, 3, z.shape[2], 16, 16), value))
    with pytest.raises(ValueError, match="VAE: frames must be finite numbers; got NaN or infinity"):
        _decode(latent, loaded.vae)


# Progress and interruption


def test_progress_never_runs_back_and_ends_full(core, loaded, noise, monkeypatch):
    from cascadevsr.nodes.host import progress

    ticks, clip = [], _prepare(loaded, noise(9, 8, 8))
    monkeypatch.setattr(progress.Progress, "__call__", lambda self, done, total: ticks.append((done, total)))
    _ddim(core, _windows(loaded.model), clip, 2, 6.0)
    assert len(ticks) > 20 and ticks == sorted(ticks) and ticks[-1][0] == ticks[-1][1]


def test_stop_is_heard_inside_a_step_and_while_decoding(core, loaded, noise):
    import comfy.model_management as management

    clip = _prepare(loaded, noise(2, 8, 8))
    for work in (lambda: _ddim(core, loaded.model, clip, 2), lambda: _decode(clip.samples, loaded.vae)):
        management.interrupt_current_processing(True)
        with pytest.raises(management.InterruptProcessingException):
            work()
        management.interrupt_current_processing(False)


# Files


def test_a_converted_file_is_the_folder(core, folder, tmp_path, noise):
    from cascadevsr.models.checkpoints import load_state
    from cascadevsr.models.upscale_a_video.checkpoint import convert

    target = tmp_path / "uav.safetensors"
    assert convert(folder, target, False, print)
    state, metadata = load_state(target)
    assert {key.split(".")[0] for key in state} == {"unet", "vae", "vae_video", "text_encoder"}
    assert metadata["architecture"] == "upscale_a_video" and "non-commercial" in metadata["licence"]
    assert json.loads(metadata["scheduler"])["prediction_type"] == "v_prediction"
    frames = noise(2, 8, 8)
    for decoder in ("plain", "lr-conditioned"):
        results = []
        for path in (folder, target):
            run = _load(path, "auto", decoder)
            clip = _prepare(run, frames)
            results.append(_decode(_ddim(core, run.model, clip, 2), run.vae, clip.low))
        assert torch.equal(*results)
    convert(folder, tmp_path / "half.safetensors", True, print)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * target.stat().st_size
    assert torch.isfinite(_words(_load(tmp_path / "half.safetensors", "auto"), "x")[0][0]).all()


def test_the_unet_alone_and_inside_its_folder(core, folder, tmp_path):
    inside = _load(folder / "unet" / "unet_video.bin", "auto")
    assert inside.vae is not None and inside.clip is not None
    for name in ("unet_video.bin", "unet_video_config.json"):
        (tmp_path / name).write_bytes((folder / "unet" / name).read_bytes())
    alone = _load(tmp_path / "unet_video.bin", "auto")
    assert alone.vae is None and alone.clip is None
    (tmp_path / "unet_video_config.json").unlink()
    assert _load(tmp_path / "unet_video.bin", "auto").model is not None
    from cascadevsr.nodes.frames import CascadeInput

    with pytest.raises(ValueError, match="Cascade Input: target_vae must be a VAE; got none"):
        CascadeInput.execute(None, SCALE, "bilinear", frames=torch.zeros(1, 8, 8, 3))


def test_the_published_prefixes_and_names_are_understood(core, folder, tmp_path):
    state = torch.load(folder / "unet" / "unet_video.bin", weights_only=True)
    state = {f"module.{key}": value for key, value in state.items() if "freqs" not in key}
    torch.save({"state_dict": state}, tmp_path / "wrapped.pth")
    (tmp_path / "wrapped_config.json").write_bytes((folder / "unet" / "unet_video_config.json").read_bytes())
    assert _load(tmp_path / "wrapped.pth", "auto").model is not None


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["module.fnet.conv1.weight"], "the optical flow network RAFT: choose it in Load Flow Model"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a Stable Diffusion checkpoint"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "a CLIP text encoder"),
        (["unet.down.lora_down.weight"], "a LoRA"),
        (["something.weight"], "with 1 entries such as something.weight. Choose another file"),
    ],
)
def test_a_wrong_file_is_named(core, tmp_path, keys, what):
    from cascadevsr.models.checkpoints import save_state

    save_state(tmp_path / "wrong.safetensors", {key: torch.zeros(2) for key in keys})
    with pytest.raises(ValueError, match="Load Video Restorer: .*got wrong.safetensors.*" + what):
        _load(tmp_path / "wrong.safetensors", "auto")


def test_unusable_releases_say_why(core, folder, tmp_path, case):
    with pytest.raises(ValueError, match=r"is the plain VAE of Upscale-A-Video\. Choose the released folder"):
        _load(folder / "vae" / "vae_3d.bin", "auto")
    with pytest.raises(ValueError, match=r"is the lr-conditioned VAE"):
        _load(folder / "vae" / "vae_video.bin", "auto")
    release = write_release(case, tmp_path / "release", text=False)
    with pytest.raises(ValueError, match=r"decoder must be one that release has \(plain\); got lr-conditioned"):
        _load(release, "auto", "lr-conditioned")
    with pytest.raises(ValueError, match="preset must be one of default, reference; got 'fast'"):
        _load(release, "auto", "auto", "fast")
    state = torch.load(release / "unet" / "unet_video.bin", weights_only=True)
    for lost, words in (
        ("conv_norm_out", "must fit the Upscale-A-Video architecture"),
        ("conv_out", "must have an entry"),
    ):
        torch.save({k: v for k, v in state.items() if lost not in k}, release / "unet" / "unet_video.bin")
        with pytest.raises(ValueError, match=words):
            _load(release, "auto")
    (release / "scheduler" / "scheduler_config.json").write_text("{broken")
    with pytest.raises(ValueError, match="a json file must be readable; got scheduler_config.json"):
        _load(release, "auto")
    (release / "unet" / "unet_video.bin").unlink()
    with pytest.raises(ValueError, match="got release without weights in unet"):
        _load(release, "auto")


def test_the_list_shows_the_folder_and_not_its_parts(folder, listed):
    from cascadevsr.nodes.loaders import LoadVideoRestorer, restorer_names

    (folder.parent / "other.safetensors").write_bytes(b"")
    listed(folder.parent)
    names = restorer_names()
    assert names[0] == "built-in" and "upscale_a_video" in names and "other.safetensors" in names
    assert not [name for name in names if "unet" in name or "vae" in name or "text" in name]
    first = LoadVideoRestorer.fingerprint_inputs("upscale_a_video", "auto")
    outputs = LoadVideoRestorer.execute("upscale_a_video", "auto").args
    assert len(outputs) == 3 and all(output is not None for output in outputs)
    config = folder / "unet" / "unet_video_config.json"
    config.write_bytes(config.read_bytes())
    assert LoadVideoRestorer.fingerprint_inputs("upscale_a_video", "auto") != first


def test_the_licence_is_logged_once(core, folder, caplog, monkeypatch):
    from cascadevsr.nodes.host import model

    monkeypatch.setattr(model, "_licences_logged", set())
    with caplog.at_level(logging.INFO):
        _load(folder, "auto")
        _load(folder, "auto")
    assert sum("S-Lab License" in record.getMessage() for record in caplog.records) == 1


# Conditions that cannot work


def test_conditions_that_cannot_work(core, loaded, vae, noise, ksample, picture):
    from cascadevsr.nodes.conditioning import VSRConditioning

    frames = noise(2, 8, 8)
    with pytest.raises(ValueError, match=r"noise_level must be at most 0\.35 for Upscale-A-Video; got 0\.4"):
        _prepare(loaded, frames, level=0.4)
    clip = _prepare(loaded, frames)
    with pytest.raises(ValueError, match="Upscale-A-Video takes no references; got 1"):
        VSRConditioning.execute(clip.lr, 0.1, 0, references=picture(16))
    with pytest.raises(ValueError, match="noise must have the shape of the low-resolution clip"):
        VSRConditioning.execute(clip.lr, 0.1, 0, noise=Given(torch.zeros(1, 3, 1, 8, 8)))
    with pytest.raises(ValueError, match="Upscale-A-Video needs text; got a conditioning without"):
        ksample(loaded.model, _prepare(loaded, frames, prompts=(None, None)))
    wide = [[torch.zeros(1, 77, 768), {}]]
    with pytest.raises(ValueError, match="text must be 40 numbers wide for this model; got 768"):
        ksample(loaded.model, _prepare(loaded, frames, prompts=(wide, wide)))
    other = _prepare(SimpleNamespace(vae=vae, clip=loaded.clip), frames)
    with pytest.raises(ValueError, match=r"needs low-resolution frames \(3 channels\) .* got a latent of 16 channels"):
        ksample(loaded.model, other)
    clip.samples = {"samples": torch.zeros(1, 4, 3, 8, 8)}
    with pytest.raises(ValueError, match="must have the grid of the low-resolution frames"):
        ksample(loaded.model, clip)
    clip.positive = clip.negative = _words(loaded, "x")
    with pytest.raises(ValueError, match="a restorer needs the low-resolution clip"):
        ksample(loaded.model, clip)


def test_the_negative_is_not_needed_without_guidance(loaded, noise, ksample):
    clip = _prepare(loaded, noise(1, 8, 8), prompts=("sharp", None))
    assert torch.isfinite(ksample(loaded.model, clip, steps=1)["samples"]).all()
