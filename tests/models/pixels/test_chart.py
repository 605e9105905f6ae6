"""Curves: what is drawn where, and in which colour."""

import numpy as np
from cascadevsr.models.pixels.chart import COLOURS, INK, PAPER, draw_curves


def rows_of(image, colour):
    """Give the rows of pixels of exactly this colour left of the names."""
    pixels = np.asarray(image)[:, : image.width - 200]
    return np.flatnonzero((pixels == colour).all(-1).any(1))


def test_curves_have_their_own_colours_and_heights():
    series = {"low": [(0, 1.0), (10, 1.0)], "high": [(0, 2.0), (10, 2.0)]}
    image = draw_curves(series, "two", label="frame", colours={"high": (200, 0, 0)}, size=(640, 320))
    assert image.size == (640, 320)
    low, high = rows_of(image, COLOURS[0]), rows_of(image, (200, 0, 0))
    assert len(low) and len(high) and high.max() < low.min()
    assert len(rows_of(image, INK)), "ticks and title"


def test_the_axis_begins_at_the_lowest_value_asked_for():
    image = draw_curves({"half": [(0, 1.0), (1, 1.0)], "top": [(0, 2.0), (1, 2.0)]}, lowest=0.0)
    half, top = rows_of(image, COLOURS[0]).mean(), rows_of(image, COLOURS[1]).mean()
    bottom = 540 - 58
    assert abs((bottom - half) - (bottom - top) / 2) < 2, "linear from 0"


def test_wide_ranges_are_logarithmic():
    image = draw_curves({"1": [(0, 1.0), (1, 1.0)], "10": [(0, 10.0), (1, 10.0)], "100": [(0, 100.0), (1, 100.0)]})
    one, ten, hundred = (rows_of(image, colour).mean() for colour in COLOURS[:3])
    assert abs((one - ten) - (ten - hundred)) < 2


def test_single_points_are_lines_and_nothing_is_no_error():
    image = draw_curves({"one": [(1, 2.0)], "bad": [(1, float("nan"))], "none": []}, "flat")
    assert len(rows_of(image, COLOURS[0])) and not len(rows_of(image, COLOURS[1]))
    assert np.asarray(draw_curves({}))[-1, -1].tolist() == list(PAPER)
