"""The script for a GPU, tried without one: what its rows put into the graphs, and its page."""

import pytest
from cascadevsr.research import gpu
from cascadevsr.runner.errors import RunnerError
from cascadevsr.runner.job import Outcome
from numpy import zeros

COMPILED = gpu.Setting("reference", "bf16", True, True, 4)


@pytest.mark.parametrize("key", gpu.SYSTEMS)
def test_a_row_sets_the_graph(key):
    system = gpu.SYSTEMS[key]
    workflow = gpu.prepared(system, COMPILED, 8, 4)
    prompt = workflow.prompt
    (loader,), (compiled,) = workflow.of_type("VSRLoadVideoRestorer"), workflow.of_type("TorchCompileModel")
    assert prompt[loader]["inputs"]["precision"] == "bf16" and prompt[loader]["inputs"]["preset"] == "reference"
    assert prompt[compiled]["inputs"]["model"] == [loader, 0]
    others = [name for node, name in workflow.consumers(loader) if prompt[node]["inputs"][name][1] == 0]
    assert others == ["model"], "nothing but the compiled model takes the model"
    (tiles,), (sigmas,) = workflow.of_type("VSRSpatialTiles"), workflow.of_type("VSRRefineSigmas")
    assert prompt[tiles]["inputs"]["tiling"] == "off" and prompt[sigmas]["inputs"]["steps"] == 4


def test_sampling_is_scaled_to_the_published_steps():
    stages = {"Sample": 4.0, "Estimate Motion": 1.0, "Temporal Decode": 2.0}
    outcome = Outcome(zeros((8, 4, 4, 3)), 8.0, None, 4, "cuda", 2**31, stages)
    found = gpu.costs(outcome, gpu.SYSTEMS["upscale_a_video"], gpu.SETTINGS[0], 4, 8, {"peak_tflops": 989.0})
    assert found["seconds_per_frame"] == pytest.approx((4 * 30 / 4 + 3) / 8, abs=1e-3)  # motion is told apart
    assert found["motion_seconds_per_frame"] == 0.125 and found["memory_gb"] == 2.0
    assert found["share_of_peak"] == pytest.approx(538 / 4.125 / 989, abs=0.01)


def test_the_table_says_not_measured_without_a_gpu(tmp_path):
    rows = [{"system": "mgld_vsr", **gpu.describe(COMPILED), "frames": 8, "seconds_per_frame": 1.0}]
    text = gpu.table(rows, {}, (64, 64), True)
    assert "1.0" not in text and text.count("not measured") == 5
    page = tmp_path / "speed.md"
    page.write_text(gpu.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    gpu.write_page(text, page)
    written = page.read_text(encoding="utf-8")
    assert text in written and written.startswith("# Speed") and all(mark in written for mark in gpu.MARKS)
    page.write_text("# Speed\n", encoding="utf-8")
    with pytest.raises(RunnerError, match="must have the marks"):
        gpu.write_page(text, page)
