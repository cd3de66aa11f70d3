"""Rows of a CSV file, with the numbers of their lines, for errors that say where."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from glance_fast.data.layouts.record import more
from glance_fast.errors import UserError


class Row(NamedTuple):
    """A line of a table: its number, and its fields by the names of the columns."""

    line: int
    fields: dict[str, str]


def read_columns(path: Path) -> list[str]:
    """Names in the first line, in lower case; none where that cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _names(next(csv.reader(file), []))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def read_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """All rows but empty ones. A field that a row does not have is empty.

    Parameters
    ----------
    path : Path
        UTF-8, commas between the fields, names of the columns in the first line.
    columns : sequence of str
        Those that are needed.

    Raises
    ------
    UserError
        The file cannot be read, or has not these columns.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            names = _names(next(reader, []))
            missing = [name for name in columns if name not in names]
            if missing:
                raise UserError(
                    f"{path}: no column {' and no '.join(missing)}; its first line must name the columns, "
                    f"such as {','.join(columns)}"
                )
            empty = dict.fromkeys(names, "")
            return [
                Row(reader.line_num, empty | dict(zip(names, map(str.strip, fields), strict=False)))
                for fields in reader
                if any(fields)
            ]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no readable CSV file: {error}") from error


def check_there(table: Path, files: Iterable[tuple[int, Path]]) -> None:
    """Refuse a table that names files which are not there.

    Parameters
    ----------
    table : Path
        The table.
    files : iterable of (int, Path)
        Lines, and what they name.

    Raises
    ------
    UserError
        With the first of them.
    """
    missing = [(line, path) for line, path in files if not path.is_file()]
    if missing:
        line, path = missing[0]
        raise UserError(f"{table}, line {line}: {path}: no such file{more(missing)}")


def _names(fields: list[str]) -> list[str]:
    return [field.strip().lower() for field in fields]
