"""What experiments have in common: a folder of results that a killed one goes on with."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import glance_fast
from glance_fast.data.files import write_text
from glance_fast.data.table import write_table
from glance_fast.errors import UserError
from glance_fast.jobs.output import one_of, output

RECORD, RESULTS = "experiment.json", "results.csv"

Row = dict[str, Any]


class Study:
    """The rows of an experiment, kept in ``results.csv`` as they come.

    Parameters
    ----------
    out : Path
        Folder of the experiment.
    columns : mapping of str to type
        Names of the columns, and whether a value is a ``str``, an ``int`` or a ``float``.

    Attributes
    ----------
    rows : list of dict
        By column; None where there is no value.
    """

    def __init__(self, out: Path, columns: Mapping[str, type]) -> None:
        self.out, self.columns = out, columns
        self.rows: list[Row] = _read(out / RESULTS, columns) if (out / RESULTS).exists() else []

    def find(self, **values: Any) -> Row | None:
        """The first row with these values; None where it has not been measured yet."""
        return next((row for row in self.rows if values.items() <= row.items()), None)

    def add(self, *rows: Row) -> None:
        """Keep rows, in the file too.

        Raises
        ------
        UserError
            The file cannot be written.
        """
        self.rows += [{name: row.get(name) for name in self.columns} for row in rows]
        values = (["" if row[name] is None else row[name] for name in self.columns] for row in self.rows)
        write_table(self.out / RESULTS, list(self.columns), values)


@contextmanager
def study(
    out: Path,
    name: str,
    settings: Mapping[str, Any],
    columns: Mapping[str, type],
    ours: tuple[str, ...] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[Study]:
    """Work on an experiment in a folder.

    Parameters
    ----------
    out : Path
        The folder: new or empty, unless ``resume`` or ``overwrite``.
    name : str
        Of the experiment.
    settings : mapping
        All that its results depend on, as JSON has it. An experiment is gone on with only by the same.
    columns : mapping of str to type
        As for ``Study``.
    ours : tuple of str
        What else it writes in the folder, which ``overwrite`` deletes.
    resume : bool
        Go on with what is there: rows that it has are not measured again.
    overwrite : bool
        Delete what an earlier one wrote there.

    Raises
    ------
    UserError
        ``out`` holds something else, another experiment or one with other settings, or cannot be written.
    """
    one_of(resume, overwrite)
    record = {"experiment": name, "settings": dict(settings)}
    record = json.loads(json.dumps(record))
    if resume:
        _check_same(out, record)
    with output(out, (RECORD, RESULTS, *ours), overwrite, resume):
        if not resume:
            whole = record | {"glance_fast": glance_fast.__version__}
            write_text(out / RECORD, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
        yield Study(out, columns)


def resumable(out: Path) -> bool:
    """Whether an experiment was begun in a folder."""
    return (out / RECORD).is_file()


def _check_same(out: Path, record: dict[str, Any]) -> None:
    """Refuse to go on with another experiment."""
    path = out / RECORD
    if not path.is_file():
        raise UserError(f"{out}: nothing to resume there; leave `resume` away to begin")
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        name, settings = begun["experiment"], dict(begun["settings"])
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged; `overwrite=True` begins anew") from error
    if name != record["experiment"]:
        raise UserError(
            f"{out}: holds the experiment {name!r}, not {record['experiment']!r}; choose another `out`"
        )
    now = record["settings"]
    for key in [*settings, *(key for key in now if key not in settings)]:
        before, after = settings.get(key), now.get(key)
        if before != after:
            raise UserError(
                f"{out}: was begun with {key} = {json.dumps(before)}, not {json.dumps(after)}; "
                "give the same, or choose another `out`"
            )


def _read(path: Path, columns: Mapping[str, type]) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
        # A row with more values than columns has some under None; one with fewer has None as values.
        if reader.fieldnames != list(columns) or any(None in row or None in row.values() for row in rows):
            raise ValueError
        return [
            {name: None if row[name] == "" else kind(row[name]) for name, kind in columns.items()}
            for row in rows
        ]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: damaged, or of another version; `overwrite=True` begins anew") from error
