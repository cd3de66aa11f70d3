"""Images in memory or on disk: the same pixels, each file read once."""

import threading
from pathlib import Path

import deep
import numpy as np
import pytest

from glance_fast.data import cache as module
from glance_fast.data.cache import ImageCache
from glance_fast.data.depth import Unlike, fitted, levels
from glance_fast.data.images import read_image, resize, write_png
from glance_fast.errors import ImageError, UserError


def _picture(path: Path, value: int = 0, size: tuple[int, int] = (6, 8)) -> Path:
    write_png(path, np.full((*size, 3), value, np.uint8))
    return path


SIZE = (6, 4)
HELD, STREAMED = 1 << 20, 0


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(7):
        write_png(tmp_path / f"{index}.png", rng.integers(0, 256, (9 + index, 12, 3), dtype=np.uint8))
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "5.png").write_bytes(
        (tmp_path / "5.png").read_bytes()[:-100]
    )  # the header alone would be fine
    return [tmp_path / f"{index}.png" for index in range(7)]


@pytest.fixture(params=[HELD, STREAMED], ids=["held", "streamed"])
def cache(request, files):
    with ImageCache(files, SIZE, memory_limit=request.param) as cache:
        yield cache


def test_bad_files_are_known_at_once(cache, files):
    assert cache.paths == [files[i] for i in (0, 1, 3, 4, 6)]
    assert [error.path for error in cache.errors] == [files[2], files[5]]
    assert all(isinstance(error, ImageError) for error in cache.errors)
    assert len(cache) == 5


def test_bad_files_are_logged(files, caplog):
    with ImageCache(files, SIZE):
        pass
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith(f"left out: {files[2]}: ") and lines[1].startswith(f"left out: {files[5]}: ")


def test_batch_is_what_the_files_hold(cache):
    order = [4, 0, 2, 2, 3, 1]
    expected = np.stack([resize(read_image(cache.paths[i]), SIZE) for i in order])
    for indices in (order, np.array(order), tuple(order)):
        batch = cache.batch(indices)
        assert batch.dtype == np.uint8
        np.testing.assert_array_equal(batch, expected)
    assert cache.batch([]).shape == (0, *SIZE, 3)


def test_batch_is_a_copy(cache):
    first = cache.batch([0])
    before = first.copy()
    first[...] = 0
    np.testing.assert_array_equal(cache.batch([0]), before)


def test_prefetched_batch_is_the_same(cache):
    expected = cache.batch([3, 1])
    cache.prefetch([3, 1])
    np.testing.assert_array_equal(cache.batch([0]), cache.batch(np.array([0])))  # another one in between
    np.testing.assert_array_equal(cache.batch([3, 1]), expected)
    cache.prefetch([0, 1])
    cache.prefetch([2])
    np.testing.assert_array_equal(cache.batch([1, 3]), expected[::-1])


@pytest.mark.parametrize(
    ("indices", "error"),
    [([5], IndexError), ([-1], IndexError), ([0.5], TypeError), ([[0]], TypeError), ([True], TypeError)],
)
def test_wrong_indices(cache, indices, error):
    with pytest.raises(error):
        cache.batch(indices)
    with pytest.raises(error):
        cache.prefetch(indices)


def test_limit_decides_to_the_byte(files):
    need = len(files) * SIZE[0] * SIZE[1] * 3
    assert ImageCache(files, SIZE, memory_limit=need).held
    with ImageCache(files, SIZE, memory_limit=need - 1) as cache:
        assert not cache.held


def test_prefetch_reads_each_file_once_and_in_other_threads(files, monkeypatch):
    with ImageCache(files, SIZE, memory_limit=STREAMED) as cache:
        readers = []

        def record(path):
            readers.append((path, threading.current_thread()))
            return read_image(path)

        monkeypatch.setattr(module, "read_image", record)
        cache.prefetch([0, 3])
        cache.prefetch([0, 3])
        cache.batch([0, 3])
        assert sorted(path for path, _ in readers) == [cache.paths[0], cache.paths[3]]
        assert threading.main_thread() not in {thread for _, thread in readers}
        cache.batch([0, 3])  # a prefetched batch is handed out once
        assert len(readers) == 4


def test_held_images_need_no_files(files):
    with ImageCache(files, SIZE, memory_limit=HELD) as cache:
        expected = cache.batch([1])
        for path in files:
            path.unlink()
    np.testing.assert_array_equal(cache.batch([1]), expected)


def test_file_that_turns_bad_later(files):
    with ImageCache(files, SIZE, memory_limit=STREAMED) as cache:
        cache.paths[0].unlink()
        with pytest.raises(ImageError, match="no such file"):
            cache.batch([0])
    with pytest.raises(RuntimeError, match="closed"):
        cache.batch([1])


def test_progress_counts_every_file(files):
    calls = []
    ImageCache(files, SIZE, progress=calls.append, workers=3)
    assert calls == [1, 2, 3, 4, 5, 6, 7]


def test_nothing_readable(files):
    with pytest.raises(UserError, match=r"none of 2 images .*2\.png: is empty"):
        ImageCache([files[2], files[5]], SIZE)
    with pytest.raises(ValueError, match="workers"):
        ImageCache(files, SIZE, workers=0)


# ---------------------------------------------------------------- more than 8 bits


def _deep_files(folder, bits, count=4):
    return [
        deep.write(folder / f"deep-{i}.png", deep.png(deep.noise(3, bits, (9 + i, 12), seed=i)))
        for i in range(count)
    ]


@pytest.mark.parametrize("limit", [HELD, STREAMED])
def test_white_is_found_from_all_images(tmp_path, limit):
    files = _deep_files(tmp_path, 9)
    bright = deep.write(tmp_path / "bright.png", deep.png(np.full((9, 12, 3), 3000, np.uint16)))
    with ImageCache([*files, bright], SIZE, memory_limit=limit) as cache:
        assert cache.white == 4095 and cache.unlike == Unlike()
        batch = cache.batch([0, 4, 1])
        assert batch.dtype == np.float32 and batch.shape == (3, *SIZE, 3)
        for found, path in zip(batch, [files[0], bright, files[1]], strict=True):
            np.testing.assert_array_equal(found, levels(fitted(read_image(path), SIZE, 4095), 4095))
    with ImageCache(files, SIZE, memory_limit=limit) as cache:
        assert cache.white == 1023


@pytest.mark.parametrize("limit", [HELD, STREAMED])
def test_images_of_8_bits_among_deeper_ones_are_equally_bright(files, tmp_path, limit):
    with ImageCache([*files, *_deep_files(tmp_path, 12)], SIZE, memory_limit=limit) as cache:
        assert cache.white == 4095 and cache.unlike == Unlike(shallow=5)
        assert cache.held == (limit == HELD)
        found = cache.batch(range(5))
        eight = np.stack([resize(read_image(path), SIZE) for path in cache.paths[:5]])
        np.testing.assert_allclose(found, eight, atol=0.04)
        np.testing.assert_array_equal(found[2], levels(fitted(read_image(cache.paths[2]), SIZE, 4095), 4095))


def test_the_white_of_a_model_counts(files, tmp_path):
    paths = [files[0], *_deep_files(tmp_path, 12)]
    with ImageCache(paths, SIZE, white=1023) as cache:
        assert cache.white == 1023 and cache.unlike == Unlike(shallow=1, above=4)
        expected = levels(np.stack([fitted(read_image(path), SIZE, 1023) for path in paths]), 1023)
        np.testing.assert_array_equal(cache.batch(range(5)), expected)
    for limit in (HELD, STREAMED):
        with ImageCache(paths, SIZE, memory_limit=limit, white=None) as cache:
            assert cache.white is None and cache.paths == paths[:1]
            assert [error.path for error in cache.errors] == paths[1:]
            assert all("has more than 8 bits" in error.reason for error in cache.errors)
            assert cache.batch([0]).dtype == np.uint8


def test_deeper_images_take_twice_the_room(files, tmp_path):
    deeper = _deep_files(tmp_path, 12)
    need = 4 * SIZE[0] * SIZE[1] * 3
    assert ImageCache(deeper, SIZE, memory_limit=2 * need).held
    assert ImageCache(deeper, SIZE, memory_limit=2 * need, white=4095).held
    for white in ("found", 4095):
        with ImageCache(deeper, SIZE, memory_limit=2 * need - 1, white=white) as cache:
            assert not cache.held
            np.testing.assert_array_equal(
                cache.batch([3, 1])[1], levels(fitted(read_image(deeper[1]), SIZE, 4095), 4095)
            )
