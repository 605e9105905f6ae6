"""SpyNet: the published keys, sizes, still images."""

import json
from pathlib import Path

import pytest
import torch
from cascadevsr.models.motion.estimation import SpyFlow
from cascadevsr.models.motion.spynet import SpyNet, is_spynet, spynet_state

KEYS = Path(__file__).resolve().parents[4] / "shared" / "keys" / "mgld_vsr_flownet_spynet.json"


def test_keys_and_shapes_are_the_published_ones():
    if not KEYS.is_file():
        pytest.skip(f"the list of published keys is not here: {KEYS}")
    listed = {key: tuple(shape) for key, (shape, *_) in json.loads(KEYS.read_text()).items()}
    ours = {key: tuple(value.shape) for key, value in SpyNet().state_dict().items()}
    assert ours == {key: shape for key, shape in listed.items() if key not in ("mean", "std")}


def test_published_weights_are_recognised():
    state = SpyNet().state_dict()
    published = {**state, "mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}
    assert is_spynet(spynet_state(published)) and spynet_state(published).keys() == state.keys()
    assert is_spynet(spynet_state({f"module.{key}": value for key, value in published.items()}))
    assert not is_spynet({"basic_module.0.basic_module.0.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("size", [(64, 96), (45, 80), (5, 7), (1, 1)])
def test_any_size(size):
    torch.manual_seed(0)
    first, second = torch.rand(2, 2, 3, *size)
    flow = SpyFlow(SpyNet())(first, second)
    assert flow.shape == (2, 2, *size) and flow.isfinite().all()


def test_pairs_of_a_batch_do_not_meet():
    torch.manual_seed(0)
    estimate, (first, second) = SpyFlow(SpyNet()), torch.rand(2, 3, 3, 32, 48)
    assert torch.equal(estimate(first, second)[1:2], estimate(first[1:2], second[1:2]))
