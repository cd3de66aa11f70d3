"""Images in memory or on disk: the same pixels, each file read once."""

import threading
from pathlib import Path

import numpy as np
import pytest

from glance_fast.data import cache as module
from glance_fast.data.cache import ImageCache
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
