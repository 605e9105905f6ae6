"""`run.py bench cascade4k` at toy size: the graph of the 4K template in a watched process."""

import sys
from argparse import Namespace

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_cascade_runs_and_says_what_it_cost(comfyui):
    from cascadevsr.research import cascade4k

    result = cascade4k.cascade4k(Namespace(size="328x184", frames=9), comfyui)
    assert (result["frames"], result["size"]) == (9, "328x184") and result["seconds_per_frame"] > 0
    stages = ("cascade_input", "refine", "decode")
    assert all(result[f"{stage}_peak_mb_without_result"] >= 0 for stage in stages)
    assert result["bar_mb_one_chunk"] == round(16 * 12 * 328 * 184 / 2**20)
