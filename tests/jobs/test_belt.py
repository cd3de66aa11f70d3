"""From one thread to another."""

from __future__ import annotations

import threading

import pytest

from glance_fast.jobs.belt import Belt


def test_a_belt_keeps_the_order_and_its_limit():
    belt = Belt(2)
    taken = []

    def take():
        while some := belt.take(3):
            assert len(some) <= 2
            taken.extend(some)

    thread = threading.Thread(target=take)
    thread.start()
    assert all(belt.put(i) for i in range(100))
    belt.close()
    thread.join(10)
    assert taken == list(range(100)) and not belt.put(1)


def test_a_full_belt_lets_go_when_it_is_closed():
    belt = Belt(1)
    belt.put(0)
    threading.Timer(0.05, belt.clear).start()
    assert belt.put(1) is False and belt.take(1) == []


def test_one_that_drops_keeps_the_newest_and_counts():
    belt = Belt(3, drops=True)
    assert all(belt.put(i) for i in range(10))
    assert belt.dropped == 7 and belt.waiting() == (3, 7)
    assert belt.take(2) == [7, 8] and belt.take(2) == [9]


def test_an_error_comes_after_what_was_put_before():
    belt = Belt(None)
    belt.put("a")
    belt.close(KeyError("odd"))
    assert belt.take(5) == ["a"]
    with pytest.raises(KeyError, match="odd"):
        belt.take(5)
