"""What was predicted of a device before it was timed, beside what it did: which predictions were wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.costs.predict import Card

if TYPE_CHECKING:
    from benchmarks.gpu.suite import Row

# Within this factor, either way, a prediction counts as right.
RIGHT = 1.5

Key = tuple[str, str, str]  # operator, shape, dtype


@dataclass(frozen=True)
class Expected:
    """A prediction, and what was measured.

    Attributes
    ----------
    key : (str, str, str)
        Operator, shape and dtype.
    predicted, measured : float
        Milliseconds; measured is that of our single kernel.
    """

    key: Key
    predicted: float
    measured: float

    @property
    def right(self) -> bool:
        """Whether they differ by less than RIGHT, either way."""
        return abs(math.log(self.measured / self.predicted)) <= math.log(RIGHT)


def card_of(name: str, matrix: float, plain: float, copy: float, cache: float, multiprocessors: int) -> Card:
    """A card with the rates that were measured on it: operations and bytes a second."""
    return Card(name, matrix, plain, copy, matrix, copy, cache, multiprocessors)


def compare(rows: Iterable[Row], predicted: dict[Key, float]) -> list[Expected]:
    """Predictions, milliseconds, beside the rows of our single kernels that a GPU was timed for.

    Parameters
    ----------
    rows : iterable of Row
        Of any version, from any place.
    predicted : dict
        By operator, shape and dtype.
    """
    found = []
    for row in rows:
        key = row.operator, row.shape, row.dtype
        timed = row.where == "gpu" and row.version == "ours, one kernel" and not math.isnan(row.ms)
        if timed and key in predicted:
            found.append(Expected(key, predicted[key], row.ms))
    return found


def summary(found: Sequence[Expected]) -> str:
    """The wrong predictions, worst first, and how many were right."""
    if not found:
        return "predictions: none was put to the test"
    wrong = sorted((e for e in found if not e.right), key=lambda e: -abs(math.log(e.measured / e.predicted)))
    lines = [f"predictions: {len(found) - len(wrong)} of {len(found)} within a factor of {RIGHT:g}"]
    for e in wrong:
        operator, shape, dtype = e.key
        lines.append(
            f"{operator:24} {shape:46} {dtype:9} predicted {e.predicted:9.4f} ms, measured "
            f"{e.measured:9.4f} ms, {e.measured / e.predicted:5.2f} times"
        )
    return "\n".join(lines)
