"""Degradations: sizes, reproducibility, each preset."""

import numpy as np
import pytest
import torch
from cascadevsr.models.pixels.codec import h264_round_trip, jpeg_round_trip
from cascadevsr.models.pixels.degradation import PRESETS, Noise, apply_noise, degrade, draw_bicubic


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
    for result in (jpeg_round_trip(clip, 95), h264_round_trip(clip, 10)):
        assert result.shape == clip.shape
        assert (result - clip).abs().mean() < 0.03
    assert (jpeg_round_trip(clip, 10) - clip).abs().mean() > (jpeg_round_trip(clip, 95) - clip).abs().mean()
