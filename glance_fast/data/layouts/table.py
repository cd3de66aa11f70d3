"""A CSV file of paths and labels: columns path and label; mask and split where there are any.

Paths are relative to the file's folder. A label is good, ok, normal or 0; or the defect's name, or 1. A split
is train or test.
"""

from __future__ import annotations

from pathlib import Path

from glance_fast.data.layouts.record import Category, Layout, TestSample, is_good, more
from glance_fast.data.layouts.rows import Row, check_there, read_columns, read_rows
from glance_fast.errors import UserError

COLUMNS = ("path", "label")


def holds_paths_and_labels(path: Path) -> bool:
    """Whether a file is such a table, by its first line."""
    return path.suffix.lower() == ".csv" and set(COLUMNS) <= set(read_columns(path))


def is_table(path: Path) -> bool:
    """Whether a path names a CSV file."""
    return path.suffix.lower() == ".csv" and not path.is_dir()


def _rows(table: Path, split: str) -> list[Row]:
    """Rows of one split; all where the table has no splits."""
    rows = read_rows(table, COLUMNS)
    for line, fields in rows:
        if not (fields["path"] and fields["label"]):
            empty = next(name for name in COLUMNS if not fields[name])
            raise UserError(f"{table}, line {line}: no {empty}")
        if fields.get("split", split).lower() not in ("train", "test"):
            raise UserError(f"{table}, line {line}: split: expected train or test, got {fields['split']!r}")
    found = [row for row in rows if row.fields.get("split", split).lower() == split]
    first: dict[str, int] = {}
    for line, fields in found:
        if fields["path"] in first:
            before = first[fields["path"]]
            raise UserError(f"{table}, line {line}: names {fields['path']} again, after line {before}")
        first[fields["path"]] = line
    return found


def _defect(label: str) -> str:
    """The kind of defect that a label stands for; "good" for none."""
    if is_good(label) or label == "0":
        return "good"
    return "defective" if label == "1" else label


def _normal(table: Path) -> list[Path]:
    rows = _rows(table, "train")
    good = [row for row in rows if _defect(row.fields["label"]) == "good"]
    if not good:
        raise UserError(
            f"{table}: no good image to learn from; expected rows with label good, ok, normal or 0, and with "
            "split train where there is a column split"
        )
    paths = [table.parent / row.fields["path"] for row in good]
    check_there(table, zip((row.line for row in good), paths, strict=True))
    return paths


def _category(table: Path) -> Category:
    rows = _rows(table, "test")
    if not rows:
        raise UserError(
            f"{table}: no image to test; expected rows, with split test where there is a column split"
        )
    samples, files, unmarked = [], [], []
    for line, fields in rows:
        path, defect = table.parent / fields["path"], _defect(fields["label"])
        files.append((line, path))
        mask = fields.get("mask", "") if defect != "good" else ""
        if mask:
            files.append((line, table.parent / mask))
        elif defect != "good":
            unmarked.append(line)
        samples.append(TestSample(path, defect, (table.parent / mask,) if mask else ()))
    if unmarked and any(sample.masks for sample in samples):
        raise UserError(
            f"{table}, line {unmarked[0]}: no mask of a defective image, and others have one{more(unmarked)}"
        )
    check_there(table, files)
    unsplit = (
        f"{table.name} has no column 'split': good images that the model was trained on are tested, too, and "
        "their scores are too low."
    )
    notes = () if "split" in rows[0].fields else (unsplit,)
    return Category(table, LAYOUT.name, table.parent, samples, notes=notes)


LAYOUT = Layout("CSV table", is_table, _normal, _category)
