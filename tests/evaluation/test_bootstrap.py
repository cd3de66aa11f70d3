"""Intervals against metrics of resamples that are written out image by image."""

from __future__ import annotations

import numpy as np
import pytest

from glance_fast.evaluation import metrics
from glance_fast.evaluation.bootstrap import add_intervals, draw_images
from glance_fast.evaluation.summary import METRICS

DEFECTIVE = np.array([False, True, True, False, True, False, True])


def example(seed=0):
    """Images of different sizes, with ties."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for defective in DEFECTIVE:
        size = rng.integers(9, 20, 2)
        mask = np.zeros(size, bool)
        if defective:
            mask[1:5, 2:4] = mask[6:8, 5:7] = True
        masks.append(mask)
        maps.append((rng.integers(0, 40, size) + 9 * mask).astype(np.float32))
    return maps, masks, rng.integers(0, 5, len(maps)) + 1.0 * DEFECTIVE


def within(maps, masks, scores, defective, resamples, **options):
    found = {"notes": []}
    add_intervals(found, maps, masks, scores, defective, resamples, **options)
    assert found["bootstrap"] == resamples and list(found["intervals"]) == list(METRICS)
    return found["intervals"], found["notes"]


def test_draws_keep_the_number_of_each_kind():
    counts = draw_images(DEFECTIVE, 500)
    assert counts.shape == (500, 7)
    assert (counts[:, DEFECTIVE].sum(1) == 4).all() and (counts[:, ~DEFECTIVE].sum(1) == 3).all()
    # Each of n is drawn once on average, with a variance of 1 - 1/n, as by drawing with replacement.
    for kind, n in ((DEFECTIVE, 4), (~DEFECTIVE, 3)):
        np.testing.assert_allclose(counts[:, kind].mean(0), 1, atol=0.15)
        np.testing.assert_allclose(counts[:, kind].var(0), 1 - 1 / n, atol=0.15)
    assert np.array_equal(counts, draw_images(DEFECTIVE, 500, seed=0))
    assert not np.array_equal(counts, draw_images(DEFECTIVE, 500, seed=1))
    assert (draw_images(np.array([True, True]), 3).sum(1) == 2).all()


def test_intervals_are_percentiles_of_resamples_written_out():
    maps, masks, scores = example()
    drawn = {name: [] for name in METRICS}
    for counts in draw_images(DEFECTIVE, 30, seed=3):
        order = np.repeat(np.arange(7), counts)
        several = metrics.pixel_metrics([maps[i] for i in order], [masks[i] for i in order])
        ranked = scores[order], DEFECTIVE[order]
        several["image_auroc"] = metrics.image_auroc(*ranked)
        several["image_ap"] = metrics.image_average_precision(*ranked)
        several["image_f1_max"] = metrics.image_f1_max(*ranked)
        for name, value in several.items():
            drawn[name].append(value)
    found, notes = within(maps, masks, scores, DEFECTIVE, 30, seed=3)
    assert notes == []
    for name, values in drawn.items():
        assert found[name] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-9), name
        assert found[name][0] < found[name][1]


def test_what_cannot_be_had_has_no_interval():
    maps, masks, scores = example()
    empty = [np.zeros_like(mask) for mask in masks]
    found, notes = within(maps, empty, scores, DEFECTIVE, 20)
    assert notes == [] and all((found[name] is None) == (name[:5] != "image") for name in METRICS)
    alone = np.ones(7, bool)
    found, _ = within(maps, masks, scores, alone, 20)
    assert all((found[name] is None) == (name[:5] == "image") for name in METRICS)


def test_resamples_without_a_defective_pixel_are_left_out_and_counted():
    maps, masks, scores = example()
    for i in np.flatnonzero(DEFECTIVE)[1:]:
        masks[i][:] = False
    counts = draw_images(DEFECTIVE, 200)
    without = int((counts[:, np.flatnonzero(DEFECTIVE)[0]] == 0).sum())
    assert 0 < without < 200
    found, [note] = within(maps, masks, scores, DEFECTIVE, 200)
    assert f": {without} of 200." in note
    assert all(np.isfinite(found[name]).all() for name in METRICS)
