"""Steady Upscaled Video in the host: frames or a model, dials, motion, originals, pictures, what is refused."""

import pytest
import torch
import torch.nn.functional as F

from .test_motion import sharp

COUNT = 5


@pytest.fixture
def small():
    return F.avg_pool2d(sharp(COUNT, 96, 160).movedim(-1, 1), 4).movedim(1, -1)


@pytest.fixture
def large():
    """Frames as an upscaler that flickers would give them."""
    generator = torch.Generator().manual_seed(3)
    noise = F.interpolate(torch.randn(COUNT, 3, 48, 80, generator=generator), (96, 160)).movedim(1, -1)
    return (sharp(COUNT, 96, 160) + 0.05 * noise).clamp(0, 1)


@pytest.fixture
def steadied(core):
    def run(lr_frames, images=None, steadiness=1.0, fidelity=1.0, sharpness=1.0, source="automatic", **rest):
        from cascadevsr.nodes.steady import SteadyUpscaledVideo

        return SteadyUpscaledVideo.execute(lr_frames, steadiness, fidelity, sharpness, source, images, **rest).args[0]

    return run


class Nearest(torch.nn.Module):
    """A network of an upscaler: repeats every pixel, brighter from call to call."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Identity()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(F.interpolate(x, scale_factor=2) + 0.02 * (self.calls % 2))


@pytest.fixture
def upscale_model(core):
    """An UPSCALE_MODEL as the host's Load Upscale Model makes it."""
    from cascadevsr.nodes.host import services

    class Descriptor:
        scale = 2

        def __init__(self):
            self.patcher = services.wrap_network(Nearest())

        def __call__(self, x):
            return self.patcher.model(x)

    return Descriptor()


def test_frames_come_nearer_to_the_truth(steadied, small, large):
    truth = sharp(COUNT, 96, 160)
    before, after = (float((x - truth).square().mean()) for x in (large, steadied(small, large, sharpness=0.0)))
    assert after < 0.5 * before


def test_nothing_asked_for_changes_nothing(steadied, small, large):
    assert torch.equal(steadied(small, large, steadiness=0.0, fidelity=0.0), large)


def test_a_model_runs_inside_and_gives_the_same_as_its_frames(steadied, small, upscale_model):
    from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel

    frames = [ImageUpscaleWithModel.execute(upscale_model, frame[None]).args[0] for frame in small]
    upscale_model.patcher.model.calls = 0
    result = steadied(small, upscale_model=upscale_model)
    assert torch.equal(result, steadied(small, torch.cat(frames)))


def test_a_file_of_the_hosts_loader_runs_inside_and_in_the_bench(steadied, small, tmp_path, monkeypatch):
    """A small network of a kind that people use (Real-ESRGAN's compact one), with random weights."""
    import folder_paths
    from cascadevsr.research.steady import load_upscaler
    from comfy_extras.nodes_upscale_model import UpscaleModelLoader
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

    torch.manual_seed(0)
    torch.save(SRVGGNetCompact(num_feat=8, num_conv=1, upscale=4).state_dict(), tmp_path / "tiny.pth")
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", lambda folder, name: str(tmp_path / name))
    result = steadied(small, upscale_model=UpscaleModelLoader.execute("tiny.pth").args[0])
    assert result.shape == (COUNT, 96, 160, 3)
    upscaled = load_upscaler(tmp_path / "tiny.pth")(small.movedim(-1, 1)).clamp(0, 1).movedim(1, -1)
    assert torch.allclose(result, steadied(small, upscaled), atol=1e-4)


def test_the_bar_runs_once_from_nothing_to_full(steadied, small, upscale_model, signs):
    steadied(small, upscale_model=upscale_model)
    shares = [done / total for _, done, total in signs]
    assert shares == sorted(shares) and shares[-1] == 1


def test_the_node_shows_the_newest_frame_while_it_runs(steadied, small, large):
    """As a picture of the host's progress bar, which the editor shows on the node."""
    import comfy.utils
    import numpy as np

    before, pictures = comfy.utils.PROGRESS_BAR_HOOK, []
    comfy.utils.set_progress_bar_global_hook(lambda done, total, picture, **_: pictures.append(picture))
    try:
        result = steadied(small, large)
    finally:
        comfy.utils.set_progress_bar_global_hook(before)
    kind, picture, most = next(filter(None, pictures))
    assert kind == "JPEG" and picture.size == (160, 96) and most >= 160
    assert np.abs(np.asarray(picture) / 255 - result[0].numpy()).max() < 0.005


def test_motion_that_is_given_is_used(steadied, small, large):
    from cascadevsr.models.motion.blockflow import BlockFlow
    from cascadevsr.models.motion.estimation import Motion, estimate_pairs

    motion = estimate_pairs(small, BlockFlow())
    assert torch.equal(steadied(small, large, motion=motion), steadied(small, large))
    still = Motion(*(torch.zeros_like(motion.forward) for _ in range(2)), (), COUNT, *small.shape[1:3])
    assert not torch.equal(steadied(small, large, motion=still), steadied(small, large))


def test_the_original_of_an_edit_gives_its_detail(steadied, small, large):
    """The right half was edited; what came from where is shown."""
    truth = sharp(COUNT, 96, 160)
    edit = torch.cat((truth[:, :, :80], sharp(COUNT, 96, 80, seed=5)), 2)
    lr = F.avg_pool2d(edit.movedim(-1, 1), 4).movedim(1, -1)
    soft = F.interpolate(lr.movedim(-1, 1), (96, 160), mode="bicubic").movedim(1, -1).clamp(0, 1)
    from cascadevsr.nodes.steady import SteadyUpscaledVideo

    result, shown = SteadyUpscaledVideo.execute(lr, 1.0, 1.0, 1.0, "clean", soft, original=truth).args
    kept = (slice(None), slice(8, -8), slice(8, 72))
    alone = steadied(lr, soft, source="clean")
    assert float((result - edit)[kept].square().mean()) < 0.5 * float((alone - edit)[kept].square().mean())
    assert shown.shape == lr.shape and shown[:, :, 24:].mean() < 0.1 < 0.3 < shown[:, :, 2:18].mean()


def test_pictures_give_their_detail_and_the_node_says_how_much(core):
    """Of two sizes, the second of something else; without any, nothing is said."""
    from cascadevsr.nodes.steady import SteadyUpscaledVideo

    truth = sharp(COUNT, 192, 256)
    lr = F.interpolate(truth.movedim(-1, 1), (48, 64), mode="bicubic", antialias=True).clamp(0, 1).movedim(1, -1)
    soft = F.interpolate(lr.movedim(-1, 1), (192, 256), mode="bicubic").movedim(1, -1).clamp(0, 1)
    right, wrong = truth[2:3, 16:176, 24:232], sharp(1, 140, 150, seed=5)

    def run(**rest):
        return SteadyUpscaledVideo.execute(lr, 0.0, 1.0, 1.0, "clean", soft, **rest)

    alone, both = run(), run(pictures={"picture_1": wrong, "picture_0": right})
    part = (2, slice(40, -40), slice(48, -48))
    before, after = (float((each.args[0] - truth)[part].square().mean()) for each in (alone, both))
    assert after < 0.5 * before and both.args[1][part[0], 16:32, 16:48].mean() > 0.5
    first, second = both.ui["text"]
    assert first.startswith("picture 1: ") and first.endswith(f"of {COUNT} frames") and "% of the frame in" in first
    assert second == "picture 2: not used, nothing in the clip fits it"
    assert not alone.ui
    neither = run(pictures={"picture_0": wrong})
    assert torch.equal(neither.args[0], alone.args[0]) and neither.args[1].max() == 0


def test_transparency_is_left_alone(steadied, small, large):
    alpha = torch.rand(*large.shape[:3], 1)
    result = steadied(small, torch.cat((large, alpha), -1))
    assert torch.equal(result[..., 3:], alpha) and torch.equal(result[..., :3], steadied(small, large))


def test_any_scale(steadied, small):
    large = F.interpolate(small.movedim(-1, 1), (58, 97), mode="bicubic").movedim(1, -1).clamp(0, 1)
    assert steadied(small, large).shape == large.shape
    assert steadied(small, small).shape == small.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lr, x: {"images": None}, "link either images or an upscale_model; got neither"),
        (lambda lr, x: {"images": x, "upscale_model": object()}, "got both"),
        (lambda lr, x: {"images": None, "upscale_model": object()}, "must come from Load Upscale Model; got object"),
        (lambda lr, x: {"images": x[1:]}, r"images must have as many frames as the clip \(5\); got 4"),
        (lambda lr, x: {"images": x[:, :60]}, "must have the same shape; got 160x60 and 40x24"),
        (lambda lr, x: {"images": lr[:, ::2, ::2]}, "1 to 8 times as large"),
        (lambda lr, x: {"images": x.flip(2)}, "must show what lr_frames show; got a likeness"),
        (lambda lr, x: {"images": x, "steadiness": 2.0}, r"steadiness must be in 0..1; got 2.0"),
        (lambda lr, x: {"images": x, "source": "dirty"}, "source must be one of automatic, clean, compressed"),
        (
            lambda lr, x: {"images": x, "original": lr},
            "the original must have the shape of the LR frames and be larger",
        ),
        (lambda lr, x: {"images": x, "pictures": {"picture_0": 3}}, "picture_0 must be an IMAGE"),
        (lambda lr, x: {"images": x, "motion": 3}, "motion must come from Estimate Motion"),
        (lambda lr, x: {"images": x, "flow_model": 3}, "flow_model must come from Load Flow Model"),
    ],
)
def test_what_does_not_belong_together_is_said(steadied, small, large, change, words):
    with pytest.raises(ValueError, match=f"^Steady Upscaled Video: .*{words}"):
        steadied(small, **change(small, large))


def test_motion_of_another_clip_is_refused(steadied, small, large):
    from cascadevsr.models.motion.estimation import Motion

    flow = torch.zeros(COUNT, 2, 24, 40)
    with pytest.raises(ValueError, match=r"motion must be that of lr_frames, 5 of 40x24; got 6 of 40x24"):
        steadied(small, large, motion=Motion(flow, flow, (), COUNT + 1, 24, 40))


def test_one_frame_is_a_clip(steadied, small, large):
    assert steadied(small[:1], large[:1]).shape == large[:1].shape
