"""Photographs give their detail to frames that show the same: found at any size and turn, followed, else nothing."""

import cmath
import math

import pytest
import torch
import torch.nn.functional as F
from cascadevsr.models.motion.blockflow import BlockFlow
from cascadevsr.models.pictures import add_pictures
from cascadevsr.models.places import Picture, find_places, search

from .test_steady import texture

HIGH, LOW, SCALE = (176, 256), (44, 64), 4.0
MIDDLE, SIDE = (300.0, 220.0), 150  # of the scene: what pictures show, and how much of it, in px of a frame
STEP = 4.0  # px of a frame that everything moves to the left from frame to frame
FLOW = BlockFlow()


@pytest.fixture(scope="module")
def scene():
    return texture(440, 600, seed=3)


def seen(scene, middle, size, finer=1.0, degrees=0.0):
    """Look at a part of a scene: `size` px around a point of it, `finer` px to one of its own, turned."""
    rows, columns = torch.meshgrid(*(torch.arange(side) - (side - 1) / 2 for side in size), indexing="ij")
    turn = cmath.rect(1 / finer, math.radians(degrees))
    x, y = turn.real * columns - turn.imag * rows + middle[0], turn.imag * columns + turn.real * rows + middle[1]
    grid = torch.stack(((2 * x + 1) / scene.shape[-1] - 1, (2 * y + 1) / scene.shape[-2] - 1), -1)[None]
    return F.grid_sample(scene, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)


def reduced(frame):
    return F.interpolate(frame, LOW, mode="bicubic", antialias=True).clamp(0, 1)


def enlarged(lr):
    return F.interpolate(lr, HIGH, mode="bicubic").clamp(0, 1)


def photograph(scene, finer=1.0, degrees=0.0):
    return Picture(seen(scene, MIDDLE, (round(SIDE * finer),) * 2, finer, degrees))


def given(scene, picture, number=0, clean=True, room=None):
    """Add a picture to a frame; give (result, trust, start, truth, its places)."""
    truth = seen(scene, (MIDDLE[0] - 20 + STEP * number, MIDDLE[1]), HIGH)
    lr = reduced(truth)
    places = find_places(lambda _: lr, None, 1, [picture], SCALE)[0]
    result, trust, shares = add_pictures(enlarged(lr), lr, places, [picture], FLOW, clean, room)
    assert abs(sum(shares) - float(trust.mean())) < 1e-5
    return result, trust, enlarged(lr), truth, places


def gain(result, start, truth):
    """Give dB in the middle of what the pictures show."""
    part = (..., slice(58, 118), slice(118, 178))
    return 10 * math.log10(float((start - truth)[part].square().mean() / (result - truth)[part].square().mean()))


@pytest.mark.parametrize(("finer", "degrees"), [(1.0, 0.0), (0.7, -15.0), (1.4, 15.0), (2.5, 40.0)])
def test_place_size_and_turn_are_found(scene, finer, degrees):
    *_, (place,) = given(scene, photograph(scene, finer, degrees))
    turn = place.turn / SCALE
    assert abs(turn) == pytest.approx(finer, rel=0.01)
    assert math.degrees(cmath.phase(turn)) == pytest.approx(-degrees, abs=0.5)


def test_pictures_of_other_sizes_and_turns_give_what_a_fitting_one_gives(scene):
    gains = []
    for finer, degrees in ((1.0, 0.0), (1.4, 15.0), (0.9, -15.0)):
        result, _, start, truth, _ = given(scene, photograph(scene, finer, degrees))
        gains.append(gain(result, start, truth))
    assert gains[0] > 6 and min(gains) > 0.7 * gains[0]


def test_only_what_the_picture_shows_changes(scene):
    result, trust, start, truth, _ = given(scene, photograph(scene, 0.9, 8.0))
    assert torch.equal(result[..., :40], start[..., :40]) and torch.equal(result[..., -24:], start[..., -24:])
    assert trust[..., :10].max() == 0 and trust[..., 16:28, 32:42].mean() > 0.5


@pytest.mark.parametrize("clean", [True, False])
def test_a_picture_of_something_else_changes_nothing(scene, clean):
    result, trust, start, _, places = given(scene, photograph(texture(440, 600, seed=8)), clean=clean)
    assert places == [] and trust.max() == 0 and torch.equal(result, start)


def test_a_brighter_picture_with_less_contrast_gives_as_much(scene):
    plain = photograph(scene)
    other = Picture(0.8 * plain.pixels + 0.15)
    gains = [gain(result, start, truth) for result, _, start, truth, _ in (given(scene, p) for p in (plain, other))]
    assert gains[1] > 0.8 * gains[0]


def test_there_is_no_room_where_something_better_was_taken(scene):
    result, trust, start, _, places = given(scene, photograph(scene), room=torch.zeros(1, 1, *LOW))
    assert places and trust.max() == 0 and torch.allclose(result, start)


def test_a_picture_is_followed_between_frames_that_are_searched_and_stops_at_a_cut(scene, monkeypatch):
    """Searched in frame 3 alone; the frames from 5 on show another scene."""
    other = texture(440, 600, seed=8)
    frames = [reduced(seen(scene if i < 5 else other, (MIDDLE[0] - 20 + STEP * i, MIDDLE[1]), HIGH)) for i in range(7)]
    flow = torch.zeros(1, 2, *LOW)
    flow[:, 0] = -STEP / SCALE
    asked, picture = [], photograph(scene)

    def once(lr, pictures, scale):
        asked.append(len(asked))
        return search(lr, pictures, scale) if lr is frames[4] else []

    monkeypatch.setattr("cascadevsr.models.places.search", once)
    found = find_places(lambda i: frames[i], lambda i: (flow, -flow), 7, [picture], SCALE, cuts=(5,))
    assert [len(places) for places in found] == [1] * 5 + [0] * 2 and len(asked) == 4
    shifts = [places[0].shift.real / SCALE for places in found[:5]]
    assert all(b - a == pytest.approx(STEP / SCALE, abs=0.1) for a, b in zip(shifts, shifts[1:], strict=False))


def test_progress_rises_to_the_end(scene):
    lr, steps = reduced(seen(scene, MIDDLE, HIGH)), []
    flow = torch.zeros(1, 2, *LOW)
    find_places(
        lambda _: lr, lambda _: (flow, flow), 3, [], SCALE, (2,), lambda done, total: steps.append((done, total))
    )
    assert steps == sorted(steps) and steps[0] == (0, 6) and steps[-1][0] < 6
