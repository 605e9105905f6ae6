"""The restorer at tiny size: any scale, any number of neighbours, what an untrained one gives."""

import math

import pytest
import torch
import torch.nn.functional as F
from cascadevsr.models.layout.sizes import resize_clip, sampled
from cascadevsr.models.unimmvsr.restorer import Restorer, Restorers, _halving, _Other, int8_works
from torch.func import functional_call


@pytest.fixture
def restorer():
    torch.manual_seed(0)
    return Restorer(8, 1, 2).eval().requires_grad_(False)


def frame(seed=0, height=18, width=26):
    small = torch.rand(1, 3, height // 3, width // 3, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)


def still(like):
    """No motion; such a neighbour counts where the frames are worn (wear 1)."""
    return torch.zeros(1, 2, *like.shape[-2:])


@pytest.mark.parametrize("size", [(72, 104), (36, 52), (144, 208), (18, 26), (45, 65), (57, 83), (73, 101)])
def test_any_scale_and_size(restorer, size):
    low = frame()
    for neighbours in ([], [(frame(1), still(low), still(low))]):
        restored, features = restorer(low, neighbours, *size, wear=1.0)
        assert restored.shape == (1, 3, *size) and restored.isfinite().all()
        assert features.shape == (1, 8, -(-size[0] // 4), -(-size[1] // 4))


def test_what_adds_nothing_gives_bicubic(restorer):
    for step in restorer.steps:
        torch.nn.init.zeros_(step.out.weight), torch.nn.init.zeros_(step.out.bias)
    low = frame()
    restored = restorer(low, [(frame(1), still(low), still(low))], 60, 90, wear=1.0)[0]
    torch.testing.assert_close(restored, resize_clip(low.unsqueeze(2), 60, 90)[:, :, 0])


def test_missing_pixels_count_as_if_repeated(restorer):
    """Residuals of half as many pixels a side give what their pixels, each repeated over four, would give."""
    step, rng = restorer.steps[0], torch.Generator().manual_seed(5)
    estimate, _, _, *others = (torch.rand(1, channels, 9, 13, generator=rng) for channels in step.parts)
    missing = torch.rand(2, 3, 18, 26, generator=rng)
    few = F.pixel_unshuffle(missing, 2)
    many = F.pixel_unshuffle(missing.repeat_interleave(2, 2).repeat_interleave(2, 3), 4)
    results = (step([estimate, *blocks.split(1), *others]) for blocks in (few, many))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_mean_colour_stays(restorer):
    for step in restorer.steps:
        torch.nn.init.constant_(step.out.bias, 0.3)
    low = frame()
    restored, bicubic = restorer(low, [], 60, 90)[0], resize_clip(low.unsqueeze(2), 60, 90)[:, :, 0]
    assert not torch.allclose(restored, bicubic, atol=1e-4)
    torch.testing.assert_close(restored.mean((2, 3)), bicubic.mean((2, 3)))


def test_a_neighbour_of_another_scene_changes_nothing(restorer):
    low, other = frame(), 1 - frame()
    alone = restorer(low, [], 72, 104)[0]
    torch.testing.assert_close(
        restorer(low, [(other, still(low), still(low))], 72, 104, 1.0)[0], alone, rtol=0, atol=3e-3
    )  # where 1 - y is y they are alike
    lost = torch.full_like(still(low), 3.0)  # the way back does not return
    torch.testing.assert_close(restorer(low, [(low, lost, lost)], 72, 104, 1.0)[0], alone, rtol=0, atol=1e-6)


def test_neighbours_count_alike_whatever_their_order(restorer):
    low = frame()
    others = [(frame(0) + 0.01 * k, still(low), still(low)) for k in (1, 2, 3)]
    torch.testing.assert_close(
        restorer(low, others, 72, 104, 1.0)[0], restorer(low, others[::-1], 72, 104, 1.0)[0], rtol=0, atol=1e-5
    )


def test_brightness_of_the_whole_makes_no_difference(restorer):
    low = frame() * 0.5
    a, b = (restorer(low + shift, [], 72, 104)[0] for shift in (0.0, 0.3))
    torch.testing.assert_close(a + 0.3, b, rtol=0, atol=1e-5)


def test_pictures_of_a_batch_do_not_meet(restorer):
    low = torch.cat((frame(0), frame(4)))
    both = restorer(
        low, [(low.flip(0), still(low).expand(2, -1, -1, -1), still(low).expand(2, -1, -1, -1))], 72, 104, 1.0
    )
    for number in range(2):
        one = low[number : number + 1]
        other = (low.flip(0)[number : number + 1], still(low), still(low))
        torch.testing.assert_close(both[0][number], restorer(one, [other], 72, 104, 1.0)[0][0], rtol=0, atol=1e-5)


def between(both, wear, *what, dtype=None):
    """Restore with the weights for frames that are worn so."""
    weights, int8 = both.between(wear, dtype)
    return functional_call(both.clean, weights, (*what, wear, int8))


def test_weights_lie_between_those_for_clean_and_for_worn_frames():
    torch.manual_seed(0)
    both, low = Restorers(8, 1, 2).eval().requires_grad_(False), frame()
    ends = [network(low, [], 72, 104)[0] for network in (both.clean, both.worn)]
    assert not torch.equal(*ends)
    for wear, end in ((0.0, ends[0]), (1.0, ends[1])):
        torch.testing.assert_close(between(both, wear, low, [], 72, 104)[0], end)
    halfway = between(both, 0.5, low, [], 72, 104)[0]
    for clean, worn in zip(both.clean.parameters(), both.worn.parameters(), strict=True):
        clean.add_(worn).mul_(0.5)
    torch.testing.assert_close(both.clean(low, [], 72, 104)[0], halfway)


@pytest.mark.skipif(not int8_works(), reason="this CPU has no instructions for 8-bit products")
@pytest.mark.parametrize("size", [(72, 104), (36, 52), (45, 65), (18, 26)])
def test_in_8_bits_the_result_is_nearly_the_same(size):
    torch.manual_seed(0)
    both, low = Restorers(16, 2, 3).eval().requires_grad_(False), frame()
    around = [(frame(number), *(torch.randn(2, 1, 2, 18, 26) / 3)) for number in (1, 2)]
    exact, bytes_, bf16 = (
        between(both, 0.3, low, around, *size, dtype=dtype) for dtype in (None, torch.int8, torch.bfloat16)
    )
    plain = reduced(low, *size)
    for mine, of_bf16, right in zip(bytes_, bf16, exact, strict=True):
        assert mine.shape == right.shape and mine.dtype == torch.float32
        error, other = ((found.float() - right).square().mean() for found in (mine, of_bf16))
        assert 0 < error < 10 * other, "of the order of what bf16 costs"
    assert (bytes_[0] - exact[0]).abs().max() < 0.03 * (exact[0] - plain).abs().max()
    torch.testing.assert_close(between(both, 0.3, low, around, *size, dtype=torch.int8)[0], bytes_[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, *([torch.int8] if int8_works() else [])])
def test_whoever_watches_the_steps_sees_each(dtype):
    """The bar of a run follows them."""
    both, seen = Restorers(8, 1, 2).eval().requires_grad_(False), []
    for step in both.clean.steps:
        step.register_forward_hook(lambda *_: seen.append(1))
    between(both, 0.5, frame(), [], 36, 52, dtype=dtype)
    assert len(seen) == 2


def test_the_judge_looks_at_the_frames_around():
    torch.manual_seed(0)
    both = Restorers(8, 1, 2).eval().requires_grad_(False)
    verdicts = [both.judge(frame(seed)) for seed in range(3)]
    wear = both.wear_of([3 * verdict for verdict in verdicts])
    assert wear == pytest.approx(float((3 * torch.cat(verdicts)).mean().sigmoid()), abs=1 / 128)
    assert wear * 64 == int(wear * 64), "the last bits of a verdict depend on the number of threads"
    brighter = both.judge(frame(0) * 0.5 + 0.4), both.judge(frame(0) * 0.5)
    torch.testing.assert_close(*brighter, msg="brightness of the whole says nothing of wear")


# How an estimate would look in a neighbour


def reduced(x, *size):
    return F.interpolate(x, size, mode="bicubic", antialias=True)


@pytest.mark.parametrize("size", [(72, 104), (18, 26), (18, 104), (45, 65), (57, 200), (144, 208), (9, 2), (1, 1)])
def test_without_motion_a_neighbour_sees_the_estimate_reduced(size):
    low = frame()
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2))
    halves = sampled(x, _halving(18, size[0], x.device), _halving(26, size[1], x.device))
    assert halves.shape == (1, 3, 37, 53)
    torch.testing.assert_close(halves[..., 1::2, 1::2], reduced(x, 18, 26), rtol=0, atol=1e-5)
    missing = _Other(low, reduced(x, 18, 26), still(low), still(low), size, 0.0).missing(halves)
    assert missing.abs().max() < 1e-4, "it shows what the estimate says"


@pytest.mark.parametrize("scale", [2.0, 2.5, 4.0])
@pytest.mark.parametrize("shift", [0.5, 0.25, -1.25])
def test_a_neighbour_sees_the_estimate_moved(scale, shift):
    """A picture known everywhere, reduced where it is and where it has moved to."""
    sides = 32, 40
    large = tuple(round(scale * side) for side in sides)

    def picture(moved):
        y, x = (((torch.arange(side) + 0.5) / scale + moved) for side in large)
        wave = 0.5 + 0.2 * torch.sin(2 * math.pi * 0.35 * x) + 0.2 * torch.cos(2 * math.pi * 0.25 * y[:, None])
        return wave.expand(1, 3, *large)

    back = torch.full((1, 2, *sides), -shift)  # the neighbour shows at a pixel what is `shift` before it here
    low, other = reduced(picture(0.0), *sides), reduced(picture(-shift), *sides)
    inside = (..., slice(8, -8), slice(8, -8))
    neighbour = _Other(low, other, -back, back, large, 0.0)
    neighbour.mode = "bicubic"  # softer samples at low scales are what the weights want, not what is right
    bands = [_halving(*pair, low.device) for pair in zip(sides, large, strict=True)]
    missing = neighbour.missing(sampled(picture(0.0), *bands))
    assert (low - other)[inside].abs().max() > 0.1
    assert missing[inside].abs().max() < 0.01


def test_what_a_neighbour_saw_near_counts_most():
    """Moved by half an LR pixel, its pixels lie on every second place of the finer grid, and off the others."""
    low = frame()
    half = torch.full_like(still(low), 0.25)
    weight = _Other(low, low, half, -half, (72, 104), 0.0).weight[0, 0, 6:-6, 6:-6]
    on, off = weight[1::2, 1::2].mean(), weight[::2, ::2].mean()
    assert max(on, off) > 2 * min(on, off)
    assert _Other(low, low, still(low), still(low), (72, 104), 1.0).weight.mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("moved", [0.0, 1.0, -2.0])
def test_a_clean_neighbour_sampled_at_the_same_places_does_not_count(moved):
    low = frame()
    whole, half = (torch.full_like(still(low), shift) for shift in (moved, moved + 0.5))
    inside = (..., slice(5, -5), slice(5, -5))

    def trust(flow, wear):
        other = low.roll((round(moved),) * 2, (2, 3))
        return float(_Other(low, other, flow, -flow, (72, 104), wear).trust[inside].mean())

    assert trust(whole, 0.0) == pytest.approx(0.0, abs=0.01)
    assert trust(whole, 1.0) == pytest.approx(1.0, abs=0.01), "the noise of a worn one is another"
    assert trust(half, 0.0) == pytest.approx(trust(half, 1.0), abs=0.01), "it was sampled between the pixels"
