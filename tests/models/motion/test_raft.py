"""RAFT: published weights under torchvision's names, and frames of any size through RaftFlow."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from cascadevsr.models.motion.estimation import RaftFlow
from cascadevsr.models.motion.raft import build_raft, is_raft, raft_state

MANIFEST = Path(__file__).resolve().parents[4] / "shared" / "keys" / "upscale_a_video_raft.json"


@pytest.fixture(scope="module")
def raft():
    torch.manual_seed(0)
    return build_raft()


def test_the_published_keys_and_shapes_are_torchvisions_under_other_names(raft):
    if not MANIFEST.is_file():
        pytest.skip(f"the list of published keys is not here: {MANIFEST}")
    published = {key: tuple(shape) for key, (shape, _) in json.loads(MANIFEST.read_text()).items()}
    assert all(key.startswith("module.") for key in published)
    entries = {key: tuple(value.shape) for key, value in raft.state_dict().items()}
    assert raft_state(published) == entries
    assert raft_state({key.removeprefix("module."): shape for key, shape in published.items()}) == entries


def test_torchvisions_own_names_pass(raft):
    state = raft.state_dict()
    assert list(raft_state(state)) == list(state) and is_raft(state)
    assert raft_state({f"module.{key}": value for key, value in state.items()}).keys() == state.keys()


def test_other_networks_are_told_apart():
    assert not is_raft({}) and not is_raft(raft_state({"module.fnet.conv1.weight": torch.zeros(32, 3, 7, 7)}))
    small = torch.zeros(32, 3, 7, 7)
    assert not is_raft(raft_state({"feature_encoder.convnormrelu.0.weight": small}))


@pytest.mark.parametrize("size", [(48, 64), (100, 130), (57, 121), (8, 16)])
def test_any_size_gives_finite_flow(raft, size):
    torch.manual_seed(1)
    first, second = torch.rand(2, 1, 3, *size)
    flow = RaftFlow(raft, 2)(first, second)
    assert flow.shape == (1, 2, *size) and flow.isfinite().all() and flow.abs().max() > 0


def test_components_are_scaled_by_their_own_ratio():
    """A network that gives 4 px right and 4 px down must be scaled back by what each side was enlarged by."""

    class Constant(nn.Module):
        def forward(self, image1, image2, num_flow_updates=12):
            assert image1.shape[-2:] == (136, 144) and image1.min() >= -1 and image1.max() <= 1
            return [torch.full((1, 2, *image1.shape[-2:]), value) for value in (9.0, 4.0)]

    flow = RaftFlow(Constant())(torch.rand(1, 3, 130, 141), torch.rand(1, 3, 130, 141))
    assert torch.allclose(flow[:, 0], torch.tensor(4 * 141 / 144))
    assert torch.allclose(flow[:, 1], torch.tensor(4 * 130 / 136))


def test_frames_in_0_to_1_and_the_number_of_updates_reach_the_network():
    seen = []

    class Listening(nn.Module):
        def forward(self, image1, image2, num_flow_updates=12):
            seen.append((float(image1.min()), float(image2.max()), num_flow_updates))
            return [torch.zeros(1, 2, *image1.shape[-2:])]

    first, second = torch.zeros(1, 3, 128, 128), torch.ones(1, 3, 128, 128)
    RaftFlow(Listening())(first, second)
    RaftFlow(Listening(), iterations=10, signed=False)(first, second)
    assert seen == [(-1.0, 1.0, 20), (0.0, 1.0, 10)]


def test_pairs_of_a_batch_do_not_meet(raft):
    torch.manual_seed(2)
    first, second = torch.rand(2, 2, 3, 128, 128)
    estimate = RaftFlow(raft, 2)
    assert torch.equal(estimate(first, second)[:1], estimate(first[:1], second[:1]))
