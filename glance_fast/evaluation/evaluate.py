"""A model on photographs whose defects are known: metrics, maps, curves and a report."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.files import atomic_write, write_text
from glance_fast.data.folders import TestSample, mvtec_test, read_sample_mask
from glance_fast.data.images import read_image, resize, resize_map, write_tiff
from glance_fast.data.table import printable, write_table
from glance_fast.errors import ImageError, UserError
from glance_fast.evaluation import metrics
from glance_fast.evaluation.overlay import display_range
from glance_fast.evaluation.plots import MAX_FPR, Curves, plot_curves
from glance_fast.evaluation.report import Example, Group, write_report
from glance_fast.evaluation.truth import resize_truth
from glance_fast.model import Glance

# The pictures of the report: their longer side, and the most that are shown of a kind. A model that misses
# everything would otherwise make a report that no browser opens.
_SHOWN_SIDE, _MOST_WRONG, _BEST_GOOD = 384, 24, 3


@dataclass(frozen=True)
class _Truth:
    """Of all test images: masks [N, H, W] at the model's image size, own sizes, regions kept by force."""

    masks: NDArray[np.bool_]
    sizes: list[tuple[int, int]]
    kept: int


def evaluate(
    model: Glance,
    data: str | Path,
    out: str | Path,
    *,
    engine: str = "auto",
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score the test images of a category, and compare with the ground truth.

    Parameters
    ----------
    model : Glance
        Trained.
    data : path
        A category in MVTec's layout: ``test/<defect>``, ``ground_truth/<defect>``.
    out : path
        Folder to write to; files of the same names are replaced.

        ========================================  =====================================================
        ``metrics.json``                          what this function returns; written last
        ``scores.csv``                            path, defect, label, score, anomalous
        ``maps/<category>/test/<defect>/*.tiff``  float32, each image's own size, where MVTec's own
                                                  evaluation looks below ``--anomaly_maps_dir maps``
        ``curves.png``                            PRO and pixel ROC
        ``report.html``                           all of it for reading, in one file
        ========================================  =====================================================
    engine, precision : str
        As for ``Glance.score``.
    progress : callable, optional
        Called with (images scored, images in all).

    Returns
    -------
    dict
        ``pro``, ``pixel_auroc``, ``image_auroc`` over all test images; ``defects``: the same for each type
        of defect against all good images, with ``images`` and ``missed``; ``threshold``: its ``value``,
        ``false_positives`` (good images called anomalous) and ``missed`` (defective ones that are not);
        ``images``, ``good_images``, ``defective_images``; ``engine``, ``precision``; ``seconds``, of
        scoring with decoding and without writing; ``notes``: what could not be had, and why. Numbers that
        cannot be had are None.

    Raises
    ------
    ImageError
        Images or masks cannot be read: all of them are named, before anything is scored.
    UserError
        `data` is no such category, an image has no mask, two images would have one map, `out` lies among
        the test images, a file cannot be written, or a score is not finite.

    Notes
    -----
    Metrics are computed at the model's image size, at which it decides; MVTec's script computes them from
    the map files at the images' own sizes, and differs a little. Masks are resized by `resize_truth`,
    which keeps every region; a note says how many of them would have vanished.
    """
    data, out = Path(data), Path(out)
    samples, targets = find_samples(data, out)
    truth = _read_truth(samples, model.config.image_size)

    count = len(samples)
    maps = np.empty((count, *model.config.image_size), np.float32)
    scores = np.empty(count, np.float32)
    seconds = 0.0
    if progress:
        progress(0, count)
    for start in range(0, count, model.at_once):
        part = slice(start, min(start + model.at_once, count))
        started = time.perf_counter()
        result = model.score([sample.path for sample in samples[part]], engine, precision)
        seconds += time.perf_counter() - started
        maps[part], scores[part] = result.maps, result.scores
        _check_finite(samples[part], maps[part], scores[part])
        for target, score_map, size in zip(targets[part], maps[part], truth.sizes[part], strict=True):
            write_tiff(target, resize_map(score_map, size))
        if progress:
            progress(part.stop, count)

    defective = np.array([sample.defect != "good" for sample in samples])
    threshold = model.calibration.threshold if math.isfinite(model.calibration.threshold) else None
    anomalous = None if threshold is None else scores > threshold
    found = _summary(samples, maps, truth, scores, defective, threshold)
    # What "auto" stands for is the model's business, and part of the result.
    found |= {
        "engine": model.chosen_engine(engine),
        "precision": model.chosen_precision(precision),
        "seconds": round(seconds, 3),
    }

    write_table(out / "scores.csv", ScoreRow._fields, _score_rows(samples, data, scores, anomalous))
    curves = _curves(maps, truth.masks)
    with atomic_write(out / "curves.png") as temporary:
        temporary.write_bytes(plot_curves(curves))
    display = display_range(model.calibration, maps)
    write_report(
        out / "report.html",
        _category(data),
        found,
        scores,
        defective,
        curves,
        _groups(samples, data, maps, scores, anomalous),
        display,
        model.config,
    )
    write_text(out / "metrics.json", json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return found


def find_samples(data: Path, out: Path) -> tuple[list[TestSample], list[Path]]:
    """The test images of a category, and where the map of each goes.

    Raises
    ------
    UserError
        `data` is no such category, an image has no mask, two images would have one map, or `out` lies among
        the test images.
    """
    samples = mvtec_test(data)
    test = data / "test"
    if out.resolve().is_relative_to(test.resolve()):
        raise UserError(
            f"{out}: lies among the test images, and maps would be taken for images; choose another"
        )
    owners: dict[Path, Path] = {}
    for sample in samples:
        target = out / "maps" / _category(data) / "test" / sample.path.relative_to(test).with_suffix(".tiff")
        if target in owners:
            # MVTec's layout knows images by their names without suffix, and so do the masks.
            raise UserError(f"{sample.path}: has the same name as {owners[target].name}; rename one of them")
        owners[target] = sample.path
    return samples, list(owners)


def _category(data: Path) -> str:
    return data.name if data.name not in ("", "..") else data.resolve().name


def _read_truth(samples: Sequence[TestSample], size: tuple[int, int]) -> _Truth:
    """Read every image and mask once, so that bad ones are known before the long work begins."""
    masks = np.zeros((len(samples), *size), dtype=bool)
    sizes: list[tuple[int, int]] = []
    errors: list[ImageError] = []
    kept = 0
    for i, sample in enumerate(samples):
        try:
            sizes.append(read_image(sample.path).shape[:2])
            masks[i], forced = resize_truth(read_sample_mask(sample, sizes[-1]), size)
            kept += forced
        except ImageError as error:
            errors.append(error)
    if len(errors) > 1:
        first, *others = errors
        listed = "; ".join(map(str, others))
        raise ImageError(first.path, f"{first.reason}; and {len(others)} more: {listed}")
    if errors:
        raise errors[0]
    return _Truth(masks, sizes, kept)


def _check_finite(
    samples: Sequence[TestSample], maps: NDArray[np.float32], scores: NDArray[np.float32]
) -> None:
    for sample, score_map, score in zip(samples, maps, scores, strict=True):
        if not (math.isfinite(score) and np.isfinite(score_map).all()):
            raise UserError(
                f"{sample.path}: its scores are not finite; try precision fp32, or train the model again"
            )


def _summary(
    samples: Sequence[TestSample],
    maps: NDArray[np.float32],
    truth: _Truth,
    scores: NDArray[np.float32],
    defective: NDArray[np.bool_],
    threshold: float | None,
) -> dict[str, Any]:
    kinds = np.array([sample.defect for sample in samples])
    called = scores > (math.inf if threshold is None else threshold)

    def missed(which: NDArray[np.bool_]) -> int | None:
        return None if threshold is None else int((which & ~called).sum())

    defects = {}
    for kind in dict.fromkeys(kinds[defective]):
        which = kinds == kind
        defects[printable(str(kind))] = {
            **_metrics(maps, truth.masks, scores, defective, which | ~defective),
            "images": int(which.sum()),
            "missed": missed(which),
        }
    return {
        **_metrics(maps, truth.masks, scores, defective, np.ones(len(samples), dtype=bool)),
        "images": len(samples),
        "good_images": int((~defective).sum()),
        "defective_images": int(defective.sum()),
        "threshold": {
            "value": threshold,
            "false_positives": None if threshold is None else int((called & ~defective).sum()),
            "missed": missed(defective),
        },
        "defects": defects,
        "notes": _notes(truth, defective, threshold),
    }


def _metrics(
    maps: NDArray[np.float32],
    masks: NDArray[np.bool_],
    scores: NDArray[np.float32],
    defective: NDArray[np.bool_],
    which: NDArray[np.bool_],
) -> dict[str, float | None]:
    """The three metrics over some of the images; None for one that is not defined there."""
    chosen = np.flatnonzero(which)
    pro = pixel = image = None
    if _both(masks[which]):
        # Lists of views: no map is copied.
        pro, pixel = metrics.pro_and_auroc([maps[i] for i in chosen], [masks[i] for i in chosen], MAX_FPR)
    if _both(defective[which]):
        image = metrics.image_auroc(scores[which], defective[which])
    return {"pro": pro, "pixel_auroc": pixel, "image_auroc": image}


def _both(values: NDArray[np.bool_]) -> bool:
    return bool(values.any() and not values.all())


def _notes(truth: _Truth, defective: NDArray[np.bool_], threshold: float | None) -> list[str]:
    notes = []
    if not defective.any():
        notes.append("No defective images in 'test': PRO, pixel AUROC and image AUROC are not to be had.")
    elif not truth.masks.any():
        notes.append("All masks are empty: PRO and pixel AUROC are not to be had.")
    elif truth.masks.all():
        notes.append("The masks cover everything: PRO and pixel AUROC are not to be had.")
    if defective.all():
        notes.append(
            "No good images in 'test/good': image AUROC and false alarms are not to be had; "
            "the background of defective images stands for what is normal."
        )
    empty = int((defective & ~truth.masks.any((1, 2))).sum())
    if empty and truth.masks.any():
        notes.append(f"Empty masks of defective images: {empty}. These count for image AUROC alone.")
    if truth.kept:
        height, width = truth.masks.shape[1:]
        notes.append(
            f"Defects that vanish at the model's image size, {width}x{height}: {truth.kept}. "
            "Each is kept as one pixel."
        )
    if threshold is None:
        notes.append(
            "The model is not calibrated and has no threshold: nothing is called anomalous or missed."
        )
    return notes


def _curves(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> Curves:
    if not _both(masks):
        return Curves()
    return Curves(metrics.pro_curve(maps, masks), metrics.roc_curve(maps, masks))


class ScoreRow(NamedTuple):
    """A line of ``scores.csv``."""

    path: str
    defect: str
    label: int
    score: str
    anomalous: int | str


def _score_rows(
    samples: Sequence[TestSample],
    data: Path,
    scores: NDArray[np.float32],
    anomalous: NDArray[np.bool_] | None,
) -> list[ScoreRow]:
    return [
        ScoreRow(
            path=printable(sample.path.relative_to(data)),
            defect=printable(sample.defect),
            label=int(sample.defect != "good"),
            # Nine digits hold a float32 exactly: metrics computed from the table are these.
            score=f"{score:.9g}",
            anomalous="" if anomalous is None else int(anomalous[i]),
        )
        for i, (sample, score) in enumerate(zip(samples, scores, strict=True))
    ]


def _groups(
    samples: Sequence[TestSample],
    data: Path,
    maps: NDArray[np.float32],
    scores: NDArray[np.float32],
    anomalous: NDArray[np.bool_] | None,
) -> list[Group]:
    """What the report shows: of each defect the clearest, the median and the missed; good images on top."""

    def example(i: int, why: str) -> Example:
        sample = samples[i]
        image = read_image(sample.path)
        ratio = _SHOWN_SIDE / max(image.shape[:2])
        size = tuple(max(1, round(side * ratio)) for side in image.shape[:2])
        mask = None
        if sample.mask is not None:
            mask = resize_truth(read_sample_mask(sample, image.shape[:2]), size)[0]
        return Example(
            name=printable(sample.path.relative_to(data / "test")),
            score=float(scores[i]),
            anomalous=None if anomalous is None else bool(anomalous[i]),
            defective=sample.defect != "good",
            why=why,
            image=resize(image, size),
            mask=mask,
            map=maps[i],
        )

    members: dict[str, list[int]] = {}
    for i in np.argsort(-scores, kind="stable"):
        members.setdefault(samples[i].defect, []).append(int(i))
    groups = []
    for defect in dict.fromkeys(sample.defect for sample in samples):
        ranked = members[defect]
        if defect == "good":
            wrong = [i for i in ranked if anomalous is not None and anomalous[i]]
            picked = dict.fromkeys(ranked[:_BEST_GOOD] + wrong[:_MOST_WRONG], "")
            title, kind = "Good images with the highest scores", "false alarms"
        else:
            wrong = [i for i in reversed(ranked) if anomalous is not None and not anomalous[i]]
            picked = {ranked[0]: "clearest"}
            if len(ranked) > 1:
                picked.setdefault(ranked[len(ranked) // 2], "median")
            picked = dict.fromkeys(wrong[:_MOST_WRONG], "") | picked
            picked = {i: picked[i] for i in ranked if i in picked}
            title, kind = f"Defect: {printable(defect)}", "missed images"
        hidden = sum(i not in picked for i in wrong)
        remark = f"{hidden} more {kind} stand in scores.csv." if hidden > 0 else ""
        group = Group(title, [example(i, why) for i, why in picked.items()], remark)
        groups.append((defect == "good", group))
    # Good images last.
    return [group for _, group in sorted(groups, key=lambda pair: pair[0])]
