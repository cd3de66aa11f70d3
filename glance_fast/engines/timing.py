"""The parts of scoring by name: for torch's profiler, and for ``glance-fast bench``, which times them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager

import torch
from torch.profiler import record_function

# Seconds by name, while someone measures.
_seconds: dict[str, float] | None = None


class timed(ContextDecorator):
    """A named part, as a context or a decorator; not to be nested."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _recreate_cm(self) -> timed:
        return timed(self.name)

    def __enter__(self) -> None:
        self._range = record_function(self.name)
        self._range.__enter__()
        self._started = _now() if _seconds is not None else None

    def __exit__(self, *error: object) -> None:
        if self._started is not None and _seconds is not None:
            _seconds[self.name] += _now() - self._started
        self._range.__exit__(*error)


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Seconds that every ``timed`` part takes meanwhile, by name; a GPU is waited for at both its ends."""
    global _seconds
    before, _seconds = _seconds, defaultdict(float)
    try:
        yield _seconds
    finally:
        _seconds = before


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
