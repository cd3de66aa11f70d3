"""PRO and pixel AUROC against the usual argsort and cumulative sums; all metrics of resamples of the images.

Run: pytest benchmarks/bench_ranking.py.

83 maps of 256 x 256 pixels (a test split of a small category), float32, few ties. The baseline is written
here from the definition, in the way of most published evaluations: arrays of changes as large as the maps,
one argsort, cumulative sums, points kept where the score changes. The baseline of the resamples is this
package's own ``pixel_metrics`` of each, its maps and masks as lists of views.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from glance_fast.evaluation import metrics

COUNT, SIZE, LIMIT, RESAMPLES = 83, 256, 0.3, 100


def make_data():
    """Smooth noise with rectangular defects that are a little brighter, in three images of four."""
    rng = np.random.default_rng(0)
    masks = np.zeros((COUNT, SIZE, SIZE), np.uint8)
    for i in range(COUNT):
        for _ in range(rng.integers(1, 4) if i % 4 else 0):
            y, x, height, width = *rng.integers(0, SIZE - 8, 2), *rng.integers(3, 40, 2)
            masks[i, y : y + height, x : x + width] = 1
    maps = ndimage.gaussian_filter(rng.random(masks.shape), (0, 3, 3)) + 0.1 * masks
    return maps.astype(np.float32), masks


MAPS, MASKS = make_data()


def descending_curve(order, scores, steps):
    """Cumulative steps from the highest score down, one value a distinct score, from 0 to 1."""
    last = np.append(np.diff(scores[order]) != 0, True)
    sums = np.cumsum(steps.ravel()[order])[last]
    return np.concatenate([[0.0], sums / sums[-1]])


def area(x, y, limit):
    inside = int(np.searchsorted(x, limit, side="right"))
    y = np.append(y[:inside], np.interp(limit, x, y))
    x = np.append(x[:inside], limit)
    return float(np.sum(0.5 * (y[1:] + y[:-1]) * np.diff(x)) / limit)


def usual_pro_and_auroc(maps, masks, auroc=True):
    overlap = np.zeros(maps.shape)
    for i, mask in enumerate(masks):
        labels, found = ndimage.label(mask, np.ones((3, 3)))
        for region in range(1, found + 1):
            inside = labels == region
            overlap[i][inside] = 1 / inside.sum()
    scores = maps.ravel()
    order = np.argsort(scores)[::-1]
    fpr = descending_curve(order, scores, masks == 0)
    pro = area(fpr, descending_curve(order, scores, overlap), LIMIT)
    return (pro, area(fpr, descending_curve(order, scores, masks != 0), 1.0)) if auroc else (pro,)


def usual_pro(maps, masks):
    return usual_pro_and_auroc(maps, masks, auroc=False)


def ours_pro(maps, masks):
    return (metrics.pro_auc(maps, masks, LIMIT),)


def ours_pro_and_auroc(maps, masks):
    return metrics.pro_and_auroc(maps, masks, LIMIT)


@pytest.fixture(scope="module")
def expected():
    return usual_pro_and_auroc(MAPS, MASKS)


@pytest.mark.benchmark(group=f"PRO, {COUNT} maps of {SIZE}x{SIZE}")
@pytest.mark.parametrize("run", [ours_pro, usual_pro], ids=["ours", "argsort"])
def test_pro(benchmark, run, expected):
    assert run(MAPS, MASKS) == pytest.approx(expected[:1], abs=1e-9)
    benchmark.pedantic(run, args=(MAPS, MASKS), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group=f"PRO and pixel AUROC, {COUNT} maps of {SIZE}x{SIZE}")
@pytest.mark.parametrize("run", [ours_pro_and_auroc, usual_pro_and_auroc], ids=["ours", "argsort"])
def test_pro_and_auroc(benchmark, run, expected):
    assert run(MAPS, MASKS) == pytest.approx(expected, abs=1e-9)
    benchmark.pedantic(run, args=(MAPS, MASKS), rounds=5, warmup_rounds=1)


def drawn(resamples):
    rng = np.random.default_rng(1)
    return np.array([np.bincount(rng.integers(COUNT, size=COUNT), minlength=COUNT) for _ in range(resamples)])


def ours_resampled(counts):
    return metrics.resampled_pixel_metrics(MAPS, MASKS, counts)


def each_by_itself(counts):
    orders = [np.repeat(np.arange(COUNT), times) for times in counts]
    found = [metrics.pixel_metrics([MAPS[i] for i in o], [MASKS[i] for i in o]) for o in orders]
    return {name: [one[name] for one in found] for name in found[0]}


@pytest.mark.benchmark(group=f"all pixel metrics of {RESAMPLES} resamples, {COUNT} maps of {SIZE}x{SIZE}")
@pytest.mark.parametrize("run", [ours_resampled, each_by_itself], ids=["ours", "one by one"])
def test_resamples(benchmark, run):
    few = drawn(3)
    for name, values in each_by_itself(few).items():
        assert run(few)[name] == pytest.approx(values, abs=1e-9)
    benchmark.pedantic(run, args=(drawn(RESAMPLES),), rounds=3, warmup_rounds=1)


def test_memory_is_bounded(expected):
    tracemalloc.start()
    try:
        assert ours_pro_and_auroc(MAPS, MASKS) == pytest.approx(expected, abs=1e-9)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most <= 3 * MAPS.nbytes


def test_memory_of_resamples_is_bounded():
    counts = drawn(1000)
    ours_resampled(counts[:1])
    tracemalloc.start()
    try:
        ours_resampled(counts)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most <= 4 * MAPS.nbytes
