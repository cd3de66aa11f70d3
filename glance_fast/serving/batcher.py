"""A few threads own the model; each scores together what waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.images import Pixels
from glance_fast.device import pick_device, use_threads
from glance_fast.jobs.belt import Belt
from glance_fast.model import Glance
from glance_fast.scorers import scorers, share_of
from glance_fast.tiles import score_images


class Scored(NamedTuple):
    """The score of an image; its map, float32 [H, W] of the model's size, or its own by tiles; its region."""

    score: float
    map: NDArray[np.float32]
    inside: NDArray[np.bool_] | None = None


class _Wanted(NamedTuple):
    image: Pixels
    answer: Future[Scored]


class Batcher:
    """Scores images that come one by one, several at a time.

    On a CPU, net ``surround`` scores two batches side by side where there is work for both, each with half of
    the threads, as ``glance_fast.scorers`` has it. A batch that is alone has all threads.

    Parameters
    ----------
    model : Glance
        Trained. Nothing else may score with it meanwhile.
    engine, precision : str
        As for ``Glance.score``.
    threads : int, optional
        As for ``use_threads``.
    tell : callable, optional
        Called after every batch with the number of its images and its seconds.
    """

    def __init__(
        self,
        model: Glance,
        engine: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        tell: Callable[[int, float], None] | None = None,
    ) -> None:
        self._model, self._how, self._threads = model, (engine, precision), threads
        self._tell = tell or (lambda images, seconds: None)
        self._scorers = scorers(model, precision, threads)
        self._together = -(-model.at_once(precision) // self._scorers)
        self._waiting: Belt[_Wanted] = Belt(None)
        self._busy, self._lock = 0, threading.Lock()
        self._pool = [
            threading.Thread(target=self._run, args=(number,), daemon=True, name=f"glance-score-{number}")
            for number in range(self._scorers)
        ]
        for thread in self._pool:
            thread.start()

    def submit(self, image: Pixels) -> Future[Scored]:
        """Have an image scored, [H, W, 3], best as ``glance_fast.tiles.prepared`` gives it.

        Raises
        ------
        RuntimeError
            It was closed.
        """
        answer: Future[Scored] = Future()
        if not self._waiting.put(_Wanted(image, answer)):
            raise RuntimeError("the batcher is closed")
        return answer

    @property
    def runs(self) -> bool:
        """Whether its threads still answer."""
        return all(thread.is_alive() for thread in self._pool)

    def close(self) -> None:
        """Take nothing more, and wait until all that waits is answered."""
        self._waiting.close()
        for thread in self._pool:
            thread.join()

    def _run(self, number: int) -> None:
        # Both count for the thread that asks: numbers of threads, and the device that kernels run on.
        threads = use_threads(self._threads)
        pick_device(self._model.device)
        share = share_of(threads, number, self._scorers)
        while batch := self._waiting.take(self._together):
            with self._alone() as alone:
                if self._scorers > 1:
                    use_threads(threads if alone else share)
                # Of a client that has gone, nobody waits for the answer.
                self._score([wanted for wanted in batch if wanted.answer.set_running_or_notify_cancel()])

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """While a batch is scored; whether there is work for this thread alone."""
        with self._lock:
            self._busy += 1
            alone = self._busy == 1 and not self._waiting.waiting()[0]
        try:
            yield alone
        finally:
            with self._lock:
                self._busy -= 1

    def _score(self, batch: list[_Wanted]) -> None:
        if not batch:
            return
        began = time.monotonic()
        try:
            result = score_images(self._model, [wanted.image for wanted in batch], *self._how)
        except Exception as error:  # noqa: BLE001  # those who wait raise it; the next batch may do
            for wanted in batch:
                wanted.answer.set_exception(error)
            return
        self._tell(len(batch), time.monotonic() - began)
        for wanted, (score_map, score, inside) in zip(batch, result, strict=True):
            wanted.answer.set_result(Scored(score, score_map, inside))
