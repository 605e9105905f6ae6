"""RAFT: the published keys, refused sizes, and frames of any size through RaftFlow."""

import json
from pathlib import Path

import pytest
import torch
from cascadevsr.models.motion.estimation import RaftFlow
from cascadevsr.models.motion.raft import RAFT, is_raft, raft_state

MANIFEST = Path(__file__).resolve().parents[4] / "shared" / "keys" / "upscale_a_video_raft.json"


@pytest.fixture(scope="module")
def raft():
    torch.manual_seed(0)
    return RAFT().eval()


def test_keys_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        state = RAFT().state_dict()
    assert is_raft(state) and not is_raft({})
    parameters = sum(value.numel() for value in dict(RAFT().named_parameters()).values())
    assert parameters == 5_257_536
    if not MANIFEST.is_file():
        pytest.skip(f"the list of published keys is not here: {MANIFEST}")
    published = {
        key.removeprefix("module."): (shape, dtype)
        for key, (shape, dtype) in json.loads(MANIFEST.read_text()).items()
    }
    ours = {key: (list(value.shape), str(value.dtype).split(".")[1]) for key, value in state.items()}
    assert ours == published


@pytest.mark.parametrize("size", [(120, 128), (128, 124), (64, 64)])
def test_unfit_sizes_are_refused(raft, size):
    image = torch.zeros(1, 3, *size)
    with pytest.raises(ValueError, match="RAFT: .*RaftFlow"):
        raft(image, image, 1)


@pytest.mark.parametrize("size", [(48, 64), (100, 130), (57, 121), (8, 16)])
def test_any_size_gives_finite_flow(raft, size):
    torch.manual_seed(1)
    first, second = torch.rand(2, 1, 3, *size)
    with torch.no_grad():
        flow = RaftFlow(raft, 2)(first, second)
    assert flow.shape == (1, 2, *size) and flow.isfinite().all() and flow.abs().max() > 0


def test_components_are_scaled_by_their_own_ratio():
    """A network that says 4 px right and 4 px down must be scaled back by what each side was enlarged by."""

    class Constant(RAFT):
        def forward(self, image1, image2, iterations=20):
            assert image1.shape[-2:] == (136, 144) and image1.min() >= -1 and image1.max() <= 1
            return torch.full((1, 2, *image1.shape[-2:]), 4.0)

    flow = RaftFlow(Constant())(torch.rand(1, 3, 130, 141), torch.rand(1, 3, 130, 141))
    assert torch.allclose(flow[:, 0], torch.tensor(4 * 141 / 144))
    assert torch.allclose(flow[:, 1], torch.tensor(4 * 130 / 136))


def test_pairs_of_a_batch_do_not_meet(raft):
    torch.manual_seed(2)
    first, second = torch.rand(2, 2, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        together = raft(first, second, 2)
        alone = raft(first[:1], second[:1], 2)
    assert torch.allclose(together[:1], alone, atol=1e-4)


def test_published_and_torchvision_weights_are_understood(raft):
    state = raft.state_dict()
    published = {f"module.{key}": value for key, value in state.items()}
    assert raft_state(published).keys() == state.keys() and is_raft(raft_state(published))
    assert not is_raft(raft_state({"module.fnet.conv1.weight": torch.zeros(32, 3, 7, 7)}))
    flow_models = pytest.importorskip("torchvision.models.optical_flow")
    torch.manual_seed(3)
    other = flow_models.raft_large(weights=None).eval()
    mine = RAFT().eval()
    mine.load_state_dict(raft_state(other.state_dict()))
    first, second = torch.rand(2, 1, 3, 128, 136) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(mine(first, second, 3), other(first, second, num_flow_updates=3)[-1], atol=1e-3)
