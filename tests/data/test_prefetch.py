"""Batches read ahead are those asked for, and nothing is read twice or for nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from glance_fast.data.prefetch import Prefetcher


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as threads:
        yield threads


def test_a_batch_that_was_announced_is_read_once(pool):
    read = []
    files = Prefetcher(pool, lambda key: read.append(key) or key * 2)
    files.prefetch([3, 1, 3])
    files.prefetch([3, 1, 3])
    assert files.batch([3, 1, 3]) == [6, 2, 6] and sorted(read) == [1, 3, 3]
    # It was handed out: the same keys are read anew.
    assert files.batch((3,)) == [6] and sorted(read) == [1, 3, 3, 3]


def test_another_batch_than_the_announced_one_is_read_as_well(pool):
    files = Prefetcher(pool, str)
    files.prefetch([1, 2])
    assert files.batch([2, 1]) == ["2", "1"]
    assert files.batch([1, 2]) == ["1", "2"] and files.batch([]) == []


def test_what_is_given_up_is_not_read():
    go, read = threading.Event(), []

    def wait_and_read(key):
        go.wait(10)
        read.append(key)

    with ThreadPoolExecutor(1) as one:
        files = Prefetcher(one, wait_and_read)
        files.prefetch([1, 2, 3])
        files.prefetch([4])
        go.set()
        files.batch([4])
    # The one that had begun could not be stopped.
    assert 2 not in read and 3 not in read and read[-1] == 4


def test_errors_come_where_the_batch_is_asked_for(pool):
    def fail(key):
        raise OSError(key)

    files = Prefetcher(pool, fail)
    files.prefetch(["a"])
    with pytest.raises(OSError, match="a"):
        files.batch(["a"])
