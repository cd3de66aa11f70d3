"""``run.json``: what the scores in a folder come from, so that none of another provenance are mixed in."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import glance_fast
from glance_fast.data.files import digest_of, read_json, write_text
from glance_fast.data.roi import Masks
from glance_fast.data.table import printable
from glance_fast.errors import UserError
from glance_fast.jobs.table import ELSEWHERE, OVERWRITE, way_out
from glance_fast.model import Glance
from glance_fast.tiles import Tile

# What scores in one table must share, and how a difference is told.
SAME = {
    "model": "another model, or before it was calibrated anew; give the same run",
    "images": "another folder of images; give the same",
    "engine": "another `engine`; give the same",
    "precision": "another `precision`; give the same",
    "tile": "another `tile`; give the same",
    "roi": "another `roi`; give the same",
}


def provenance_of(
    model: Glance,
    images: str | Path,
    engine: str,
    precision: str,
    roi: Masks | None = None,
    tile: Tile | None = None,
) -> dict[str, Any]:
    """What the scores come from: the beginning of ``run.json``. ``images`` is a folder, or its identity."""
    settings = model.config.to_toml()
    digest = hashlib.sha256(f"{settings}{digest_of(model.state_dict())}".encode())
    thresholds = {
        name: value if math.isfinite(value) else None
        for name, value in (
            ("threshold", model.calibration.threshold),
            ("pixel_threshold", model.calibration.pixel_threshold),
        )
    }
    return {
        "glance_fast": glance_fast.__version__,
        "model": digest.hexdigest(),
        "images": printable(images.resolve() if isinstance(images, Path) else images),
        "engine": model.chosen_engine(engine),
        "precision": model.chosen_precision(precision),
        # None: the model's own, or none.
        "roi": None if roi is None else roi.provenance,
        "device": str(model.device),
        "image_size": list(model.config.image_size),
        "tile": list(tile) if tile else None,
        **thresholds,
    }


def read_run(path: Path) -> dict[str, Any] | None:
    """A ``run.json``, or None where there is none.

    Raises
    ------
    UserError
        It cannot be read, or is none of ours.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise damaged(path) from error
    return parse_run(text, path)


def parse_run(text: str, path: str | Path) -> dict[str, Any]:
    """As ``read_run``, of the text of a file that was read from ``path``."""
    try:
        # An earlier version knew neither tiles nor regions of interest.
        record = {"tile": None, "roi": None} | read_json(text)
        if not SAME.keys() <= record.keys():
            raise KeyError
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path) from error
    return record


def damaged(path: str | Path) -> UserError:
    """What to raise where a ``run.json`` does not say what it should."""
    return UserError(f"{path}: damaged; {way_out(path)}")


def write_run(path: Path, record: dict[str, Any]) -> None:
    """Write a ``run.json``, whole or not at all."""
    write_text(path, run_text(record))


def run_text(record: dict[str, Any]) -> str:
    """What ``write_run`` writes."""
    return json.dumps(record, indent=2) + "\n"


def check_provenance(path: Path, provenance: dict[str, Any]) -> None:
    """Refuse to mix scores of different provenance; without a ``run.json`` there is none yet."""
    check_same(path.parent, read_run(path), provenance)


def check_same(out: object, before: dict[str, Any] | None, provenance: dict[str, Any]) -> None:
    """As ``check_provenance``, of what the ``run.json`` in ``out`` says, if there is one."""
    changed = [] if before is None else [name for name in SAME if before[name] != provenance[name]]
    if changed:
        advice = ELSEWHERE if "shard" in provenance else OVERWRITE
        raise UserError(f"{out}: was begun with {SAME[changed[0]]}, or {advice}")
