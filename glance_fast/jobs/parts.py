"""Rows of a scoring that many workers share: a small table a block of photographs, until one is made of all.

A part is called by what its scores come from and by its photographs. One that is written again takes its own
place, and no part that comes late, of a call that has ended, can take another's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from glance_fast.data.store import Store
from glance_fast.data.table import ScoreRow, as_csv
from glance_fast.jobs.record import SAME, check_same, parse_run
from glance_fast.jobs.table import RUN, TABLE, parse_rows

PARTS = "parts"
# Parts that are read at a time: a store takes its time for each.
AT_ONCE = 16


def part_name(provenance: dict[str, Any], names: Iterable[str]) -> str:
    """The file of the rows of a block of photographs.

    Parameters
    ----------
    provenance : dict
        As of ``provenance_of``.
    names : iterable of str
        The photographs of the block.
    """
    digest = hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()
    return f"{PARTS}/{_origin(provenance)}-{digest[:32]}.csv"


def put_rows(out: Store, name: str, rows: Iterable[ScoreRow]) -> None:
    """Write a table: a part, once the other files of its photographs are there, or the whole."""
    out.write(name, as_csv([ScoreRow._fields, *rows]).encode())


def read_parts(out: Store, provenance: dict[str, Any]) -> tuple[dict[str, ScoreRow], list[str]]:
    """The rows of all parts of one provenance, by path, and the files of all parts.

    Raises
    ------
    UserError
        A part cannot be read, or is no table of ours.
    """
    files = sorted(out.names(PARTS))
    ours = [file for file in files if file.startswith(f"{PARTS}/{_origin(provenance)}-")]
    rows: dict[str, ScoreRow] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for file, text in zip(ours, pool.map(out.text, ours), strict=True):
            rows |= parse_rows(text or "", out.at(file))
    return rows, files


def read_table(out: Store) -> dict[str, ScoreRow]:
    """The rows of ``scores.csv``, by path; none where it is not there.

    Raises
    ------
    UserError
        It cannot be read, or is another table.
    """
    return parse_rows(out.text(TABLE) or "", out.at(TABLE))


def read_record(out: Store) -> dict[str, Any] | None:
    """What ``run.json`` says; None where it is not there.

    Raises
    ------
    UserError
        It cannot be read, or is none of ours.
    """
    text = out.text(RUN)
    return None if text is None else parse_run(text, out.at(RUN))


def fold_parts(out: Store, provenance: dict[str, Any]) -> None:
    """Put the rows of parts that a call left into ``scores.csv``; if it is stopped, it can be called again.

    Raises
    ------
    UserError
        What is there is of another provenance, or cannot be read or written.
    """
    if not out.names(PARTS):
        return
    check_same(out, read_record(out), provenance)
    found, files = read_parts(out, provenance)
    rows = read_table(out)
    for path, row in found.items():
        if path not in rows or not row.error:
            rows[path] = row
    put_rows(out, TABLE, rows.values())
    out.remove(files)


def _origin(provenance: dict[str, Any]) -> str:
    same = json.dumps({name: provenance[name] for name in SAME}, sort_keys=True)
    return hashlib.sha256(same.encode()).hexdigest()[:16]
