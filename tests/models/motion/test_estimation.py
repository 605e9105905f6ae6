"""Estimating motion: known flows, composition on latent grids, scene cuts, progress and interruption."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cascadevsr.models.motion.blockflow import BlockFlow
from cascadevsr.models.motion.estimation import (
    DistantFlows,
    FlowNetwork,
    Motion,
    RaftFlow,
    estimate_pairs,
    estimator_of,
)
from cascadevsr.models.motion.flow import chain_pairs, compose, warp

CLIPS = Path(__file__).resolve().parents[4] / "shared" / "clips"


def texture(height, width, seed=0):
    """Draw colour noise with structure of several sizes, (1, 3, h, w) in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        F.interpolate(torch.rand(1, 3, height // n, width // n, generator=generator), (height, width), mode="bicubic")
        for n in (3, 6, 16)
    ]
    return (sum(layers) / 3 * 1.6 - 0.3).clamp(0, 1)


def moving(flow, seed=0):
    """Make two frames of which `first` is `second` seen through the flow (1, 2, h, w)."""
    second = texture(*flow.shape[-2:], seed)
    return warp(second, flow, "bicubic").clamp(0, 1), second


def swirl(height, width, speed):
    """Turn and zoom around the middle: up to `speed` px at the border."""
    rows = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    columns = torch.linspace(-1, 1, width).expand(height, width)
    return speed * torch.stack((0.5 * columns - 0.8 * rows, 0.8 * columns + 0.5 * rows))[None]


def end_point_error(found, flow, border=6):
    return float((found - flow).norm(dim=1)[:, border:-border, border:-border].mean())


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(("size", "speed"), [((48, 64), 0.5), ((48, 64), 3.0), ((90, 120), 8.0)])
def test_smooth_motion_is_found_to_a_tenth_of_a_pixel(size, speed, quick):
    flow = swirl(*size, speed)
    assert end_point_error(BlockFlow(quick)(*moving(flow)), flow) < max(0.1, 0.02 * speed)


def test_a_small_fast_object_is_found():
    """Coarse levels lose it; blocks matched on finer ones find it."""
    background, thing = texture(96, 128), texture(96, 128, seed=1)[..., 40:56, 40:56]
    first, second = background.clone(), background.clone()
    first[..., 30:46, 30:46] = thing
    second[..., 35:51, 39:55] = thing  # 9 px right, 5 px down
    inside = BlockFlow()(first, second)[0, :, 34:42, 34:42].flatten(1).median(1).values
    assert inside[0] == pytest.approx(9, abs=0.3) and inside[1] == pytest.approx(5, abs=0.3)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (5, 4), (13, 7)])
@pytest.mark.parametrize("quick", [False, True])
def test_tiny_frames_work(size, quick):
    torch.manual_seed(0)
    flow = BlockFlow(quick)(*torch.rand(2, 1, 3, *size))
    assert flow.shape == (1, 2, *size) and flow.isfinite().all()


def test_still_and_flat_frames_stand_still():
    still, flat = texture(40, 40), torch.full((1, 3, 40, 40), 0.5)
    for first, second in ((still, still), (flat, flat), (flat, flat + 0.01)):
        for quick in (False, True):
            assert BlockFlow(quick)(first, second).abs().max() < 0.02


def test_pairs_of_a_batch_do_not_meet():
    first, second = (torch.cat((texture(40, 50, a), texture(40, 50, b))) for a, b in ((0, 1), (2, 3)))
    together, alone = BlockFlow()(first, second), BlockFlow()(first[:1], second[:1])
    assert torch.allclose(together[:1], alone, atol=1e-3)


def test_large_frames_are_estimated_on_a_reduced_grid(monkeypatch):
    from cascadevsr.models.motion import blockflow

    flow = swirl(96, 128, 4.0)
    monkeypatch.setattr(blockflow, "_LARGEST", 48 * 64)
    found = BlockFlow()(*moving(flow))
    assert found.shape == flow.shape and end_point_error(found, flow) < 0.3


# Clips


def clip(count=5, height=48, width=64, dx=2.0, dy=-1.0):
    """Move over a large texture by (dx, dy) px a frame: frames (T, H, W, 3); a point moves by (-dx, -dy)."""
    big = texture(height + 80, width + 80)
    shift = torch.zeros(1, 2, height + 80, width + 80)
    frames = []
    for i in range(count):
        shift[:, 0], shift[:, 1] = dx * i, dy * i
        frames.append(warp(big, shift, "bicubic")[0, :, 40:-40, 40:-40])
    return torch.stack(frames).movedim(1, -1).clamp(0, 1)


def test_a_clip_gives_motion_both_ways_with_progress():
    ticks, asked = [], []
    motion = estimate_pairs(
        clip(), BlockFlow(), pairs=1, progress=lambda *t: ticks.append(t), check_cancelled=lambda: asked.append(1)
    )
    assert motion.forward.shape == motion.backward.shape == (4, 2, 48, 64)
    assert (motion.frames, motion.height, motion.width, motion.cuts) == (5, 48, 64, ())
    assert ticks == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)] and len(asked) == 4
    middle = motion.forward[:, :, 12:-12, 12:-12].float().mean((0, 2, 3))
    assert middle[0] == pytest.approx(-2, abs=0.1) and middle[1] == pytest.approx(1, abs=0.1)
    assert torch.allclose(motion.backward[:, :, 12:-12, 12:-12].float().mean((0, 2, 3)), -middle, atol=0.1)


def test_one_frame_has_no_motion():
    motion = estimate_pairs(clip(1), BlockFlow())
    assert motion.forward.shape == (0, 2, 48, 64)
    assert motion.on_grid(1, 6, 8)[0].shape == (1, 2, 0, 6, 8)


def test_interruption_stops_between_pairs():
    class Stop(BaseException):
        pass

    calls = []

    def check():
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    with pytest.raises(Stop):
        estimate_pairs(clip(), BlockFlow(), pairs=1, check_cancelled=check)
    assert len(calls) == 2


@pytest.mark.parametrize("pairs", [2, 3, None])
def test_several_pairs_in_one_batch_are_the_same_bit_for_bit(pairs):
    frames = torch.cat((clip(3), 1 - clip(3).flip(2)))  # with a cut
    ticks, alone = [], estimate_pairs(frames, BlockFlow(), pairs=1)
    together = estimate_pairs(frames, BlockFlow(), pairs=pairs, progress=lambda *t: ticks.append(t))
    assert torch.equal(together.forward, alone.forward) and torch.equal(together.backward, alone.backward)
    assert together.cuts == alone.cuts == (3,)
    assert ticks == [(done, 5) for done in {2: (0, 2, 4, 5), 3: (0, 3, 5), None: (0, 5)}[pairs]]


def constant_motion(frames, dx, dy, height=8, width=16, cuts=()):
    flow = torch.tensor([dx, dy]).view(1, 2, 1, 1).expand(frames - 1, 2, height, width).half()
    return Motion(flow, -flow, cuts, frames, height, width)


def test_flows_on_another_grid_are_in_its_cells():
    there, back = constant_motion(4, 2.0, 1.0).on_grid(4, 16, 8)
    assert there.shape == (1, 2, 3, 16, 8) and there.dtype == torch.float32
    assert torch.allclose(there[0, 0], torch.tensor(1.0)) and torch.allclose(there[0, 1], torch.tensor(2.0))
    assert torch.equal(back, -there)


@pytest.mark.parametrize(("frames", "steps"), [(9, [4, 4]), (7, [4, 2]), (6, [4, 1])])
def test_flows_are_composed_over_the_frames_of_a_latent(frames, steps):
    there, back = constant_motion(frames, 1.0, 0.0).on_grid(3, 8, 16, time=4)
    assert [float(there[0, 0, k].mean()) for k in range(2)] == steps
    assert torch.equal(back, -there)


def test_composition_follows_the_moved_point():
    first, second = swirl(40, 40, 3.0), swirl(40, 40, -2.0)
    image = texture(40, 40)
    twice = warp(warp(image, second), first)
    once = warp(image, compose(first, second))
    assert (once - twice)[..., 6:-6, 6:-6].abs().mean() < 0.03


def test_far_frames_are_reached_better_than_pair_by_pair():
    """Nine frames of a camera that turns and zooms; its pairs are a tenth of a pixel off, all to the same side."""
    ways = [swirl(72, 96, 0.8 * k) for k in range(9)]
    frames = [warp(texture(72, 96), flow, "bicubic").clamp(0, 1) for flow in ways]
    off = torch.tensor([0.1, -0.1]).view(1, 2, 1, 1)
    estimate = BlockFlow(1)
    pairs = {k: (estimate(frames[k], frames[k + 1]) + off, estimate(frames[k + 1], frames[k]) - off) for k in range(8)}
    between, inside = DistantFlows(frames.__getitem__, pairs.__getitem__, estimate.refine, torch.device("cpu")), 12
    for start, stop in ((0, 1), (0, 2), (2, 6), (6, 2), (0, 8), (1, 4)):
        for way in (0, 1):
            first, second = (start, stop)[:: 1 - 2 * way]
            errors = []
            for flows in (between(start, stop), chain_pairs(pairs, start, stop)):
                difference = frames[first] - warp(frames[second], flows[way], "bicubic")
                errors.append(float(difference[..., inside:-inside, inside:-inside].abs().mean()))
            assert errors[0] == errors[1] if abs(stop - start) == 1 else errors[0] < 0.6 * errors[1], (start, stop)


def test_cuts_move_to_the_latent_that_holds_them():
    assert constant_motion(13, 0.0, 0.0, cuts=(4, 5, 12)).latent_cuts(4) == (1, 2, 3)
    assert constant_motion(13, 0.0, 0.0, cuts=(4, 5)).latent_cuts() == (4, 5)


def test_another_number_of_frames_is_refused():
    with pytest.raises(ValueError, match="9 frames, which is 3 latent frames, and a latent with 4"):
        constant_motion(9, 0.0, 0.0).on_grid(4, 8, 8, time=4)


def test_cuts_are_found_and_motion_is_none():
    joined = torch.cat((clip(3), 1 - clip(3, dx=-3.0).flip(1, 2), torch.zeros(2, 48, 64, 3), clip(2)))
    assert estimate_pairs(joined, BlockFlow()).cuts == (3, 6, 8)
    fade = clip(4) * torch.tensor([1.0, 0.8, 0.6, 0.4]).view(-1, 1, 1, 1)
    assert estimate_pairs(fade, BlockFlow()).cuts == ()
    noisy = (clip(4) + 0.1 * torch.randn(4, 48, 64, 3, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert estimate_pairs(noisy, BlockFlow()).cuts == ()


def read_small(name, count, height=48, width=80):
    if not (CLIPS / f"{name}.mp4").is_file():
        pytest.skip(f"the clips to measure with are not here: {CLIPS}")
    av = pytest.importorskip("av")
    with av.open(str(CLIPS / f"{name}.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for _, f in zip(range(count), container.decode(video=0), strict=False)]
    small = [
        F.interpolate(torch.from_numpy(f).movedim(-1, 0)[None].float() / 255, (height, width), mode="area")
        for f in frames
    ]
    return torch.cat(small).movedim(1, -1)


@pytest.mark.parametrize("name", ["bunny", "ref_juggler", "old_movie", "blocks"])
def test_no_cut_within_real_clips_and_one_between_them(name):
    other = read_small("aigc_ox", 2)
    frames = read_small(name, 9)
    assert estimate_pairs(torch.cat((frames, other)), BlockFlow()).cuts == (9,)


# Under the calling convention of torchvision's RAFT


def test_an_estimator_as_a_network_gives_its_flow_and_comes_out_again():
    estimator, network = BlockFlow(), FlowNetwork(BlockFlow())
    first, second = moving(swirl(48, 64, 2.0))
    flows = network(first * 2 - 1, second * 2 - 1, num_flow_updates=20)
    assert len(flows) == 1 and torch.allclose(flows[-1], estimator(first, second), atol=1e-3)
    assert torch.equal(estimator_of(network)(first, second), estimator(first, second))
    assert estimator_of(FlowNetwork(estimator)) is estimator


def test_any_other_network_is_called_as_raft_is():
    assert isinstance(estimator_of(torch.nn.Identity()), RaftFlow)
