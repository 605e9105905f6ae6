"""Frames of any upscaler made steady: what is kept, what is mended, and that nothing depends on how a clip is cut."""

import pytest
import torch
import torch.nn.functional as F
from cascadevsr.models import steady as method
from cascadevsr.models.layout import bands
from cascadevsr.models.motion.blockflow import BlockFlow
from cascadevsr.models.source import cleanness, edge_width
from cascadevsr.models.steady import Controls, check_pair, likeness, steady

LOW = (30, 44)
STEP = 1.5  # LR px that everything moves to the left a frame


def texture(height, width, seed=0):
    """Draw (1, 3, h, w) in 0..1: large shapes, of which some have fine structure, as in photographs."""
    generator = torch.Generator().manual_seed(seed)

    def layer(cell, channels=3):
        small = torch.rand(1, channels, height // cell + 2, width // cell + 2, generator=generator)
        return F.interpolate(small, (height, width), mode="bicubic")

    rough = (6 * layer(30, 1) - 3).clamp(0, 1)
    return (0.2 + 0.6 * layer(24) + rough * (0.5 * layer(6) + 0.3 * layer(3) - 0.4)).clamp(0, 1)


def clip(count, scale=4.0, noise=0.0, flicker=0.1, seed=0, step=STEP):
    """Make (LR frames, what an upscaler that flickers makes of them, the truth) of a pan over a texture."""
    height, width = (round(side * scale) for side in LOW)
    shift = step * width / LOW[1]
    wide = texture(height, width + int(shift * count) + 4, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    truth, lr, upscaled = [], [], []
    for number in range(count):
        x = torch.arange(width) + shift * number
        left = x.floor().long()
        part = x - x.floor()
        picture = wide[..., left] * (1 - part) + wide[..., left + 1] * part
        small = F.interpolate(picture, LOW, mode="bicubic", antialias=True)
        truth.append(picture)
        lr.append((small + noise * torch.randn(small.shape, generator=generator)).clamp(0, 1))
        invented = F.interpolate(torch.randn(1, 3, height // 2, width // 2, generator=generator), (height, width))
        upscaled.append((picture + flicker * 0.5 * invented).clamp(0, 1))
    return lr, upscaled, truth


def degraded(frames, blur, noise):
    generator = torch.Generator().manual_seed(9)
    soft = [method.gauss(frame, blur) for frame in frames]
    return [(frame + noise * torch.randn(frame.shape, generator=generator)).clamp(0, 1) for frame in soft]


def enlarged(lr):
    """Upscale as an upscaler does that stays true to its source."""
    return [F.interpolate(frame, scale_factor=4, mode="bicubic").clamp(0, 1) for frame in lr]


def pans(step=STEP):
    there = torch.zeros(1, 2, *LOW)
    there[:, 0] = -step
    return lambda _: (there, -there)


def made(lr, upscaled, *, clean=True, flows=None, cuts=(), numbers=None, **controls):
    return list(
        steady(
            lambda i: (lr[i], upscaled[i]),
            flows or pans(),
            len(lr),
            clean=[clean] * len(lr),
            cuts=cuts,
            controls=Controls(**controls),
            numbers=numbers,
        )
    )


def error(result, truth):
    return float(torch.stack([(a - b).square().mean() for a, b in zip(result, truth, strict=True)]).mean())


@pytest.mark.parametrize("clean", [True, False])
def test_it_comes_nearer_to_the_truth_and_flickers_less(clean):
    lr, upscaled, truth = clip(7)
    result = made(lr, upscaled, clean=clean, sharpness=0.0)
    assert error(result, truth) < 0.3 * error(upscaled, truth)
    assert error(made(lr, upscaled, clean=clean), truth) < 0.6 * error(upscaled, truth)


def test_without_steadiness_and_fidelity_the_frames_are_bit_equal():
    lr, upscaled, _ = clip(3)
    result = made(lr, upscaled, steadiness=0.0, fidelity=0.0)
    assert all(torch.equal(a, b) for a, b in zip(result, upscaled, strict=True))


def test_each_control_does_its_part():
    lr, upscaled, truth = clip(5)
    whole = error(made(lr, upscaled), truth)
    for name in ("steadiness", "fidelity"):
        less = error(made(lr, upscaled, **{name: 0.5}), truth)
        assert whole < less < error(made(lr, upscaled, **{name: 0.0}), truth)
    soft = made(lr, upscaled, sharpness=0.0)[2]
    assert method._fine(soft, slice(0, 120)).square().mean() < method._fine(upscaled[2], slice(0, 120)).square().mean()


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0, 2.37, 3.0, 8.0])
def test_any_scale_shows_in_every_lr_pixel_what_was_seen_there(scale):
    lr, upscaled, _ = clip(3, scale)
    result = made(lr, upscaled)
    assert result[1].shape == upscaled[1].shape
    inside = (..., slice(3, -3), slice(3, -3))

    def miss(frames):
        return float((F.interpolate(frames[1], LOW, mode="bicubic", antialias=True) - lr[1])[inside].abs().mean())

    assert miss(result) < 0.35 * miss(upscaled) + 1e-6


@pytest.mark.parametrize("clean", [True, False])
def test_colours_that_drift_return(clean):
    """As diffusion models leave them: steady in themselves, but away from the LR, more from frame to frame."""
    lr, _, truth = clip(6)
    drift = torch.tensor([1.0, -0.5, 0.3]).view(1, 3, 1, 1)
    upscaled = [(frame * 0.97 + 0.01 * i * drift).clamp(0, 1) for i, frame in enumerate(truth)]
    result = made(lr, upscaled, clean=clean, steadiness=0.5)

    def away(frames):
        return max(float((x - y).mean((2, 3)).abs().max()) for x, y in zip(frames, truth, strict=True))

    assert away(result) < 0.1 * away(upscaled)


def test_a_still_clip_stands_still():
    lr, upscaled, _ = clip(1)
    estimator = BlockFlow()

    def flows(_):
        return estimator(torch.cat((lr[0],) * 2), torch.cat((lr[0],) * 2)).chunk(2)

    result = made(lr * 6, upscaled * 6, flows=flows)
    assert max(float((frame - result[0]).abs().max()) for frame in result) * 255 <= 0.1


def test_a_scene_does_not_see_the_one_before():
    first, second = clip(4), clip(4, seed=9)
    lr, upscaled = (first[i] + second[i] for i in (0, 1))
    joined = made(lr, upscaled, cuts=(4,))
    alone = made(first[0], first[1]) + made(second[0], second[1])
    assert all(torch.equal(a, b) for a, b in zip(joined, alone, strict=True))


def test_chunks_are_exact_and_frames_are_asked_once_in_order():
    lr, upscaled, _ = clip(9)
    asked = []

    def frames(number):
        asked.append(number)
        return lr[number], upscaled[number]

    part = steady(frames, pans(), 9, clean=[True] * 9, numbers=range(3, 6))
    first = next(part)
    assert asked == [1, 2, 3, 4, 5]
    rest = [first, *part]
    assert asked == [1, 2, 3, 4, 5, 6, 7]
    assert all(torch.equal(a, b) for a, b in zip(rest, made(lr, upscaled)[3:6], strict=True))


def test_bands_give_the_same(monkeypatch):
    lr, upscaled, _ = clip(5, 2.37)
    whole = made(lr, upscaled)
    monkeypatch.setattr(bands, "_BAND", 1000)
    banded = made(lr, upscaled)
    assert max(float((a - b).abs().max()) for a, b in zip(whole, banded, strict=True)) < 2e-5


def test_wrong_motion_is_not_trusted():
    """Frames that are something else leave the upscaler's frame, whose error against its LR is still mended."""
    lr, upscaled, truth = clip(5)
    other = clip(5, seed=9)
    mixed = [other[1][i] if i != 2 else upscaled[2] for i in range(5)]
    seen = [other[0][i] if i != 2 else lr[2] for i in range(5)]
    result = made(seen, mixed)[2]
    alone = made([lr[2]], [upscaled[2]])[0]
    assert float((result - truth[2]).square().mean()) < 1.05 * float((alone - truth[2]).square().mean())


@pytest.mark.parametrize(
    ("blur", "noise", "answer"), [(0.0, 0.0, True), (0.0, 0.008, True), (0.7, 0.008, False), (0.0, 0.015, False)]
)
def test_noisy_and_blurred_frames_count_as_compressed_and_sharp_ones_do_not(blur, noise, answer):
    lr = degraded(clip(5)[0], blur, noise)
    assert [share > 0.5 for share in cleanness(lambda i: lr[i], pans(), 5)] == [answer] * 5


def test_noise_does_not_change_what_edges_tell():
    frame = clip(1)[0]
    widths = [edge_width(degraded(frame, blur, 0.0)[0]) for blur in (0.0, 0.5, 0.7, 1.0)]
    assert all(1.2 * first < second for first, second in zip(widths[:-1], widths[1:], strict=True))
    noisy = [edge_width(degraded(frame, blur, 0.008)[0]) for blur in (0.0, 0.5, 0.7, 1.0)]
    assert noisy == pytest.approx(widths, rel=0.1)


def test_blur_that_the_upscaler_left_in_is_taken_out(monkeypatch):
    sharp, _, truth = clip(5)
    for lr, upscaler, blurred in (
        (degraded(sharp, 0.6, 0.008), enlarged, True),
        (degraded(sharp, 0.6, 0.008), lambda _: truth, False),
        (degraded(sharp, 0.0, 0.008), enlarged, False),
    ):
        result = made(lr, upscaler(lr), clean=False)
        with monkeypatch.context() as patch:
            patch.setattr(method, "_SOFT", 0.0)
            left = made(lr, upscaler(lr), clean=False)
        if blurred:
            assert error(result, truth) < 0.9 * error(left, truth)
        else:
            assert all(torch.equal(a, b) for a, b in zip(result, left, strict=True))


def test_every_scene_has_an_answer_of_its_own():
    lr = clip(4)[0] + clip(3, noise=0.015, seed=5)[0] + clip(1)[0]
    shares = cleanness(lambda i: lr[i], pans(), 8, (4, 7))
    assert [share > 0.5 for share in shares] == [True] * 4 + [False] * 4 and shares[-1] == 0.5


def test_the_same_picture_is_recognised():
    lr, upscaled, _ = clip(2)
    assert likeness(lr[0], upscaled[0]) > 0.9
    assert likeness(lr[0], clip(1, seed=9)[1][0]) < 0.5
    plain = torch.full((1, 3, *LOW), 0.5)
    assert likeness(plain, torch.full((1, 3, 120, 176), 0.5)) > 0.99


@pytest.mark.parametrize(("lr", "upscaled"), [((30, 44), (29, 44)), ((30, 44), (300, 440)), ((30, 44), (120, 200))])
def test_sizes_that_do_not_belong_together_are_refused(lr, upscaled):
    with pytest.raises(ValueError, match="upscaled"):
        check_pair(lr, upscaled)
    check_pair((135, 240), (544, 960))  # rounded to multiples of 16


def test_controls_are_shares():
    with pytest.raises(ValueError, match=r"sharpness must be in 0..1; got 1.5"):
        Controls(sharpness=1.5)
