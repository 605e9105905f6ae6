"""SDEdit as numbers: schedules, the forward process, the way back, sizes."""

import numpy as np
import pytest
import torch
from cascadevsr.models.unimmvsr.sdedit import SDEdit, denoise_again, sdedit


def test_steps_are_drawn_evenly_from_both_ends():
    schedule = SDEdit(2, 5, 10)
    rng = np.random.default_rng(0)
    drawn = [schedule.draw(rng) for _ in range(4000)]
    shares = [drawn.count(k) / 4000 for k in range(2, 6)]
    assert set(drawn) == {2, 3, 4, 5} and max(abs(share - 0.25) for share in shares) < 0.03


def test_sigmas_are_the_end_of_the_whole_schedule():
    whole = SDEdit(0, 10, 10).sigmas(10)
    assert whole.tolist() == pytest.approx([1 - i / 10 for i in range(11)])
    for shift in (1.0, 8.0):
        whole = SDEdit(0, 10, 10, shift).sigmas(10)
        for k in range(11):
            assert torch.allclose(SDEdit(0, 10, 10, shift).sigmas(k), whole[10 - k :], atol=1e-6)
    assert SDEdit(0, 10, 10, 8.0).start(3) == pytest.approx(8 * 0.3 / (1 + 7 * 0.3))
    for wrong in ((3, 2, 10), (-1, 2, 10), (0, 11, 10)):
        with pytest.raises(ValueError, match="0 <= lowest <= highest <= steps"):
            SDEdit(*wrong)


def test_a_perfect_base_gives_the_clip_back_and_a_wrong_one_drifts_with_the_steps():
    latent, noise = torch.randn(2, 1, 4, 3, 6, 6)
    schedule, other = SDEdit(0, 20, 20), torch.zeros_like(latent)
    seen = []

    def perfect(z, sigma, clean):
        seen.append((z.clone(), sigma))
        return clean

    assert torch.allclose(denoise_again(latent, noise, schedule.sigmas(8), perfect), latent, atol=1e-6)
    assert len(seen) == 8
    for z, sigma in seen:  # with the right answer the path is the forward process itself
        assert torch.allclose(z, (1 - sigma) * latent + sigma * noise, atol=1e-5)

    def halfway(z, sigma, clean):
        return (1 - sigma) * clean + sigma * other

    ends = [denoise_again(latent, noise, schedule.sigmas(k), halfway) for k in (0, 2, 6, 14)]
    drift = [float((end - latent).square().mean()) for end in ends]
    assert drift[0] == 0 and drift == sorted(drift)


def test_sizes_come_out_exactly_and_pads_are_cut_off():
    clip = torch.rand(2, 3, 6, 40, 52)
    padded = []

    def encode(clip):
        padded.append(tuple(clip.shape))
        return clip

    made = sdedit(
        clip,
        18,
        23,
        torch.zeros(1),
        encode=encode,
        decode=lambda z: z,
        predict=None,
        noise=torch.zeros_like,
        time=4,
    )
    assert padded == [(2, 3, 9, 24, 24)] and made.shape == (2, 3, 6, 18, 23)
