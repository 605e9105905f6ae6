"""The benchmarks of speed: their counts by hand, at small size."""

import sys
from argparse import Namespace

import pytest
import torch
from cascadevsr.research import distance, macs, memory_law, motion


def options(**values):
    return Namespace(**{"frames": None, "size": None, "device": "cpu", "settings": []} | values)


def test_motion_in_batches_is_that_of_single_pairs():
    result = motion.motion(options(frames=4, size="192x128"), None)
    assert result["frames"] == "4 of 48x32" and result["largest_difference_px"] == 0
    assert result["pairs_at_once"] == (1 << 16) // (48 * 32)
    assert result["seconds_a_pair"] > 0 and 0 < result["noise_seconds_a_frame_4_channels"] < 1


def test_live_bytes_are_those_at_once():
    x = torch.empty(1000, device="meta")  # 4,000 bytes, not counted: an input

    def work():
        y = x + 1
        z = y.view(10, 100).t() * 2  # a view is no memory
        del y
        return z + 1

    assert memory_law.peak_bytes(work) == 8000
    layer = torch.nn.Linear(1000, 10, device="meta")
    assert memory_law.peak_bytes(lambda: layer(x)) == 40, "weights are not counted, nor what is turned of them"


@pytest.mark.parametrize("bench", [macs.macs, memory_law.memory_law, distance.distance])
def test_a_process_that_fails_is_an_error(bench, monkeypatch, comfyui):
    from cascadevsr.runner.errors import RunnerError

    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RunnerError, match="(counting|measuring) process ended with 1"):
        bench(options(), comfyui)


def test_a_seam_is_what_changes_more_at_joints():
    whole = torch.arange(12.0).view(1, 1, 12, 1, 1)  # changes by 1 everywhere
    jumps = whole + 0.5 * (torch.arange(12) >= 4).view(1, 1, 12, 1, 1)
    assert distance.seam(whole, whole, [4, 8]) == 1
    assert distance.seam(jumps, whole, [4]) == pytest.approx(1.5) and distance.seam(jumps, whole, [4, 8]) == 1.25
    run = distance.Run(None, (), 1.0, "euler", 1, (17, 4), 4)
    assert run.joints(17, alone=False) == [[4, 8, 12], [2, 6, 10, 14]] and run.joints(17, alone=True) == [[5, 10]]


def test_operations_through_the_graph_keep_the_bars(comfyui):
    """No setting computes more than the published program; the fastest at most 0.40 and 0.30 of it."""
    result = macs.macs(options(frames=100), comfyui)
    for system, most in (("upscale_a_video", 0.40), ("mgld_vsr", 0.30)):
        row = result[system]
        assert row["reference"] <= row["published"] and row["default"] <= row["published"]
        assert row["fastest"] <= most * row["published"] and row["fastest_share"] <= most
    # 6,222 GMAC a guided step and frame, 30 steps, 17 windows of 8 for 100 frames
    assert result["upscale_a_video"]["published"] == pytest.approx(2 * 6.222 * 30 * 1.36, rel=0.05)


def test_memory_laws_lie_above_what_is_counted(comfyui):
    result = memory_law.memory_law(options(), comfyui)
    for system in ("upscale_a_video", "mgld_vsr"):
        shares = [row["law_over_counted"] for row in result[system]["checked"].values()]
        assert len(shares) == 4 and min(shares) > 1 and max(shares) < 2
        fits = result[system]["fits"]
        assert list(fits) == ["8 GB", "12 GB", "16 GB", "24 GB"]
        sides = [int(row["tile_px"].split("x")[0]) for row in fits.values()]
        assert sides == sorted(sides)
