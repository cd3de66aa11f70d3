"""What ``metrics.json`` says: the metrics over all and by type of defect, and what could not be had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glance_fast.calibration import is_anomalous
from glance_fast.data.layouts import Defect, TestSample
from glance_fast.data.table import printable
from glance_fast.errors import UserError
from glance_fast.evaluation import metrics
from glance_fast.evaluation.metrics import ArrayOrList
from glance_fast.evaluation.plots import MAX_FPR, Curves

# Name and meaning of every metric, by its key in metrics.json.
METRICS = {
    "pro": ("PRO", f"share of each defect found, up to {MAX_FPR:.0%} false pixels"),
    "pro_5": ("PRO 5 %", "share of each defect found, up to 5% false pixels"),
    "pixel_auroc": ("Pixel AUROC", "how well pixels of defects rank above all others"),
    "pixel_ap": ("Pixel AP", "precision of pixels, averaged over all thresholds"),
    "pixel_f1_max": ("Pixel F1-max", "the best that one threshold for all pixels reaches"),
    "image_auroc": ("Image AUROC", "how well defective images rank above good ones"),
    "image_ap": ("Image AP", "precision of images, averaged over all thresholds"),
    "image_f1_max": ("Image F1-max", "the best that one threshold for all images reaches"),
}
# Those of a category with saturation thresholds (MVTec LOCO), beside the others.
SATURATED = {
    "spro_5": ("sPRO 5 %", "share found of what suffices of each defect, up to 5% false pixels"),
    "spro_30": (
        "sPRO 30 %",
        f"share found of what suffices of each defect, up to {MAX_FPR:.0%} false pixels",
    ),
}
SHOWN = ("pro", "pixel_auroc", "image_auroc")


def metrics_of(saturated: bool) -> dict[str, tuple[str, str]]:
    """Name and meaning of the metrics of a category, with saturation thresholds or without."""
    return METRICS | SATURATED if saturated else METRICS


def check_shown(shown: Sequence[str], saturated: bool = False) -> None:
    """Refuse names that are no metrics of a category (``metrics_of``), or none at all."""
    known = metrics_of(saturated)
    unknown = [name for name in shown if name not in known]
    if unknown or not shown or isinstance(shown, str):
        got = f", got {', '.join(unknown)}" if unknown else ""
        needs = "; sPRO needs MVTec LOCO's defects_config.json" if set(unknown) & set(SATURATED) else ""
        raise UserError(f"metrics: expected some of {', '.join(known)}{got}{needs}")


def defective_of(samples: Sequence[TestSample]) -> NDArray[np.bool_]:
    """Which of the images are defective, bool [N]."""
    return np.array([sample.defect != "good" for sample in samples])


def summarise(
    samples: Sequence[TestSample],
    maps: ArrayOrList,
    masks: ArrayOrList,
    kept: int,
    scores: NDArray[np.floating],
    threshold: float | None,
    regions: Sequence[Sequence[Defect]] | None = None,
    inside: ArrayOrList | None = None,
) -> dict[str, Any]:
    """What ``metrics.json`` says of quality.

    Parameters
    ----------
    samples : sequence of TestSample
    maps : sequence of ndarray
        Real [H, W] of each image.
    masks : sequence of ndarray
        bool [H, W] of each image.
    kept : int
        Regions that would have vanished at the model's image size, which all masks then have.
    scores : ndarray
        Real [N].
    threshold : float or None
        None where there is none.
    regions : sequence of sequence of Defect, optional
        Of each image its defects, for saturated PRO.
    inside : sequence of ndarray, optional
        bool [H, W] of each image, its region of interest: what counts. ``masks`` and ``regions`` lie in it
        (``glance_fast.evaluation.within``).
    """
    defective = defective_of(samples)
    kinds = np.array([sample.defect for sample in samples])
    called = None if threshold is None else is_anomalous(scores, threshold)

    def wrong(which: NDArray[np.bool_], wanted: bool) -> int | None:
        """How many of these are called otherwise; None where there are none, or no verdicts."""
        return None if called is None or not which.any() else int((called[which] != wanted).sum())

    defects = {}
    for kind in dict.fromkeys(kinds[defective]):
        which = kinds == kind
        defects[printable(str(kind))] = {
            **_metrics(maps, masks, scores, defective, which | ~defective, regions, inside),
            "images": int(which.sum()),
            "missed": wrong(which, True),
            "recall": None if called is None else float(called[which].mean()),
        }
    return {
        **_metrics(maps, masks, scores, defective, np.ones(len(samples), dtype=bool), regions, inside),
        "images": len(samples),
        "good_images": int((~defective).sum()),
        "defective_images": int(defective.sum()),
        "threshold": {
            "value": threshold,
            "false_positives": wrong(~defective, False),
            "missed": wrong(defective, True),
            "f1": None if called is None or not defective.any() else metrics.f1_score(called, defective),
        },
        "defects": defects,
        **({} if regions is None else {"mean_of_defects": _means(defects)}),
        "notes": _notes(samples, masks, kept, defective),
    }


def _means(defects: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Means over the types of defects, which count alike then, as papers on MVTec LOCO do; None as above."""
    means: dict[str, float | None] = {}
    for key in metrics_of(saturated=True):
        values = [found[key] for found in defects.values()]
        means[key] = float(np.mean(values)) if values and None not in values else None
    return means


def _metrics(
    maps: ArrayOrList,
    masks: ArrayOrList,
    scores: NDArray[np.floating],
    defective: NDArray[np.bool_],
    which: NDArray[np.bool_],
    regions: Sequence[Sequence[Defect]] | None,
    inside: ArrayOrList | None,
) -> dict[str, float | None]:
    """All metrics over some of the images; None for one that is not defined there."""
    chosen = np.flatnonzero(which).tolist()
    found: dict[str, float | None] = dict.fromkeys(metrics_of(regions is not None))
    # Lists of views: no map is copied.
    truth, ours = [masks[i] for i in chosen], [maps[i] for i in chosen]
    where = None if inside is None else [inside[i] for i in chosen]
    if both(truth, where):
        found |= metrics.pixel_metrics(ours, truth, where)
        if regions is not None:
            defects = [regions[i] for i in chosen]
            if where is not None:
                # Of a defect its pixels count, not how they hang together: in one row are those inside.
                ours = [m[i][None] for m, i in zip(ours, where, strict=True)]
                defects = [
                    [Defect(d.mask[i][None], d.saturation) for d in of_image]
                    for of_image, i in zip(defects, where, strict=True)
                ]
            found |= metrics.spro_metrics(ours, defects)
    if both(defective[which]):
        ranked = scores[which], defective[which]
        found |= {
            "image_auroc": metrics.image_auroc(*ranked),
            "image_ap": metrics.image_average_precision(*ranked),
            "image_f1_max": metrics.image_f1_max(*ranked),
        }
    return found


def both(values: ArrayOrList, inside: ArrayOrList | None = None) -> bool:
    """Whether some of all values are true, and some are not; of those inside, where true ones lie there."""
    seen = values if inside is None else [value | ~i for value, i in zip(values, inside, strict=True)]
    return any(value.any() for value in values) and not all(value.all() for value in seen)


def _notes(
    samples: Sequence[TestSample],
    masks: ArrayOrList,
    kept: int,
    defective: NDArray[np.bool_],
) -> list[str]:
    marked = np.array([mask.any() for mask in masks])
    notes = []
    if not defective.any():
        notes.append("No defective images to test: PRO, pixel AUROC and image AUROC cannot be computed.")
    elif not any(sample.masks for sample in samples):
        notes.append(
            "No masks: where the defects are is not known, and PRO and the other metrics of pixels cannot be "
            "computed."
        )
    elif not marked.any():
        notes.append("All masks are empty: PRO and pixel AUROC cannot be computed.")
    elif all(mask.all() for mask in masks):
        notes.append("The masks cover everything: PRO and pixel AUROC cannot be computed.")
    if defective.all():
        notes.append(
            "No good images to test: image AUROC and false alarms cannot be computed; "
            "the background of defective images stands for what is normal."
        )
    empty = int((defective & ~marked).sum())
    if empty and marked.any():
        notes.append(f"Empty masks of defective images: {empty}. These count for image AUROC alone.")
    if kept:
        height, width = masks[0].shape
        notes.append(
            f"Defects that vanish at the model's image size, {width}x{height}: {kept}. "
            "Each is kept as one pixel."
        )
    return notes


def curves_of(maps: ArrayOrList, masks: ArrayOrList, inside: ArrayOrList | None = None) -> Curves:
    """PRO and pixel ROC of all images, where they can be had; arguments as for ``summarise``."""
    if not both(masks, inside):
        return Curves()
    return Curves(
        metrics.pro_curve(maps, masks, inside=inside), metrics.roc_curve(maps, masks, inside=inside)
    )
