"""The worst places of an image, and the normal patch nearest to what is expected, against brute force."""

import dataclasses

import numpy as np
import pytest
import torch
from samples import draw_part

from glance_fast import load
from glance_fast.calibration import Moments
from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.layouts import normal_images
from glance_fast.data.score_maps import resize_map
from glance_fast.evaluation import explain as module
from glance_fast.evaluation.explain import BOTH, DAMAGED, MISPLACED, Place, explain, nearest_normal
from glance_fast.evaluation.regions import Region
from glance_fast.geometry import Hole
from glance_fast.maps import combine
from glance_fast.model import Glance


@pytest.fixture(params=["surround", "masked"])
def model(request, run_folder, masked_run):
    return load(masked_run if request.param == "masked" else run_folder, "cpu")


@pytest.fixture
def image():
    """A part with a hole, twice as high and three times as wide as the model takes it."""
    return draw_part(np.random.default_rng(5), defect=True).repeat(2, axis=0).repeat(3, axis=1)


@pytest.fixture
def cache(parts):
    with ImageCache(normal_images(parts), (64, 64)) as cache:
        yield cache


def whitened(scale, patch, apart):
    """s_IAD of what is off the expectation by [..., D], in float64."""
    w = scale.whitening[patch].double()
    return (apart.double() @ w.T).square().mean(-1)


@pytest.mark.parametrize(
    ("inconsistency", "distortion", "word"),
    [(8, 3.9, MISPLACED), (8, -2, MISPLACED), (8, 4, BOTH), (8, 7.9, BOTH), (8, 8, DAMAGED), (2, 9, DAMAGED)],
)
def test_the_word_is_that_of_the_head_that_spoke(inconsistency, distortion, word):
    region = Region(0, 0, 1, 1, 1, 1.0, 0, 0)
    place = Place(region, True, 0, 0, Hole(0, 0, 1, 1), inconsistency, distortion, 1.0, torch.zeros(3))
    assert place.word == word and module.MEANING[word]


def test_places_are_the_highest_of_the_map(model, image):
    found = explain(model, image, worst=4)
    scored = model.score([image])
    assert found.score == pytest.approx(float(scored.scores[0]), abs=1e-5)
    np.testing.assert_allclose(found.map, scored.maps[0], atol=1e-5)
    own = resize_map(found.map, image.shape[:2])
    peaks = [place.region.peak for place in found.places]
    assert 1 <= len(peaks) <= 4 and peaks[0] == own.max() and peaks == sorted(peaks, reverse=True)
    assert len(explain(model, image, worst=1).places) == 1
    for place in found.places:
        assert place.found == (place.region.peak > model.calibration.pixel_threshold)
        region, size = place.region, np.array(image.shape[:2]) / 64
        part = own[region.top : region.bottom, region.left : region.right]
        y, x = np.argwhere(part == np.float32(region.peak))[0] + (region.top, region.left)
        # The patch is one that covers the peak, or a neighbour of it.
        stride = model.scales[place.scale].grid.stride
        assert place.box.top - stride <= y / size[0] <= place.box.bottom + stride
        assert place.box.left - stride <= x / size[1] <= place.box.right + stride
        assert place.box == tuple(model.scales[place.scale].grid.holes[place.patch])


def test_figures_are_those_of_the_heads(model, image):
    (place, *_), batch = explain(model, image).places, np.stack([model.prepare(image)])
    (local, global_), s = model.features(batch)[0], model.calibration.scales[0]
    apart = local[0, place.patch] - place.expected
    expected = whitened(model.scales[0], place.patch, apart)
    assert place.distance == pytest.approx(float(expected), rel=1e-3)
    mean = model.scales[0].residual_mean[place.patch]
    torch.testing.assert_close(place.expected, global_[0, place.patch] + mean)
    (maps,) = model.head_maps(model.patch_scores(batch))
    blended, _ = combine([maps], model.config, model.calibration)
    y, x = divmod(int(blended.argmax()), 64)
    # Resized to its own pixels, the peak lies a pixel off at most.
    for value, values, moments in (
        (place.inconsistency, maps.inconsistency, s.inconsistency_map),
        (place.distortion, maps.distortion, s.distortion_map),
    ):
        near = moments.standardise(values)[0, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        assert float(near.min()) <= value <= float(near.max())


def test_a_lower_threshold_bounds_the_regions(model, image):
    peak = explain(model, image).map.max()
    model.calibration = dataclasses.replace(model.calibration, pixel_threshold=float(peak) / 10)
    wide = explain(model, image)
    model.calibration = dataclasses.replace(model.calibration, pixel_threshold=float("inf"))
    narrow = explain(model, image)
    assert wide.places[0].region.area > narrow.places[0].region.area
    assert wide.places[0].found and not narrow.places[0].found
    own = resize_map(narrow.map, image.shape[:2])
    half = (own.max() + np.median(own)) / 2
    assert sum(place.region.area for place in explain(model, image, 20).places) == (own > half).sum()


def test_a_flat_map_has_no_worst_place(model, image, monkeypatch):
    monkeypatch.setattr(module, "combine", lambda *arguments: (torch.zeros(1, 64, 64), torch.zeros(1)))
    assert explain(model, image).places == []


def test_of_several_patch_sizes_the_one_that_sees_it_best(small, image):
    two = {**small, "image_size": 128, "patch": [32, 64], "stride": [16, 32], "finetune_steps": [2, 2]}
    model = Glance(Config(**two))
    for best in (0, 1):
        # The other one's blend is a hundred times as large, and counts by a thousandth.
        weighted = tuple(
            dataclasses.replace(s, weight=1.0 if index == best else 0.001, map=Moments(0.0, deviation))
            for index, s in enumerate(model.calibration.scales)
            for deviation in [1.0 if index == best else 0.01]
        )
        model.calibration = dataclasses.replace(model.calibration, scales=weighted)
        (place, *_) = explain(model, image).places
        assert place.scale == best and place.box.bottom - place.box.top == (32, 64)[best]


@pytest.mark.parametrize("together", [1, 5, 100])
def test_nearest_is_the_nearest_of_all(model, image, cache, monkeypatch, together):
    places = [*explain(model, image).places, *explain(model, draw_part(np.random.default_rng(8))).places]
    share = model.memory_share("fp32")._replace(images=together)
    monkeypatch.setattr(model, "memory_share", lambda precision: share)
    done = []
    found = nearest_normal(model, places, cache, progress=lambda *far: done.append(far))
    monkeypatch.undo()
    assert done[-1] == (12, 12) and len(found) == len(places)
    local = torch.cat([model.features(cache.batch([i]))[0][0] for i in range(12)])
    for place, nearest in zip(places, found, strict=True):
        every = whitened(model.scales[0], place.patch, local - place.expected)
        assert nearest.distance == pytest.approx(float(every.min()), rel=1e-3)
        image_index, patch = divmod(int(every.argmin()), every.shape[1])
        assert nearest.photograph == image_index
        assert nearest.box == tuple(model.scales[0].grid.holes[patch])


def test_an_image_is_not_the_nearest_to_itself(model, cache):
    itself = cache.batch([4])[0]
    places = explain(model, itself).places
    (first, *_) = nearest_normal(model, places, cache, [frozenset(range(12)) - {4}] * len(places))
    assert first.photograph == 4
    others = nearest_normal(model, places, cache, [frozenset({4})] * len(places))
    assert all(found.photograph != 4 for found in others)
    assert nearest_normal(model, places, cache, [frozenset(range(12))] * len(places)) == [None] * len(places)


def test_the_papers_blend_measures_as_it_scores(small, image, cache):
    model = Glance(Config(**small, blend="paper"))
    (place, *_) = explain(model, image).places
    (nearest,) = nearest_normal(model, [place], cache)
    local, global_ = model.features(np.stack([model.prepare(image)]))[0]
    expected = (local - global_)[0, place.patch].square().mean()
    assert place.distance == pytest.approx(float(expected), rel=1e-4)
    every = torch.cat([model.features(cache.batch([i]))[0][0] for i in range(12)])
    least = (every - global_[0, place.patch]).square().mean(2).min()
    assert nearest.distance == pytest.approx(float(least), rel=1e-3)
