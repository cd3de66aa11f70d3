"""The next batch of files read while the present one is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Prefetcher(Generic[Key, Value]):
    """Reads batches by key; one that was announced is read by threads meanwhile.

    Parameters
    ----------
    pool : ThreadPoolExecutor
        Its threads read; it stays the caller's.
    read : callable
        From a key to what is read.

    Notes
    -----
    Not for use by several threads at once.
    """

    def __init__(self, pool: ThreadPoolExecutor, read: Callable[[Key], Value]) -> None:
        self._pool, self._read = pool, read
        self._ahead: tuple[tuple[Key, ...], list[Future[Value]]] | None = None

    def batch(self, keys: Sequence[Key]) -> list[Value]:
        """What the keys stand for, in their order; raises what reading raised.

        Parameters
        ----------
        keys : sequence
            Any; read now where they were not announced.
        """
        wanted = tuple(keys)
        if self._ahead is not None and self._ahead[0] == wanted:
            futures, self._ahead = self._ahead[1], None
        else:
            futures = self._submit(wanted)
        return [future.result() for future in futures]

    def prefetch(self, keys: Sequence[Key]) -> None:
        """Begin to read the batch that will be asked for next, by the same keys in the same order.

        One batch can wait: a second call gives up the first.

        Parameters
        ----------
        keys : sequence
            May be empty.
        """
        wanted = tuple(keys)
        if self._ahead is None or self._ahead[0] != wanted:
            self._drop()
            self._ahead = wanted, self._submit(wanted)

    def _drop(self) -> None:
        if self._ahead is not None:
            for future in self._ahead[1]:
                future.cancel()
            self._ahead = None

    def _submit(self, keys: Sequence[Key]) -> list[Future[Value]]:
        return [self._pool.submit(self._read, key) for key in keys]
