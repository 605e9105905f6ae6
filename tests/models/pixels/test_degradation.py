"""Degradations: sizes, reproducibility, each preset."""

import numpy as np
import pytest
import torch
from cascadevsr.models.pixels.compression import h264_round_trip, jpeg_round_trip, mpeg4_round_trip
from cascadevsr.models.pixels.degradation import (
    PRESETS,
    Blur,
    Degradation,
    Noise,
    Video,
    apply_blur,
    apply_noise,
    apply_sinc,
    apply_video,
    degrade,
    draw_bicubic,
)


def frames(count=3, height=48, width=64):
    small = torch.rand(count, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_give_the_asked_size_reproducibly(preset):
    def run(seed):
        rng = np.random.default_rng(seed)
        return degrade(frames(), 12, 17, PRESETS[preset](rng), rng)

    out = run(0)
    assert out.shape == (3, 3, 12, 17)
    assert torch.equal(out, (out * 255).round() / 255)
    assert torch.equal(run(0), out)
    if preset != "bicubic":
        assert not torch.equal(run(1), out)


def test_bicubic_equals_the_plain_reduction():
    from PIL import Image

    source = (frames(1)[0] * 255).round()
    rng = np.random.default_rng(0)
    ours = degrade(source[None] / 255, 12, 16, draw_bicubic(rng), rng)[0] * 255
    picture = Image.fromarray(source.permute(1, 2, 0).byte().numpy()).resize((16, 12), Image.BICUBIC)
    error = (ours.permute(1, 2, 0) - torch.from_numpy(np.asarray(picture).copy())).abs()
    assert error.max() <= 2 and error.mean() < 0.5  # Pillow rounds to bytes between its two passes


def test_noise_has_its_stated_strength():
    grey = torch.full((8, 3, 64, 64), 0.5)
    for kind in (Noise(10), Noise(10, poisson=True), Noise(10, grey=True)):
        sigma = (apply_noise(grey, kind, np.random.default_rng(0)) - grey).std() * 255
        assert sigma == pytest.approx(10, rel=0.05)
    same = apply_noise(grey, Noise(10, grey=True), np.random.default_rng(0))
    assert torch.equal(same[:, 0], same[:, 2])


def test_compression_keeps_size_and_content():
    clip = frames(4, 40, 56)
    for result in (jpeg_round_trip(clip, 95), h264_round_trip(clip, 10), mpeg4_round_trip(clip, 2)):
        assert result.shape == clip.shape
        assert (result - clip).abs().mean() < 0.03
    assert (jpeg_round_trip(clip, 10) - clip).abs().mean() > (jpeg_round_trip(clip, 95) - clip).abs().mean()
    assert (mpeg4_round_trip(clip, 20) - clip).abs().mean() > (mpeg4_round_trip(clip, 2) - clip).abs().mean()
    assert torch.equal(mpeg4_round_trip(clip, 8), mpeg4_round_trip(clip, 8))
    assert torch.equal(apply_video(clip, Video("mpeg4", 8)), mpeg4_round_trip(clip, 8))
    with pytest.raises(ValueError, match="codec must be h264 or mpeg4; got 'av2'"):
        apply_video(clip, Video("av2", 8))


def test_kernels_keep_the_mean_and_spread_as_they_should():
    dot = torch.zeros(1, 3, 41, 41)
    dot[..., 20, 20] = 1
    axis = torch.arange(41.0) - 20

    def spread(blur):
        seen = apply_blur(dot, blur)[0, 0]
        assert seen.sum() == pytest.approx(1, abs=1e-5)
        return float((seen.sum(0) * axis.square()).sum() ** 0.5)

    assert spread(Blur(2, 2, size=21)) == pytest.approx(2, rel=0.02)
    assert spread(Blur(2, 2, size=21)) < spread(Blur(2, 2, beta=0.7, size=21))
    assert spread(Blur(2, 2, size=21)) < spread(Blur(2, 2, beta=1.5, plateau=True, size=21))
    assert spread(Blur(2, 2, beta=3.0, size=21)) < spread(Blur(2, 2, size=21)), "steeper, like a box"


def test_sinc_rings_and_cuts_off_high_frequencies():
    edge = torch.zeros(1, 3, 48, 48)
    edge[..., 24:] = 1
    ringing = apply_sinc(edge, 1.5)
    assert ringing.max() > 1.04 and ringing.min() < -0.04
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    for frequency, least, most in ((0.6, 0.9, 1.1), (2.6, 0.0, 0.1)):
        wave = torch.sin(frequency * x).expand(1, 3, -1, -1)
        ratio = (apply_sinc(wave, 1.5) / 1)[..., 12:36].std() / wave[..., 12:36].std()
        assert least <= ratio <= most


def test_the_second_order_chain_has_every_part_and_both_codecs():
    rng = np.random.default_rng(0)
    drawn = [PRESETS["second order"](rng) for _ in range(300)]
    videos = {video.codec for p in drawn for video in (p.first_video, p.last_video)}
    assert videos == {"h264", "mpeg4"}
    kernels = [p.blur for p in drawn if p.blur]
    assert {k.plateau for k in kernels} == {True, False} and any(k.beta != 1 and not k.plateau for k in kernels)
    assert any(p.first_sinc for p in drawn) and any(p.last_sinc for p in drawn)
    assert any(p.second_scale > 1 for p in drawn) and any(p.second_scale < 1 for p in drawn)
    clip = frames(3, 64, 64)
    mild = degrade(clip, 16, 16, Degradation(), rng)
    error = [(degrade(clip, 16, 16, p, rng) - mild).abs().mean() for p in drawn[:12]]
    assert min(error) > 0.01, "never the plain reduction"
