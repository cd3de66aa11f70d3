"""``scores.csv``: one row an image, appended as they come, sorted as the images are."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath

from glance_fast.data.depth import Unlike
from glance_fast.data.table import ScoreRow, as_csv, write_table
from glance_fast.errors import UserError, cannot_write

TABLE, RUN = "scores.csv", "run.json"
# What to do with a folder of ours that cannot be gone on with. Overwriting is not for a shard: it would take
# the others' work with it.
ELSEWHERE = "use another `out`"
OVERWRITE = f"{ELSEWHERE}, or `overwrite=True` in place of `resume=True`"
# Images from which a drift is told, and the share of normal images that hardly any of them scores below.
LEAST_DRIFTED, DRIFTED = 20, 0.1


def way_out(path: str | Path) -> str:
    """What to do where a table or a ``run.json`` cannot be gone on with, by whether it is a shard's."""
    return OVERWRITE if PurePath(path).name in (TABLE, RUN) else ELSEWHERE


@dataclass(frozen=True)
class Summary:
    """What ``scores.csv`` holds: numbers of images, and remarks for the user."""

    scored: int
    anomalous: int
    errors: int
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Odd:
    """Numbers of images that a model sees other than they are.

    Attributes
    ----------
    stretched : int
        Of another shape than those in training.
    small : int
        Of fewer pixels across than a patch.
    cut : int
        Of fewer pixels across than a tile, so that they are enlarged.
    shallow, above : int
        As ``glance_fast.data.depth.Unlike`` has them.
    """

    stretched: int = 0
    small: int = 0
    cut: int = 0
    shallow: int = 0
    above: int = 0

    def __add__(self, other: Odd) -> Odd:
        return Odd(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def remarks(self) -> tuple[str, ...]:
        """What to say of them."""
        out = []
        if self.stretched:
            have = "image has" if self.stretched == 1 else "images have"
            seen = "and the model saw a stretched copy"
            out.append(f"{self.stretched} {have} another shape than those in training, {seen}")
        if self.small:
            are = "image is" if self.small == 1 else "images are"
            out.append(f"{self.small} {are} smaller than a patch; enlarged so much, they show little")
        if self.cut:
            are = "image is" if self.cut == 1 else "images are"
            out.append(f"{self.cut} {are} smaller than a tile, and the model saw an enlarged copy")
        return (*out, *Unlike(self.shallow, self.above).remarks())


def drift_remarks(rows: Iterable[ScoreRow]) -> tuple[str, ...]:
    """What to say where a whole folder scores higher than normal images do, and not single images.

    Of photographs that come about as those in training did, nine in ten or so score as some tenth of the
    normal images does, or lower. Where not one in ten does, it is the light, the focus or the pose that has
    changed.
    """
    above = sorted((float(row.above) for row in rows if not row.error), reverse=True)
    if len(above) < LEAST_DRIFTED or above[len(above) // 10] >= DRIFTED:
        return ()
    return (
        f"{len(above) - len(above) // 10} of {len(above)} images score higher than 9 in 10 normal ones: "
        "unless most are defective, light, focus or pose differ from those in training; "
        "`glance-fast calibrate` with good photographs of now, or train with them",
    )


def read_rows(path: Path) -> dict[str, ScoreRow]:
    """The whole rows of a table, by path; a killed process may have left half a line at its end.

    Raises
    ------
    UserError
        It cannot be read, or is another table. One that is not there is empty.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_rows(text, path)


def parse_rows(text: str, path: str | Path) -> dict[str, ScoreRow]:
    """As ``read_rows``, of the text of a table that was read from ``path``."""
    try:
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UserError(f"{path}: damaged ({error}); {way_out(path)}") from error
    if lines and not text.endswith("\n"):
        lines.pop()
    if lines and tuple(lines[0]) != ScoreRow._fields:
        raise UserError(f"{path}: not a table of score-dir; {way_out(path)}")
    rows = (ScoreRow(*line) for line in lines[1:] if len(line) == len(ScoreRow._fields))
    return {row.path: row for row in rows if row.error or _is_score(row)}


def _is_score(row: ScoreRow) -> bool:
    """Whether a row says what it should; of a damaged one, the image is scored again."""
    try:
        numbers = math.isfinite(float(row.score)) and 0 <= float(row.above) <= 1
    except ValueError:
        return False
    return numbers and row.anomalous in ("", "0", "1")


def write_rows(path: Path, rows: Iterable[ScoreRow]) -> None:
    """Write a table anew, whole or not at all."""
    write_table(path, ScoreRow._fields, rows)


def append_rows(path: Path, rows: Iterable[ScoreRow]) -> None:
    """Add rows to a table that is there."""
    try:
        # Not "a", which would make it anew: rows without a header are no table.
        with path.open("r+", encoding="utf-8", newline="") as file:
            file.seek(0, os.SEEK_END)
            file.write(as_csv(rows))
    except FileNotFoundError as error:
        raise _gone(path) from error
    except OSError as error:
        raise cannot_write(path, error) from error


def sort_rows(path: Path, names: list[str]) -> None:
    """Bring the rows into the order of the images; those of images that are gone come last."""
    if not path.is_file():
        raise _gone(path)
    rows = read_rows(path)
    ordered = [rows.pop(name) for name in names if name in rows]
    write_rows(path, [*ordered, *rows.values()])


def _gone(path: Path) -> UserError:
    return UserError(
        f"{path}: another command joined or removed it meanwhile; "
        "`resume=True` without `shard` does what is left"
    )
