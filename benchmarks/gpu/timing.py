"""Timing and checking on a device: fresh inputs, poisoned outputs, events around the device's own work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError

from benchmarks.costs.counts import Work

# What a version may die of without taking the others along.
FAULTS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError,
    RuntimeError, TypeError, ValueError, TritonError,
)  # fmt: skip
# Of ||out - exact|| / ||exact||. float32 leaves room for the matrix units' tf32.
TOLERANCE = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 1e-2}
SETTLE, REPEATS, SECONDS = 3, 25, 0.25  # runs before, most and longest runs counted
MOST_MEMORY = 1 << 33  # of input sets, bytes
MOST_SETS = 24


class OutOfTimeError(Exception):
    """The budget is spent."""


@dataclass(frozen=True)
class Timing:
    """How long one run takes.

    Attributes
    ----------
    seconds, iqr : float
        Median, and the width that holds the middle half.
    repeats : int
        Measurements behind them.
    clock : {"graph", "events", "wall clock"}
        Device events around replays of a captured graph, around the launches, or the host's clock.
    """

    seconds: float
    iqr: float
    repeats: int
    clock: str


class Deadline:
    """A number of seconds that must not be overrun."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def check(self) -> None:
        """Raise ``OutOfTimeError`` if it is over."""
        if self.left <= 0:
            raise OutOfTimeError


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory is handed out full of NaN (integers: -77), so that what a kernel leaves unwritten shows."""
    places = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty")]
    before = [getattr(owner, name) for owner, name in places]

    def poison(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def filled(*args: Any, **options: Any) -> Tensor:
            tensor = allocate(*args, **options)
            if tensor.is_floating_point():
                return tensor.fill_(float("nan"))
            return tensor if tensor.dtype in (torch.bool, torch.uint8) else tensor.fill_(-77)

        return filled

    try:
        for (owner, name), allocate in zip(places, before, strict=True):
            setattr(owner, name, poison(allocate))
        yield
    finally:
        for (owner, name), allocate in zip(places, before, strict=True):
            setattr(owner, name, allocate)


def error(found: Any, exact: Any) -> float:
    """||found - exact|| / ||exact||, the largest over a tuple; NaN where anything is NaN."""
    pairs = zip(*(value if isinstance(value, tuple) else (value,) for value in (found, exact)), strict=True)
    errors = [
        torch.linalg.vector_norm(a.double() - b) / torch.linalg.vector_norm(b).clamp_min(1e-300)
        for a, b in pairs
    ]
    return float(torch.stack(errors).max())


def sets_for(work: Work, cache: int) -> int:
    """Input sets to rotate through, so that three times the cache lies between two uses of one."""
    wanted = -(-3 * cache // work.bytes) + 1
    return max(2, min(wanted, MOST_SETS, MOST_MEMORY // work.bytes))


def measure(run: Callable[[Any], Any], sets: list[Any], device: torch.device, graph: bool = True) -> Timing:
    """Time of one run, over all sets in turn."""
    if device.type != "cuda":
        return on_host(run, sets)
    for _ in range(SETTLE):
        every(run, sets)
    torch.cuda.synchronize()
    if graph:
        try:
            return timed(captured(run, sets).replay, len(sets), "graph")
        except RuntimeError:
            # Something in it waits for the host; events then hold the launches' gaps too.
            torch.cuda.synchronize()
    return timed(lambda: every(run, sets), len(sets), "events")


def every(run: Callable[[Any], Any], sets: list[Any]) -> None:
    """Run once on each set."""
    for inputs in sets:
        run(inputs)


def captured(run: Callable[[Any], Any], sets: list[Any]) -> torch.cuda.CUDAGraph:
    """A graph of one run on each set: many small launches without gaps between them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        every(run, sets)
    graph.replay()
    return graph


def timed(once: Callable[[], Any], runs: int, clock: str) -> Timing:
    """Time ``once`` by device events; it holds so many runs."""
    found, spent = [], 0.0
    while len(found) < 3 or (len(found) < REPEATS and spent < SECONDS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        once()
        stop.record()
        stop.synchronize()
        found.append(start.elapsed_time(stop) * 1e-3 / runs)
        spent += found[-1] * runs
    return summary(found, clock)


def on_host(run: Callable[[Any], Any], sets: list[Any], repeats: int = 3) -> Timing:
    """Time by the host's clock, set by set; the check before was the warm-up. What takes long runs once."""
    found, spent = [], 0.0
    while not found or (len(found) < repeats and spent < SECONDS):
        started = time.perf_counter()
        run(sets[len(found) % len(sets)])
        found.append(time.perf_counter() - started)
        spent += found[-1]
    return summary(found, "wall clock")


def summary(found: list[float], clock: str) -> Timing:
    """Median and spread."""
    low, _, high = quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    return Timing(median(found), high - low, len(found), clock)
