"""Pictures of maps: one scale for all images, dark where normal, bright and outlined where not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from glance_fast.calibration import Calibration, ScaleStatistics
from glance_fast.evaluation.overlay import (
    FOUND,
    TRUTH,
    colour_stops,
    display_range,
    draw_outline,
    heat,
    overlay,
    range_of_maps,
)

GREY = np.full((40, 60, 3), 128, np.uint8)


def luminance(rgb):
    return np.asarray(rgb, np.float64) @ (0.2126, 0.7152, 0.0722)


def calibration(threshold):
    return Calibration((ScaleStatistics(),), pixel_threshold=threshold)


def square(value=9.0):
    scores = np.zeros((40, 60), np.float32)
    scores[10:20, 30:45] = value
    return scores


def test_the_scale_of_maps_of_all_sizes_is_from_their_median_to_their_maximum():
    maps = [np.array([[1, 2]], np.float16), np.array([[9], [3], [4]], np.float32)]
    assert range_of_maps(maps) == (3.0, 9.0, None)
    assert maps[1].tolist() == [[9], [3], [4]]
    assert range_of_maps([np.full((2, 2), 5.0)]) == (5.0, 6.0, None)
    assert display_range(calibration(math.inf), np.stack([square(), square(2.0)])) == (0.0, 9.0, None)


def test_heat_gets_lighter_with_the_score_and_clips():
    ramp = heat(np.linspace(0, 1, 256)[None])
    assert ramp.shape == (1, 256, 3) and ramp.dtype == np.uint8
    assert (np.diff(luminance(ramp[0])) > -1).all()
    assert luminance(ramp[0, 0]) < 5 and luminance(ramp[0, -1]) > 220
    outside = heat(np.array([[-3.0, 0.0, 1.0, 7.0, np.inf]]))
    assert (outside[0, 0] == outside[0, 1]).all() and (outside[0, 2:] == outside[0, 2]).all()


def test_heat_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        heat(np.array([[0.1, np.nan]]))


def test_normal_images_stay_as_photographed_and_defects_glow():
    low, high, outline = display_range(calibration(6.0))
    assert (low, high, outline) == (0, 12, 6)
    normal = overlay(GREY, np.full((40, 60), 1.0, np.float32), low, high, outline)
    assert (normal == GREY).all()
    picture = overlay(GREY, square(12.0), low, high)
    assert luminance(picture[15, 38]) > 190 and (picture[0, 0] == 128).all()


def test_the_scale_does_not_depend_on_the_other_pixels():
    alone, beside = square(5.0), square(5.0)
    beside[:5, :5] = 50
    a, b = (overlay(GREY, scores, 0, 12) for scores in (alone, beside))
    assert (a[10:, 10:] == b[10:, 10:]).all() and (a[:5, :5] != b[:5, :5]).any()


def test_the_outline_runs_around_what_lies_above_the_threshold_and_hides_none_of_it():
    scores = square(9.0)
    scores[30:34, 5:9] = 5.9
    plain, outlined = overlay(GREY, scores, 0, 12), overlay(GREY, scores, 0, 12, 6.0)
    line = (outlined == FOUND).all(2)
    expected = np.zeros_like(line)
    expected[9:21, 29:46] = True
    expected[10:20, 30:45] = False
    assert (line == expected).all()
    assert (outlined[10:20, 30:45] == plain[10:20, 30:45]).all()
    assert (outlined[25:] == plain[25:]).all()
    assert (overlay(GREY, scores, 0, 12, math.inf) == plain).all()


def test_inputs_stay_and_a_map_of_another_size_is_brought_to_the_image():
    image, scores = GREY.copy(), square()
    picture = overlay(image, scores[::2, ::2].copy(), 0, 12, 6.0)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert (image == GREY).all() and (scores == square()).all()
    full = overlay(image, scores, 0, 12)
    assert np.abs(picture[13:17, 34:41].astype(int) - full[13:17, 34:41]).max() <= 2


def test_a_region_at_the_border_or_everywhere_does_not_break_the_outline():
    everywhere = np.ones((40, 60), bool)
    outlined = (draw_outline(GREY, everywhere, TRUTH) == TRUTH).all(2)
    # There is no outside to run around.
    assert outlined[[0, -1]].all() and outlined[:, [0, -1]].all() and not outlined[1:-1, 1:-1].any()
    corner = np.zeros((40, 60), bool)
    corner[:5, :5] = True
    picture = draw_outline(GREY, corner, TRUTH)
    assert (picture[5, :6] == TRUTH).all() and (picture[:5, :5] == 128).all()
    assert (GREY == 128).all()


def test_large_pictures_get_wider_lines():
    region = np.zeros((900, 900), bool)
    region[400:500, 400:500] = True
    line = (draw_outline(np.zeros((900, 900, 3), np.uint8), region, TRUTH) == TRUTH).all(2)
    assert line[450].sum() == 2 * round(900 / 220)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (0.0, math.nan)])
def test_a_scale_that_does_not_ascend_is_refused(low, high):
    with pytest.raises(ValueError, match="low must be below high"):
        overlay(GREY, square(), low, high)


def test_without_a_threshold_the_scale_comes_from_the_maps():
    maps = np.stack([square(8.0), square(0.0)])
    assert display_range(calibration(math.inf), maps) == (0.0, 8.0, None)
    assert display_range(calibration(math.inf), maps[1:]) == (0.0, 1.0, None)
    assert display_range(calibration(math.inf)) == (0.0, 1.0, None)


@pytest.mark.parametrize("threshold", [-2.0, 0.0, 1e-3])
def test_the_scale_ascends_around_any_threshold(threshold):
    low, high, outline = display_range(calibration(threshold))
    assert low < outline == threshold < high
    assert math.isclose(threshold - low, high - threshold)


def test_the_legend_shows_the_colours_of_the_maps():
    stops = colour_stops(3)
    ends = heat(np.array([[0.0, 1.0]]))[0]
    assert [stops[0], stops[-1]] == ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in ends]
