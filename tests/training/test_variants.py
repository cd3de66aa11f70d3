"""Variants: one for one seed, every image among them, stained where the mask says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.layouts import normal_images
from glance_fast.training.symmetry import Symmetry
from glance_fast.training.variants import make_variants, number_of_variants

STILL = {"shift": 0, "brightness": 0.0}
NONE = Symmetry(turns=False, mirrors=False)


@pytest.fixture
def cache(parts):
    with ImageCache(normal_images(parts), (64, 64)) as cache:
        yield cache


def config(**more):
    return Config(image_size=64, patch=32, stride=16, **more)


def test_the_same_seed_makes_the_same_variants(cache):
    indices, inside = np.arange(6), np.zeros((64, 64), bool)
    inside[:20, :9] = True
    one, same, other, renamed = (
        make_variants(cache, indices, 9, config(seed=seed), Symmetry(True, True), name, inside=inside)
        for seed, name in ((1, "a"), (1, "a"), (2, "a"), (1, "b"))
    )
    for field in dataclasses.fields(one):
        first = getattr(one, field.name)
        assert np.array_equal(first, getattr(same, field.name)), field.name
        assert not np.array_equal(first, getattr(other, field.name)), field.name
        assert not np.array_equal(first, getattr(renamed, field.name)), field.name


def test_every_image_is_taken_once_before_one_is_taken_twice(cache):
    indices = np.array([1, 4, 5, 9])
    variants = make_variants(cache, indices, 10, config(**STILL), NONE, "variants")
    originals = [image.tobytes() for image in cache.batch(indices)]
    found = [originals.index(image.tobytes()) for image in variants.clean]
    assert sorted(found[:4]) == sorted(found[4:8]) == [0, 1, 2, 3]


def test_the_region_of_interest_is_turned_with_the_image():
    inside = np.zeros((64, 64), bool)
    inside[:20, :9] = True

    class Marked:
        """Images that are white in the region alone."""

        white = None

        def batch(self, indices):
            return np.repeat((inside * np.uint8(255))[None, :, :, None], len(indices), 0).repeat(3, 3)

    indices, still = np.arange(6), config(**STILL)
    variants = make_variants(Marked(), indices, 12, still, Symmetry(True, True), "a", inside=inside)
    assert (variants.inside == (variants.clean[..., 0] == 255)).all()
    assert len({region.tobytes() for region in variants.inside}) > 3
    plain = make_variants(Marked(), indices, 12, still, Symmetry(True, True), "a")
    assert plain.inside is None and (plain.clean == variants.clean).all()


def test_stains_are_where_the_mask_says(cache):
    variants = make_variants(cache, np.arange(12), 24, config(), NONE, "variants")
    differs = np.abs(variants.clean.astype(int) - variants.stained).mean(3)
    assert variants.masks.any((1, 2)).mean() > 0.8
    # Stains that overlap may undo or add up to what none of them did.
    assert (differs[variants.masks] > 3).mean() > 0.99 and (differs[~variants.masks] < 6).mean() > 0.999
    assert 0 < variants.masks.mean() < 0.3


@pytest.mark.parametrize(("images", "variants", "count"), [(28, 240, 240), (300, 240, 300), (999, 240, 480)])
def test_number_of_variants(images, variants, count):
    assert number_of_variants(images, config(variants=variants)) == count


def test_variants_and_their_features_fit_into_memory():
    large = Config(image_size=1024, cache_mib=512)
    count = number_of_variants(999, large)
    features = 4 * 128 * max(len(grid) for grid in large.grids)
    assert 8 < count < 240 and count * (7 * 1024**2 + features) <= 512 << 20
    assert number_of_variants(999, dataclasses.replace(large, cache_mib=1)) == 8
    assert number_of_variants(213, Config()) == 240


def test_lower_bits_are_kept(deep_parts):
    with ImageCache(normal_images(deep_parts), (64, 64)) as cache:
        variants = make_variants(cache, np.arange(12), 12, config(**STILL), NONE, "variants")
        originals = {image.tobytes() for image in cache.batch(np.arange(12))}
    assert {image.tobytes() for image in variants.clean} == originals
    for images in (variants.clean, variants.stained):
        assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 255
    # Steps of 12 bits, which a shift and a gain leave between grey levels.
    np.testing.assert_array_equal(
        variants.clean, np.rint(variants.clean * 4095 / 255) * np.float32(255 / 4095)
    )
    outside = np.abs(variants.clean - variants.stained).max(3) == 0
    assert 0.5 < outside.mean() < 1
    touched = variants.stained[~outside]
    assert (np.abs(touched - np.rint(touched)) > 0.1).mean() > 0.5


def test_deeper_copies_take_more_of_the_memory():
    # 7 bytes a pixel, or 25, beside the features.
    features = 4 * 128 * len(config().grids[0])
    for itemsize, bytes_each in ((1, 7 * 4096 + features), (4, 25 * 4096 + features)):
        found = number_of_variants(10_000, config(variants=10_000, cache_mib=16), itemsize)
        assert found == (16 << 20) // bytes_each
