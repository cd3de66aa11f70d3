"""Shards of one scoring: every n-th image each, with a table of its own; the last to finish joins them.

They share nothing but files in one folder. A ``run.json`` with counts tells that its shard has finished.
Joining writes ``scores.csv``, then ``run.json``, then removes the parts: whoever misses a part finds the
whole, and two shards that join at the same moment write the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from glance_fast.errors import UserError
from glance_fast.jobs.record import check_provenance, damaged, read_run, write_run
from glance_fast.jobs.table import Odd, ScoreRow, Summary, drift_remarks, read_rows, write_rows

T = TypeVar("T")

_NUMBER = r"([1-9][0-9]{0,8})"
_PART = re.compile(rf"(?:scores-{_NUMBER}-of-{_NUMBER}\.csv|run-{_NUMBER}-of-{_NUMBER}\.json)")

# What the ``run.json`` of joined shards, and of one that has finished, is to say beside the provenance.
COUNTS = {"scored": int, "anomalous": int, "errors": int}
FINISHED = {
    **{"photographs": int, "listing": str, "device": str, "seconds": float},
    **{"stretched": int, "small": int, "overlays": bool},
    # None where nothing was left to do.
    "seconds_per_image": float | None,
}
# What an earlier version did not tell.
NEWER = ("cut", "shallow", "above")
# Above every number in them.
LARGEST = 1 << 48


@dataclass(frozen=True, order=True)
class Shard:
    """Every ``count``-th image, beginning with number ``index``, from 1; 1 of 1 is all of them."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def table(self, out: Path) -> Path:
        """Its ``scores.csv``."""
        return out / f"scores{self._suffix}.csv"

    def run(self, out: Path) -> Path:
        """Its ``run.json``."""
        return out / f"run{self._suffix}.json"

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Its share."""
        return items[self.index - 1 :: self.count]

    def record(self, names: list[str]) -> dict[str, Any]:
        """What its ``run.json`` says beside the provenance: of which images it is a share."""
        digest = hashlib.sha256("\0".join(names).encode()).hexdigest()
        return {"shard": str(self), "photographs": len(names), "listing": digest}

    @property
    def _suffix(self) -> str:
        return f"-{self.index}-of-{self.count}" if self.count > 1 else ""


WHOLE = Shard(1, 1)


def parse_shard(text: str) -> Shard:
    """``"2/4"`` to the second of four.

    Raises
    ------
    UserError
        It is no such pair.
    """
    found = re.fullmatch(f"{_NUMBER}/{_NUMBER}", text)
    shard = Shard(int(found[1]), int(found[2])) if found else None
    if shard is None or shard.index > shard.count:
        raise UserError(f"`shard={text}`: expected K/N with K from 1 to N, such as 2/4")
    return shard


def parts_in(out: Path) -> list[Shard]:
    """The shards that have a file in a folder, but for joined ones."""
    return _parts(_names(out))


def _names(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()} if out.is_dir() else set()


def _parts(names: set[str]) -> list[Shard]:
    matches = [match for match in map(_PART.fullmatch, names) if match]
    pairs = ([int(number) for number in match.groups() if number] for match in matches)
    return sorted({Shard(index, count) for index, count in pairs if index <= count})


def files_of(out: Path, parts: Iterable[Shard]) -> list[Path]:
    """Tables and ``run.json``s of shards."""
    return [path for part in parts for path in (part.table(out), part.run(out))]


def check_folder(out: Path, shard: Shard, resume: bool) -> bool:
    """Whether a shard is joined already, where all its work is done.

    Parameters
    ----------
    out : Path
        The folder; need not be there.
    shard : Shard
        What is to be scored; not ``WHOLE``.
    resume : bool
        Whether it is to go on, and not to begin.

    Raises
    ------
    UserError
        The folder holds anything but shards of the same number, or this shard where it is to begin, or
        nothing of it where it is to go on.
    """
    # Looked at once: others may begin while this is read.
    names = _names(out)
    parts = _parts(names)
    for part in parts:
        if part.count != shard.count:
            raise UserError(
                f"{out}: holds shard {part}; give `shard=K/{part.count}` there, or choose another `out`"
            )
    if resume and not any(path.is_file() for path in files_of(out, (WHOLE, shard))):
        raise UserError(f"{out}: nothing of shard {shard} to resume there; leave `resume` away to begin")
    if not out.is_dir():
        return False
    whole = read_run(WHOLE.run(out))
    if whole is not None and whole.get("shards") == shard.count:
        if not resume:
            raise UserError(f"{out}: is not empty: its {shard.count} shards are joined; choose another `out`")
        _remove(out, parts)  # left behind where the one that joined was killed
        return True
    if whole is not None:
        raise UserError(
            f"{out}: was begun without `shard`; `resume=True` without it goes on, or choose another `out`"
        )
    if resume:
        return False
    if shard in parts:
        raise UserError(
            f"{out}: is not empty: shard {shard} was begun there; `resume=True` goes on with it, "
            "or choose another `out`"
        )
    ours = {"scores.csv", "maps", "overlays", *(path.name for path in files_of(out, parts))}
    # Hidden ones are what other shards are writing.
    strangers = sorted(name for name in (names - ours if parts else names) if not name.startswith("."))
    if strangers:
        raise UserError(
            f"{out}: is not empty: holds {strangers[0]!r}, which no shard wrote; choose another `out`"
        )
    return False


def check_others(out: Path, shard: Shard, provenance: dict[str, Any]) -> None:
    """Refuse to begin beside shards of another provenance."""
    for part in parts_in(out):
        if part != shard:
            check_provenance(part.run(out), provenance)


def join(out: Path, shard: Shard) -> Summary | None:
    """Make one table of all shards, if all have finished; None if not.

    Parameters
    ----------
    out : Path
        The folder.
    shard : Shard
        One that has finished.

    Returns
    -------
    Summary or None
        Of all shards, no matter whether this call or another shard has joined them.

    Raises
    ------
    UserError
        The shards are of different provenance, or saw different images; or something cannot be read or
        written.
    """
    try:
        summary = _join(out, shard)
    except UserError:
        # Another shard that finished at this moment may have joined, and removed what was being read.
        summary = joined(out, shard)
        if summary is None:
            raise
    return summary or joined(out, shard)


def _join(out: Path, shard: Shard) -> Summary | None:
    parts = [Shard(index, shard.count) for index in range(1, shard.count + 1)]
    finished = []
    for part in parts:
        run = read_run(part.run(out))
        if run is None or "scored" not in run:
            return None
        run = dict.fromkeys(NEWER, 0) | run
        finished.append(_checked(run, part.run(out), FINISHED | dict.fromkeys(NEWER, int)))
    first = finished[0]
    for part in parts:
        check_provenance(part.run(out), first)
    if any(run["listing"] != first["listing"] for run in finished):
        raise UserError(
            f"{out}: photographs came or went between the shards; "
            "`resume=True` without `shard` joins them and scores what is missing"
        )
    photographs = first["photographs"]
    ordered: dict[int, ScoreRow] = {}
    rest: dict[str, ScoreRow] = {}
    for part in parts:
        rows = list(read_rows(part.table(out)).values())
        places = part.of(range(photographs))
        share = len(places)
        # Looked for last: it was there when it was read.
        if len(rows) < share or not part.table(out).is_file():
            raise UserError(f"{part.table(out)}: lacks rows; `shard={part}` with `resume=True` makes them")
        ordered |= zip(places, rows[:share], strict=True)
        # Of images that are gone, or another shard's since the listing has changed.
        rest |= {row.path: row for row in rows[share:]}
    whole = [ordered[place] for place in range(photographs)]
    names = {row.path for row in whole}
    rows = [*whole, *(row for row in rest.values() if row.path not in names)]
    summary = Summary(
        scored=sum(not row.error for row in rows),
        anomalous=sum(row.anomalous == "1" for row in rows),
        errors=sum(bool(row.error) for row in rows),
        remarks=(*_remarks(finished), *drift_remarks(rows)),
    )
    seconds = [run["seconds"] for run in finished]
    each = [run["seconds_per_image"] for run in finished if run["seconds_per_image"] is not None]
    record = first | {
        "device": ", ".join(sorted({run["device"] for run in finished})),
        "scored": summary.scored,
        "anomalous": summary.anomalous,
        "errors": summary.errors,
        # Of work, and of waiting if all ran at the same time.
        "seconds": round(sum(seconds), 3),
        "seconds_longest_shard": max(seconds),
        "seconds_per_image": round(sum(each) / len(each), 4) if each else None,
        "shards": shard.count,
    }
    for key in ("shard", "photographs", "listing", *asdict(Odd()), "overlays"):
        record.pop(key, None)
    write_rows(WHOLE.table(out), rows)
    write_run(WHOLE.run(out), record)
    _remove(out, parts)
    return summary


def _remarks(finished: list[dict[str, Any]]) -> tuple[str, ...]:
    """What to say of all shards, from what each has recorded."""
    odd = sum((Odd(**{name: run[name] for name in asdict(Odd())}) for run in finished), Odd())
    without = sum(not run["overlays"] for run in finished)
    if without in (0, len(finished)):
        return odd.remarks()
    lacking = f"{without} of {len(finished)} shards wrote no overlays"
    return (*odd.remarks(), f"{lacking}; `resume=True` with `overlays=True` and without `shard` makes them")


def joined(out: Path, shard: Shard) -> Summary | None:
    """What the shards are joined to, if they are."""
    path = WHOLE.run(out)
    run = read_run(path)
    if run is None or run.get("shards") != shard.count:
        return None
    _checked(run, path, COUNTS)
    return Summary(run["scored"], run["anomalous"], run["errors"], ())


def _checked(run: dict[str, Any], path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """A ``run.json`` that says what is wanted of it, each of its type, and numbers that can be."""
    for name, kind in wanted.items():
        if name not in run or not isinstance(value := run[name], kind):
            raise damaged(path)
        if isinstance(value, (int, float)) and not 0 <= value < LARGEST:
            raise damaged(path)
    return run


def fold(out: Path, provenance: dict[str, Any]) -> None:
    """Make what shards have done, finished or not, the beginning of a scoring without shards.

    Killed at any moment, it can be called again.

    Raises
    ------
    UserError
        Something there is of another provenance, or cannot be read or written.
    """
    parts = parts_in(out)
    if not parts:
        return
    for part in (WHOLE, *parts):
        check_provenance(part.run(out), provenance)
    rows: dict[str, ScoreRow] = {}
    for part in (WHOLE, *parts):
        for row in read_rows(part.table(out)).values():
            if row.path not in rows or not row.error:
                rows[row.path] = row
    write_rows(WHOLE.table(out), rows.values())
    write_run(WHOLE.run(out), provenance)
    _remove(out, parts)


def deal(out: Path, count: int, names: list[str], provenance: dict[str, Any]) -> None:
    """Make what is there the beginning of so many shards; the reverse of ``fold``, which comes first.

    Parameters
    ----------
    out : Path
        Holds a scoring, or shards of any number.
    count : int
        Of shards to be.
    names : list of str
        The images, as in the tables.
    provenance : dict
        As of ``provenance_of``.

    Raises
    ------
    UserError
        As for ``fold``.
    """
    fold(out, provenance)
    check_provenance(WHOLE.run(out), provenance)
    rows = read_rows(WHOLE.table(out))
    parts = [Shard(index, count) for index in range(1, count + 1)]
    shares = [[rows.pop(name) for name in part.of(names) if name in rows] for part in parts]
    shares[0] += rows.values()  # of images that are gone
    for part, share in zip(parts, shares, strict=True):
        write_rows(part.table(out), share)
        write_run(part.run(out), provenance | part.record(names))
    _remove(out, [WHOLE])


def _remove(out: Path, parts: Iterable[Shard]) -> None:
    for path in files_of(out, parts):
        path.unlink(missing_ok=True)
