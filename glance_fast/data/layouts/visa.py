"""VisA as it is published: ``<object>/Data/Images``, split by ``split_csv/1cls.csv`` beside the objects.

Its columns are object, split, label, image and mask; paths are relative to the folder that holds the objects.
"""

from __future__ import annotations

from pathlib import Path

from glance_fast.data.layouts.record import Category, Layout, TestSample, is_good, name_of
from glance_fast.data.layouts.rows import Row, check_there, read_rows
from glance_fast.errors import UserError

_COLUMNS = ("object", "split", "label", "image", "mask")


def _root(data: Path) -> Path:
    return data.parent if data.name not in ("", "..") else data.resolve().parent


def _table(data: Path) -> Path:
    return _root(data) / "split_csv" / "1cls.csv"


def _holds(data: Path) -> bool:
    images = data / "Data" / "Images"
    return (images / "Normal").is_dir() or (images.is_dir() and _table(data).is_file())


def _rows(data: Path, split: str) -> list[Row]:
    """Rows of one object and one split, at least one."""
    table = _table(data)
    if not table.is_file():
        raise UserError(f"{table}: no such file; it comes with VisA, and says which image is for what")
    rows = [row for row in read_rows(table, _COLUMNS) if row.fields["object"] == name_of(data)]
    found = [row for row in rows if row.fields["split"] == split]
    if not found:
        raise UserError(f"{table}: names no image of '{name_of(data)}' in split '{split}'")
    return found


def _normal(data: Path) -> list[Path]:
    rows = [row for row in _rows(data, "train") if is_good(row.fields["label"])]
    if not rows:
        raise UserError(f"{_table(data)}: names no normal image of '{name_of(data)}' in split 'train'")
    paths = [_root(data) / row.fields["image"] for row in rows]
    check_there(_table(data), zip((row.line for row in rows), paths, strict=True))
    return paths


def _category(data: Path) -> Category:
    rows, root = _rows(data, "test"), _root(data)
    samples, files = [], []
    for line, fields in rows:
        path, label = root / fields["image"], fields["label"]
        files.append((line, path))
        if is_good(label):
            samples.append(TestSample(path, "good"))
            continue
        if not fields["mask"]:
            raise UserError(f"{_table(data)}, line {line}: no mask of a defective image")
        files.append((line, root / fields["mask"]))
        samples.append(TestSample(path, label, (root / fields["mask"],), classes=True))
    check_there(_table(data), files)
    return Category(data, LAYOUT.name, root / name_of(data), samples)


LAYOUT = Layout("VisA", _holds, _normal, _category)
