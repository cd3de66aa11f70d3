"""Tiles cut from photographs: where they lie, which are drawn, what is left out."""

import numpy as np
import pytest
from PIL import Image

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.depth import Unlike, fitted, levels
from glance_fast.data.images import read_image, resize
from glance_fast.data.tile_cache import TileCache, images_for
from glance_fast.errors import UserError
from glance_fast.geometry import TileGrid

SIZE = 32, 32


@pytest.fixture
def photographs(tmp_path):
    """Three photographs of 100x150 pixels, no two of which are alike, and a damaged one as the second."""
    rng = np.random.default_rng(0)
    for i in (0, 2, 3):
        Image.fromarray(rng.integers(0, 255, (100, 150, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_text("no image")
    return [tmp_path / f"{i}.png" for i in range(4)]


def crops(path, tile):
    """All tiles of a photograph, resized."""
    image = read_image(path)
    grid = TileGrid(*image.shape[:2], (tile, tile))
    height, width = grid.sides
    return [
        resize(image[top : top + height, left : left + width], SIZE)
        for top in grid.tops
        for left in grid.lefts
    ]


def test_every_tile_of_every_photograph(photographs):
    calls = []
    cache = TileCache(photographs, SIZE, 48, progress=calls.append)
    assert calls == [1, 2, 3, 4]
    good = [photographs[i] for i in (0, 2, 3)]
    assert [error.path for error in cache.errors] == [photographs[1]]
    assert cache.paths == [path for path in good for _ in range(12)]
    np.testing.assert_array_equal(cache.groups, np.repeat(range(3), 12))
    assert cache.shapes == [(48, 48)] * 36 and cache.held and len(cache) == 36
    for i, path in enumerate(good):
        own = cache.batch(np.flatnonzero(cache.groups == i))
        assert {image.tobytes() for image in own} == {image.tobytes() for image in crops(path, 48)}


def test_few_are_drawn_evenly_and_the_first_stays_the_first(photographs):
    few, one = TileCache(photographs, SIZE, 48, most=20), TileCache(photographs, SIZE, 48, most=1)
    np.testing.assert_array_equal(np.bincount(few.groups), [5, 5, 5])
    np.testing.assert_array_equal(np.bincount(one.groups), [1, 1, 1])
    for group in range(3):
        first = few.batch(np.flatnonzero(few.groups == group)[:1])
        np.testing.assert_array_equal(first, one.batch(np.flatnonzero(one.groups == group)))
    assert few.batch([0]).tobytes() != TileCache(photographs, SIZE, 48, most=20, seed=1).batch([0]).tobytes()


def test_a_tile_is_no_larger_than_the_photograph(photographs):
    cache = TileCache(photographs[:1], SIZE, 120)
    assert cache.shapes == [(100, 120)] * 2
    np.testing.assert_array_equal(
        sorted(map(bytes, cache.batch([0, 1]))), sorted(map(bytes, crops(photographs[0], 120)))
    )


@pytest.fixture
def deep_ones(tmp_path):
    """Two photographs of 12 bits and one of 8, of 100x150 pixels."""
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 4000, (100, 150), dtype=np.uint16)).save(tmp_path / f"deep{i}.png")
    Image.fromarray(rng.integers(0, 255, (100, 150, 3), dtype=np.uint8)).save(tmp_path / "deep2.png")
    return [tmp_path / f"deep{i}.png" for i in range(3)]


@pytest.mark.parametrize("white", ["found", 4095, 1023])
def test_tiles_keep_the_depth_of_photographs(deep_ones, white):
    cache = TileCache(deep_ones, SIZE, 48, white=white)
    known = 4095 if white == "found" else white
    assert cache.white == known and cache.unlike == Unlike(shallow=1, above=2 * (known < 4000))
    for i, path in enumerate(deep_ones):
        image = read_image(path)
        grid = TileGrid(100, 150, (48, 48))
        cut = [image[y : y + 48, x : x + 48] for y in grid.tops for x in grid.lefts]
        expected = {levels(fitted(tile, SIZE, known), known).tobytes() for tile in cut}
        own = cache.batch(np.flatnonzero(cache.groups == i))
        assert own.dtype == np.float32 and 200 < own.max() <= 255
        assert {tile.tobytes() for tile in own} == expected


def test_for_a_model_of_8_bits_deeper_ones_are_left_out(deep_ones):
    cache = TileCache(deep_ones, SIZE, 48, white=None)
    assert [error.path for error in cache.errors] == deep_ones[:2] and len(cache.counts) == 1
    assert "has more than 8 bits" in cache.errors[0].reason and cache.batch([0]).dtype == np.uint8


def test_as_many_tiles_as_memory_holds(photographs, deep_ones):
    a_tile = SIZE[0] * SIZE[1] * 3
    assert np.bincount(TileCache(photographs, SIZE, 48, limit=24 * a_tile).groups).tolist() == [6, 6, 6]
    # Of deeper ones half as many.
    assert np.bincount(TileCache(deep_ones[:2], SIZE, 48, limit=24 * a_tile).groups).tolist() == [6, 6]


def test_nothing_that_can_be_read(photographs):
    with pytest.raises(UserError, match=r"none of 1 images can be read; the first: .*1\.png"):
        TileCache(photographs[1:2], SIZE, 48)


def test_settings_say_which_images_there_are(photographs):
    config = Config(image_size=64, patch=32, stride=16, net="pyramid")
    with images_for(photographs, config) as whole:
        assert type(whole) is ImageCache and whole.size == config.image_size
        np.testing.assert_array_equal(whole.groups, [0, 1, 2])
    tiles = images_for(photographs, Config(image_size=64, patch=32, stride=16, tile=48, cache_mib=1))
    assert isinstance(tiles, TileCache) and tiles.size == (64, 64)
    # A MiB holds 85 of them.
    assert len(tiles) == 36
