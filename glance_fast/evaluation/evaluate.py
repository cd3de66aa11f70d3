"""A model on photographs whose defects are known: metrics, maps, curves and a report."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glance_fast.calibration import Calibration, is_anomalous, score_row
from glance_fast.data.files import atomic_write, write_text
from glance_fast.data.images import resize_map, write_tiff
from glance_fast.data.layouts import TestSample
from glance_fast.data.table import ScoreRow, printable, write_table
from glance_fast.errors import UserError
from glance_fast.evaluation.gallery import choose_pictures
from glance_fast.evaluation.inputs import Category, Photographs, find_category, read_photographs
from glance_fast.evaluation.overlay import display_range
from glance_fast.evaluation.plots import plot_curves
from glance_fast.evaluation.report import write_report
from glance_fast.evaluation.submission import write_submission
from glance_fast.evaluation.summary import SHOWN, check_shown, curves_of, defective_of, summarise
from glance_fast.model import Glance


def evaluate(
    model: Glance,
    data: str | Path | Category,
    out: str | Path,
    *,
    engine: str = "auto",
    precision: str = "auto",
    photographs: Photographs | None = None,
    shown: Sequence[str] = SHOWN,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score the test images of a category, and compare with the ground truth.

    Parameters
    ----------
    model : Glance
        Trained.
    data : path or Category
        A category in a layout of ``glance_fast.data.layouts``, such as MVTec's: ``test/<defect>``,
        ``ground_truth/<defect>``; or what ``find_category`` found there.
    out : path
        Folder to write to; files of the same names are replaced.

        ========================================  =====================================================
        ``metrics.json``                          what this function returns; written last
        ``scores.csv``                            path, score, above, anomalous, error, as
                                                  ``score-dir`` has them; defect, label
        ``maps/<category>/test/<defect>/*.tiff``  float32, each image's own size, where MVTec's own
                                                  evaluation looks below ``--anomaly_maps_dir maps``;
                                                  in other layouts below the image's own folders
        ``anomaly_images*/<category>/...``        of MVTec AD 2's private splits alone, as its server
                                                  takes them (``write_submission``)
        ``curves.png``                            PRO and pixel ROC
        ``report.html``                           all of it for reading, in one file
        ========================================  =====================================================
    engine, precision : str
        As for ``Glance.score``.
    photographs : Photographs, optional
        What ``read_photographs`` read of the category for this model; read here if not given. Who reads them
        before knows which are bad before anything is replaced.
    shown : sequence of str
        Which metrics the report shows, by their keys in ``metrics.json``; that has all of them.
    progress : callable, optional
        Called with (images scored, images in all).

    Returns
    -------
    dict
        ``layout``: the name of the category's. ``pro``, ``pro_5``, ``pixel_auroc``, ``pixel_ap``,
        ``pixel_f1_max``, ``image_auroc``, ``image_ap`` and ``image_f1_max`` over all test images, as in
        ``metrics``; ``defects``: the same for each type of defect against all good images, with ``images``,
        ``missed`` and ``recall`` (the share of them called anomalous); ``threshold``: its ``value``,
        ``false_positives`` (good images called anomalous), ``missed`` (defective ones that are not) and
        ``f1`` of its verdicts; ``images``, ``good_images``, ``defective_images``; ``engine``, ``precision``;
        ``seconds``, of scoring with decoding and without writing; ``notes``: what could not be had, and why.
        Numbers that cannot be had are None. For MVTec LOCO ``spro_5`` and ``spro_30`` stand beside the other
        metrics, and ``mean_of_defects`` has the mean of each over the types of defects, which its papers
        give.

    Raises
    ------
    ImageError
        Images or masks cannot be read: all of them are named, before anything is scored. An image whose
        truth is not public is read when it is scored, after the others.
    UserError
        ``data`` is no such category, some defective images have masks and others have none, two images would
        have one map, ``out`` lies among the test images, ``photographs`` are others, ``shown`` names no
        metric of this category, a file cannot be written, or a score is not finite.

    Notes
    -----
    Metrics are computed at the model's image size, at which it decides; MVTec's script computes them from
    the map files at the images' own sizes, and differs a little. Masks are resized by ``resize_truth``,
    which keeps every region; a note says how many of them would have vanished. Of MVTec LOCO's saturation
    thresholds, which are numbers of pixels, the share of the defect is kept.
    """
    out = Path(out)
    category = data if isinstance(data, Category) else find_category(data, out)
    check_shown(shown, category.saturations is not None)
    samples, targets, size = category.samples, category.targets(out), model.config.image_size
    photographs = photographs or read_photographs(category, model.prepare, size)

    count = len(samples)
    maps = np.empty((count, *size), np.float32)
    if photographs.masks.shape != maps.shape:
        raise UserError(
            f"photographs: {list(photographs.masks.shape)} were read, and {list(maps.shape)} are to be scored"
        )
    scores = np.empty(count, np.float32)
    seconds = photographs.seconds
    whole = count + len(category.unlabelled)
    if progress:
        progress(0, whole)
    together = model.at_once(precision)
    for start in range(0, count, together):
        part = slice(start, min(start + together, count))
        started = time.perf_counter()
        result = model.score(photographs.prepared[part], engine, precision)
        seconds += time.perf_counter() - started
        maps[part], scores[part] = result.maps, result.scores
        _check_finite(samples[part], maps[part], scores[part])
        for target, score_map, own in zip(targets[part], maps[part], photographs.sizes[part], strict=True):
            write_tiff(target, resize_map(score_map, own))
        if progress:
            progress(part.stop, whole)
    write_submission(
        model, category, out, engine, precision, lambda done: progress and progress(count + done, whole)
    )

    threshold = model.calibration.threshold if math.isfinite(model.calibration.threshold) else None
    anomalous = None if threshold is None else is_anomalous(scores, threshold)
    found = summarise(
        samples, maps, photographs.masks, photographs.kept, scores, threshold, photographs.defects
    )
    # What "auto" stands for is the model's business, and part of the result.
    found["notes"] += category.notes
    found |= {
        "layout": category.layout,
        "engine": model.chosen_engine(engine),
        "precision": model.chosen_precision(precision),
        "seconds": round(seconds, 3),
    }

    columns = (*ScoreRow._fields, "defect", "label")
    write_table(out / "scores.csv", columns, _score_rows(model.calibration, category, scores))
    curves = curves_of(maps, photographs.masks)
    with atomic_write(out / "curves.png") as temporary:
        temporary.write_bytes(plot_curves(curves))
    write_report(
        out / "report.html",
        category.name,
        found,
        scores,
        defective_of(samples),
        curves,
        choose_pictures(category, photographs.shown, maps, scores, anomalous),
        display_range(model.calibration, maps),
        model.config,
        shown,
    )
    write_text(out / "metrics.json", json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return found


def _check_finite(
    samples: Sequence[TestSample], maps: NDArray[np.float32], scores: NDArray[np.float32]
) -> None:
    for sample, score_map, score in zip(samples, maps, scores, strict=True):
        if not (math.isfinite(score) and np.isfinite(score_map).all()):
            raise UserError(
                f"{sample.path}: its scores are not finite; try precision fp32, or train the model again"
            )


def _score_rows(
    calibration: Calibration, category: Category, scores: NDArray[np.float32]
) -> Iterator[tuple[object, ...]]:
    for sample, score in zip(category.samples, scores, strict=True):
        path = printable(category.place(sample.path))
        truth = (printable(sample.defect), int(sample.defect != "good"))
        yield (*score_row(calibration, path, float(score)), *truth)
