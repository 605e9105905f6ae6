"""The benchmarks that need no host, at toy size."""

from argparse import Namespace
from fractions import Fraction

import numpy as np
import pytest
from cascadevsr.runner import bench, quality
from cascadevsr.runner.encode import write_video
from cascadevsr.runner.errors import RunnerError
from PIL import Image


def test_builtin_measures_the_shipped_networks():
    result = bench._builtin(5, (64, 48), "cpu")
    assert (result["frames"], result["size"], result["network_calls"]) == (5, "64x48", 1)
    assert result["seconds_per_frame"] > 0


def clips(folder):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((80, 64))
    truth = np.stack([np.asarray(coarse)[8:56, 8 + i : 72 + i] for i in range(3)])
    low = np.stack([np.asarray(Image.fromarray(frame).resize((16, 12), Image.BICUBIC)) for frame in truth])
    for name, frames in (("a.mp4", truth), ("a_bicubic.mp4", low)):
        write_video(folder / name, frames, Fraction(24), codec="h264-rgb")
    return Namespace(clips=folder, lr=folder, modes=["bicubic", "real"], only=None, exclude=[], settings=[])


def test_quality_gives_bicubic_no_gain_over_itself(tmp_path, monkeypatch):
    pytest.importorskip("cv2", reason="OpenCV's flow measures the warping error")

    def bicubic(small, rate, size, options, host):
        return np.stack([quality._bicubic(frame, size) for frame in small])

    monkeypatch.setattr(quality, "upscaled", bicubic)
    result = quality.run(clips(tmp_path), None)
    assert list(result["clips"]) == ["bicubic"] and list(result["clips"]["bicubic"]) == ["a"]
    means = result["means"]["bicubic"]
    assert means["gain"] == means["ssim_gain"] == means["neighbours"] == 0
    assert means["over_ibp"] < 0 < means["bicubic"]
    assert means["warp_ratio"] == means["bicubic_warp_ratio"]


def test_quality_says_what_is_missing(tmp_path):
    options = clips(tmp_path)
    with pytest.raises(RunnerError, match="--clips"):
        quality.run(Namespace(**{**vars(options), "clips": None}), None)
    with pytest.raises(RunnerError, match="no clip"):
        quality.run(Namespace(**{**vars(options), "modes": ["none"]}), None)
