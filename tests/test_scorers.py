"""How many batches are scored side by side, and in which order their results come."""

from __future__ import annotations

import threading

import pytest
import torch

from glance_fast.config import Config
from glance_fast.device import use_threads
from glance_fast.engines.memory import Share
from glance_fast.model import Glance
from glance_fast.run import load
from glance_fast.scorers import scorers, share_of, side_by_side


@pytest.fixture(scope="module")
def model(run_folder):
    return load(run_folder, "cpu")


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)  # use_threads gives no more than there are processors, unless PyTorch has them
    yield
    use_threads(before)


def test_how_many_batches_side_by_side(model, monkeypatch):
    assert scorers(model, threads=2) == scorers(model, threads=16) == 2
    assert scorers(model, threads=1) == 1
    tiny = {"image_size": (64, 64), "patch": 32, "stride": 16, "pretrained": False}
    assert scorers(Glance(Config(**tiny)), threads=2) == 2
    assert scorers(Glance(Config(**tiny, tile=100)), threads=2) == 1
    assert scorers(Glance(Config(**tiny, net="pyramid")), threads=2) == 1
    together = model.memory_share().together
    monkeypatch.setattr(model, "memory_share", lambda precision: Share(together, together - 1, 0))
    assert scorers(model, threads=2) == 1, "memory holds fewer"
    monkeypatch.undo()
    monkeypatch.setattr("numba.threading_layer", lambda: "workqueue")
    assert scorers(model, threads=2) == 1, "Numba's loops would abort"


@pytest.mark.parametrize("threads", range(1, 9))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_threads_are_shared(threads, count):
    shares = [share_of(threads, number, count) for number in range(count)]
    assert sum(shares) == max(threads, count) and max(shares) - min(shares) <= 1


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("items", [0, 1, 2, 7])
def test_results_come_in_order(count, items):
    # Earlier ones take longer.
    def work(item):
        threading.Event().wait(0.02 * (items - item))
        return item * item

    assert list(side_by_side(work, iter(range(items)), count)) == [i * i for i in range(items)]


def test_two_are_worked_on_at_a_time_and_share_the_threads(three_threads):
    both = threading.Barrier(2, timeout=30)

    def work(item):
        both.wait()
        return torch.get_num_threads(), threading.current_thread().name

    found = list(side_by_side(work, range(6), 2))
    assert {threads for threads, _ in found} == {1, 2}
    assert len(set(found)) == 2, "each thread has its share"
    assert torch.get_num_threads() == 3


def test_one_at_a_time_is_worked_on_here():
    here = threading.current_thread()
    assert list(side_by_side(lambda item: threading.current_thread(), [1, 2], 1)) == [here, here]


def test_items_are_taken_no_further_ahead_than_needed():
    taken = []

    def items():
        for item in range(20):
            taken.append(item)
            yield item

    for done, _ in enumerate(side_by_side(lambda item: item, items(), 2)):
        assert len(taken) <= done + 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_comes_in_its_place_and_nothing_more_begins(error):
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise error
        return item

    found = []
    with pytest.raises(error):
        for result in side_by_side(work, range(20), 2):
            found.append(result)
    assert found == [0, 1, 2] and max(begun) <= 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("glance-score")]


def test_who_stops_early_waits_for_what_was_begun():
    ended = []

    def work(item):
        threading.Event().wait(0.05)
        ended.append(item)

    results = side_by_side(work, range(20), 2)
    next(results)
    results.close()
    count = len(ended)
    threading.Event().wait(0.2)
    assert len(ended) == count <= 5
