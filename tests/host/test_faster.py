"""Faster Sampling and windows that take turns: off they change nothing; on, every piece gets its own features back."""

import pytest
import torch
import torch.nn.functional as F

from .test_upscale_a_video import SCALE, _ddim, _load, _prepare
from .uav_release import recorded, write_release


@pytest.fixture(scope="module")
def folder(core, tmp_path_factory):
    return write_release(recorded("pipeline_short_3d"), tmp_path_factory.mktemp("releases") / "upscale_a_video")


@pytest.fixture(scope="module")
def loaded(folder):
    with torch.inference_mode():
        return _load(folder, "auto")


@pytest.fixture(scope="module")
def clip(loaded):
    with torch.inference_mode():
        frames = torch.rand(11, 12, 16, 3, generator=torch.Generator().manual_seed(2))
        return _prepare(loaded, frames, target=SCALE)


def _faster(model, every=1, start=0.0, end=1.0):
    from cascadevsr.nodes.faster import FasterSampling

    return FasterSampling.execute(model, every, start, end).args[0]


def _cut(model, joints="shared frames", tiles=True):
    from cascadevsr.nodes.tiling import SpatialTiles, TemporalWindows

    manual = {"tiling": "manual", "tile_width": 40, "tile_height": 32, "overlap": 8}
    model = SpatialTiles.execute(model, manual).args[0] if tiles else model
    return TemporalWindows.execute(model, {"windows": "manual", "window": 4, "overlap": 1}, joints).args[0]


@pytest.fixture
def deep_calls(loaded, monkeypatch):
    """Record the calls of the network, (frames, batch, whether the deep half ran)."""
    from cascadevsr.models.upscale_a_video.unet import VideoUNet

    seen, forward = [], VideoUNet.forward

    def counted(self, x, *args):
        seen.append([x.shape[2], len(x), False])
        return forward(self, x, *args)

    monkeypatch.setattr(VideoUNet, "forward", counted)
    middle = loaded.model.model.diffusion_model.get_submodule("mid_block.resnets.0")
    hook = middle.register_forward_pre_hook(lambda *_: seen[-1].__setitem__(2, True))
    yield seen
    hook.remove()


def test_as_it_comes_nothing_is_left_out(core, loaded, clip):
    plain = _ddim(core, _cut(loaded.model), clip)["samples"]
    model = _faster(_faster(_cut(loaded.model), 3, 0.2, 0.8))  # a second node replaces the first
    assert torch.equal(_ddim(core, model, clip)["samples"], plain)


@pytest.mark.parametrize("joints", ["shared frames", "alternating"])
@pytest.mark.parametrize("tiles", [False, True])
def test_every_piece_and_branch_gets_its_own_features_back(core, loaded, clip, joints, tiles, monkeypatch):
    """Where the deep half says what only place and text decide, keeping it over steps changes nothing, bit for bit."""
    from cascadevsr.models.transformer import Deep
    from cascadevsr.models.upscale_a_video.unet import VideoUNet

    forward = VideoUNet.forward

    def place_alone(self, x, timestep, low_res, text, noise_level, progress=None, deep=None):
        deep = deep or Deep()
        asked = deep.given is None
        if asked:
            size = (x.shape[2], *((side + 1) // 2 for side in x.shape[-2:]))
            low = F.adaptive_avg_pool3d(low_res, size).mean(1, keepdim=True)
            said = (low + text.mean((1, 2)).view(-1, 1, 1, 1, 1)).to(x)
            deep.given = said.expand(-1, self.config.block_out_channels[1], -1, -1, -1)
        result = forward(self, x, timestep, low_res, text, noise_level, progress, deep)
        deep.given = None if asked else deep.given
        return result

    monkeypatch.setattr(VideoUNet, "forward", place_alone)
    model = _cut(loaded.model, joints, tiles)
    whole = _ddim(core, model, clip, steps=5)["samples"]
    every = _faster(model, 2) if joints == "shared frames" else None
    if every is not None:
        assert torch.equal(_ddim(core, every, clip, steps=5)["samples"], whole)
        assert torch.equal(
            _ddim(core, _faster(model, 2, 0.3, 0.7), clip, steps=5)["samples"],
            _ddim(core, _faster(model, 1, 0.3, 0.7), clip, steps=5)["samples"],
        )
        return
    held = _faster(model, 2)  # places stay for two steps: compared with a memory that is never asked
    kept = _ddim(core, held, clip, steps=5)["samples"]
    from cascadevsr.nodes.host.deep import DeepMemory

    monkeypatch.setattr(DeepMemory, "recall", lambda self, options, x: None)
    assert torch.equal(_ddim(core, held, clip, steps=5)["samples"], kept)


def test_the_deep_half_runs_every_few_steps_and_anew_in_every_run(core, loaded, clip, deep_calls):
    model = _faster(_cut(loaded.model, tiles=False), 3)
    results = [_ddim(core, model, clip, steps=4)["samples"] for _ in range(2)]
    assert torch.equal(*results), "nothing is left of a run before"
    windows = 4  # of 4 frames, 3 further each, the last shifted back
    calls = len(deep_calls) // 2
    assert deep_calls[:calls] == deep_calls[calls:] and calls == 4 * windows
    assert [ran for *_, ran in deep_calls[:calls]] == [True] * windows + [False] * 2 * windows + [True] * windows
    whole = _ddim(core, _cut(loaded.model, tiles=False), clip, steps=4)["samples"]
    distance = (results[0] - whole).square().mean().sqrt() / whole.std()
    assert 0 < distance < 0.5  # of so few steps


def test_text_guides_in_its_range_only(core, loaded, clip, deep_calls):
    model = _faster(_cut(loaded.model, tiles=False), 1, 0.0, 0.5)
    _ddim(core, model, clip, steps=4)
    assert [batch for _, batch, _ in deep_calls] == [2] * 8 + [1] * 8
    deep_calls.clear()
    _ddim(core, _faster(_cut(loaded.model, tiles=False), 4, 0.3, 1.0), clip, steps=4)
    # The negative enters later: it has left nothing behind, so its first call runs whole.
    assert [(batch, ran) for _, batch, ran in deep_calls[::4]] == [(1, True), (2, True), (2, False), (2, False)]


def test_windows_that_take_turns_compute_every_frame_once(core, loaded, clip, deep_calls):
    _ddim(core, _cut(loaded.model, "alternating", tiles=False), clip, steps=3)
    lengths = [frames for frames, *_ in deep_calls]
    assert lengths == [3, 4, 4, 1, 4, 4, 2, 3, 4, 4] and sum(lengths) == 3 * 11
    deep_calls.clear()
    _ddim(core, _faster(_cut(loaded.model, "alternating", tiles=False), 2), clip, steps=4)
    assert [frames for frames, *_ in deep_calls] == [3, 4, 4] * 2 + [1, 4, 4, 2] + [3, 4, 4], "the last step by itself"
    assert [ran for *_, ran in deep_calls] == [True] * 3 + [False] * 3 + [True] * 4 + [True] * 3


def test_joints_fade_into_what_the_turn_before_said(core, loaded, clip, monkeypatch):
    """The network answers with the number of the step: around joints a result is of the last two turns."""
    from cascadevsr.models.upscale_a_video.unet import VideoUNet
    from cascadevsr.nodes.host.joints import JointFade

    seen = []
    call = JointFade.__call__

    def watched(self, predictions, conds, step, turn, window):
        numbered = [prediction * 0 + step for prediction in predictions]
        faded = call(self, numbered, conds, step, turn, window)
        seen.append((self, [float(each[0, 0, frame, 0, 0]) for each in faded[:1] for frame in range(11)], faded))
        return faded

    monkeypatch.setattr(JointFade, "__call__", watched)
    monkeypatch.setattr(VideoUNet, "forward", lambda self, x, *rest: x[:, :4] * 0)
    model = _cut(loaded.model, "alternating", tiles=False)
    _ddim(core, model, clip, steps=3)
    # joints at 3 and 7; at 1, 5 and 9 in odd turns
    assert seen[0][1] == [0] * 11
    near, far = 0.8535534, 0.1464466  # what is mixed in beside a joint, and a frame further
    odd, even = [near, near, far, far, near, near, far, far, near, near, far], [0, far, near, near, far] * 2 + [0]
    even[5:] = [far, near, near, far, 0, 0]
    assert seen[1][1] == pytest.approx([1 - share for share in odd], abs=1e-5)
    assert seen[2][1] == pytest.approx([2 - share for share in even], abs=1e-5)
    assert all(torch.equal(*each[2][:2]) for each in seen if each[2][1] is not None), "the negative fades alike"
    assert seen[0][0]._said == ({}, {}), "nothing is kept after a run"
    seen.clear()
    _ddim(core, _faster(model, 2), clip, steps=5)  # a turn lasts two steps; what is mixed in is the last said
    assert [each[1][2] for each in seen] == pytest.approx([0, 1, 2 - far, 3 - 2 * far, 4 - near], abs=1e-5)
    assert [each[1][0] for each in seen] == pytest.approx([0, 1, 2 - near, 3 - 2 * near, 4], abs=1e-5)
    shared = _cut(model, "shared frames", tiles=False)  # a node behind it replaces it
    seen.clear()
    _ddim(core, shared, clip, steps=2)
    assert not seen


def test_predictions_of_one_step_fade_in_their_order():
    """Other nodes predict a condition twice in a step."""
    from cascadevsr.nodes.host.joints import JointFade

    fade, conds = JointFade(1), [[{"uuid": "a"}], None]
    say = lambda value, step: fade([torch.full((1, 1, 8, 1, 1), value)] * 2, conds, step, step % 2, 4)[0][0, 0, :, 0, 0]  # noqa: E731
    say(0.0, 0), say(10.0, 0)
    assert say(1.0, 1).tolist() == [1, 0.5, 0.5, 1, 1, 0.5, 0.5, 1]
    assert say(11.0, 1)[1] == 10.5 and say(7.0, 1)[1] == 7, "the third time there is nothing to mix in"


def test_short_of_ram_nothing_is_kept(core, loaded, clip, deep_calls, monkeypatch, caplog):
    from cascadevsr.nodes.host import deep

    monkeypatch.setattr(deep.services, "free_bytes", lambda device: 0)
    _ddim(core, _faster(_cut(loaded.model, tiles=False), 3), clip, steps=3)
    assert all(ran for *_, ran in deep_calls) and "RAM is short" in caplog.text


def test_what_cannot_be_left_out_is_refused(core, folder, loaded, model):
    published = _load(folder, "auto", "auto", "reference").model
    with pytest.raises(ValueError, match="repeats the published numbers; got work to be left out"):
        _faster(published, 2)
    with pytest.raises(ValueError, match="repeats the published numbers; got joints alternating"):
        _cut(published, "alternating")
    with pytest.raises(ValueError, match="deep_every above 1 needs Upscale-A-Video or MGLD-VSR; got"):
        _faster(model, 2)
    with pytest.raises(ValueError, match="guidance_start must be below guidance_end; got 0.5 and 0.5"):
        _faster(loaded.model, 1, 0.5, 0.5)
    with pytest.raises(ValueError, match="joints must be one of shared frames, alternating; got 'both'"):
        _cut(loaded.model, "both")


def test_the_plan_counts_what_is_left_out(core, loaded, clip, deep_calls):
    """Its calls are those of the run, and what a call costs is less without the deep half."""
    from cascadevsr.models.layout.sizes import ClipSize
    from cascadevsr.nodes import plan
    from cascadevsr.nodes.sampling import RefineSigmas

    size, shape, conds = ClipSize(11, 48, 64), (1, 4, 11, 12, 16), {"positive": [{}], "negative": [{}]}
    plain = _cut(loaded.model, tiles=False)
    whole = plan.with_work(plan.make_plan(plain, None, conds, size, shape, 4), plain)
    assert whole.work[0] == whole.work[1] and whole.work[0].calls == whole.passes == 2 * 4 * 4
    assert "left out" not in whole.text() and "TFLOP" in whole.text() or "GFLOP" in whole.text()
    model = _faster(_cut(loaded.model, "alternating", tiles=False), 2, 0.0, 0.4)
    sigmas = RefineSigmas.execute(model, 1.0, 4, 1.0).args[0]
    made = plan.with_work(plan.make_plan(model, None, conds, size, shape, 4, sigmas), model)
    assert plan.make_plan(model, None, conds, size, shape, 4).branches == (2, 2, 1, 1), "evenly spaced"
    deep_calls.clear()
    _ddim(core, model, clip, steps=4)
    assert made.turns == ((3, 4, 4), (1, 4, 4, 2)) and made.branches == (2, 1, 1, 1)
    assert made.passes == made.work[0].calls == sum(batch for _, batch, _ in deep_calls)
    assert made.work[1] == whole.work[0] and made.work[0].flops < 0.6 * whole.work[0].flops
    text = made.text()
    assert "3 and 4 in turns, of 4 latent frames at most, sharing none" in text
    assert f"with nothing left out {whole.passes:,}" in text


@pytest.mark.parametrize("steps", [5])
def test_the_plan_counts_the_built_in_model_too(model, steps):
    from cascadevsr.models.layout.sizes import ClipSize
    from cascadevsr.nodes import plan

    made = plan.make_plan(model, None, {"positive": [{}]}, ClipSize(5, 64, 80), (1, 16, 2, 8, 10), steps)
    made = plan.with_work(made, model)
    assert made.work[0].calls == steps and made.work[0].flops > 0
