"""Metrics within regions of interest: as if there were no other pixels."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glance_fast import UserError
from glance_fast.data.layouts import Category, Defect, TestSample
from glance_fast.evaluation import metrics
from glance_fast.evaluation.bootstrap import add_intervals
from glance_fast.evaluation.inputs import Photographs
from glance_fast.evaluation.map_files import Maps
from glance_fast.evaluation.summary import both, curves_of, summarise
from glance_fast.evaluation.within import maps_within, photographs_within, pixels_within

SIZE = (16, 20)


def scene(seed, count=4, region=(slice(3, 12), slice(2, 17))):
    """Maps with ties, masks with several regions, and one region of interest."""
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 30, (count, *SIZE)).astype(np.float32)
    masks = np.zeros((count, *SIZE), bool)
    for mask in masks[1:]:
        for _ in range(3):
            top, left = rng.integers(0, 13), rng.integers(0, 17)
            mask[top : top + 3, left : left + 3] = True
    inside = np.zeros((count, *SIZE), bool)
    inside[:, *region] = True
    return maps, masks, inside


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(0, 9), st.integers(0, 12))
def test_pixel_metrics_are_those_of_maps_cut_to_the_region(seed, top, left):
    part = slice(top, top + 7), slice(left, left + 8)
    maps, masks, inside = scene(seed, region=part)
    cut = maps[:, *part], masks[:, *part]
    if not both(list(cut[1])):
        assert not both(list(masks & inside), list(inside))
        return
    assert metrics.pixel_metrics(maps, masks, inside) == metrics.pixel_metrics(*cut)
    for one, other in (
        (metrics.pro_curve(maps, masks, inside=inside), metrics.pro_curve(*cut)),
        (metrics.roc_curve(maps, masks, inside=inside), metrics.roc_curve(*cut)),
    ):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    counts = np.array([[1, 1, 1, 1], [0, 2, 1, 1]])
    ours = metrics.resampled_pixel_metrics(maps, masks, counts, inside)
    for name, values in metrics.resampled_pixel_metrics(*cut, counts).items():
        np.testing.assert_array_equal(ours[name], values)
    # What is outside may be anything.
    maps[~inside], masks[~inside] = 1e9, np.random.default_rng(seed).random((~inside).sum()) < 0.5
    assert metrics.pixel_metrics(maps, masks, inside) == metrics.pixel_metrics(*cut)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.ones((3, *SIZE), bool), "inside and masks must be as many: got 3 and 4"),
        (np.ones((4, 5, 5), bool), r"inside\[0\] must be bool \[16, 20\], got bool \[5, 5\]"),
        (np.ones((4, *SIZE)), r"inside\[0\] must be bool \[16, 20\], got float64 \[16, 20\]"),
        (np.zeros((4, *SIZE), bool), "masks hold no defective pixel"),
    ],
)
def test_regions_that_are_none(wrong, message):
    maps, masks, _ = scene(0)
    with pytest.raises(ValueError, match=message):
        metrics.pixel_metrics(maps, masks, wrong)


def test_a_region_that_is_all_defect_has_no_background():
    maps, masks, _ = scene(1)
    with pytest.raises(ValueError, match="masks hold no background pixel"):
        metrics.pixel_metrics(maps, masks, masks)
    assert not both(list(masks), list(masks)) and not curves_of(maps, masks, masks).roc


def category(count=4):
    samples = [
        TestSample(Path(f"data/test/{'cut' if i else 'good'}/{i}.png"), "cut" if i else "good")
        for i in range(count)
    ]
    return Category(Path("data"), "some", Path("data"), samples, notes=("before",))


def read(masks, defects=None):
    count, blank = len(masks), np.zeros((4, 4, 3), np.uint8)
    prepared = [np.full((*SIZE, 3), i, np.uint8) for i in range(count)]
    return Photographs(
        prepared,
        masks,
        [(i + 1, 9) for i in range(count)],
        2,
        [(blank + i, None) for i in range(count)],
        0.5,
        defects,
    )


def test_images_whose_defects_lie_outside_are_left_out():
    _, masks, inside = scene(0)
    masks[2] = ~inside[2]
    masks[3] = False  # marked nowhere: that is as before
    left, photographs, where = photographs_within(category(), read(masks), list(inside))
    assert [sample.path.stem for sample in left.samples] == ["0", "1", "3"]
    assert left.notes == (
        "before",
        "Only the region of interest counts, 42% of the pixels.",
        "Images whose defects all lie outside the region of interest: 1. Left out.",
    )
    assert [image[0, 0, 0] for image in photographs.prepared] == [0, 1, 3]
    assert [picture[0, 0, 0] for picture, _ in photographs.shown] == [0, 1, 3]
    assert photographs.sizes == [(1, 9), (2, 9), (4, 9)] and photographs.kept == 2
    assert (photographs.masks == (masks & inside)[[0, 1, 3]]).all() and len(where) == 3
    with pytest.raises(
        UserError, match=r"^data: all defects lie outside the region of interest, and no image is left"
    ):
        photographs_within(category(1), read(~inside[:1]), list(inside[:1]))


def test_of_a_defect_that_is_cut_the_same_share_suffices():
    inside = np.zeros((1, *SIZE), bool)
    inside[:, :, 10:] = True
    mask, gone = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    mask[2:6, 8:14], gone[0:3, 0:3] = True, True
    defects = [[Defect(mask, 12), Defect(gone, 3)]]
    samples = [TestSample(Path("data/test/cut/1.png"), "cut")]
    data = dataclasses.replace(category(), samples=samples)
    _, photographs, _ = photographs_within(data, read((mask | gone)[None], defects), inside)
    ((found,),) = photographs.defects
    assert (found.mask == mask & inside[0]).all() and found.saturation == 8


def test_all_that_is_said_of_quality_is_as_of_maps_cut_to_the_region():
    part = slice(3, 12), slice(2, 17)
    maps, masks, inside = scene(3, region=part)
    data, photographs, where = photographs_within(category(), read(masks), list(inside))
    scores = np.arange(len(data.samples), dtype=np.float32)

    def regions(mask, *cut):
        return [Defect(mask[cut] if cut else mask, 3)] if mask.any() else []

    truth = photographs.masks
    count = len(truth)
    ours = summarise(data.samples, maps[:count], truth, 0, scores, 1.5, [regions(m) for m in truth], where)
    cut = [m[part] for m in maps[:count]], [m[part] for m in truth]
    theirs = summarise(data.samples, *cut, 0, scores, 1.5, [regions(m, *part) for m in truth])
    assert ours == theirs and ours["pro"] is not None and ours["spro_5"] is not None
    defective = np.array([False] + [True] * (count - 1))
    add_intervals(ours, maps[:count], truth, scores, defective, 20, inside=where)
    add_intervals(theirs, *cut, scores, defective, 20)
    assert ours["intervals"] == theirs["intervals"]


def test_maps_of_another_method_are_cut_alike():
    maps, masks, inside = scene(5)
    blank = [(np.zeros((4, 4, 3), np.uint8), None)] * 4
    data, found = maps_within(
        category(), Maps(Path("maps"), list(maps), list(masks), blank, [], None), list(inside)
    )
    assert len(data.samples) == len(found.maps) == len(found.inside) == len(found.shown)
    for score_map, mask, region in zip(found.maps, found.masks, found.inside, strict=True):
        assert (score_map[~region] == score_map[region].min()).all() and not mask[~region].any()
    assert [len(row) for row in pixels_within(found.maps, found.inside)] == [135] * len(found.maps)
    assert pixels_within(found.maps, None) is found.maps
