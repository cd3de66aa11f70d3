"""Batches scored side by side: how many, and what each computes with.

One batch cannot keep all cores busy: steps between operators run on one, and every operator waits for the
core that was late. Two batches at a time, each with its share of the threads, fill these gaps.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numba
import torch

from glance_fast.device import use_threads
from glance_fast.model import Glance

Item = TypeVar("Item")
Result = TypeVar("Result")

# More would each have fewer images, whose fixed costs count.
SIDE_BY_SIDE = 2


def scorers(model: Glance, precision: str = "auto", threads: int | None = None) -> int:
    """Batches that are best scored at a time, each by a thread of its own.

    One on a GPU, which a batch keeps busy; for masked nets and models of tiles, whose memory is counted for
    one batch; where memory holds fewer images at a time than would be taken together; and where Numba's loops
    cannot run in two threads at a time.

    Parameters
    ----------
    model : Glance
    precision : str
        As for ``Glance.score``.
    threads : int, optional
        What they share; PyTorch's number if not given.
    """
    threads = threads or torch.get_num_threads()
    if model.device.type != "cpu" or model.config.masked or model.config.tile is not None or threads < 2:
        return 1
    share = model.memory_share(precision)
    numba.get_num_threads()  # before, Numba does not say which layer it takes
    if share.images < share.together or numba.threading_layer() == "workqueue":
        return 1
    return min(SIDE_BY_SIDE, share.together)


def share_of(threads: int, number: int, count: int) -> int:
    """How many of the threads number ``number`` of ``count`` scorers computes with, at least 1."""
    return max(threads // count + (number < threads % count), 1)


def side_by_side(
    work: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Generator[Result, None, None]:
    """What comes of each item, in order; so many are worked on at a time, each with its share of the threads.

    Parameters
    ----------
    work : callable
        Called in other threads, or in this one where ``count`` is 1. What it raises is raised here, in the
        place of its result; what was begun is waited for, and nothing more begins.
    items : iterable
        Taken in this thread, up to ``count + 1`` ahead of the results, so that no scorer waits for one.
    count : int
        As ``scorers`` gives it.
    """
    if count == 1:
        yield from map(work, items)
        return
    threads, numbers = torch.get_num_threads(), itertools.count()

    def begin() -> None:
        use_threads(share_of(threads, next(numbers), count))

    under_way: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count, "glance-score", begin) as pool:
        try:
            for item in items:
                under_way.append(pool.submit(work, item))
                if len(under_way) > count:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()
