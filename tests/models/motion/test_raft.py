"""RAFT: the published keys, refused sizes, and frames of any size through RaftFlow."""

import json
from pathlib import Path

import pytest
import torch
from cascadevsr.models.motion.estimation import RaftFlow
from cascadevsr.models.motion.raft import RAFT, is_raft

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
