"""MGLD-VSR without a host: segments, tiles, sizes, and whole runs of stand-in networks."""

import pytest
import torch
from cascadevsr.models.mgld_vsr.published import published_segments
from cascadevsr.models.motion.guidance import Flows
from cascadevsr.tests.published import mgld_vsr as oracle


class FirstStage:
    """Encodes to the mean of 8x8 blocks, without doubt."""

    def encode(self, clip):
        grey = clip.mean(1, keepdim=True).expand(-1, 4, -1, -1, -1)
        mean = torch.nn.functional.avg_pool3d(grey, (1, 8, 8))
        return mean, torch.full_like(mean, -30.0)


class Decoder:
    """Repeats cells; features are the frames themselves."""

    def features(self, clip):
        return [clip]

    def decode(self, z, features, weight):
        clip = z[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2)
        return clip if features is None else torch.lerp(clip, features[0], weight)


def networks(seen=None):
    def unet(x, time, maps, text):
        if seen is not None:
            seen.append((tuple(x.shape[2:]), int(time)))
        return 0.1 * x + 0.01 * maps[0]

    return oracle.Networks(unet, lambda lr, time: [lr], torch.zeros(1, 77, 8), FirstStage(), Decoder())


def test_segments_repeat_the_last_frame():
    assert published_segments(5) == [[0, 1, 2, 3, 4]]
    assert published_segments(7) == [[0, 1, 2, 3, 4], [5, 6, 6, 6, 6]]
    assert published_segments(1) == [[0] * 5]


def test_pixel_tiles_start_on_whole_cells():
    """At every size, so that flows are cut exactly where pictures are."""
    for height, width in ((512, 960), (720, 1280), (736, 1312), (2176, 3840), (3200, 4704)):
        tiles = oracle.pixel_tiles(height, width)
        assert all(side % 8 == 0 for tile in tiles for side in (tile.top, tile.left, tile.height, tile.width))
        assert max(tile.top + tile.height for tile in tiles) == height
        assert max(tile.left + tile.width for tile in tiles) == width


def test_the_noise_of_a_tiled_prediction_is_that_of_the_whole_where_cells_do_not_meet():
    seen = []
    nets = networks(seen)
    x, lr = torch.randn(2, 1, 4, 2, 12, 20, generator=torch.Generator().manual_seed(0))
    whole = oracle.predict_noise(nets, x, lr, 7, tile=None)
    tiled = oracle.predict_noise(nets, x, lr, 7, tile=8, overlap=4)
    assert torch.allclose(tiled, whole, atol=1e-6)
    assert seen == [((2, 12, 20), 7)] + [((2, 8, 8), 7)] * 8


@pytest.mark.parametrize(
    ("size", "large", "padded"),
    [
        ((180, 320), (720, 1280), (736, 1312)),
        ((128, 128), (512, 512), (512, 512)),
        ((100, 141), (512, 721), (544, 736)),
    ],
)
def test_sizes(size, large, padded):
    clip = oracle.enlarge(torch.zeros(1, 3, 1, *size))
    assert clip.shape[-2:] == large and oracle.pad(clip).shape[-2:] == padded


def test_one_frame_has_no_flows():
    flows = oracle.estimate_flows(torch.zeros(1, 3, 1, 64, 96), None)
    assert flows.forward.shape == (1, 2, 0, 8, 12) and flows.forward_seen.shape == (1, 1, 0, 8, 12)


def test_steps_begin_at_the_noised_lr_latent_and_are_seen():
    lr, noise = torch.randn(2, 1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    seen, states = [], []
    fresh = [torch.zeros_like(lr)] * 3
    result = oracle.sample(
        networks(seen), lr, noise, fresh, steps=3, tile=None, on_step=lambda step, x: states.append((step, x))
    )
    assert [time for _, time in seen] == [999, 500, 0]
    assert [step for step, _ in states] == [0, 1, 2] and torch.equal(states[-1][1], result)


def test_guidance_moves_the_last_sample_most():
    lr, noise = torch.randn(2, 1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    still = torch.zeros(1, 2, 4, 8, 8)
    fresh = [torch.zeros_like(lr)] * 3
    plain, guided = (
        oracle.sample(networks(), lr, noise, fresh, steps=3, tile=None, flows=flows)
        for flows in (None, Flows(still, still))
    )
    moved = (guided - plain).abs().max()
    assert 1.0 < moved < 10.0  # 460 / (4 * 8 * 8) for each of at most four terms, and more


@pytest.mark.parametrize(("frames", "size"), [(1, (40, 48)), (7, (128, 130))])
def test_whole_runs_give_the_asked_size_and_every_frame(monkeypatch, frames, size):
    monkeypatch.setattr(oracle, "SHORTEST", 128)
    clip = torch.rand(1, 3, frames, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = oracle.restore(
        networks(),
        clip,
        estimator=lambda first, second: torch.zeros_like(first[:, :2]),
        upscale=2.0,
        steps=2,
        pixel_tile=192,
        pixel_stride=160,
        tile=None,
        colour="wavelet",
        lr_weight=0.5,
    )
    assert result.shape == (1, 3, frames, 2 * size[0], 2 * size[1]) and result.isfinite().all()
    assert result.abs().max() <= 1


def test_noise_is_the_same_for_every_tile():
    first, second = (oracle.draw_noise((1, 4, 5, 8, 8), 3) for _ in range(2))
    assert torch.equal(first.start, second.start) and len(first.steps) == 3
    assert not torch.equal(first.start, first.posterior)


def test_bytes_are_cut_off():
    clip = torch.tensor([-2.0, -1.0, 2 * 1.9 / 255 - 1, 1.0, 2.0]).view(1, 1, 1, 1, 5).expand(1, 3, 1, 1, 5)
    assert oracle.to_bytes(clip)[0, 0, :, 0].tolist() == [0, 0, 1, 255, 255]
