"""What ``metrics.json`` says: the metrics over all and by type of defect, and what could not be had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glance_fast.calibration import is_anomalous
from glance_fast.data.folders import TestSample
from glance_fast.data.table import printable
from glance_fast.evaluation import metrics
from glance_fast.evaluation.plots import MAX_FPR, Curves


def defective_of(samples: Sequence[TestSample]) -> NDArray[np.bool_]:
    """Which of the images are defective, bool [N]."""
    return np.array([sample.defect != "good" for sample in samples])


def summarise(
    samples: Sequence[TestSample],
    maps: NDArray[np.float32],
    masks: NDArray[np.bool_],
    kept: int,
    scores: NDArray[np.float32],
    threshold: float | None,
) -> dict[str, Any]:
    """What ``metrics.json`` says of quality.

    Parameters
    ----------
    samples : sequence of TestSample
    maps : ndarray
        float32 [N, H, W].
    masks : ndarray
        bool [N, H, W].
    kept : int
        Regions that would have vanished.
    scores : ndarray
        float32 [N].
    threshold : float or None
        None where the model has none.
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
            **_metrics(maps, masks, scores, defective, which | ~defective),
            "images": int(which.sum()),
            "missed": wrong(which, True),
        }
    return {
        **_metrics(maps, masks, scores, defective, np.ones(len(samples), dtype=bool)),
        "images": len(samples),
        "good_images": int((~defective).sum()),
        "defective_images": int(defective.sum()),
        "threshold": {
            "value": threshold,
            "false_positives": wrong(~defective, False),
            "missed": wrong(defective, True),
        },
        "defects": defects,
        "notes": _notes(masks, kept, defective, threshold),
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


def _notes(
    masks: NDArray[np.bool_], kept: int, defective: NDArray[np.bool_], threshold: float | None
) -> list[str]:
    notes = []
    if not defective.any():
        notes.append("No defective images in 'test': PRO, pixel AUROC and image AUROC cannot be computed.")
    elif not masks.any():
        notes.append("All masks are empty: PRO and pixel AUROC cannot be computed.")
    elif masks.all():
        notes.append("The masks cover everything: PRO and pixel AUROC cannot be computed.")
    if defective.all():
        notes.append(
            "No good images in 'test/good': image AUROC and false alarms cannot be computed; "
            "the background of defective images stands for what is normal."
        )
    empty = int((defective & ~masks.any((1, 2))).sum())
    if empty and masks.any():
        notes.append(f"Empty masks of defective images: {empty}. These count for image AUROC alone.")
    if kept:
        height, width = masks.shape[1:]
        notes.append(
            f"Defects that vanish at the model's image size, {width}x{height}: {kept}. "
            "Each is kept as one pixel."
        )
    if threshold is None:
        notes.append(
            "The model is not calibrated and has no threshold: nothing is called anomalous or missed."
        )
    return notes


def curves_of(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> Curves:
    """PRO and pixel ROC of all images, where they can be had."""
    if not _both(masks):
        return Curves()
    return Curves(metrics.pro_curve(maps, masks), metrics.roc_curve(maps, masks))
