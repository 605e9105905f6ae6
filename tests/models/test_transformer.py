"""Layers that several systems share."""

import math

import torch
from cascadevsr.models.schedules import timestep_features


def test_timestep_features():
    features = timestep_features(torch.tensor([0.0, 7.0]), 8)
    assert torch.equal(features[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    angles = [7.0 / 10000 ** (i / 4) for i in range(4)]
    expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    assert torch.allclose(features[1], torch.tensor(expected), atol=1e-6)
    swapped = timestep_features(torch.tensor([0.0, 7.0]), 8, sines_first=True)
    assert torch.equal(swapped, torch.cat((features[:, 4:], features[:, :4]), 1))


def test_timestep_features_are_those_the_built_in_model_was_trained_with():
    """Bit for bit, for values in 0..1 that are counted in thousandths."""
    t = torch.rand(50, generator=torch.Generator().manual_seed(0))
    angle = t.view(-1, 1) * 1000 * torch.exp(-math.log(1e4) * torch.arange(64) / 64)
    trained = torch.cat((angle.sin(), angle.cos()), 1)
    assert torch.equal(timestep_features(t * 1000, 128, sines_first=True), trained)
