"""MVTec LOCO: as MVTec AD, with several masks an image, and with saturation thresholds.

``ground_truth/<defect>/<name>/000.png, 001.png, ...``: each is one defect, and its value names the kind.
``defects_config.json`` tells of every kind how much of it has to be found. ``validation/good`` is not used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glance_fast.data.files import read_json
from glance_fast.data.folders import list_images
from glance_fast.data.layouts.record import Category, Layout, Saturation, samples_below, train_good
from glance_fast.errors import UserError, excerpt

CONFIG = "defects_config.json"


def _holds(data: Path) -> bool:
    kinds = ("logical_anomalies", "structural_anomalies")
    return (data / CONFIG).is_file() or any((data / "test" / kind).is_dir() for kind in kinds)


def _category(data: Path) -> Category:
    test = data / "test"
    if not test.is_dir():
        raise UserError(
            f"{data}: no folder 'test' in it, which should hold good, logical_anomalies and "
            "structural_anomalies"
        )
    samples = samples_below(test, data / "ground_truth", _masks, "/000.png", classes=True)
    config = data / CONFIG
    saturations = read_saturations(config) if config.is_file() else None
    return Category(data, LAYOUT.name, data, samples, searched=(test,), saturations=saturations)


def _masks(place: Path) -> Sequence[Path]:
    return list_images(place) if place.is_dir() else ()


def read_saturations(path: Path) -> dict[int, Saturation]:
    """Saturation thresholds by the value that stands for a kind of defect in masks.

    Parameters
    ----------
    path : Path
        A JSON list of objects with ``pixel_value``, ``saturation_threshold`` and ``relative_saturation``.

    Raises
    ------
    UserError
        It cannot be read or is no such list.
    """
    try:
        entries = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list, one object for each kind of defect")
    return dict(_saturation(path, entry) for entry in entries)


def _saturation(path: Path, entry: Any) -> tuple[int, Saturation]:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    value: Any = fields.get("pixel_value")
    threshold: Any = fields.get("saturation_threshold")
    relative: Any = fields.get("relative_saturation")
    if not (
        type(value) is int
        and 1 <= value <= 255
        and type(relative) is bool
        and type(threshold) in (int, float)
        and 0 < threshold <= (1 if relative else float("inf"))
    ):
        raise UserError(
            f"{path}: {excerpt(json.dumps(entry))}: expected pixel_value from 1 to 255, "
            "relative_saturation true or false, and saturation_threshold in pixels, or above 0 and up to 1 "
            "where that is relative"
        )
    return value, Saturation(threshold, relative)


LAYOUT = Layout("MVTec LOCO", _holds, train_good, _category)
