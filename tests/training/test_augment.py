"""Augmentation of references, noise on the LR latent, dropout: ranges, seeds, what stays as it was."""

import numpy as np
import pytest
import torch
from cascadevsr.training.augment import (
    NO_AUGMENTATION,
    Augmentation,
    Dropout,
    augment_image,
    cut_out,
    move,
    noise_latent,
    relight,
    shift_start,
)
from cascadevsr.training.clips import make_clip
from cascadevsr.training.photos import procedural_photo


@pytest.fixture(scope="module")
def picture():
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, (48, 48), mode="bicubic").clamp(0, 1)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_nothing_drawn_changes_nothing(picture):
    assert torch.allclose(augment_image(picture, rng(), NO_AUGMENTATION), picture, atol=1e-5)


def test_images_change_by_seed_within_range(picture):
    first, again, other = (augment_image(picture, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == picture.shape and first.min() >= 0 and first.max() <= 1
    assert (first - picture).abs().mean() > 0.02


def test_each_part_does_what_it_says(picture):
    mirrored = move(picture, np.diag([-1.0, 1.0, 1.0]))
    assert torch.allclose(mirrored, picture.flip(-1), atol=1e-4)
    grey = torch.full((1, 3, 8, 8), 0.5)
    only = {**NO_AUGMENTATION.__dict__}
    assert torch.allclose(relight(grey, rng(), Augmentation(**{**only, "contrast": 0.5})), grey, atol=1e-6)
    assert torch.allclose(relight(grey, rng(), Augmentation(**{**only, "saturation": 0.5})), grey, atol=1e-6)
    lit = relight(grey, rng(), Augmentation(**{**only, "light": 0.5}))
    assert lit.std() < 1e-6 and abs(float(lit.mean()) - 0.5) > 0.01
    warm = relight(grey, rng(), Augmentation(**{**only, "warmth": 0.2})).mean((0, 2, 3))
    assert abs(float(warm[0] + warm[2]) - 1) < 1e-5 and warm[1] == pytest.approx(0.5)


def test_all_frames_of_a_video_move_alike(picture):
    moved = augment_image(picture.expand(3, -1, -1, -1), rng(4))
    assert torch.allclose(moved[0], moved[2], atol=1e-5)


def test_cut_outs_hold_the_thing_and_a_plain_ground(picture):
    mask = torch.zeros(1, 1, 48, 48)
    mask[..., 10:22, 16:34] = 1
    cut = cut_out(picture, mask, 32, rng(3), margin=0.0)
    assert cut.shape == (1, 3, 32, 32)
    corners = cut[..., [0, -1], :]
    assert torch.allclose(corners, corners[..., :1, :1].expand_as(corners), atol=1e-6)
    inside = torch.nn.functional.interpolate(picture[..., 10:22, 16:34], (21, 32), mode="bilinear")
    assert (cut[..., 6:27, 2:-2] - inside[..., 2:-2]).abs().mean() < 0.05
    assert cut_out(picture, torch.zeros_like(mask), 32, rng()) is None


def test_clips_tell_where_their_layers_are():
    drawn = rng(0)
    photos = [procedural_photo(drawn, 220) for _ in range(2)]
    clip = make_clip(drawn, photos, 3, 64, layers=2)
    changed = (clip.frames - clip.plain).abs().amax(1, keepdim=True) > 0.05
    assert clip.layer.shape == (3, 1, 64, 64) and clip.layer.sum() > 0
    assert (changed & (clip.layer == 0)).float().mean() < 0.02  # the soft edge alone
    assert make_clip(drawn, photos, 3, 64, layers=0).layer.sum() == 0


def test_reference_videos_start_anywhere_up_to_the_most():
    frames = torch.arange(9.0).view(9, 1, 1, 1)
    starts = {int(shift_start(frames, 5, 6, rng(seed))[0]) for seed in range(60)}
    assert starts == set(range(7))
    for seed in range(20):
        taken = shift_start(frames, 5, 6, rng(seed)).flatten()
        assert taken.tolist() == [min(8, taken[0] + i) for i in range(5)]


def test_lr_latents_are_noised_evenly_to_the_paper_s_levels():
    lr = torch.full((2000, 1, 1, 4, 4), 3.0)
    noised, level = noise_latent(lr, rng())
    assert 0.2 <= level.min() < 0.21 and 0.59 < level.max() <= 0.6 and level.mean() == pytest.approx(0.4, abs=0.01)
    share = level.view(-1, 1, 1, 1, 1)
    drawn = (noised - (1 - share) * 3) / share
    assert drawn.mean().abs() < 0.02 and drawn.std() == pytest.approx(1, abs=0.02)


def test_text_and_references_are_dropped_apart():
    drawn = rng()
    flags = [Dropout(0.1, 0.3).draw(drawn) for _ in range(8000)]
    share = [sum(flag) / 8000 for flag in zip(*flags, strict=True)]
    assert share == [pytest.approx(0.1, abs=0.012), pytest.approx(0.3, abs=0.02)]
    assert sum(a and b for a, b in flags) / 8000 == pytest.approx(0.03, abs=0.01)
    assert not any(any(Dropout(0, 0).draw(drawn)) for _ in range(50))
