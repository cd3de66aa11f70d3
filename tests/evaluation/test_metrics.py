"""The metrics against their definitions, threshold by threshold."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve

from glance_fast.evaluation import metrics

FEW = settings(max_examples=40, deadline=None)


def neighbours(y, x):
    return [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


def naive_regions(mask):
    """Sets of touching pixels, also diagonally, by flood fill."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        region, border = set(), [left.pop()]
        while border:
            pixel = border.pop()
            region.add(pixel)
            reached = left.intersection(neighbours(*pixel))
            left -= reached
            border += reached
        regions.append(tuple(np.array(sorted(region)).T))
    return regions


def naive_points(maps, masks):
    """(fpr, pro, tpr) at every threshold, from above the highest score down."""
    thresholds = sorted({float(value) for scores in maps for value in scores.ravel()}, reverse=True)
    regions = [(i, region) for i, mask in enumerate(masks) for region in naive_regions(mask)]
    background = sum(int((mask == 0).sum()) for mask in masks)
    defective = sum(int((mask != 0).sum()) for mask in masks)
    points = [(0.0, 0.0, 0.0)]
    for threshold in thresholds:
        found = [scores >= threshold for scores in maps]
        pro = np.mean([found[i][region].mean() for i, region in regions])
        false = sum(int((hit & (mask == 0)).sum()) for hit, mask in zip(found, masks, strict=True))
        true = sum(int((hit & (mask != 0)).sum()) for hit, mask in zip(found, masks, strict=True))
        points.append((false / background, pro, true / defective))
    return np.array(points).T


def naive_area(x, y, limit):
    """Trapezoids from 0 to the limit, over the limit; the last one cut by interpolation."""
    area = 0.0
    for x0, y0, x1, y1 in zip(x, y, x[1:], y[1:], strict=False):
        if x1 > limit:
            return (area + 0.5 * (y0 + y0 + (y1 - y0) * (limit - x0) / (x1 - x0)) * (limit - x0)) / limit
        area += 0.5 * (y0 + y1) * (x1 - x0)
    return area / limit


@st.composite
def data_sets(draw):
    """Up to three images of differing odd sizes; scores with many ties or few."""
    maps, masks = [], []
    values = draw(st.sampled_from(["bytes", "floats", "zeros", "saturated"]))
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.tuples(st.integers(1, 7), st.integers(2, 7)))
        if values == "bytes":
            scores = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 5)))
        elif values == "zeros":
            scores = draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, -0.0])))
        else:
            scores = draw(hnp.arrays(np.float32, shape, elements=st.floats(-1, 1, width=32)))
            scores = np.minimum(scores, np.float32(0.2)) if values == "saturated" else scores
        maps.append(scores)
        masks.append(draw(hnp.arrays(bool, shape)))
    masks[0].flat[0], masks[0].flat[-1] = True, False
    return maps, masks


@FEW
@given(data_sets(), st.sampled_from([0.3, 1.0, 0.05, 0.25, 0.77]))
def test_equals_the_definition(data, limit):
    maps, masks = data
    fpr, pro, tpr = naive_points(maps, masks)
    expected = naive_area(fpr, pro, limit), naive_area(fpr, tpr, 1.0)
    assert metrics.pro_and_auroc(maps, masks, limit) == pytest.approx(expected, abs=1e-9)
    assert metrics.pro_auc(maps, masks, limit) == pytest.approx(expected[0], abs=1e-9)
    assert metrics.pixel_auroc(maps, masks) == pytest.approx(expected[1], abs=1e-9)


@FEW
@given(data_sets())
def test_curves_lie_on_the_definition(data):
    fpr, pro, tpr = naive_points(*data)
    for (x, y), expected in ((metrics.pro_curve(*data), pro), (metrics.roc_curve(*data), tpr)):
        assert (x[0], y[0]) == (0.0, 0.0)
        assert (x[-1], y[-1]) == (1.0, pytest.approx(1.0))
        distance = np.abs(fpr[:, None] - x) + np.abs(expected[:, None] - y)
        assert distance.min(axis=0).max() < 1e-9


@FEW
@given(st.integers(2, 40), st.integers(0, 2**32 - 1), st.booleans())
def test_image_auroc_counts_pairs(count, seed, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, count).astype(np.float32) if ties else rng.standard_normal(count)
    labels = rng.random(count) < 0.5
    labels[:2] = True, False
    pairs = np.subtract.outer(scores[labels], scores[~labels])
    assert metrics.image_auroc(scores, labels) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    x, y = metrics.image_roc_curve(scores, labels.astype(int), points=1000)
    assert naive_area(x, y, 1.0) == pytest.approx(metrics.image_auroc(scores, labels))


def flat(maps, masks):
    return np.concatenate([m.ravel() for m in masks]), np.concatenate(
        [np.ravel(m).astype(float) for m in maps]
    )


def best_f1(labels, scores):
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-30)))


@FEW
@given(data_sets())
def test_precision_equals_scikit_learns(data):
    labels, scores = flat(*data)
    average, f1 = average_precision_score(labels, scores), best_f1(labels, scores)
    assert metrics.pixel_average_precision(*data) == pytest.approx(average, abs=1e-9)
    assert metrics.pixel_f1_max(*data) == pytest.approx(f1, abs=1e-9)
    assert metrics.pixel_metrics(*data) == pytest.approx(
        {
            "pro": metrics.pro_auc(*data),
            "pro_5": metrics.pro_auc(*data, 0.05),
            "pixel_auroc": metrics.pixel_auroc(*data),
            "pixel_ap": average,
            "pixel_f1_max": f1,
        },
        abs=1e-9,
    )
    assert metrics.image_average_precision(scores, labels) == pytest.approx(average, abs=1e-9)
    assert metrics.image_f1_max(scores, labels) == pytest.approx(f1, abs=1e-9)


def resamples(images, seed, count=3):
    """How often each image is drawn: never, once, several times; the first, which has both kinds, always."""
    counts = np.random.default_rng(seed).integers(0, 4, (count, images))
    counts[:, 0] += counts[:, 0] == 0
    return counts


@FEW
@given(data_sets(), st.integers(0, 2**32 - 1))
def test_resampled_metrics_equal_those_of_the_images_written_out(data, seed):
    maps, masks = data
    counts = resamples(len(maps), seed)
    found = metrics.resampled_pixel_metrics(maps, masks, counts)
    for r, drawn in enumerate(counts):
        order = np.repeat(np.arange(len(maps)), drawn)
        expected = metrics.pixel_metrics([maps[i] for i in order], [masks[i] for i in order])
        assert {name: values[r] for name, values in found.items()} == pytest.approx(expected, abs=1e-9)


@FEW
@given(st.integers(2, 40), st.integers(0, 2**32 - 1), st.booleans())
def test_resampled_image_metrics_equal_those_of_the_images_written_out(count, seed, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, count).astype(np.float32) if ties else rng.standard_normal(count)
    labels = rng.random(count) < 0.5
    labels[:2] = True, False
    counts = rng.integers(0, 4, (5, count))
    counts[:4, :2] += 1
    counts[4, labels] = 0
    found = metrics.resampled_image_metrics(scores, labels, counts)
    assert all(np.isnan(values).tolist() == [False] * 4 + [True] for values in found.values())
    for r, drawn in enumerate(counts[:4]):
        several = np.repeat(scores, drawn), np.repeat(labels, drawn)
        assert found["image_auroc"][r] == pytest.approx(metrics.image_auroc(*several), abs=1e-9)
        assert found["image_ap"][r] == pytest.approx(metrics.image_average_precision(*several), abs=1e-9)
        assert found["image_f1_max"][r] == pytest.approx(metrics.image_f1_max(*several), abs=1e-9)


def test_f1_of_verdicts_equals_scikit_learns():
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 50):
        called, labels = rng.random(count) < 0.4, rng.random(count) < 0.5
        labels[0] = True
        assert metrics.f1_score(called, labels) == pytest.approx(f1_score(labels, called))
    assert metrics.f1_score(~labels, labels) == 0
    with pytest.raises(ValueError, match="nothing anomalous"):
        metrics.f1_score(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="shape"):
        metrics.f1_score(np.zeros(3), np.zeros(2))


@st.composite
def defect_sets(draw):
    """Maps with ties, and of each image defects that may overlap, with how many of their pixels suffice."""
    maps, masks = draw(data_sets())
    defects = []
    for mask in masks:
        found = []
        for _ in range(draw(st.integers(0, 3))):
            # Nothing in the first row: there is always background.
            own = np.pad(draw(hnp.arrays(bool, (len(mask) - 1, mask.shape[1]))), ((1, 0), (0, 0)))
            if own.any():
                found.append((own, draw(st.integers(1, int(own.sum())))))
        defects.append(found)
    if not any(defects):
        pixel = np.zeros(masks[0].shape, bool)
        pixel[-1, -1] = True
        maps.append(maps[0])
        defects.append([(pixel, 1)])
        maps.append(maps[0])
        defects.append([])
    return maps, defects


def naive_saturated(maps, defects):
    """(fpr, sPRO) at every threshold, as MVTec's evaluation of LOCO means it.

    A false positive is a pixel in no defect of its image. Of a defect, min(pixels found / saturation, 1); all
    defects of all images count the same.
    """
    thresholds = sorted({float(value) for scores in maps for value in scores.ravel()}, reverse=True)
    free = [
        ~np.any([np.zeros(m.shape, bool), *(d for d, _ in found)], axis=0)
        for m, found in zip(maps, defects, strict=True)
    ]
    points = [(0.0, 0.0)]
    for threshold in thresholds:
        called = [scores >= threshold for scores in maps]
        false = sum(int((hit & background).sum()) for hit, background in zip(called, free, strict=True))
        overlaps = [
            min(int((hit & mask).sum()) / saturation, 1.0)
            for hit, found in zip(called, defects, strict=True)
            for mask, saturation in found
        ]
        points.append((false / sum(int(f.sum()) for f in free), float(np.mean(overlaps))))
    return np.array(points).T


@settings(max_examples=150, deadline=None)
@given(defect_sets(), st.sampled_from([0.05, 0.3, 1.0, 0.77]))
def test_saturated_pro_equals_the_definition(data, limit):
    fpr, overlap = naive_saturated(*data)
    assert metrics.spro_auc(*data, limit) == pytest.approx(naive_area(fpr, overlap, limit), abs=1e-9)
    found = metrics.spro_metrics(*data)
    assert found["spro_5"] == pytest.approx(naive_area(fpr, overlap, 0.05), abs=1e-9)
    assert found["spro_30"] == pytest.approx(naive_area(fpr, overlap, 0.3), abs=1e-9)


def test_saturated_pro_of_larger_maps_with_ties():
    rng = np.random.default_rng(5)
    maps = rng.integers(0, 60, (3, 41, 53)).astype(np.float32) / 7
    first, second = np.zeros((2, 41, 53), bool)
    first[3:20, 4:30], second[15:40, 25:50] = True, True
    defects = [[(first, 40), (second, 625)], [], [(second, 1)]]
    for limit in (0.05, 0.3):
        expected = naive_area(*naive_saturated(maps, defects), limit)
        assert metrics.spro_auc(maps, defects, limit) == pytest.approx(expected, abs=1e-9)


def test_saturated_pro_is_pro_where_all_of_each_region_is_wanted():
    maps, masks = example()
    defects = []
    for mask in masks:
        regions = []
        for place in naive_regions(mask):
            region = np.zeros(mask.shape, bool)
            region[place] = True
            regions.append((region, int(region.sum())))
        defects.append(regions)
    assert sum(map(len, defects)) == 3
    for limit in (0.05, 0.3, 1.0):
        assert metrics.spro_auc(maps, defects, limit) == pytest.approx(metrics.pro_auc(maps, masks, limit))


def test_more_than_suffices_adds_nothing():
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    maps = np.zeros((1, 8, 8))
    maps[0, 3, 2:6] = 1
    # 4 of 16 pixels are found before any false one.
    assert metrics.spro_auc(maps, [[(mask, 4)]], 0.3) == 1.0
    assert metrics.spro_auc(maps, [[(mask, 8)]], 0.3) == pytest.approx(0.5 + 0.5 * 0.3 / 2)


def test_saturated_pro_says_what_is_wrong():
    maps, mask = np.zeros((1, 4, 4)), np.eye(4, dtype=bool)
    for defects, phrase in (
        ([[]], "no defective pixel"),
        ([[(np.ones((4, 4)), 3)]], "no background pixel"),
        ([[(mask, 0)]], r"saturation must lie in \[1, 4\]"),
        ([[(mask, 5)]], r"saturation must lie in \[1, 4\]"),
        ([[(mask[:3], 1)]], "shape"),
        ([[(mask * 3, 1)]], "must be binary"),
        ([], "as many"),
    ):
        with pytest.raises(ValueError, match=phrase):
            metrics.spro_auc(maps, defects)
    for metric in (metrics.spro_auc, metrics.spro_metrics):
        with pytest.raises(ValueError, match="NaN"):
            metric(maps * np.nan, [[(mask, 1)]])
    with pytest.raises(ValueError, match="max_fpr"):
        metrics.spro_auc(maps, [[(mask, 1)]], 0)


def example(seed=0, shape=(4, 31, 23)):
    rng = np.random.default_rng(seed)
    masks = np.zeros(shape, bool)
    masks[1, 3:9, 4:8] = masks[1, 20, 20] = masks[3, 12:30, 1:3] = True
    return (rng.random(shape) + 0.3 * masks).astype(np.float32), masks


def test_perfect_reversed_and_constant_maps():
    _, masks = example()
    assert metrics.pro_and_auroc(masks, masks) == (pytest.approx(1.0), 1.0)
    assert metrics.pro_and_auroc(~masks, masks) == (0.0, 0.0)
    # One threshold finds everything: the straight line, 0.15 at a limit of 0.3.
    constant = np.full(masks.shape, 7.5)
    assert metrics.pro_and_auroc(constant, masks) == (pytest.approx(0.15), 0.5)


def test_never_above_one():
    rng = np.random.default_rng(1)
    masks = rng.random((3, 64, 64)) < 0.2
    assert metrics.pro_auc(masks, masks) <= 1.0


def test_small_regions_count_as_much_as_large_ones():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 0, 0] = True
    masks[0, 4:, 4:] = True
    assert metrics.pro_auc(np.where(masks, 1.0, 0.0) * (np.arange(8) > 3), masks, 0.1) == pytest.approx(
        # Half of the regions at once, the other half along with all background.
        0.5 + 0.5 * 0.1 / 2
    )


def test_touching_at_a_corner_is_one_region():
    diagonal, apart = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    diagonal[0, 0] = diagonal[1, 1] = diagonal[1, 2] = True
    apart[0, 0] = apart[3, 1] = apart[3, 2] = True
    # Only the single pixel is found: a third of one region, or all of one region of two.
    scores = np.zeros((6, 6))
    scores[0, 0] = 1
    one = metrics.pro_auc([scores], [diagonal], 1e-6)
    two = metrics.pro_auc([scores], [apart], 1e-6)
    assert (one, two) == (pytest.approx(1 / 3, abs=1e-5), pytest.approx(1 / 2, abs=1e-5))


def test_regions_of_different_images_stay_apart():
    maps, masks = example()
    tiled = metrics.pro_auc([np.concatenate([*maps], axis=1)], [np.concatenate([*masks], axis=1)])
    assert metrics.pro_auc(maps, masks) == pytest.approx(tiled, abs=1e-12)


def test_invariant_under_order_flips_and_monotone_maps():
    maps, masks = example()
    expected = pytest.approx(metrics.pro_and_auroc(maps, masks), abs=1e-12)
    order = [2, 0, 3, 1]
    assert metrics.pro_and_auroc(maps[order], masks[order]) == expected
    assert metrics.pro_and_auroc(maps[:, ::-1, ::-1], masks[:, ::-1, ::-1]) == expected
    assert metrics.pro_and_auroc([m.T for m in maps], [m.T for m in masks]) == expected
    assert metrics.pro_and_auroc(maps * 4 - 8, masks) == expected
    # A cube needs float64, beyond what float32 can tell apart.
    assert metrics.pro_and_auroc(maps.astype(np.float64) ** 3, masks) == expected


@pytest.mark.parametrize("binary", [np.uint8(1), np.uint8(255), np.int64(255), np.float32(1)])
def test_masks_of_every_binary_kind(binary):
    maps, masks = example()
    assert metrics.pro_and_auroc(maps, masks * binary) == metrics.pro_and_auroc(maps, masks)


def test_inputs_stay_as_they_are():
    maps, masks = example()
    maps.setflags(write=False)
    masks.setflags(write=False)
    metrics.pro_and_auroc(maps, masks)
    metrics.pro_curve(maps, masks)


def test_memory_stays_below_three_float32_maps():
    maps, masks = example(shape=(8, 256, 256))
    metrics.pro_and_auroc(maps, masks)
    tracemalloc.start()
    metrics.pro_and_auroc(maps, masks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 3 * maps.nbytes


def test_memory_of_resamples_does_not_grow_with_their_number():
    maps, masks = example(shape=(8, 256, 256))
    peaks = []
    for count in (64, 6400):
        counts = resamples(len(maps), 0, count)
        metrics.resampled_pixel_metrics(maps, masks, counts[:1])
        tracemalloc.start()
        metrics.resampled_pixel_metrics(maps, masks, counts)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] <= 4 * maps.nbytes and peaks[1] <= 4 * maps.nbytes


MAPS, MASKS = example()
NAN = np.where(np.arange(23) == 3, np.nan, MAPS)
SCORES, LABELS = np.array([0.1, 0.2, 0.3]), np.array([0, 1, 1])


ONCE = np.ones((1, 4), int)


def resampled_pixels(maps, masks):
    return metrics.resampled_pixel_metrics(maps, masks, ONCE)


def resampled_images(scores, labels):
    return metrics.resampled_image_metrics(scores, labels, ONCE)


PIXELS = [
    metrics.pro_auc, metrics.pixel_auroc, metrics.pro_and_auroc, metrics.pixel_metrics,
    metrics.pixel_average_precision, metrics.pixel_f1_max, resampled_pixels,
]  # fmt: skip
IMAGES = [
    metrics.image_auroc, metrics.image_roc_curve, metrics.image_average_precision, metrics.image_f1_max,
    resampled_images,
]  # fmt: skip


@pytest.mark.parametrize("metric", PIXELS)
@pytest.mark.parametrize(
    ("maps", "masks", "error", "word"),
    [
        (NAN, MASKS, ValueError, r"maps\[0\] holds NaN"),
        (np.where(MAPS.max() == MAPS, np.inf, MAPS), MASKS, ValueError, "infinity"),
        (MAPS, MASKS * 0, ValueError, "no defective pixel"),
        (MAPS, np.ones_like(MASKS), ValueError, "no background pixel"),
        (MAPS, np.full(MAPS.shape, 255), ValueError, "no background pixel"),
        (MAPS[:2], MASKS, ValueError, "as many"),
        (MAPS[:, :-1], MASKS, ValueError, "shape"),
        (MAPS[0], MASKS[0], ValueError, "shape"),
        ([], [], ValueError, "no image"),
        (MAPS, MASKS * 2, ValueError, "binary"),
        (MAPS, MASKS * 0.5, ValueError, "binary"),
        (MAPS, -1 * MASKS, ValueError, "binary"),
        (MAPS, MASKS * np.arange(254, 277), ValueError, "binary"),
        (MAPS, MASKS * np.nan, ValueError, "binary"),
        (MAPS, np.where(np.arange(23) > 4, MASKS * 255, MASKS * 1), ValueError, "binary"),
        (MAPS * 1j, MASKS, TypeError, "maps"),
        (MAPS, MASKS.astype(str), TypeError, "masks"),
    ],
)
def test_says_what_is_wrong_with_pixels(metric, maps, masks, error, word):
    with pytest.raises(error, match=word):
        metric(maps, masks)


@pytest.mark.parametrize("limit", [0, -0.1, 1.01, np.nan, np.inf])
def test_says_what_is_wrong_with_the_limit(limit):
    for metric in (metrics.pro_auc, metrics.pro_curve, metrics.pro_and_auroc):
        with pytest.raises(ValueError, match="max_fpr"):
            metric(MAPS, MASKS, limit)
    with pytest.raises(TypeError, match="max_fpr"):
        metrics.pro_auc(MAPS, MASKS, "0.3")


@pytest.mark.parametrize(
    ("scores", "labels", "error", "word"),
    [
        (SCORES, LABELS * 0, ValueError, "labels"),
        (SCORES, LABELS * 0 + 1, ValueError, "labels"),
        (SCORES, LABELS * 3, ValueError, "labels must be binary"),
        (SCORES, LABELS[:2], ValueError, "shape"),
        (SCORES[:0], LABELS[:0], ValueError, "non-empty"),
        (SCORES[None], LABELS[None], ValueError, "shape"),
        (SCORES * np.nan, LABELS, ValueError, "NaN"),
        (SCORES.astype(str), LABELS, TypeError, "scores"),
    ],
)
def test_says_what_is_wrong_with_images(scores, labels, error, word):
    for metric in IMAGES:
        with pytest.raises(error, match=word):
            metric(scores, labels)
