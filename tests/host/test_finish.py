"""Colour Match, Degrade Video and Compare & Measure as nodes."""

import pytest
import torch


@pytest.mark.parametrize("method", ["wavelet", "adain", "lab"])
def test_colour_match_takes_the_colours_and_keeps_inputs(core, noise, method):
    from cascadevsr.nodes.colour import ColourMatch

    images, reference = noise(10, 32, 40) * 0.3, noise(10, 8, 10) * 0.2 + 0.6
    kept = images.clone()
    full, none, half = (ColourMatch.execute(images, reference, method, s).args[0] for s in (1.0, 0.0, 0.5))
    assert full.shape == images.shape and torch.equal(images, kept)
    assert (full.mean((0, 1, 2)) - reference.mean((0, 1, 2))).abs().max() < 0.03
    assert torch.allclose(none, images, atol=1e-6)
    assert torch.allclose(half, (full + images) / 2, atol=0.02)
    still = ColourMatch.execute(images, reference[:1], method, 1.0).args[0]
    assert still.shape == images.shape


@pytest.mark.parametrize("preset", ["bicubic", "real", "generated", "old film"])
def test_degrade_video_is_small_and_repeatable(core, noise, preset):
    from cascadevsr.nodes.degrade import DegradeVideo

    images = noise(3, 64, 96)
    first, again, other = (DegradeVideo.execute(images, preset, 4, seed).args[0] for seed in (1, 1, 2))
    assert first.shape == (3, 16, 24, 3) and torch.equal(first, again)
    assert torch.equal(first, other) == (preset == "bicubic")


def test_compare_and_measure_knows_the_better_clip(core, noise):
    from cascadevsr.nodes.measure import CompareMeasure

    truth = torch.nn.functional.interpolate(noise(6, 12, 16).movedim(-1, 1), (48, 64), mode="bicubic").clamp(0, 1)
    truth = truth.movedim(1, -1)
    close = (truth + 0.02 * (noise(6, 48, 64, seed=1) - 0.5)).clamp(0, 1)
    table, plot, picture = CompareMeasure.execute(close, truth, truth[:, ::4, ::4]).args
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line[:6] in ("result", "bicubi")}
    assert float(rows["result"][0]) > 38 and float(rows["result"][0]) > float(rows["bicubic"][0])
    assert plot.shape[-1] == 3 and plot.shape[0] == 1
    assert picture.shape == (1, 48 + 22, 4 * 64, 3)
    assert picture.min() >= 0 and picture.max() <= 1


def test_compare_and_measure_takes_a_single_frame(core, noise):
    from cascadevsr.nodes.measure import CompareMeasure

    output = CompareMeasure.execute(noise(1, 16, 16), noise(1, 16, 16))
    assert "nan" in output.args[0] and output.ui.as_dict()["text"]


def test_compare_and_measure_tells_flicker_and_drift_without_a_truth(core, noise):
    from cascadevsr.nodes.measure import CompareMeasure

    low = noise(1, 16, 24).expand(6, -1, -1, -1).contiguous() * 0.5 + 0.2
    still = low.repeat_interleave(4, 1).repeat_interleave(4, 2)
    flickering = (still + 0.1 * (torch.arange(6) % 2).view(-1, 1, 1, 1)).clamp(0, 1)
    drifting = (still + 0.02 * torch.arange(6).view(-1, 1, 1, 1)).clamp(0, 1)
    found = {}
    for name, clip in (("still", still), ("flickering", flickering), ("drifting", drifting)):
        table, plot, picture = CompareMeasure.execute(clip, lr_frames=low).args
        (row,) = (line.split() for line in table.splitlines() if line.startswith("result"))
        found[name] = dict(zip(("detail", "as LR", "flicker", "warping", "drift"), map(float, row[1:]), strict=True))
        assert picture.shape == (1, 64 + 22, 3 * 96, 3) and plot.shape[0] == 1
    assert found["still"]["flicker"] == 0 and found["flickering"]["flicker"] > 15
    assert found["flickering"]["warping"] > 10 * max(found["still"]["warping"], 0.1)
    assert found["still"]["drift"] < 0.1 and found["drifting"]["drift"] > 20
    assert found["still"]["detail"] > 1.2 and found["still"]["as LR"] > found["flickering"]["as LR"]
