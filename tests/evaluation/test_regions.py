"""Connected regions of a map."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from skimage.measure import label, regionprops

from glance_fast.evaluation.regions import Region, RegionFinder, find_regions


def test_regions_by_hand():
    scores = np.zeros((8, 10), np.float32)
    scores[1:3, 2:5] = 3
    scores[2, 4] = 7.5
    scores[6, 9] = 9
    assert find_regions(scores, 2.0) == [
        Region(6, 9, 7, 10, 1, 9.0, 6.0, 9.0),
        Region(1, 2, 3, 5, 6, 7.5, 1.5, 3.0),
    ]
    assert find_regions(scores, 2.0)[1].as_dict() == {
        "box": {"top": 1, "left": 2, "bottom": 3, "right": 5},
        "area": 6,
        "peak": 7.5,
        "centroid": {"y": 1.5, "x": 3.0},
    }


def test_corners_connect_and_the_threshold_itself_is_not_above():
    scores = np.eye(4, dtype=np.float32)
    assert [region.area for region in find_regions(scores, 0.5)] == [4]
    assert find_regions(scores, 1.0) == [] and find_regions(scores, math.inf) == []
    # A float64 just below a float32 is below it.
    assert len(find_regions(scores, np.nextafter(1.0, 0))) == 1
    assert find_regions(np.zeros((0, 5), np.float32), 0.0) == []


def test_a_region_does_not_count_what_another_one_has_in_its_box():
    scores = np.zeros((5, 5), np.float32)
    scores[:, 0] = scores[0] = 1
    scores[2:, 2:] = 4
    ring, square = sorted(find_regions(scores, 0.5), key=lambda region: region.peak)
    assert (ring.area, ring.peak, square.area, square.peak) == (9, 1.0, 9, 4.0)
    assert (ring.top, ring.left, ring.bottom, ring.right) == (0, 0, 5, 5)


@pytest.mark.parametrize("seed", range(5))
def test_as_scikit_image_has_them(seed):
    rng = np.random.default_rng(seed)
    scores = rng.random((int(rng.integers(1, 40)), int(rng.integers(1, 40)))).astype(np.float32)
    threshold = rng.uniform(0.3, 0.9)
    theirs = regionprops(label(scores > threshold, connectivity=2), scores)
    ours = find_regions(scores, threshold)
    assert [region.peak for region in ours] == sorted((float(t.intensity_max) for t in theirs), reverse=True)
    by_peak = sorted(theirs, key=lambda t: -t.intensity_max)
    for region, other in zip(ours, by_peak, strict=True):
        assert (region.top, region.left, region.bottom, region.right) == other.bbox
        assert region.area == other.area and (region.y, region.x) == pytest.approx(other.centroid)
        json.dumps(region.as_dict())


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"a map must be \[H, W\], not \[1, 4, 4\]"):
        find_regions(np.zeros((1, 4, 4), np.float32), 0.0)


@pytest.mark.parametrize("seed", range(8))
def test_rows_that_come_in_parts_are_one_map(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 40, 2))
    # Of many sizes: noise that was smoothed, spirals among it.
    scores = rng.random((height, width)).astype(np.float32)
    for _ in range(seed % 3):
        scores = (scores + np.roll(scores, 1, 0) + np.roll(scores, 1, 1)) / 3
    threshold = float(np.quantile(scores, rng.uniform(0.3, 0.9)))
    finder, top = RegionFinder(width, threshold), 0
    while top < height:
        count = int(rng.integers(0, 6))
        finder.add(scores[top : top + count])
        top += count
    in_parts, whole = finder.regions(), find_regions(scores, threshold)
    assert sorted(in_parts) == sorted(whole)
    assert [region.peak for region in in_parts] == [region.peak for region in whole]


def test_arms_that_meet_below_are_one_region():
    scores = np.zeros((6, 9), np.float32)
    scores[:5, 0] = scores[:5, 4] = scores[:5, 8] = 1
    scores[5] = 2
    finder = RegionFinder(9, 0.5)
    for row in scores:
        finder.add(row[None])
    assert finder.regions() == find_regions(scores, 0.5)
    assert len(finder.regions()) == 1 and finder.regions()[0].area == 24
