"""Tables 1 and 2: every category of a data set, one model each, all with the same settings.

Deviations from the paper: the built-in Local-Nets were distilled from 1,000 photographs, not from ImageNet;
maps are smoothed and scores calibrated unless ``--preset paper`` says otherwise; metrics are computed at the
model's image size.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.depth import fitted, levels
from glance_fast.data.images import resize
from glance_fast.data.layouts import categories, normal_images
from glance_fast.errors import UserError
from glance_fast.evaluation.evaluate import evaluate
from glance_fast.evaluation.inputs import Category, Photographs, find_category, read_photographs
from glance_fast.evaluation.summary import defective_of
from glance_fast.experiments import figures, paper
from glance_fast.experiments.baselines import BASELINES
from glance_fast.experiments.measure import METRICS, NO_MATTER, RUNS, Table, measured, trained
from glance_fast.experiments.study import Row, Study, study
from glance_fast.jobs.output import apart
from glance_fast.nets.builtin import builtin_teacher
from glance_fast.progress import Reporter
from glance_fast.tiles import whole_only

OURS = "ours"
COLUMNS = {
    "category": str,
    "kind": str,
    "method": str,
    **dict.fromkeys(METRICS, float),
    "seconds": float,
    "error": str,
}
REPORTS, PICTURE = "reports", "categories.png"


def run_categories(
    root: Path,
    out: Path,
    config: Config,
    *,
    baselines: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    memory_mib: int | None = None,
    reporter: Reporter,
) -> list[Row]:
    """Train and evaluate on every category below a folder.

    Parameters
    ----------
    root : Path
        Holds the categories, or is one.
    out : Path
        Folder to write: ``results.csv``, ``categories.png``, ``experiment.json``, and of each category the
        model in ``runs/<category>`` and what ``evaluate`` writes in ``reports/<category>``.
    config : Config
        Settings of all models.
    baselines : bool
        PatchCore and PaDiM on the built-in ResNet-18, too.
    resume : bool
        Go on with what is there; what failed is tried again.
    overwrite : bool
        Delete what an earlier one wrote.
    device, memory_mib
        As for ``glance_fast.fit``.
    reporter : Reporter
        Shows progress.

    Returns
    -------
    list of dict
        Rows of ``results.csv``: ``category``, ``kind`` ("texture" or "object" where the paper has it),
        ``method``, the metrics of ``METRICS``, ``seconds`` of training, and ``error``, for which the others
        were gone on with.

    Raises
    ------
    UserError
        There is no category, ``out`` cannot be written or holds another experiment, or all categories
        failed.
    """
    apart(out, root)
    whole_only(config, "categories")
    found = categories(root)
    settings = {k: v for k, v in asdict(config).items() if k not in NO_MATTER}
    with study(
        out,
        "categories",
        {"categories": [name for name, _ in found], **settings},
        COLUMNS,
        (RUNS, REPORTS, PICTURE),
        resume=resume,
        overwrite=overwrite,
    ) as table:
        table.rows = [row for row in table.rows if not row["error"]]
        methods = [OURS, *(BASELINES if baselines else ())]
        for name, data in found:
            missing = [m for m in methods if not table.find(category=name, method=m)]
            if missing:
                reporter.say(f"{name}: {', '.join(missing)}")
                _measure(name, data, table, missing, config, device, memory_mib, reporter)
        failed = [row for row in table.rows if row["error"]]
        if failed and len(failed) == len(table.rows):
            raise UserError(f"{failed[0]['error']}; no category could be measured")
        figures.save(out / PICTURE, figures.dots(tables(table.rows), METRICS))
    return table.rows


def tables(rows: Sequence[Row]) -> list[Table]:
    """The rows of ``results.csv`` as the paper has them: a table a metric, with means."""
    measured = [row for row in rows if not row["error"]]
    names = list(dict.fromkeys(row["category"] for row in measured))
    methods = [m for m in (OURS, *BASELINES) if any(row["method"] == m for row in measured)]
    by_place = {(row["category"], row["method"]): row for row in measured}
    found = []
    for metric in METRICS:
        values = {
            name: [by_place.get((name, method), {}).get(metric) for method in methods] for name in names
        }
        columns = list(methods)
        printed = {name: _printed(metric, name) for name in names}
        if any(value is not None for value in printed.values()):
            columns.append("paper")
            values = {name: [*row, printed[name]] for name, row in values.items()}
        lines = list(values.items())
        for label, kind in (("textures", "texture"), ("objects", "object"), ("all", None)):
            of_kind = [row for name, row in values.items() if kind in (None, paper.kind_of(name))]
            if len(of_kind) > 1 and (kind is None or len(of_kind) < len(values)):
                lines.append((label, [_mean(column) for column in zip(*of_kind, strict=True)]))
        found.append(Table(metric, columns, lines, len(lines) - len(names)))
    return found


def _printed(metric: str, name: str) -> float | None:
    return paper.figure_of(metric, name) if metric in paper.printed() else None


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if len(present) == len(values) else None


def _measure(
    name: str,
    data: Path,
    table: Study,
    methods: Sequence[str],
    config: Config,
    device: str,
    memory_mib: int | None,
    reporter: Reporter,
) -> None:
    """Add a row for each of these methods; one that tells of an error where there is one."""
    kind = paper.kind_of(name)
    run, report = table.out / RUNS / name, table.out / REPORTS / name
    try:
        # Before hours of training, all that it is measured by.
        category = find_category(data, report)
        size = config.image_size
        photographs = read_photographs(category, partial(resize, size=size), size)
    except UserError as error:
        table.add({"category": name, "kind": kind, "method": OURS, "error": str(error)})
        reporter.say(f"{name}: left out: {error}")
        return
    for method in methods:
        started = time.monotonic()
        row: Row = {"category": name, "kind": kind, "method": method}
        try:
            if method == OURS:
                model = trained(data, run, config, device, memory_mib, reporter)
                seconds = time.monotonic() - started
                shutil.rmtree(report, ignore_errors=True)
                found = evaluate(model, category, report, photographs=photographs)
            else:
                seconds, found = _baseline(method, data, category, photographs, config, reporter)
        except UserError as error:
            table.add(row | {"error": str(error)})
            reporter.say(f"{name}: {method}: {error}")
            continue
        table.add(row | {metric: found[metric] for metric in METRICS} | {"seconds": round(seconds, 1)})


def _baseline(
    method: str,
    data: Path,
    category: Category,
    photographs: Photographs,
    config: Config,
    reporter: Reporter,
) -> tuple[float, dict[str, Any]]:
    """Seconds of fitting a baseline, and its metrics."""
    with ImageCache(normal_images(data), config.image_size) as cache, reporter.task(method, None):
        normal = cache.batch(range(len(cache)))
        started = time.monotonic()
        model = BASELINES[method](builtin_teacher(), config.seed).fit(normal)
        seconds = time.monotonic() - started
        white, size = cache.white, config.image_size
        images = [levels(fitted(image, size, white), white) for image in photographs.prepared]
        maps = np.concatenate([model.maps(part) for part in _parts(images)])
    return seconds, measured(maps, photographs.masks, defective_of(category.samples))


def _parts(images: Sequence[np.ndarray], size: int = 16) -> Iterator[np.ndarray]:
    for start in range(0, len(images), size):
        yield np.stack(images[start : start + size])
