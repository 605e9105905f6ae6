"""MGLD-VSR in the host: recorded runs through the graph, loading, sizes, sampling, errors."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from .mgld_release import recorded, write_checkpoints, write_recorded
from .test_upscale_a_video import Given

SCALE = {"target": "scale", "scale": 4.0}
LATENT_SCALE = 0.18215


@pytest.fixture(scope="module")
def folder(core, tmp_path_factory):
    """A folder with the two published checkpoints, of tiny networks."""
    return write_checkpoints(tmp_path_factory.mktemp("releases") / "mgld_vsr")


def _load(path, *options):
    from cascadevsr.nodes.loaders import load_restorer

    return SimpleNamespace(**dict(zip(("model", "vae", "clip"), load_restorer(path, *options), strict=True)))


@pytest.fixture(scope="module")
def loaded(folder):
    with torch.inference_mode():
        run = _load(folder, "auto")
    run.vae.shortest = 32  # px; a picture of the size that the published networks ask for would take minutes
    return run


def _prepare(run, frames, target=SCALE, noise=None, texts=(None, None), level=0.0):
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.frames import CascadeInput

    latent, low, *_ = CascadeInput.execute(run.vae, target, "bicubic", frames=frames).args
    conditions = VSRConditioning.execute(latent, level, 3, *texts, noise=noise).args
    names = ("positive", "negative", "samples")
    return SimpleNamespace(lr=latent, low=low, **dict(zip(names, conditions, strict=True)))


def _ddpm(core, model, clip, steps=3, noise=None):
    from cascadevsr.nodes.sampling import AddressedNoise, RefineSigmas, RestorerSampler

    sigmas = RefineSigmas.execute(model, 1.0, steps, 1.0).args[0]
    sampler = RestorerSampler.execute("ddpm").args[0]
    guider = core.custom.CFGGuider.execute(model, clip.positive, clip.negative, 1.0).args[0]
    return core.custom.SamplerCustomAdvanced.execute(
        AddressedNoise(5) if noise is None else noise, guider, sampler, sigmas, clip.samples
    ).args[0]


def _decode(latent, vae, low=None, weight=1.0, chunk=16, tile=0):
    from cascadevsr.nodes.frames import TemporalDecode

    return TemporalDecode.execute(latent, vae, weight, chunk, tile, low).args[0]


def _tiles(model, side, overlap):
    from cascadevsr.nodes.tiling import SpatialTiles

    choice = {"tiling": "manual", "tile_width": side, "tile_height": side, "overlap": overlap}
    return SpatialTiles.execute(model, choice).args[0]


def _windows(model, **manual):
    from cascadevsr.nodes.tiling import TemporalWindows

    return TemporalWindows.execute(model, {"windows": "manual" if manual else "auto", **manual}).args[0]


# Recorded runs


def _clip(recorded_frames):
    """Turn recorded (t, c, h, w) into (1, c, t, h, w)."""
    return recorded_frames.transpose(0, 1)[None]


def _guided(model, given):
    """Guide along the recorded flows by the node, in the published form."""
    from cascadevsr.models.motion.estimation import Motion
    from cascadevsr.nodes.motion_guidance import MotionGuidance

    backward, forward = (given[name][0] for name in ("flow_fwd_prop", "flow_bwd_prop"))
    motion = Motion(forward, backward, (), len(forward) + 1, *forward.shape[2:])
    return MotionGuidance.execute(model, motion, 1.0, 0.0, 1.0, "both", "published").args[0]


def _recorded_noise(monkeypatch, given):
    from cascadevsr.nodes import sampling

    noises = given["step_noise"].transpose(1, 2).unsqueeze(1)
    monkeypatch.setattr(sampling, "_fresh_noise", lambda model, x, extra_args, step: noises[step])


def _error(produced, expected):
    """Give the largest difference; recorded latents reach 72."""
    return float((produced - expected).abs().max())


@pytest.mark.parametrize("guided", ["guided", "unguided"])
@pytest.mark.parametrize("kind", ["full", "canvas"])
def test_recorded_sampling_comes_out_of_the_graph(core, tmp_path, monkeypatch, kind, guided):
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.host.keys import SYSTEM_KEY
    from cascadevsr.nodes.systems.mgld_vsr import SYSTEM

    case = recorded(f"sampling_{kind}_{guided}")
    given, settings = case.group("in"), case.meta["config"]
    run = _load(write_recorded(case, tmp_path / "run.safetensors"), "fp32", "auto", "reference")
    latent = {"samples": _clip(given["lr_latent"]) / LATENT_SCALE, SYSTEM_KEY: SYSTEM}
    names = ("positive", "negative", "samples")
    clip = SimpleNamespace(**dict(zip(names, VSRConditioning.execute(latent, 0.0, 0).args, strict=True)))
    model = run.model
    if settings["tile_size"]:
        model = _tiles(model, 8 * settings["tile_size"], 8 * settings["tile_overlap"])
    if settings["motion_guidance"]:
        model = _guided(model, given)
    _recorded_noise(monkeypatch, given)
    sampled = _ddpm(core, model, clip, settings["steps"], Given(_clip(given["noise_T"])))
    assert _error(sampled["samples"] * LATENT_SCALE, _clip(case.group("out")["x0"])) < 5e-4


def test_the_recorded_segment_comes_out_of_the_graph(core, tmp_path, monkeypatch):
    case = recorded("segment_pipeline")
    given, settings, expected = case.group("in"), case.meta["config"], case.group("out")
    run = _load(write_recorded(case, tmp_path / "run.safetensors"), "fp32", "auto", "reference")
    run.vae.shortest = 64
    frames = (given["frames"].permute(0, 2, 3, 1) + 1) / 2
    same = {"target": "exact size", "height": 64, "width": 96}
    clip = _prepare(run, frames, same, Given(_clip(given["posterior_noise"])))
    lr = clip.samples["samples"] * LATENT_SCALE
    assert (lr - _clip(expected["lr_latent"])).abs().max() < 1e-4
    model = _tiles(_guided(run.model, given), 8 * settings["tile_size"], 8 * settings["tile_overlap"])
    _recorded_noise(monkeypatch, given)
    sampled = _ddpm(core, model, clip, settings["steps"], Given(_clip(given["noise_T"])))
    assert _error(sampled["samples"] * LATENT_SCALE, _clip(expected["x0"])) < 5e-4
    decoded = _decode(sampled, run.vae, clip.low, settings["dec_w"])
    wanted = (expected["decoded"].permute(0, 2, 3, 1).clamp(-1, 1) + 1) / 2
    assert _error(decoded, wanted) < 5e-5


def _networks(run):
    """Give the networks of a loaded restorer to the functions that repeat the published program."""
    from cascadevsr.tests.published.mgld_vsr import Networks

    host, vae = run.model.model.diffusion_model, run.vae.first_stage_model
    return Networks(host.unet, host.structure, host.empty_prompt, vae.first_stage, vae.sequence)


def _moving(frames, height, width):
    """Make motion both ways for a clip."""
    from cascadevsr.models.motion.estimation import Motion

    flow = torch.randn(frames - 1, 2, height, width, generator=torch.Generator().manual_seed(3))
    return Motion(flow, -flow, (), frames, height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 128)])
def test_the_graph_does_what_the_published_program_does(core, folder, noise, monkeypatch, height, width):
    from cascadevsr.models.layout.pieces import Tile, Window
    from cascadevsr.models.layout.sizes import ClipSize
    from cascadevsr.models.mgld_vsr.vae import EnlargedClip
    from cascadevsr.models.motion.guidance import Flows, with_seen
    from cascadevsr.nodes import sampling
    from cascadevsr.nodes.motion_guidance import MotionGuidance
    from cascadevsr.tests.published import mgld_vsr as published

    run = _load(folder, "fp32", "auto", "reference")
    run.vae.shortest, frames = 64, noise(5, height // 4, width // 4)
    maker = torch.Generator().manual_seed(1)
    shape = (1, 4, 5, height // 8, width // 8)
    given = published.Noise(*(torch.randn(shape, generator=maker) for _ in range(2)), torch.randn(3, *shape))
    monkeypatch.setattr(sampling, "_fresh_noise", lambda model, x, extra_args, step: given.steps[step])
    motion = _moving(5, *shape[3:])
    clip = _prepare(run, frames, noise=Given(given.posterior))
    model = MotionGuidance.execute(run.model, motion, 1.0, 0.0, 1.0, "both", "published").args[0]
    sampled = _ddpm(core, _tiles(model, 64, 32), clip, 3, Given(given.start))
    found = _decode(sampled, run.vae, clip.low, 0.5)

    enlarged, whole = EnlargedClip(frames, ClipSize(5, height, width), published=True), Tile(0, 0, *shape[3:])
    large = enlarged.read(Window(0, 5), whole)
    flows = with_seen(Flows(*motion.on_grid(*shape[2:])))
    options = {"steps": 3, "flows": flows, "tile": 8, "overlap": 4}
    wanted = published.restore_segment(_networks(run), large, given, lr_weight=0.5, colour="none", **options)
    wanted = (wanted[0].permute(1, 2, 3, 0).clamp(-1, 1) + 1) / 2
    assert _error(found, wanted) < 1e-4


@pytest.mark.parametrize("frames", [5, 9])
def test_joints_carried_over_decode_each_frame_once(loaded, folder, noise, frames):
    from cascadevsr.nodes.frames import TemporalDecode

    clip, counted = _prepare(loaded, noise(frames, 12, 16)), []
    last, seen = loaded.vae.first_stage_model.sequence.decoder.conv_out, (1.0, 16, 0, clip.low)
    hook = last.register_forward_hook(lambda layer, x, y: counted.append(len(y)))
    found = TemporalDecode.execute(clip.lr, loaded.vae, *seen, joints="carried over").args[0]
    hook.remove()
    assert sum(counted) == frames and found.shape == (frames, 48, 64, 3)
    if frames == 5:  # one chunk
        assert (found - _decode(clip.lr, loaded.vae, clip.low)).abs().max() < 1e-5
    published = _load(folder, "fp32", "auto", "reference").vae
    with pytest.raises(ValueError, match="Temporal Decode: the preset reference .* got joints carried over. Choose sh"):
        TemporalDecode.execute(clip.lr, published, *seen, joints="carried over")


# Sampling


def test_the_start_is_the_noised_clip_at_the_last_trained_time(core, loaded, noise, ksample):
    from cascadevsr.nodes.sampling import RefineSigmas, noise_like

    clip = _prepare(loaded, noise(2, 16, 16))
    assert torch.equal(clip.samples["samples"], clip.positive[0][1]["concat_latent_image"])
    sigmas = RefineSigmas.execute(loaded.model, 1.0, 50, 1.0).args[0]
    assert len(sigmas) == 51 and sigmas[-1] == 0
    assert abs(float(1 / (1 + sigmas[0].double() ** 2).sqrt()) - 0.0682649) < 1e-6
    seen = []

    def first(model, x, sigmas, **_):
        seen.append(x / (1 + sigmas[0] ** 2).sqrt())
        return x

    from comfy.samplers import KSAMPLER

    guider = core.custom.CFGGuider.execute(loaded.model, clip.positive, clip.negative, 1.0).args[0]
    drawn = noise_like(clip.samples["samples"], 5)
    core.custom.SamplerCustomAdvanced.execute(Given(drawn), guider, KSAMPLER(first), sigmas, clip.samples)
    expected = 0.0682649 * LATENT_SCALE * clip.samples["samples"] + 0.9976673 * drawn
    assert (seen[0] - expected).abs().max() < 1e-5
    assert torch.isfinite(ksample(loaded.model, clip, steps=2, sampler="dpmpp_2m_sde")["samples"]).all()


def test_sigmas_that_start_lower_keep_more_of_the_clip(core, loaded):
    from cascadevsr.nodes.sampling import RefineSigmas

    sigmas, denoise = RefineSigmas.execute(loaded.model, 0.5, 10, 1.0).args
    assert sigmas[0] <= 1 and len(sigmas) == 11 and (sigmas.diff() < 0).all() and 0 < denoise < 1
    for steps, words in ((1, "needs 2 to 1000 steps; got 1"), (1001, "got 1001")):
        with pytest.raises(ValueError, match=words):
            RefineSigmas.execute(loaded.model, 1.0, steps, 1.0)


def test_the_same_seed_gives_the_same_and_tiles_of_the_whole_frame_change_nothing(core, loaded, noise):
    clip = _prepare(loaded, noise(3, 20, 24))
    whole = _ddpm(core, loaded.model, clip)["samples"]
    assert torch.equal(whole, _ddpm(core, loaded.model, clip)["samples"])
    assert torch.equal(whole, _ddpm(core, _tiles(loaded.model, 96, 32), clip)["samples"])
    tiled = _ddpm(core, _tiles(loaded.model, 64, 32), clip)["samples"]
    assert torch.isfinite(tiled).all() and not torch.equal(tiled, whole)


def test_windows_are_segments(core, folder, loaded, noise):
    reference = _load(folder, "auto", "auto", "reference")
    reference.vae.shortest = 32
    seen = []

    def watch(executor, x, *args, **kwargs):
        seen.append(tuple(x.shape[2:3]))
        return executor(x, *args, **kwargs)

    from comfy.patcher_extension import WrappersMP

    for run, lengths in ((loaded, [5, 5, 5]), (reference, [5, 5, 2])):
        clip, model = _prepare(run, noise(12, 8, 8)), run.model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", watch)
        seen.clear()
        result = _ddpm(core, _windows(model), clip, 2)["samples"]
        assert torch.isfinite(result).all() and [length for (length,) in seen[:3]] == lengths
    # Published segments know nothing of each other.
    alone = _prepare(reference, noise(12, 8, 8)[:5], noise=Given(torch.zeros(1, 4, 5, 4, 4)))
    first = _ddpm(core, reference.model, alone, 2)["samples"]
    long = _prepare(reference, noise(12, 8, 8), noise=Given(torch.zeros(1, 4, 12, 4, 4)))
    both = _ddpm(core, _windows(reference.model), long, 2)["samples"]
    assert torch.allclose(both[:, :, :5], first, atol=1e-4)


def test_a_short_segment_is_filled_up_as_published(core, folder, noise):
    run = _load(folder, "auto", "auto", "reference")
    network = run.model.model.diffusion_model
    x = torch.randn(1, 8, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([500.0])
    filled = torch.cat((x, x[:, :, 1:].expand(-1, -1, 3, -1, -1)), 2)
    assert torch.allclose(network(x, time), network(filled, time)[:, :, :2], atol=1e-5)
    assert torch.equal(network(x, time, network.empty_prompt), network(x, time))


def test_the_flow_network_in_the_checkpoint_is_used_as_published(core, folder, tmp_path, noise, listed):
    from cascadevsr.models.motion.raft import build_raft
    from cascadevsr.nodes.motion import EstimateMotion, LoadFlowModel, flow_names
    from cascadevsr.tests.published.mgld_vsr import raft_flow

    torch.manual_seed(0)
    raft = build_raft()
    content = torch.load(folder / "mgldvsr_unet.ckpt", weights_only=True)
    content["state_dict"] |= {f"flownet_model.{key}": value for key, value in raft.state_dict().items()}
    (tmp_path / "mgld").mkdir()
    torch.save(content, tmp_path / "mgld" / "mgldvsr_unet.ckpt")
    listed(tmp_path)
    assert "mgld/mgldvsr_unet.ckpt" in flow_names()
    flow_model = LoadFlowModel.execute("mgld/mgldvsr_unet.ckpt").args[0]
    frames = noise(2, 128, 136)
    motion = EstimateMotion.execute(frames, flow_model).args[0]
    first, second = frames.permute(0, 3, 1, 2).split(1)
    assert torch.allclose(motion.forward[0].float(), raft_flow(raft, first, second)[0], atol=0.02)


# Sizes


@pytest.mark.parametrize(("count", "height", "width"), [(1, 8, 8), (2, 17, 23), (6, 9, 31), (5, 2, 12)])
def test_any_length_and_size_comes_out_exactly(core, loaded, noise, count, height, width):
    clip = _prepare(loaded, noise(count, height, width))
    frames = _decode(_ddpm(core, _windows(loaded.model), clip, 2), loaded.vae, clip.low)
    assert frames.shape == (count, 4 * height, 4 * width, 3)
    assert torch.isfinite(frames).all() and frames.min() >= 0 and frames.max() <= 1


def test_a_small_picture_is_restored_at_the_trained_size(core, folder, noise):
    run = _load(folder, "auto")
    latent = _prepare(run, noise(1, 30, 40)).samples
    assert latent["samples"].shape == (1, 4, 1, 64, 86) and latent["vsr_work_size"] == (512, 683)
    assert latent["vsr_size"] == {"frames": 1, "height": 120, "width": 160}
    assert _decode(latent, run.vae).shape == (1, 120, 160, 3)
    large = _prepare(run, noise(1, 128, 130)).samples
    assert large["samples"].shape == (1, 4, 1, 64, 65) and "vsr_work_size" not in large


def test_the_reference_draws_its_latent_and_default_takes_the_mean(core, folder, noise):
    reference, default = _load(folder, "auto", "auto", "reference"), _load(folder, "auto")
    frames = noise(2, 8, 8)
    for run in (reference, default):
        run.vae.shortest = 32
    drawn = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    mean = _prepare(reference, frames, noise=Given(torch.zeros_like(drawn))).samples["samples"]
    once = _prepare(reference, frames, noise=Given(drawn)).samples["samples"]
    spread = _prepare(reference, frames).lr["vsr_lr_deviation"]
    assert torch.allclose(once, mean + spread * drawn) and spread.min() > 0
    assert torch.allclose(_prepare(default, frames, noise=Given(drawn)).samples["samples"], mean, atol=0.2)
    assert "vsr_lr_deviation" not in _prepare(default, frames).lr


# Decoding


def test_lr_frames_guide_the_decoder_by_their_weight(loaded, noise):
    latent, low = {"samples": loaded.vae.encode(noise(3, 32, 32))}, noise(3, 8, 8)
    without, zero, half, full = (
        _decode(latent, loaded.vae, lr, weight) for lr, weight in ((None, 1.0), (low, 0.0), (low, 0.5), (low, 1.0))
    )
    assert torch.equal(without, zero)
    assert 0 < (half - zero).abs().mean() < (full - zero).abs().mean()


def test_reference_decodes_segments_and_default_blends(core, folder, noise):
    reference, default = _load(folder, "auto", "auto", "reference"), _load(folder, "auto")
    latent = {"samples": default.vae.encode(noise(7, 32, 32))}
    last = latent["samples"][:, :, 5:]
    parts = [latent["samples"][:, :, :5], torch.cat((last, last[:, :, 1:].expand(-1, -1, 3, -1, -1)), 2)]
    expected = torch.cat([_decode({"samples": part}, reference.vae) for part in parts])[:7]
    assert torch.allclose(_decode(latent, reference.vae), expected, atol=1e-6)
    assert not torch.allclose(_decode(latent, default.vae), expected, atol=1e-4)


def test_native_vae_nodes(core, loaded, noise):
    latent = core.nodes.VAEEncode().encode(loaded.vae, noise(3, 34, 45))[0]
    assert latent["samples"].shape == (1, 4, 3, 5, 6)
    frames = core.nodes.VAEDecode().decode(loaded.vae, latent)[0]
    assert frames.shape == (3, 40, 48, 3) and torch.isfinite(frames).all()
    tiled = core.nodes.VAEDecodeTiled().decode(loaded.vae, latent, 64, 16)[0]
    assert tiled.shape == frames.shape
    large = core.nodes.VAEEncodeTiled().encode(loaded.vae, noise(2, 160, 96), 64, 16)[0]
    assert large["samples"].shape == (1, 4, 2, 20, 12)
    assert (loaded.vae.spacial_compression_decode(), loaded.vae.temporal_compression_decode()) == (8, 1)


# Files


def test_a_converted_file_is_the_folder(core, folder, tmp_path, noise):
    from cascadevsr.models.checkpoints import load_state, save_state
    from cascadevsr.models.mgld_vsr.checkpoint import convert

    assert convert(folder, tmp_path / "mgld.safetensors", False, print)
    results = []
    for path in (folder, tmp_path / "mgld.safetensors", folder / "mgldvsr_unet.ckpt"):
        run = _load(path, "auto")
        run.vae.shortest = 32
        clip = _prepare(run, noise(2, 8, 8))
        results.append(_decode(_ddpm(core, run.model, clip, 2), run.vae, clip.low))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    state, metadata = load_state(tmp_path / "mgld.safetensors")
    save_state(tmp_path / "odd.safetensors", state, {**metadata, "options": "[1]"})
    with pytest.raises(ValueError, match="options in the metadata of odd.safetensors must be numbers"):
        _load(tmp_path / "odd.safetensors", "auto")


@pytest.mark.parametrize(
    ("prefix", "what"),
    [
        ("unet.", "without the UNet"),
        ("first_stage.", "without the first stage"),
        ("text.", "without the text encoder"),
    ],
)
def test_half_a_checkpoint_says_what_is_missing(core, tmp_path, prefix, what):
    folder = write_checkpoints(tmp_path / "half", drop=prefix)
    with pytest.raises(ValueError, match=f"Load Video Restorer: .*{what}.*download mgldvsr_unet.ckpt again"):
        _load(folder, "auto")


def test_the_first_checkpoint_alone_decodes_frame_by_frame(core, tmp_path, noise, caplog):
    with caplog.at_level(logging.WARNING):
        run = _load(write_checkpoints(tmp_path / "alone", sequence=False), "auto")
    assert "has no video_vae_cfw.ckpt beside it" in caplog.text
    latent = {"samples": run.vae.encode(noise(3, 32, 32))}
    frames = _decode(latent, run.vae, noise(3, 8, 8))
    one = _decode({"samples": latent["samples"][:, :, :1]}, run.vae)
    assert torch.allclose(frames[:1], one, atol=1e-5)
    with pytest.raises(ValueError, match=r"alone has \(plain\); got lr-conditioned"):
        _load(tmp_path / "alone", "auto", "lr-conditioned")


def test_the_plain_decoder_is_that_of_the_first_stage(core, folder, loaded, noise):
    plain, latent = _load(folder, "auto", "plain"), {"samples": loaded.vae.encode(noise(2, 32, 32))}
    assert not torch.allclose(_decode(latent, plain.vae), _decode(latent, loaded.vae), atol=1e-3)


def test_wrong_files_say_why(core, folder, tmp_path):
    with pytest.raises(ValueError, match=r"which is the sequence decoder of MGLD-VSR\. Choose the folder"):
        _load(folder / "video_vae_cfw.ckpt", "auto")
    other = write_checkpoints(tmp_path / "other", sequence=False)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, other / "video_vae_cfw.ckpt")
    with pytest.raises(ValueError, match="video_vae_cfw.ckpt must hold the sequence decoder"):
        _load(other, "auto")
    state = torch.load(folder / "mgldvsr_unet.ckpt", weights_only=True)["state_dict"]
    del state["model.diffusion_model.middle_block.1.temporal_alpha"]
    torch.save({"state_dict": state}, other / "mgldvsr_unet.ckpt")
    (other / "video_vae_cfw.ckpt").unlink()
    with pytest.raises(ValueError, match="must fit the MGLD-VSR architecture; .*Missing key.*temporal_alpha"):
        _load(other, "auto")
    (other / "mgldvsr_unet.ckpt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match="must be complete and readable"):
        _load(other, "auto")


def test_the_list_shows_the_folder_and_not_its_files(folder, listed):
    from cascadevsr.nodes.loaders import LoadVideoRestorer, restorer_names

    listed(folder.parent)
    names = restorer_names()
    assert "mgld_vsr" in names and not [name for name in names if name.endswith(".ckpt")]
    first = LoadVideoRestorer.fingerprint_inputs("mgld_vsr", "auto")
    model, vae, clip = LoadVideoRestorer.execute("mgld_vsr", "auto").args
    assert model is not None and vae is not None and clip is None
    file = folder / "video_vae_cfw.ckpt"
    file.write_bytes(file.read_bytes())
    assert LoadVideoRestorer.fingerprint_inputs("mgld_vsr", "auto") != first
    listed(folder)  # the files lie in the list's own folder: there is no name but the file's
    assert {"mgldvsr_unet.ckpt", "video_vae_cfw.ckpt"} <= set(restorer_names())


def test_published_checkpoints_fit_the_networks_of_the_host(core, repository):
    """Every entry of the published files at their size, and no other; the text encoder becomes one embedding."""
    import comfy.ops
    from cascadevsr.models.mgld_vsr import checkpoint
    from cascadevsr.nodes.systems.mgld_vsr import HostNetworks, Networks

    manifest = repository.parent / "shared" / "keys" / "mgld_vsr_mgldvsr_unet_ckpt_expected.json"
    if not manifest.is_file():
        pytest.skip("the list of published entries is not here")
    entries = json.loads(manifest.read_text(encoding="utf-8"))
    state = {key: torch.empty(shape, device="meta") for key, (shape, _) in entries.items()}
    whole = checkpoint.check_whole(checkpoint.rename(state), "published")
    parts = {
        name: {k.removeprefix(f"{name}."): v for k, v in whole.items() if k.startswith(f"{name}.")}
        for name in ("unet", "structure")
    }
    shapes = Networks(checkpoint.unet_config(parts["unet"]), checkpoint.structure_config(parts["structure"]), 77)
    network = HostNetworks(shapes, torch.float16, torch.device("meta"), comfy.ops.manual_cast)
    wanted = {f"{name}.{key}": value.shape for name, part in parts.items() for key, value in part.items()}
    found = {key: value.shape for key, value in network.state_dict().items()}
    assert found == {**wanted, "empty_prompt": torch.Size((1, 77, 1024))}


def test_the_licence_is_logged_once(core, folder, caplog, monkeypatch):
    from cascadevsr.nodes.host import model

    monkeypatch.setattr(model, "_licences_logged", set())
    with caplog.at_level(logging.INFO):
        _load(folder, "auto")
        _load(folder, "auto")
    assert sum("MGLD-VSR weights: S-Lab" in record.getMessage() for record in caplog.records) == 1


# Conditions that cannot work


def test_conditions_that_cannot_work(core, loaded, vae, noise, ksample, picture):
    from cascadevsr.nodes.conditioning import VSRConditioning

    frames = noise(2, 8, 8)
    with pytest.raises(ValueError, match="MGLD-VSR has no noise level .* got 0.4"):
        _prepare(loaded, frames, level=0.4)
    clip = _prepare(loaded, frames)
    with pytest.raises(ValueError, match="MGLD-VSR takes no references; got 1"):
        VSRConditioning.execute(clip.lr, 0.0, 0, references=picture(16))
    wide = [[torch.zeros(1, 77, 768), {}]]
    with pytest.raises(ValueError, match="text must be 32 numbers wide for this model; got 768. Leave"):
        ksample(loaded.model, _prepare(loaded, frames, texts=(wide, wide)), steps=2)
    other = _prepare(SimpleNamespace(vae=vae), frames)
    with pytest.raises(ValueError, match="MGLD-VSR needs low-resolution latent .4 channels.* got a latent of 16"):
        ksample(loaded.model, other, steps=2)
    clip.samples = {"samples": torch.zeros(1, 4, 3, 4, 4)}
    with pytest.raises(ValueError, match="must have the grid of the low-resolution latent"):
        ksample(loaded.model, clip, steps=2)


def test_ddpm_needs_a_diffusion_model(core, model, clip):
    with pytest.raises(ValueError, match="Restorer Sampler: ddpm needs a model that predicts v or noise"):
        from cascadevsr.nodes.sampling import AddressedNoise, RefineSigmas, RestorerSampler

        sigmas = RefineSigmas.execute(model, 1.0, 2, 1.0).args[0]
        guider = core.custom.CFGGuider.execute(model, clip.positive, clip.negative, 1.0).args[0]
        sampler = RestorerSampler.execute("ddpm").args[0]
        core.custom.SamplerCustomAdvanced.execute(AddressedNoise(5), guider, sampler, sigmas, clip.samples)


# Memory, progress, interruption


def test_decoder_out_of_memory_halves_the_tile_once(loaded, noise, monkeypatch):
    latent, low = {"samples": loaded.vae.encode(noise(5, 96, 64))}, noise(5, 24, 16)
    network, seen, limit = loaded.vae.first_stage_model.sequence, [], [12 * 8]
    whole, real = _decode(latent, loaded.vae, low), network.decode

    def short(z, features, weight):
        seen.append(tuple(z.shape[-2:]))
        if z.shape[-1] * z.shape[-2] > limit[0]:
            raise torch.cuda.OutOfMemoryError("pretended")
        return real(z, features, weight)

    monkeypatch.setattr(network, "decode", short)
    assert torch.equal(_decode(latent, loaded.vae, low), whole) and set(seen) == {(12, 8)}
    seen.clear()
    limit[0] = 6 * 4
    tiled = _decode(latent, loaded.vae, low)
    assert tiled.shape == whole.shape
    assert set(seen[:3]) == {(12, 8)}, "whole frames with ever shorter spans first"
    assert set(seen[3:]) == {(6, 4)}
    limit[0] = 8
    with pytest.raises(RuntimeError, match="VAE: a tile must fit"):
        _decode(latent, loaded.vae, low)


def test_progress_never_runs_back_and_ends_full(core, loaded, noise, monkeypatch):
    from cascadevsr.nodes.host import progress

    ticks, clip = [], _prepare(loaded, noise(9, 8, 8))
    monkeypatch.setattr(progress.Progress, "__call__", lambda self, done, total: ticks.append((done, total)))
    _ddpm(core, _windows(loaded.model), clip, 2)
    assert len(ticks) > 20 and ticks[-1][0] == ticks[-1][1]
    sampling = [done for done, total in ticks if total == ticks[-1][1]]
    assert sampling == sorted(sampling)


def test_stop_is_heard_inside_a_step_and_while_decoding(core, loaded, noise):
    import comfy.model_management as management

    clip = _prepare(loaded, noise(2, 8, 8))
    for work in (lambda: _ddpm(core, loaded.model, clip, 2), lambda: _decode(clip.samples, loaded.vae)):
        management.interrupt_current_processing(True)
        with pytest.raises(management.InterruptProcessingException):
            work()
        management.interrupt_current_processing(False)


def test_parts_are_built_again(folder, loaded):
    """The host asks for fresh copies on several GPUs and for hooks."""
    for patcher in (loaded.model, loaded.vae.patcher):
        rebuild, arguments = patcher.cached_patcher_init[:2]
        fresh = rebuild(*arguments, disable_dynamic=True)
        old, new = patcher.model.state_dict(), fresh.model.state_dict()
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_stays_close(core, folder, loaded, noise, precision):
    half, frames = _load(folder, precision), noise(2, 16, 16)
    half.vae.shortest = 32
    whole = _ddpm(core, loaded.model, _prepare(loaded, frames), 2)["samples"]
    result = _ddpm(core, half.model, _prepare(loaded, frames), 2)["samples"]
    assert half.model.model.diffusion_model.unet.input_blocks[0][0].weight.dtype != torch.float32
    assert (result - whole).abs().mean() < 0.1 * whole.abs().mean()
