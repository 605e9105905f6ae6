"""Motion in the host: flow models and wrong files, estimate and picture, propagation of predictions."""

import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

FRAMES = 9


SPEED = 6  # px to the right a frame


def sharp(count=FRAMES, height=48, width=80, seed=0):
    """Make frames (T, H, W, 3) of a texture that moves right by SPEED px a frame."""
    reach = SPEED * count
    generator = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.rand(1, 3, height // n + 1, (width + reach) // n + 1, generator=generator) for n in (12, 4))
    size = (height, width + reach)
    wide = 0.7 * F.interpolate(coarse, size, mode="bicubic") + 0.3 * F.interpolate(fine, size, mode="bicubic")
    cuts = [wide[..., reach - SPEED * i : reach - SPEED * i + width] for i in range(count)]
    return torch.cat(cuts).movedim(1, -1).clamp(0, 1)


@pytest.fixture
def moving():
    """Make LR frames (T, H, W, 3) of a texture that moves right by 1.5 px a frame."""

    def make(count=FRAMES, height=12, width=20, seed=0):
        large = sharp(count, 4 * height, 4 * width, seed).movedim(-1, 1)
        return F.avg_pool2d(large, 4).movedim(1, -1)

    return make


@pytest.fixture
def estimate(core):
    def run(frames, flow_model=None):
        from cascadevsr.nodes.motion import EstimateMotion, LoadFlowModel

        flow_model = LoadFlowModel.execute("built-in").args[0] if flow_model is None else flow_model
        return EstimateMotion.execute(frames, flow_model).args

    return run


@pytest.fixture
def propagated(core):
    """Run Latent Propagation: propagated(model, motion, "0,1" or (start, end), ...) -> MODEL."""

    def run(
        model,
        motion,
        steps=(0.0, 1.0),
        direction="both",
        weight=0.5,
        sampling="nearest",
        alphas=(0.001, 0.05),
    ):
        from cascadevsr.nodes.motion import LatentPropagation

        chosen = {"steps": "step list", "step_list": steps}
        if not isinstance(steps, str):
            chosen = {"steps": "percent range", "start_percent": steps[0], "end_percent": steps[1]}
        return LatentPropagation.execute(model, motion, chosen, direction, weight, sampling, *alphas).args[0]

    return run


@pytest.fixture
def still_motion():
    """Make motion of a clip that stands still."""

    def make(count=FRAMES, height=12, width=20, cuts=()):
        from cascadevsr.models.motion.estimation import Motion

        flow = torch.zeros(count - 1, 2, height, width, dtype=torch.float16)
        return Motion(flow, flow, cuts, count, height, width)

    return make


# Flow models


@pytest.fixture(scope="module")
def flow_folder(core):
    import folder_paths
    from cascadevsr.nodes.host import folders

    folders.register_folders()
    from pathlib import Path

    folder = Path(folder_paths.get_folder_paths("optical_flow")[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load(name):
    from cascadevsr.nodes.motion import LoadFlowModel

    return LoadFlowModel.execute(name).args[0]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_raft_is_loaded_from_the_hosts_folder(core, flow_folder, estimate, moving, prefix):
    from cascadevsr.models.motion.estimation import RaftFlow
    from cascadevsr.models.motion.raft import build_raft
    from cascadevsr.nodes.motion import flow_names

    torch.manual_seed(0)
    network = build_raft()
    name = f"raft{len(prefix)}.pth"
    torch.save({prefix + key: value for key, value in network.state_dict().items()}, flow_folder / name)
    assert name in flow_names() and flow_names()[0] == "built-in"
    model = load(name)
    frames = moving(2, 32, 40)
    motion, picture = estimate(frames, model)
    first, second = frames.movedim(-1, 1).split(1)
    expected = RaftFlow(network)(first, second)
    assert torch.allclose(motion.forward.float(), expected, atol=0.02 * float(expected.abs().max()))
    assert picture.shape == (2, 32, 40, 3)


def test_spynet_is_loaded_from_the_published_form(core, flow_folder, estimate, moving):
    from cascadevsr.models.motion.spynet import SpyNet

    torch.manual_seed(0)
    network = SpyNet().eval()
    constants = {"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}
    torch.save({"params": {**network.state_dict(), **constants}}, flow_folder / "spynet.pth")
    frames = moving(3, 20, 40)
    motion = estimate(frames, load("spynet.pth"))[0]
    images = frames.movedim(-1, 1)
    expected = network(images[:-1], images[1:])
    assert torch.allclose(motion.forward.float(), expected, atol=0.01 * float(expected.abs().max()))


def test_a_wrong_file_says_what_it_is_and_what_was_expected(core, flow_folder, tiny_file):
    from cascadevsr.models.checkpoints import save_state
    from cascadevsr.models.motion.raft import build_raft

    state = build_raft().state_dict()
    (flow_folder / "tiny.safetensors").write_bytes(tiny_file.read_bytes())
    (flow_folder / "cut.safetensors").write_bytes(tiny_file.read_bytes()[:4000])
    save_state(flow_folder / "small.safetensors", {"module.fnet.conv1.weight": torch.zeros(32, 3, 7, 7)})
    name = "feature_encoder.convnormrelu.0.weight"
    save_state(flow_folder / "small2.safetensors", {name: torch.zeros(32, 3, 7, 7)})
    save_state(flow_folder / "spy.safetensors", {"basic_module.0.basic_module.0.weight": torch.zeros(2, 2)})
    save_state(flow_folder / "lora.safetensors", {"a.lora_down.weight": torch.zeros(2, 2)})
    part = {key: value for key, value in state.items() if "mask_predictor.conv." not in key}
    save_state(flow_folder / "part.safetensors", part)
    for name, message in {
        "tiny": r"must hold the large RAFT .*; got tiny.safetensors, with \d+ entries such as dit",
        "cut": "must be complete and readable",
        "small": "which is the small RAFT",
        "small2": "which is the small RAFT",
        "spy": "which is a part or a variant of the optical flow network SpyNet",
        "lora": "which is a LoRA",
        "part": "missing or of another shape, such as mask_predictor.conv.weight",
    }.items():
        with pytest.raises(ValueError, match=f"Load Flow Model: .*{message}"):
            load(f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"Load Flow Model: .*one of the list; got '\.\./secret'"):
        load("../secret")


# The host's optical flow models and ours


@pytest.fixture(scope="module")
def files(core, flow_folder):
    """Write RAFT, as torchvision has it, and SpyNet, with random weights: {name: network}."""
    from cascadevsr.models.motion.raft import build_raft
    from cascadevsr.models.motion.spynet import SpyNet

    torch.manual_seed(0)
    networks = {"raft_large.pth": build_raft(), "spynet_sintel.pth": SpyNet().eval()}
    for name, network in networks.items():
        torch.save(network.state_dict(), flow_folder / name)
    return networks


def test_the_hosts_loader_and_ours_give_the_same(core, files, estimate, moving):
    from comfy_extras.nodes_void import OpticalFlowLoader

    from_host = OpticalFlowLoader.execute("raft_large.pth").args[0]
    ours = load("raft_large.pth")
    assert type(from_host) is type(ours) and type(from_host.model) is type(ours.model)
    frames = moving(2, 32, 40)
    motions = [estimate(frames, model)[0] for model in (from_host, ours)]
    assert torch.equal(motions[0].forward, motions[1].forward) and motions[0].forward.abs().max() > 0


@pytest.mark.parametrize("name", ["built-in", "raft_large.pth", "spynet_sintel.pth"])
def test_our_flow_models_are_called_as_the_host_calls_its_own(core, files, name):
    from comfy_extras.void_noise_warp import RaftOpticalFlow

    first, second = sharp(2, 130, 140).movedim(-1, 1)
    flow = RaftOpticalFlow(load(name).model)(first, second)
    assert flow.shape == (2, 130, 140) and torch.isfinite(flow).all() and flow.abs().max() > 0
    if name == "built-in":
        assert flow[0, 20:-20, 20:-20].mean() == pytest.approx(SPEED, abs=0.5)


def test_a_node_of_the_host_takes_our_flow_model(core):
    from comfy_extras.nodes_void import VOIDWarpedNoise

    noise = VOIDWarpedNoise.execute(load("built-in"), sharp(5, 64, 64), 64, 64, 5, 1).args[0]["samples"]
    assert noise.shape == (1, 16, 2, 8, 8) and torch.isfinite(noise).all() and noise.std() > 0.5


@pytest.mark.parametrize("name", ["built-in", "spynet_sintel.pth"])
def test_networks_without_a_smallest_size_see_the_frames_as_they_are(core, files, estimate, moving, name):
    """Not through -1..1 and back, which would change last bits; the two sockets share one type."""
    from cascadevsr.models.motion.blockflow import BlockFlow
    from cascadevsr.models.motion.estimation import SpyFlow, estimate_pairs
    from cascadevsr.nodes.motion import EstimateMotion, LoadFlowModel

    frames = moving(3, 21, 37)
    estimator = BlockFlow() if name == "built-in" else SpyFlow(files[name])
    expected = estimate_pairs(frames, estimator)
    motion = estimate(frames, load(name))[0]
    assert torch.equal(motion.forward, expected.forward) and torch.equal(motion.backward, expected.backward)
    assert LoadFlowModel.define_schema().outputs[0].io_type == "OPTICAL_FLOW"
    assert EstimateMotion.define_schema().inputs[1].io_type == "OPTICAL_FLOW"


# Estimate


def test_motion_and_its_picture(estimate, moving):
    motion, picture = estimate(moving(5, 48, 64))
    assert (motion.frames, motion.height, motion.width, motion.cuts) == (5, 48, 64, ())
    middle = motion.forward[..., 10:-10, 10:-10].float().mean((0, 2, 3))
    assert middle[0] == pytest.approx(1.5, abs=0.1) and abs(middle[1]) < 0.1
    assert picture.shape == (5, 48, 64, 3) and picture.min() >= 0 and picture.max() <= 1
    red, green, blue = picture[0, 10:-10, 10:-10].mean((0, 1))
    assert red > 0.95 and max(green, blue) < 0.4, "to the right is red"
    assert (picture[-1] == 1).all()


def test_cuts_are_found_said_and_white(estimate, moving, caplog):
    with caplog.at_level(logging.INFO):
        motion, picture = estimate(torch.cat((moving(3, 48, 64), moving(3, 48, 64, seed=4).flip(1))))
    assert motion.cuts == (3,) and "Scene cuts before frames 3" in caplog.text
    assert (picture[2] == 1).all() and (picture[1] < 0.9).any()


def test_one_frame_and_bad_input(estimate, moving):
    motion, picture = estimate(moving(1))
    assert motion.frames == 1 and (picture == 1).all() and picture.shape == (1, 12, 20, 3)
    with pytest.raises(ValueError, match="Estimate Motion: frames must be finite"):
        estimate(moving(2) * float("nan"))
    with pytest.raises(ValueError, match="Estimate Motion: flow_model must come from Load Flow Model or .*; got str"):
        estimate(moving(2), "raft")


# Propagation


def test_one_step_is_the_propagated_prediction(model, clip, ksample, estimate, moving, propagated):
    from cascadevsr.models.motion.flow import propagate

    motion = estimate(moving())[0]
    plain = ksample(model, clip)["samples"]
    flows = motion.on_grid(*plain.shape[2:], time=4)
    for direction in ("both", "forward", "backward"):
        result = ksample(propagated(model, motion, direction=direction, alphas=(0.5, 2.0)), clip)["samples"]
        expected = propagate(plain, *flows, direction=direction, alpha1=0.5, alpha2=2.0)
        assert torch.allclose(result, expected, atol=1e-6) and not torch.equal(result, plain)


def test_where_nothing_is_asked_nothing_changes(model, clip, ksample, still_motion, propagated):
    plain = ksample(model, clip, steps=4)["samples"]
    assert torch.equal(ksample(propagated(model, still_motion(), weight=0.0), clip, steps=4)["samples"], plain)
    assert not torch.equal(ksample(propagated(model, still_motion()), clip, steps=4)["samples"], plain)
    assert torch.equal(ksample(model, clip, steps=4)["samples"], plain), "the incoming model was patched"


def test_steps_and_percent_name_the_same(model, clip, ksample, still_motion, propagated):
    run = {
        steps: ksample(propagated(model, still_motion(), steps), clip, steps=4)["samples"]
        for steps in ("0,1,2,3", (0.0, 1.0), " 2; 3 ", (0.5, 1.0), (0.0, 0.1), "0")
    }
    assert torch.equal(run["0,1,2,3"], run[0.0, 1.0])
    assert torch.equal(run[" 2; 3 "], run[0.5, 1.0])
    assert torch.equal(run["0"], run[0.0, 0.1])
    assert not torch.equal(run["0"], run[0.0, 1.0])


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "ddim"])
def test_the_hosts_samplers_run_with_it(model, clip, ksample, still_motion, propagated, sampler):
    result = ksample(propagated(model, still_motion(), "1,2"), clip, steps=4, cfg=2.0, sampler=sampler)["samples"]
    assert torch.isfinite(result).all()


def test_a_still_clip_becomes_still(model, prepare, ksample, still_motion, propagated):
    """A weight of 1 copies: after both passes every latent of a scene is that scene's last one."""
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows

    clip = prepare(17, 24, 24, (96, 96))
    motion = still_motion(17, 24, 24, cuts=(9,))
    tiled = SpatialTiles.execute(model, {"tiling": "manual", "tile_width": 64, "tile_height": 64, "overlap": 32}).args[
        0
    ]
    windowed = TemporalWindows.execute(tiled, {"windows": "manual", "window": 9, "overlap": 4}).args[0]
    result = ksample(propagated(windowed, motion, weight=1.0), clip, steps=2)["samples"]
    assert torch.allclose(result[:, :, 0], result[:, :, 2], atol=1e-5)
    assert torch.allclose(result[:, :, 3], result[:, :, 4], atol=1e-5)
    assert not torch.allclose(result[:, :, 2], result[:, :, 3], atol=1e-3), "it crossed a cut"


def test_guiders_of_several_models_show_it_the_whole_prediction(core, model, clip, still_motion, propagated):
    patched = propagated(model, still_motion(), weight=1.0)
    guider = core.custom.DualCFGGuider.execute(
        patched, clip.positive, clip.negative, clip.negative, 2.0, 1.5, "regular"
    ).args[0]
    sampler = core.samplers.sampler_object("euler")
    result = core.custom.SamplerCustomAdvanced.execute(
        core.custom.Noise_RandomNoise(1), guider, sampler, torch.tensor([1.0, 0.5, 0.0]), clip.samples
    ).args[0]["samples"]
    assert torch.allclose(result[:, :, 0], result[:, :, 2], atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("", r"step_list must be whole numbers from 0.*; got ''"),
        ("1,-2", r"got '1,-2'"),
        ("1.5", r"got '1.5'"),
        ("two", r"got 'two'"),
        ((0.6, 0.4), "start_percent must be below end_percent; got 0.6 and 0.4"),
    ],
)
def test_bad_steps_are_refused_at_once(model, still_motion, propagated, steps, message):
    with pytest.raises(ValueError, match=f"Latent Propagation: .*{message}"):
        propagated(model, still_motion(), steps)


def test_what_does_not_fit_the_run_is_refused(core, model, clip, ksample, still_motion, propagated):
    from cascadevsr.nodes.motion import LatentPropagation

    with pytest.raises(ValueError, match="a run of 4 steps has the steps 0 to 3; got 4"):
        ksample(propagated(model, still_motion(), "0,4"), clip, steps=4)
    with pytest.raises(ValueError, match="motion of 5 frames, which is 2 latent frames, and a latent with 3"):
        ksample(propagated(model, still_motion(5)), clip)
    with pytest.raises(ValueError, match="motion must come from Estimate Motion; got int"):
        propagated(model, 3)
    with pytest.raises(ValueError, match="steps must be percent range or step list; got 'all'"):
        LatentPropagation.execute(model, still_motion(), {"steps": "all"}, "both", 0.5, "nearest", 0.001, 0.05)


def test_picture_models_hold_frames_in_the_batch(core, still_motion):
    from cascadevsr.models.motion.flow import propagate
    from cascadevsr.nodes.host.keys import UNEDITED_KEY
    from cascadevsr.nodes.motion import _Propagation

    kept = {"x0": None}
    options = {"transformer_options": {"sample_sigmas": torch.tensor([1.0, 0.0]), UNEDITED_KEY: kept}}
    x, clean = torch.zeros(FRAMES, 4, 6, 10), torch.randn(FRAMES, 4, 6, 10)
    wrapper = _Propagation(still_motion(), 4, lambda *_: True, partial(propagate, weight=1.0))
    result = wrapper(lambda *_: clean, x, torch.ones(FRAMES), options)
    assert result.shape == clean.shape and torch.equal(result[0], result[-1])
    assert kept["x0"] is clean, "the sampler's noise estimate needs the prediction as it was"
    with pytest.raises(ValueError, match=r"packs sound or other data"):
        wrapper(lambda *_: clean, torch.zeros(1, 1, 99), torch.ones(1), options)


def test_memory_of_latent_flows_is_that_of_the_latent_grid(still_motion, core):
    from cascadevsr.models.motion.flow import propagate
    from cascadevsr.nodes.motion import _Propagation

    wrapper = _Propagation(still_motion(), 4, lambda *_: True, propagate)
    options = {"transformer_options": {"sample_sigmas": torch.tensor([1.0, 0.0])}}
    wrapper(lambda x, *_: x, torch.zeros(1, 4, 3, 3, 5), torch.ones(1), options)
    assert [tuple(flow.shape) for flow in wrapper._flows] == [(1, 2, 2, 3, 5)] * 2


def test_the_built_in_model_holds_together_along_the_motion(core, ksample):
    """With exact motion: latents and decoded frames follow it more closely, and are as close to the truth."""
    from cascadevsr.models.motion.flow import warp
    from cascadevsr.models.pixels.metrics import psnr_y, warping_error
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.frames import CascadeInput, TemporalDecode
    from cascadevsr.nodes.loaders import LoadVideoRestorer
    from cascadevsr.nodes.motion import EstimateMotion, LatentPropagation, LoadFlowModel

    truth = sharp(FRAMES, 96, 128)
    lr = F.avg_pool2d(truth.movedim(-1, 1), 4).movedim(1, -1)
    model, vae = LoadVideoRestorer.execute("built-in", "auto").args[:2]
    target = {"target": "scale", "scale": 4.0}
    latent, low = CascadeInput.execute(vae, target, "bilinear", frames=lr).args[:2]
    conditions = VSRConditioning.execute(latent, 0.3, 1).args
    clip = SimpleNamespace(**dict(zip(("positive", "negative", "samples"), conditions, strict=True)))
    motion = EstimateMotion.execute(low, LoadFlowModel.execute("built-in").args[0]).args[0]
    always = {"steps": "percent range", "start_percent": 0.0, "end_percent": 1.0}
    carried = LatentPropagation.execute(model, motion, always, "both", 0.5, "nearest", 0.001, 0.05).args[0]

    there = torch.zeros(FRAMES - 1, 2, 96, 128)
    there[:, 0] = SPEED
    along = torch.zeros(2, 2, 12, 16)
    along[:, 0] = 4 * SPEED / 8
    found = []
    for each in (model, carried):
        sampled = ksample(each, clip, steps=4)
        frames = TemporalDecode.execute(sampled, vae, 1.0, 16, 0, low).args[0]
        cells = sampled["samples"][0].transpose(0, 1)
        miss = (cells[:-1] - warp(cells[1:], along, "nearest"))[..., :12].square().mean()
        found.append((float(miss), warping_error(frames, (there, -there)), psnr_y(frames, truth)))
    (before, plain_error, plain_psnr), (after, error, psnr) = found
    assert after < 0.7 * before
    assert error < plain_error and psnr > plain_psnr - 0.1


# In a server


def prompt(steps, frames=5):
    """Queue the motion nodes beside the built-in restorer, as a graph of the editor does."""
    from cascadevsr.tests.host.test_server import _node

    target = {"target": "scale", "target__scale": 2.0, "filter": "bilinear"}
    conditions = {"positive": ["5", 0], "negative": ["5", 1], "latent_image": ["5", 2]}
    return {
        "1": _node("LoadImage", image="example.png"),
        "2": _node("RepeatImageBatch", image=["1", 0], amount=frames),
        "3": _node("VSRLoadVideoRestorer", restorer="built-in", precision="auto"),
        "4": _node("VSRCascadeInput", target_vae=["3", 1], frames=["2", 0], **target),
        "5": _node("VSRConditioning", lr_latent=["4", 0], noise_level=0.1, seed=3),
        "6": _node("VSRLoadFlowModel", flow_model="built-in"),
        "7": _node("VSREstimateMotion", frames=["4", 1], flow_model=["6", 0]),
        "8": _node(
            "VSRLatentPropagation", model=["3", 0], motion=["7", 0], direction="both", weight=0.5,
            sampling="nearest", alpha1=0.001, alpha2=0.05, **steps,
        ),
        "9": _node(
            "KSampler", model=["8", 0], seed=1, steps=3, cfg=1.0, sampler_name="euler", scheduler="simple",
            denoise=1.0, **conditions,
        ),
        "10": _node("VSRTemporalDecode", samples=["9", 0], vae=["3", 1], lr_weight=1.0, chunk=8, tile=0),
        "11": _node("PreviewImage", images=["7", 1]),
        "12": _node("PreviewImage", images=["10", 0]),
    }  # fmt: skip


@pytest.fixture
def picture(host_server):
    from PIL import Image

    Image.effect_noise((40, 24), 60).convert("RGB").save(host_server.input_dir / "example.png")


@pytest.mark.parametrize(
    "steps",
    [
        {"steps": "step list", "steps__step_list": "1,2"},
        {"steps": "percent range", "steps__start_percent": 0.3, "steps__end_percent": 1.0},
    ],
    ids=lambda steps: steps["steps"],
)
def test_a_graph_with_motion_runs_with_progress(client, picture, steps):
    seen = []
    result = client.run(prompt(steps), on_progress=seen.append, timeout=120)
    assert len(result.outputs["11"]["images"]) == len(result.outputs["12"]["images"]) == 5
    assert "VSREstimateMotion" in {step.title for step in seen if step.total}


def test_a_graph_with_the_hosts_own_loader_runs(host_server, client, picture):
    from cascadevsr.models.motion.raft import build_raft

    folder = host_server.models_dir / "optical_flow"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(build_raft().state_dict(), folder / "raft_large.pth")
    graph = prompt({"steps": "step list", "steps__step_list": "1,2"}, frames=2)
    graph["6"] = {"class_type": "OpticalFlowLoader", "inputs": {"model_name": "raft_large.pth"}}
    assert len(client.run(graph, timeout=120).outputs["12"]["images"]) == 2


def test_errors_reach_the_user(client, picture):
    from cascadevsr.runner.client import ExecutionFailed

    for text, message in (("two", "step_list must be whole numbers"), ("1,3", "a run of 3 steps")):
        with pytest.raises(ExecutionFailed, match=f"Latent Propagation: {message}"):
            client.run(prompt({"steps": "step list", "steps__step_list": text}), timeout=120)
