"""Detail from the original of an edited clip: its frames are found, its pixels return, nothing else changes."""

import pytest
import torch
import torch.nn.functional as F
from cascadevsr.models.motion.blockflow import BlockFlow
from cascadevsr.models.original import add_original, match_frames, resolution

from .test_steady import LOW, clip, texture

FLOW = BlockFlow()


def images(frames):
    return torch.cat(frames).movedim(1, -1)


@pytest.fixture(scope="module")
def edited():
    """Give (LR of the edit, the edit, the original): the right half of every frame shows something else."""
    _, _, original = clip(12, step=2.25)
    edit = [frame.clone() for frame in original]
    for frame in edit:
        frame[..., 88:] = texture(120, 88, seed=7)
    return [F.interpolate(frame, LOW, mode="bicubic", antialias=True).clamp(0, 1) for frame in edit], edit, original


@pytest.mark.parametrize(
    ("take", "numbers"),
    [
        (slice(None), list(range(12))),
        (slice(4, None), [0, 0, 0, 0, *range(8)]),
        (slice(0, 9), [*range(9), 8, 8, 8]),
        (slice(None, None, 2), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
    ],
)
def test_its_frames_are_found(edited, take, numbers):
    lr, _, original = edited
    matches = match_frames(images(lr), images(original[take]))
    found, away = ([match[part] for match in matches] for part in (0, 1))
    if take.step is None:
        assert found == numbers
        assert [k for k in away if k] == {4: [4, 3, 2, 1], None: [], 0: [1, 2, 3]}[take.start]
    else:  # the frames between have a neighbour on both sides
        assert found[::2] == numbers[::2] and all(abs(a - b) <= 1 for a, b in zip(found, numbers, strict=True))


def test_a_clip_at_half_the_rate_takes_every_second_frame(edited):
    lr, _, original = edited
    assert match_frames(images(lr[::2]), images(original)) == [(number, 0) for number in (0, 2, 4, 6, 8, 10)]


def test_a_frame_of_another_moment_is_trusted_less(edited):
    lr, _, original = edited
    start = F.interpolate(lr[5], (120, 176), mode="bicubic").clamp(0, 1)
    (_, now), (_, later) = (add_original(start, lr[5], original[5], FLOW, True, away=away) for away in (0.0, 4.0))
    assert float(now.mean()) > 0.3 and torch.allclose(later, now / 2)


@pytest.mark.parametrize("size", [(120, 176), (180, 264), (96, 140)])
def test_what_was_kept_returns_and_the_edit_stays(edited, size):
    lr, edit, original = edited
    picture = F.interpolate(original[5], size, mode="bicubic", antialias=True).clamp(0, 1)
    start = F.interpolate(lr[5], (120, 176), mode="bicubic").clamp(0, 1)
    result, trust = add_original(start, lr[5], picture, FLOW, clean=True)
    assert trust.shape == (1, 1, *LOW)

    def error(x, columns):
        return float((x - edit[5])[..., 8:-8, columns].square().mean())

    assert error(result, slice(8, 80)) < 0.3 * error(start, slice(8, 80))
    assert error(result, slice(96, 168)) < 1.02 * error(start, slice(96, 168))
    assert trust[..., 2:20].mean() > 0.6 and trust[..., 24:].mean() < 0.05


def test_a_compressed_lr_gets_the_low_band_too(edited):
    lr, edit, original = edited
    wrong = (lr[5] + 0.01).clamp(0, 1)
    start = F.interpolate(wrong, (120, 176), mode="bicubic").clamp(0, 1)
    errors = [
        float((add_original(start, wrong, original[5], FLOW, clean)[0] - edit[5])[..., 8:-8, 8:80].square().mean())
        for clean in (True, False)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_a_noisy_lr_is_not_what_is_compared(edited):
    """The upscaled frame has lost the noise, so trust is nearly that of the clean LR."""
    lr, _, original = edited
    noisy = (lr[5] + 0.04 * torch.randn(lr[5].shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    restored = F.interpolate(lr[5], (120, 176), mode="bicubic").clamp(0, 1)
    kept, other = slice(2, 20), slice(24, None)
    clean, worn, raw = (
        add_original(restored, frame, original[5], FLOW, how)[1]
        for frame, how in ((lr[5], True), (noisy, False), (noisy, True))
    )
    assert worn[..., kept].mean() > 0.9 * clean[..., kept].mean() > 1.3 * raw[..., kept].mean()
    assert worn[..., other].mean() < 0.05


@pytest.mark.parametrize("clean", [True, False])
def test_another_clip_changes_nothing(edited, clean):
    lr, _, _ = edited
    start = F.interpolate(lr[5], (120, 176), mode="bicubic").clamp(0, 1)
    result, trust = add_original(start, lr[5], texture(120, 176, seed=21), FLOW, clean)
    assert trust.mean() < 0.02 and float((result - start).square().mean()) < 1e-5


@pytest.mark.parametrize("size", [(30, 44), (120, 120)])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(ValueError, match="the original must have the shape of the LR frames and be larger"):
        match_frames(torch.zeros(3, *LOW, 3), torch.zeros(3, *size, 3))


def test_an_original_that_was_enlarged_keeps_the_upscalers_finest_structure(edited):
    lr, _, original = edited
    sharp = (original[5] + 0.05 * torch.randn(original[5].shape, generator=torch.Generator().manual_seed(4))).clamp(
        0, 1
    )
    soft = F.interpolate(sharp, (60, 88), mode="bicubic", antialias=True)
    soft = F.interpolate(soft, (120, 176), mode="bicubic")
    assert resolution(sharp) == 1 and resolution(soft) < 0.8
    errors = [
        float((add_original(sharp, lr[5], soft, FLOW, True, share)[0] - sharp)[..., 8:80].square().mean())
        for share in (1.0, resolution(soft))
    ]
    assert errors[1] < 0.8 * errors[0]
