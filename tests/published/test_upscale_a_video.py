"""The published plans and the published run, with stand-ins for the networks: what each of them is shown."""

from types import SimpleNamespace

import pytest
import torch
from cascadevsr.models.upscale_a_video import published
from cascadevsr.tests.published import upscale_a_video as oracle
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 70))
def test_windows_cover_and_their_weights_sum_to_one(frames):
    windows, weights = published.published_windows(frames), published.published_window_weights(frames)
    assert weights.shape == (len(windows), frames) and torch.equal(weights.sum(0), torch.ones(frames))
    for (start, stop), row in zip(windows, weights, strict=True):
        assert 0 <= start < stop <= frames and stop - start == min(frames, 8)
        assert (row[start:stop] > 0).all() and row[:start].sum() == row[stop:].sum() == 0


@given(st.integers(1, 70))
def test_the_weights_are_those_of_blending_one_window_after_another(frames):
    """As the published loop does it: half of what is there, half of the new one, where frames are covered."""
    windows = published.published_windows(frames)
    values = torch.randn(len(windows), frames, generator=torch.Generator().manual_seed(frames))
    blended, covered = torch.zeros(frames), torch.zeros(frames, dtype=torch.bool)
    for value, (start, stop) in zip(values, windows, strict=True):
        old, new = blended[start:stop], value[start:stop]
        blended[start:stop] = torch.where(covered[start:stop], 0.5 * old + 0.5 * new, new)
        covered[start:stop] = True
    weighted = (published.published_window_weights(frames) * values).sum(0)
    assert torch.allclose(weighted, blended, atol=1e-6)


@given(st.integers(1, 900), st.integers(1, 900), st.sampled_from([128, 256, 320]))
def test_tile_cores_cover_the_frame_once(height, width, tile):
    seen = torch.zeros(height, width, dtype=torch.uint8)
    for each in oracle.published_tiles(height, width, tile):
        source, core = each.source, each.core
        seen[core.region] += 1
        assert source.top <= core.top and source.left <= core.left
        assert source.top + source.height >= core.top + core.height
        assert source.left + source.width >= core.left + core.width
        assert source.height <= tile + 2 * oracle.CONTEXT and source.width <= tile + 2 * oracle.CONTEXT
    assert (seen == 1).all()


@given(st.integers(2, 60), st.sampled_from([320, 640, 641, 720, 721, 1280, 1281, 3840]))
def test_flow_chunks_hold_every_pair_once(frames, width):
    pairs = [i for start, stop in oracle.flow_chunks(frames, width) for i in range(start, stop - 1)]
    assert pairs == list(range(frames - 1))


@given(st.integers(1, 40), st.integers(1, 6))
def test_decode_chunks_hold_every_frame_once(frames, chunk):
    spans = oracle.decode_chunks(frames, chunk)
    assert [i for span in spans for i in range(*span)] == list(range(frames))


def test_noise_level_zero_is_almost_nothing_and_half_precision_is_off():
    lr, noise = torch.zeros(1, 3, 2, 4, 4), torch.ones(1, 3, 2, 4, 4)
    strength = {level: float(oracle.add_lr_noise(lr, noise, level).max()) for level in (0, 20, 120, 350)}
    assert 0 < strength[0] < 0.011 < strength[20] < strength[120] < strength[350] < 1
    half = oracle.add_lr_noise(lr.half(), noise.half(), 20, published.SCHEDULE.alphas_cumprod().half())
    assert half.dtype == torch.float16 and half.max() == pytest.approx(strength[20], rel=0.05)
    for level in (-1, 351, 20.5):
        with pytest.raises(ValueError, match=f"noise level .* got {level}"):
            oracle.add_lr_noise(lr, noise, level)


class Oracle:
    """A network that knows the clean latents, and keeps what it was shown."""

    def __init__(self, clean, guidance_gap=0.0):
        self.clean, self.gap, self.calls = clean, guidance_gap, []
        self.alphas = published.SCHEDULE.alphas_cumprod()

    def __call__(self, x, t, low_res, text, labels):
        self.calls.append((tuple(x.shape), t, text[:, 0, 0].tolist(), labels.tolist()))
        start = int(low_res[0, 0, 0, 0, 0])  # the first LR pixel numbers the frame
        alpha = self.alphas[t]
        target = self.clean[:, :, start : start + x.shape[2]] + self.gap * text[:, :1, :1].view(-1, 1, 1, 1, 1)
        noise = (x - alpha**0.5 * target) / (1 - alpha) ** 0.5
        return alpha**0.5 * noise - (1 - alpha) ** 0.5 * target


def scene(frames):
    """Clean latents, initial noise, LR frames that number themselves, and texts marked 1 and 0."""
    generator = torch.Generator().manual_seed(frames)
    clean, latents = torch.randn(2, 1, 4, frames, 4, 4, generator=generator)
    lr = torch.arange(frames).float().view(1, 1, frames, 1, 1).expand(1, 3, frames, 4, 4)
    return clean, latents, lr, torch.ones(1, 3, 2), torch.zeros(1, 3, 2)


@pytest.mark.parametrize("frames", [1, 5, 8, 9, 13, 20])
def test_a_perfect_network_leads_to_its_clip_through_windows(frames):
    clean, latents, lr, text, negative = scene(frames)
    unet = Oracle(clean)
    out = oracle.denoise(unet, latents, lr, text, negative, steps=4)
    # The last step ends at the noise level of time 0, not at none.
    assert torch.allclose(out, clean, atol=0.05)
    windows = len(set(published.published_windows(frames)))
    assert len(unet.calls) == 4 * windows and {call[1] for call in unet.calls} == {751, 501, 251, 1}
    assert unet.calls[0] == ((2, 4, min(frames, 8), 4, 4), 751, [0.0, 1.0], [120, 120])


def test_guidance_goes_beyond_the_text_and_one_means_none():
    clean, latents, lr, text, negative = scene(3)
    options = {"steps": 3, "level": 7}
    unet = Oracle(clean, guidance_gap=0.5)
    guided = oracle.denoise(unet, latents, lr, text, negative, guidance=4, **options)
    assert torch.allclose(guided, clean + 4 * 0.5, atol=0.1)
    unet.calls.clear()
    plain = oracle.denoise(unet, latents, lr, text, negative, guidance=1, **options)
    assert torch.allclose(plain, clean + 0.5, atol=0.1)
    assert {(call[0][0], *call[2], *call[3]) for call in unet.calls} == {(1, 1.0, 7)}


def test_propagation_edits_the_clean_estimate_at_the_chosen_steps(monkeypatch):
    clean, latents, lr, text, negative = scene(10)
    seen = []

    def edit(x, *flows):
        seen.append((tuple(x.shape), flows))
        return x + 1

    monkeypatch.setattr(oracle, "propagate", edit)
    flows = torch.zeros(2, 1, 2, 9, 4, 4)
    options = {"steps": 4, "flows": tuple(flows)}
    out = oracle.denoise(Oracle(clean), latents, lr, text, negative, propagation_steps=(1, 3), **options)
    assert [shape for shape, _ in seen] == [(1, 4, 10, 4, 4)] * 2  # the whole clip, not a window
    assert torch.equal(seen[0][1][0], flows[0]) and torch.allclose(out, clean + 1, atol=0.1)
    # An earlier edit is in the picture, not in the noise estimate, so a network that knows better undoes it.
    early = oracle.denoise(Oracle(clean), latents, lr, text, negative, propagation_steps=(1,), **options)
    assert torch.allclose(early, clean, atol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"propagation_steps": (1, 4)}, "from 0 to 3; got 4"),
        ({"propagation_steps": (3,), "flows": None}, "got none"),
        ({"level": 351}, "got 351"),
        ({"steps": 0, "propagation_steps": ()}, "got 0"),
    ],
)
def test_errors(changes, message):
    clean, latents, lr, text, negative = scene(3)
    options = {"steps": 4, "flows": tuple(torch.zeros(2, 1, 2, 2, 4, 4))} | changes
    with pytest.raises(ValueError, match=message):
        oracle.denoise(Oracle(clean), latents, lr, text, negative, **options)


def test_one_frame_has_nothing_to_propagate():
    clean, latents, lr, text, negative = scene(1)
    out = oracle.denoise(Oracle(clean), latents, lr, text, negative, steps=2, propagation_steps=(1,))
    assert torch.allclose(out, clean, atol=0.05)


class Enlarger(torch.nn.Module):
    """A decoder that repeats cells, and keeps what it was shown."""

    config = SimpleNamespace(scaling_factor=0.5)

    def __init__(self):
        super().__init__()
        self.calls = []

    def decode(self, z, lr, lr_weight):
        assert z.dtype == lr.dtype == torch.float32
        self.calls.append((z.shape[2], lr[0, 0, :, 0, 0].tolist(), lr_weight))
        return z[:, :3].repeat_interleave(4, -1).repeat_interleave(4, -2)


@pytest.mark.parametrize("frames", [2, 3, 7])
def test_decode_goes_in_chunks_of_three_with_their_lr_frames(frames):
    vae, (clean, _, lr, *_) = Enlarger(), scene(frames)
    clip = oracle.decode(vae, clean.half(), lr.half(), lr_weight=0.25)
    expected = (clean.half().float()[:, :3] / 0.5).clamp(-1, 1)
    assert clip.shape == (1, 3, frames, 16, 16) and torch.equal(clip[..., ::4, ::4], expected)
    spans = oracle.decode_chunks(frames)
    assert vae.calls == [(stop - start, [*map(float, range(start, stop))], 0.25) for start, stop in spans]


def test_restore_noises_what_the_network_sees_and_not_what_the_decoder_sees():
    clean, latents, lr, text, negative = scene(4)
    unet, vae, shown = Oracle(clean), Enlarger(), []

    def watched(x, t, low_res, *rest):
        shown.append(low_res)
        return unet(x, t, lr.expand(2, -1, -1, -1, -1), *rest)

    noise, ticks, checks = torch.randn(1, 3, 4, 4, 4), [], []
    clip = oracle.restore(
        watched, vae, lr, text, negative, latents=latents, lr_noise=noise, level=200, steps=3,
        progress=lambda *tick: ticks.append(tick), check_cancelled=lambda: checks.append(1),
    )  # fmt: skip
    assert torch.allclose(shown[0][:1], oracle.add_lr_noise(lr, noise, 200))
    assert [call[1] for call in vae.calls] == [[0.0, 1.0, 2.0], [3.0]]
    assert torch.allclose(clip[..., ::4, ::4], (clean[:, :3] / 0.5).clamp(-1, 1), atol=0.1)
    assert ticks == [(1, 3), (2, 3), (3, 3)] and len(checks) == 3 + 2
