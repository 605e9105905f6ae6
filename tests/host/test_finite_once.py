"""Every tensor is looked through for NaN once, however many nodes it passes, and none is missed."""

import pytest
import torch


@pytest.fixture
def scans(monkeypatch):
    """What was scanned for NaN: (storage, first element, number of elements), storages kept alive."""
    seen, kept, original = [], [], torch.aminmax

    def aminmax(tensor):
        kept.append(tensor.untyped_storage())
        seen.append((tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.numel()))
        return original(tensor)

    monkeypatch.setattr(torch, "aminmax", aminmax)
    return seen


def test_a_clip_is_scanned_once_on_its_way(core, model, vae, noise, scans):
    """Frames go into three nodes, the result into three others."""
    from cascadevsr.nodes.colour import ColourMatch
    from cascadevsr.nodes.conditioning import VSRConditioning
    from cascadevsr.nodes.frames import CascadeInput, TemporalDecode
    from cascadevsr.nodes.measure import CompareMeasure
    from cascadevsr.nodes.sampling import AddressedNoise, RefineSigmas

    frames = noise(9, 12, 16)
    target = {"target": "scale", "scale": 4.0}
    latent, low, *_ = CascadeInput.execute(vae, target, "bilinear", frames=frames).args
    positive, negative, samples = VSRConditioning.execute(latent, 0.0, 1).args
    guider = core.custom.CFGGuider.execute(model, positive, negative, 1.0).args[0]
    sigmas = RefineSigmas.execute(model, 1.0, 1, 1.0).args[0]
    euler = core.custom.KSamplerSelect.execute("euler").args[0]
    sampled = core.custom.SamplerCustomAdvanced.execute(AddressedNoise(1), guider, euler, sigmas, samples).args[0]
    result = TemporalDecode.execute(sampled, vae, 1.0, 16, 0, lr_frames=low).args[0]
    matched = ColourMatch.execute(result, low, "wavelet", 1.0).args[0]
    CompareMeasure.execute(matched, result, lr_frames=low)
    assert len(set(scans)) == len(scans), "a tensor was scanned twice"
    storages = [storage for storage, *_ in scans]
    assert frames.untyped_storage().data_ptr() in storages, "what comes from outside is looked at"
    assert result.untyped_storage().data_ptr() not in storages, "its pieces were"


def test_what_changed_hands_is_scanned_again(vae, noise):
    """A copy is another tensor; a tensor that died leaves no mark behind."""
    from cascadevsr.nodes.host import services

    frames = services.check_frames("T", "frames", noise(2, 4, 4))
    broken = frames.clone()
    broken[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in frame 1"):
        services.check_frames("T", "frames", broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_no_number_is_found_and_large_ones_are_numbers(noise, value):
    from cascadevsr.nodes.host import services

    for dtype in (torch.float32, torch.float16):
        limits = torch.finfo(dtype)
        samples = torch.zeros(1, 4, 3, 5, 7, dtype=dtype)
        samples[0, 0, 0, 0, 0], samples[0, 3, 2, 4, 6] = limits.max, limits.min
        assert services.check_finite("T", "samples", samples) is samples
        broken = samples.clone()
        broken[0, 2, 1, 3, 5] = value
        with pytest.raises(ValueError, match="T: samples must be finite numbers; got NaN or infinity"):
            services.check_finite("T", "samples", broken)
