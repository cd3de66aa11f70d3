"""Tables as CSV: how rows and the names of files in them are written, the same in every table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from glance_fast.data.files import write_text


class ScoreRow(NamedTuple):
    """A line of every ``scores.csv``: a score and what it means, or an error.

    Attributes
    ----------
    path : str
        Of the image, below the folder that was scored.
    score : str
        In deviations from those of normal images; for the paper's blend, the largest value of the map. Nine
        digits, which hold a float32 exactly.
    above : str
        Share of normal images that score as high (``Calibration.share_above``).
    anomalous : str
        1 where the score lies above the threshold, else 0; empty where there is no threshold.
    error : str
        Why there is no score; empty where there is one.
    """

    path: str
    score: str
    above: str
    anomalous: str
    error: str = ""


def printable(name: str | Path) -> str:
    """A file's name as text that can be written as UTF-8; bytes that are none are escaped, and so differ."""
    name = name.as_posix() if isinstance(name, Path) else name
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """Rows as lines of CSV, without a header."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        # The writer leaves a carriage return as it is, and the reader takes it for the end of a line.
        (quoting if any("\r" in str(value) for value in row) else plain).writerow(row)
    return text.getvalue()


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table anew, whole or not at all.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    write_text(path, as_csv([columns, *rows]))
