"""From one thread to another: what is done in steps, each in a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Belt(Generic[Item]):
    """Takes things from one thread to another, in their order.

    Parameters
    ----------
    limit : int or None
        How many may wait on it.
    drops : bool
        Whether one more takes the place of the one that has waited longest; else who brings it waits.
    """

    def __init__(self, limit: int | None, drops: bool = False) -> None:
        self.dropped = 0
        self._items: deque[Item] = deque()
        self._limit, self._drops = limit, drops
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None

    def put(self, item: Item) -> bool:
        """Add one; False where the belt was closed meanwhile, and nothing more is wanted."""
        with self._changed:
            if self._limit is not None and self._drops and len(self._items) >= self._limit:
                self._items.popleft()
                self.dropped += 1
            while self._limit is not None and len(self._items) >= self._limit and not self._closed:
                self._changed.wait()
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def take(self, most: int) -> list[Item]:
        """Those that wait, at least one and ``most`` at most; none once it is closed and empty.

        Raises
        ------
        BaseException
            What it was closed with, after the last one.
        """
        with self._changed:
            while not self._items and not self._closed:
                # Not for ever: on Windows that could not be interrupted.
                self._changed.wait(1.0)
            taken = [self._items.popleft() for _ in range(min(most, len(self._items)))]
            self._changed.notify_all()
            if not taken and self._error is not None:
                raise self._error
            return taken

    def close(self, error: BaseException | None = None) -> None:
        """Nothing more comes; or, with an error, why."""
        with self._changed:
            self._closed, self._error = True, self._error or error
            self._changed.notify_all()

    def clear(self) -> None:
        """Nothing more is wanted."""
        with self._changed:
            self._items.clear()
        self.close()

    def waiting(self) -> tuple[int, Item | None]:
        """How many wait, and which one longest."""
        with self._changed:
            return len(self._items), self._items[0] if self._items else None
