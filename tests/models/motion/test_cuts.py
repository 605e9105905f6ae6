"""Scene cuts: what is one, what is none, at small sizes, on generated frames and on the clips to measure with."""

import pytest
import torch
import torch.nn.functional as F
from cascadevsr.models.motion.flow import scene_cuts
from cascadevsr.tests.models.motion.test_estimation import clip, read_small, texture

LUMA = torch.tensor([0.299, 0.587, 0.114])


def picture(seed=0, height=72, width=96):
    return texture(height, width, seed)[0].movedim(0, -1)


def plain(*colour, height=48, width=64):
    return torch.tensor(colour).expand(height, width, 3)


def noise(seed, strength, height=48, width=64):
    return strength * torch.randn(height, width, 3, generator=torch.Generator().manual_seed(seed))


def tinted(seed, colour):
    """Paint a texture in shades of one colour, at a mean luma of 0.28."""
    shades = picture(seed).mean(-1, keepdim=True) * torch.tensor(colour)
    return shades * (0.28 / (shades @ LUMA).mean())


def grainy(seed, cell, height=48, width=64):
    """Draw grey noise in cells of `cell` px."""
    small = torch.rand(1, 1, height // cell, width // cell, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, (height, width), mode="nearest")[0].movedim(0, -1).expand(-1, -1, 3)


RED, BLUE = (1.0, 0.25, 0.2), (0.25, 0.45, 1.0)
CUTS = {
    "another picture": (picture(0), picture(1)),
    "another picture of the same luma": (picture(0), picture(1) + ((picture(0) - picture(1)) @ LUMA).mean()),
    "red to blue, textured": (tinted(0, RED), tinted(1, BLUE)),
    "red to red, textured": (tinted(0, RED), tinted(1, RED)),
    "the same shades in another hue": (tinted(0, (0.75, 0.5, 0.45)), tinted(0, (0.45, 0.55, 0.75))),
    "plain red to plain blue of the same luma": (plain(0.9, 0.1, 0.05), plain(0.1, 0.41, 0.67)),
    "plain grey to white": (plain(0.5, 0.5, 0.5), plain(1.0, 1.0, 1.0)),
    "to black": (picture(0), torch.zeros(72, 96, 3)),
    "from black": (torch.zeros(72, 96, 3), picture(0)),
    "to a plain frame of the same colour": (picture(0), picture(0).mean((0, 1)).expand(72, 96, 3)),
    "noise to other noise, by px": (grainy(0, 1), grainy(1, 1)),
    "noise to other noise, by 4 px": (grainy(0, 4), grainy(1, 4)),
    "noise to other noise, by 16 px": (grainy(0, 16), grainy(1, 16)),
    "one px to another colour": (plain(0.9, 0.1, 0.05, height=1, width=1), plain(0.1, 0.41, 0.67, height=1, width=1)),
}


@pytest.mark.parametrize("kind", CUTS)
def test_a_new_scene_is_found(kind):
    before, after = CUTS[kind]
    assert scene_cuts(torch.stack((before, before, after, after))) == (2,)


def drawing(place):
    """Draw thin lines on white, one of them moving."""
    frame = torch.ones(48, 64, 3)
    for row in range(3):
        frame[8 + 9 * row : 10 + 9 * row, 5 + place + 4 * row : 30 + place + 4 * row] = 0
    frame[34:44, 50 - place : 52 - place] = torch.tensor((0.8, 0.1, 0.1))
    return frame


def zoomed(by):
    """Enlarge the middle of a picture."""
    rows, columns = round(36 / by), round(48 / by)
    middle = picture(2)[36 - rows : 36 + rows, 48 - columns : 48 + columns]
    return F.interpolate(middle.movedim(-1, 0)[None], (72, 96), mode="bicubic")[0].movedim(0, -1).clamp(0, 1)


def levels(*factors):
    return torch.stack([picture(3) * factor for factor in factors]).clamp(0, 1)


SCENES = {
    "a pan": clip(6, dx=3.0, dy=1.0),
    "a fast pan": clip(5, dx=7.0, dy=0.0),  # a ninth of the width a frame
    "a zoom": torch.stack([zoomed(1.12**i) for i in range(5)]),
    "a flash": levels(0.5, 0.5, 1.0, 0.5),
    "a clipped flash": levels(1.0, 2.0, 1.0),
    "a fade to black in 8 frames": levels(*(1 - i / 8 for i in range(9))),
    "a fade from black in 8 frames": levels(*(i / 8 for i in range(9))),
    "a cross-fade in 8 frames": torch.stack([torch.lerp(picture(0), picture(1), i / 8) for i in range(9)]),
    "a fade of a plain frame": torch.stack([plain(0.6, 0.5, 0.4) * (1 - i / 8) for i in range(9)]),
    "noise over a pan": torch.stack([f + noise(i, 0.1) for i, f in enumerate(clip(4))]).clamp(0, 1),
    "noise on grey": torch.stack([0.5 + noise(i, 0.05) for i in range(4)]),
    "noise in the dark": torch.stack([0.05 * picture(1)[:48, :64] + noise(i, 0.03) for i in range(4)]).clamp(0, 1),
    "black": torch.zeros(4, 40, 60, 3),
    "a drawing": torch.stack([drawing(2 * i) for i in range(5)]),
    "one px": torch.linspace(0, 1, 9).view(9, 1, 1, 1).expand(9, 1, 1, 3),
}


@pytest.mark.parametrize("kind", SCENES)
def test_one_scene_is_not_cut(kind):
    assert scene_cuts(SCENES[kind]) == ()


def test_large_frames_are_compared_on_small_copies():
    large = torch.cat((clip(2, 360, 640), 1 - clip(2, 360, 640).flip(1)))
    assert scene_cuts(large) == (2,)


def test_alpha_is_not_compared():
    frames = torch.cat((clip(4), torch.tensor([0.0, 1, 0, 1]).view(4, 1, 1, 1).expand(4, 48, 64, 1)), -1)
    assert scene_cuts(frames) == ()


def test_it_can_be_cancelled():
    class Stop(BaseException):
        pass

    def check():
        raise Stop

    with pytest.raises(Stop):
        scene_cuts(clip(2), check)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("name", ["bunny", "ref_juggler", "old_movie", "blocks", "flower", "sintel_alley1", "aigc_ox"])
def test_clips_are_not_cut_and_their_joins_are(name, step):
    frames, other = read_small(name, 25)[::step], read_small("edit_reporter", 2)
    assert scene_cuts(torch.cat((other, frames))) == (2,)
    assert scene_cuts(torch.cat((frames, other))) == (len(frames),)
