"""A model, or maps of another method, where defects are known: metrics, maps, curves and a report."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glance_fast.calibration import is_anomalous, score_row
from glance_fast.config import Config
from glance_fast.data.depth import Unlike, unlike
from glance_fast.data.files import atomic_write, write_text
from glance_fast.data.images import read_image
from glance_fast.data.layouts import Defect, TestSample
from glance_fast.data.roi import Masks, resize_scores
from glance_fast.data.score_maps import write_tiff
from glance_fast.data.table import ScoreRow, printable, write_table
from glance_fast.errors import UserError
from glance_fast.evaluation.bootstrap import add_intervals, check_bootstrap
from glance_fast.evaluation.gallery import choose_pictures, with_small_maps
from glance_fast.evaluation.inputs import Category, Photographs, find_category, read_photographs
from glance_fast.evaluation.map_files import MapFiles, Maps, find_maps, read_maps
from glance_fast.evaluation.metrics import ArrayOrList
from glance_fast.evaluation.overlay import display_range, range_of_maps
from glance_fast.evaluation.plots import Curves, plot_curves
from glance_fast.evaluation.report import Group, write_report
from glance_fast.evaluation.submission import write_submission
from glance_fast.evaluation.summary import SHOWN, check_shown, curves_of, defective_of, summarise
from glance_fast.evaluation.tiled import score_by_tiles
from glance_fast.evaluation.within import maps_within, photographs_within, pixels_within
from glance_fast.model import NOT_FINITE, Glance
from glance_fast.tiles import Tile, no_region, prepared, score_images, tile_of


def evaluate(
    model: Glance,
    data: str | Path | Category,
    out: str | Path,
    *,
    engine: str = "auto",
    precision: str = "auto",
    photographs: Photographs | None = None,
    roi: str | Path | Masks | None = None,
    shown: Sequence[str] = SHOWN,
    bootstrap: int = 0,
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
    roi : path or Masks, optional
        The region of interest: a mask, or a folder with one a photograph; or what ``Masks`` made of it at the
        model's image size, with which ``photographs`` were read, if they are given. In place of the one that
        the model was trained with. Pixels outside are left out of every metric, and so is what lies there of
        a defect; a defective image whose defects all lie outside is left out altogether, and a note says so.
    shown : sequence of str
        Which metrics the report shows, by their keys in ``metrics.json``; that has all of them.
    bootstrap : int
        Resamples of the test images, good and defective ones apart, from which the 95 % intervals of the
        metrics over all images come; 1000 is usual. With 0 there are none.
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
        give. With ``bootstrap`` also that number, and ``intervals``: [low, high] of each metric.

    Raises
    ------
    ImageError
        Images or masks cannot be read: all of them are named, before anything is scored. An image whose
        truth is not public is read when it is scored, after the others.
    UserError
        ``data`` is no such category, some defective images have masks and others have none, two images would
        have one map, ``out`` lies among the test images, ``photographs`` are others, ``shown`` names no
        metric of this category, ``bootstrap`` is negative, a file cannot be written, or a score is not
        finite.

    Notes
    -----
    Metrics are computed at the model's image size, at which it decides, and at the images' own where it sees
    tiles of them or keeps their aspect; MVTec's script computes them from
    the map files at the images' own sizes, as ``evaluate_maps`` does, and differs a little. Masks are resized
    by ``resize_truth``, which keeps every region; a note says how many of them would have vanished. Of MVTec
    LOCO's saturation thresholds, which are numbers of pixels, the share of the defect is kept.
    """
    check_bootstrap(bootstrap)
    out = Path(out)
    category = data if isinstance(data, Category) else find_category(data, out)
    check_shown(shown, category.saturations is not None)
    tile, letterbox = tile_of(model), model.config.aspect == "letterbox"
    no_region(model.config, tile, roi)
    if roi is not None and not isinstance(roi, Masks):
        roi = Masks(roi, model.config.image_size)
    if letterbox:
        scored = _score_letterboxed(model, category, out, engine, precision, progress)
    elif tile is None:
        scored = _score_whole(model, category, out, engine, precision, photographs, roi, progress)
    else:
        scored = _score_tiles(model, category, out, tile, engine, precision, progress)
    write_submission(model, category, out, engine, precision, scored.advance, roi)

    category, inside = scored.category, scored.inside

    samples, maps, masks, scores = category.samples, scored.maps, scored.masks, scored.scores
    threshold = model.calibration.threshold if math.isfinite(model.calibration.threshold) else None
    anomalous = None if threshold is None else is_anomalous(scores, threshold)
    found = summarise(samples, maps, masks, scored.kept, scores, threshold, scored.defects, inside)
    if threshold is None:
        found["notes"].append(
            "The model is not calibrated and has no threshold: nothing is called anomalous or missed."
        )
    # What "auto" stands for is the model's business, and part of the result.
    found["notes"] += [*category.notes, *scored.remarks]
    found |= {
        "layout": category.layout,
        "engine": model.chosen_engine(engine),
        "precision": model.chosen_precision(precision),
        "seconds": round(scored.seconds, 3),
    }
    if bootstrap:
        add_intervals(found, maps, masks, scores, defective_of(samples), bootstrap, inside=inside)
    rows = (
        score_row(model.calibration, path, float(s)) for path, s in zip(_paths(category), scores, strict=True)
    )
    curves = curves_of(maps, masks, inside)
    groups = choose_pictures(category, scored.shown, maps, scores, anomalous)
    if letterbox or tile is not None:
        groups = with_small_maps(groups)
    display = display_range(model.calibration, pixels_within(maps, inside))
    _write(out, category, found, scores, rows, curves, groups, display, model.config, shown)
    return found


class _Scored(NamedTuple):
    """Test images, in the order of the samples of the category: of those that have a region to look at."""

    category: Category
    inside: Sequence[NDArray[np.bool_]] | None
    maps: ArrayOrList
    masks: ArrayOrList
    kept: int
    scores: NDArray[np.float32]
    defects: list[list[Defect]] | None
    shown: Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_] | None]]
    seconds: float
    remarks: tuple[str, ...]
    advance: Callable[[int], object]


def _score_whole(
    model: Glance,
    category: Category,
    out: Path,
    engine: str,
    precision: str,
    photographs: Photographs | None,
    roi: Masks | None,
    progress: Callable[[int, int], None] | None,
) -> _Scored:
    """Score images that the model sees whole, at its image size, and write their maps."""
    size = model.config.image_size
    photographs = photographs or read_photographs(category, model.prepare, size, roi, model.calibration.white)
    given, inside = photographs.inside, photographs.inside
    if inside is None and model.inside is not None:
        inside = [model.inside.cpu().numpy()] * len(category.samples)
    if inside is not None and len(inside) == len(photographs.masks) == len(category.samples):
        category, photographs, inside = photographs_within(category, photographs, inside)
        given = given and inside
    samples, targets = category.samples, category.targets(out)
    count = len(samples)
    maps = np.empty((count, *size), np.float32)
    if photographs.masks.shape != maps.shape:
        raise UserError(
            f"photographs: {list(photographs.masks.shape)} were read, and {list(maps.shape)} are to be scored"
        )
    scores = np.empty(count, np.float32)
    seconds = photographs.seconds
    advance = _counter(category, progress)
    advance(0)
    together = model.at_once(precision)
    for start in range(0, count, together):
        part = slice(start, min(start + together, count))
        started = time.perf_counter()
        result = model.score(photographs.prepared[part], engine, precision, roi=given and given[part])
        seconds += time.perf_counter() - started
        maps[part], scores[part] = result.maps, result.scores
        _check_finite(samples[part], maps[part], scores[part])
        where = [None] * len(result.maps) if result.inside is None else result.inside
        written = zip(targets[part], maps[part], photographs.sizes[part], where, strict=True)
        for target, score_map, own, region in written:
            write_tiff(target, resize_scores(score_map, own, region))
        advance(part.stop)
    return _Scored(
        category,
        inside,
        maps,
        photographs.masks,
        photographs.kept,
        scores,
        photographs.defects,
        photographs.shown,
        seconds,
        photographs.unlike.remarks(),
        lambda done: advance(count + done),
    )


def _score_tiles(
    model: Glance,
    category: Category,
    out: Path,
    tile: Tile,
    engine: str,
    precision: str,
    progress: Callable[[int, int], None] | None,
) -> _Scored:
    """Score images by tiles, at their own sizes, and write their maps."""
    targets = category.targets(out)
    scores: list[float] = []
    odd = Unlike()
    advance = _counter(category, progress)
    advance(0)
    started = time.perf_counter()
    for sample, target in zip(category.samples, targets, strict=True):
        found = score_by_tiles(model, sample.path, tile, target, engine=engine, precision=precision)
        scores.append(found.score)
        odd += found.unlike
        advance(len(scores))
    seconds = time.perf_counter() - started
    return _of_written(
        category, out, targets, scores, seconds, odd.remarks(), advance, model.calibration.white
    )


def _score_letterboxed(
    model: Glance,
    category: Category,
    out: Path,
    engine: str,
    precision: str,
    progress: Callable[[int, int], None] | None,
) -> _Scored:
    """Score images that keep their aspect, and write their maps, at their own sizes."""
    samples, targets = category.samples, category.targets(out)
    scores: list[float] = []
    advance = _counter(category, progress)
    advance(0)
    together, seconds, odd = model.at_once(precision), 0.0, Unlike()
    for start in range(0, len(samples), together):
        part = slice(start, start + together)
        started = time.perf_counter()
        images = [read_image(sample.path) for sample in samples[part]]
        ready = [prepared(model, image, s.path) for image, s in zip(images, samples[part], strict=True)]
        found = score_images(model, ready, engine, precision)
        seconds += time.perf_counter() - started
        for sample, target, image, seen in zip(samples[part], targets[part], images, found, strict=True):
            _check_finite([sample], seen.map[None], np.array([seen.score]))
            write_tiff(target, resize_scores(seen.map, image.shape[:2]))
            scores.append(seen.score)
            odd += unlike(image, model.calibration.white)
        advance(len(scores))
    return _of_written(
        category, out, targets, scores, seconds, odd.remarks(), advance, model.calibration.white
    )


def _of_written(
    category: Category,
    out: Path,
    targets: list[Path],
    scores: list[float],
    seconds: float,
    remarks: tuple[str, ...],
    advance: Callable[[int], object],
    white: int | None,
) -> _Scored:
    """What was scored, with maps and masks at the images' own sizes, from the maps that were written."""
    read = read_maps(MapFiles(out, targets, []), category, white=white)
    return _Scored(
        category,
        None,
        read.maps,
        read.masks,
        0,
        np.array(scores, np.float32),
        read.defects,
        read.shown,
        seconds,
        remarks,
        lambda done: advance(len(scores) + done),
    )


def _counter(category: Category, progress: Callable[[int, int], None] | None) -> Callable[[int], object]:
    """Tells ``progress`` how many images are done, of all."""
    whole = len(category.samples) + len(category.unlabelled)
    return lambda done: progress and progress(done, whole)


def evaluate_maps(
    maps: str | Path | Maps,
    data: str | Path | Category,
    out: str | Path,
    *,
    roi: str | Path | Masks | None = None,
    shown: Sequence[str] = SHOWN,
    bootstrap: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compare maps that another method wrote with the ground truth.

    Parameters
    ----------
    maps : path or Maps
        A folder of map files in the layout that MVTec's own evaluation reads,
        ``<category>/test/<defect>/<name>.tiff``, or the ``<category>`` folder in it; or what ``read_maps``
        read of one.
    data, out, shown, bootstrap
        As for ``evaluate``, which says what is written; here no maps are.
    roi : path or Masks, optional
        As for ``evaluate``, given at the images' own sizes.
    progress : callable, optional
        Called with (images read, images in all).

    Returns
    -------
    dict
        As ``evaluate``, but for ``engine``, ``precision`` and ``seconds``; ``maps`` is the folder.

    Raises
    ------
    ImageError
        Images, masks or maps cannot be read: all of them are named.
    UserError
        As for ``evaluate`` and ``find_maps``.

    Notes
    -----
    Metrics are computed at the images' own sizes, as by MVTec's script: a map has the size of its image, and
    an image's score is its map's maximum. An image is defective by its folder (the script calls it so by its
    mask). There is no threshold, and so no verdict. Beside the maps, the masks (1 byte a pixel) and small
    pictures, 8 bytes a pixel are needed, with ``bootstrap`` 12.
    """
    check_bootstrap(bootstrap)
    out = Path(out)
    category = data if isinstance(data, Category) else find_category(data, out)
    check_shown(shown, category.saturations is not None)
    if roi is not None and not isinstance(roi, Masks):
        roi = Masks(roi)
    if not isinstance(maps, Maps):
        maps = read_maps(find_maps(maps, category, out), category, progress, roi)
    if maps.inside is not None:
        category, maps = maps_within(category, maps, maps.inside)
    inside = maps.inside
    scores = np.array([score_map.max() for score_map in maps.maps])
    found = summarise(category.samples, maps.maps, maps.masks, 0, scores, None, maps.defects, inside)
    found["notes"] += [*category.notes, *maps.notes]
    found["notes"].append("Map files have no threshold: nothing is called anomalous or missed.")
    found |= {"layout": category.layout, "maps": printable(maps.folder)}
    if bootstrap:
        defective = defective_of(category.samples)
        add_intervals(found, maps.maps, maps.masks, scores, defective, bootstrap, inside=inside)
    rows = (ScoreRow(path, f"{s:.9g}", "", "") for path, s in zip(_paths(category), scores, strict=True))
    curves = curves_of(maps.maps, maps.masks, inside)
    groups = with_small_maps(choose_pictures(category, maps.shown, maps.maps, scores, None))
    display = range_of_maps(pixels_within(maps.maps, inside))
    _write(out, category, found, scores, rows, curves, groups, display, None, shown)
    return found


def _write(
    out: Path,
    category: Category,
    found: dict[str, Any],
    scores: NDArray[np.floating],
    rows: Iterable[ScoreRow],
    curves: Curves,
    groups: Sequence[Group],
    display: tuple[float, float, float | None],
    config: Config | None,
    shown: Sequence[str],
) -> None:
    """Write what is read of an evaluation, ``metrics.json`` last."""
    truth = ((printable(sample.defect), int(sample.defect != "good")) for sample in category.samples)
    columns = (*ScoreRow._fields, "defect", "label")
    write_table(out / "scores.csv", columns, ((*row, *t) for row, t in zip(rows, truth, strict=True)))
    with atomic_write(out / "curves.png") as temporary:
        temporary.write_bytes(plot_curves(curves))
    defective = defective_of(category.samples)
    page = out / "report.html"
    write_report(page, category.name, found, scores, defective, curves, groups, display, config, shown)
    write_text(out / "metrics.json", json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _check_finite(
    samples: Sequence[TestSample], maps: NDArray[np.float32], scores: NDArray[np.float32]
) -> None:
    for sample, score_map, score in zip(samples, maps, scores, strict=True):
        if not (math.isfinite(score) and np.isfinite(score_map).all()):
            raise UserError(f"{sample.path}: {NOT_FINITE}")


def _paths(category: Category) -> list[str]:
    return [printable(category.place(sample.path)) for sample in category.samples]
