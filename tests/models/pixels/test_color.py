"""Colour match: the reference's colours, the frames' detail, identity where there is nothing to do."""

import pytest
import torch
from cascadevsr.models.pixels import color
from cascadevsr.models.pixels.color import METHODS, adain, lab, low_frequencies, match_colour, wavelet

FUNCTIONS = [adain, wavelet, lab]


def clip(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("match", FUNCTIONS)
@pytest.mark.parametrize("shape", [(3, 17, 31, 3), (1, 1, 1, 3), (2, 1, 5, 3)])
def test_equal_clips_come_back_bit_for_bit(match, shape):
    frames = clip(*shape)
    assert torch.equal(match(frames, frames.clone()), frames)


@pytest.mark.parametrize("match", FUNCTIONS)
def test_a_colour_cast_is_removed(match):
    # A smooth truth, and a result that has its detail but a cast that differs from channel to channel.
    truth = 0.25 + 0.5 * low_frequencies(clip(2, 3, 40, 48), 3).movedim(1, -1)
    cast = truth * torch.tensor([1.1, 0.95, 0.8]) + torch.tensor([0.02, 0.05, 0.0])
    small = torch.nn.functional.avg_pool2d(truth.movedim(-1, 1), 4).movedim(1, -1)
    matched = match(cast, small)
    assert (matched - truth).abs().mean() < 0.25 * (cast - truth).abs().mean()


def test_wavelet_is_high_of_frames_plus_low_of_reference():
    frames, reference = clip(2, 24, 20, 3), clip(2, 24, 20, 3, seed=1)
    first, second = frames.movedim(-1, 1), reference.movedim(-1, 1)
    expected = first - low_frequencies(first) + low_frequencies(second)
    assert torch.allclose(wavelet(frames, reference).movedim(-1, 1), expected, atol=1e-6)


def test_adain_takes_over_mean_and_deviation():
    matched, reference = adain(clip(2, 30, 30, 3), ref := 0.3 * clip(2, 30, 30, 3, seed=1) + 0.4), ref
    assert torch.allclose(matched.mean((1, 2)), reference.mean((1, 2)), atol=1e-4)
    assert torch.allclose(matched.std((1, 2)), reference.std((1, 2)), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_chunks_strength_clamp_and_progress(method, monkeypatch):
    frames, reference = clip(5, 12, 16, 3), 1.2 * clip(5, 6, 8, 3, seed=1)
    whole = match_colour(frames, reference, method)
    assert whole.min() >= 0 and whole.max() <= 1
    monkeypatch.setattr(color, "_CHUNK_PIXELS", 1)
    steps = []
    parts = match_colour(frames, reference, method, progress=lambda done, total: steps.append((done, total)))
    assert torch.allclose(parts, whole, atol=1e-6) and steps == [(i, 5) for i in range(1, 6)]
    assert torch.equal(match_colour(frames, reference, method, strength=0.0), frames)
    one = match_colour(frames, reference[:1], method)  # one reference frame serves all
    assert torch.allclose(one[0], whole[0], atol=1e-6)


@pytest.mark.parametrize("match", FUNCTIONS)
def test_flat_frames_give_no_nan(match):
    assert match(torch.zeros(1, 9, 9, 3), torch.ones(1, 9, 9, 3)).isfinite().all()


@pytest.mark.parametrize(
    ("frames", "reference", "message"),
    [
        (torch.zeros(3, 4, 4, 3), torch.zeros(2, 4, 4, 3), "one for each of the 3 images; got 2"),
        (torch.zeros(3, 4, 4, 3), torch.zeros(3, 4, 4, 4), "equal in channels"),
        (torch.zeros(4, 4, 3), torch.zeros(4, 4, 3), "frames, height, width"),
    ],
)
def test_errors(frames, reference, message):
    with pytest.raises(ValueError, match=message):
        adain(frames, reference)
    with pytest.raises(ValueError, match="must be one of wavelet, adain, lab"):
        match_colour(frames, reference, "magic")
