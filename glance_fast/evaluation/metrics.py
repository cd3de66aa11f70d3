"""PRO, AUROC, average precision and F1, of pixels and of images, by the protocols that papers use.

Every metric is exact: each distinct score is a threshold, pixels of one score enter together. Maps may
differ in size from image to image. Memory beside the inputs is twice the float32 maps; maps whose values
float32 cannot hold (a computed float64 map) are still ranked exactly, and take more (see
``glance_fast.kernels.ranking.rank``).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy import ndimage

from glance_fast.kernels import ranking, resampling

__all__ = [
    "f1_score",
    "image_auroc",
    "image_average_precision",
    "image_f1_max",
    "image_roc_curve",
    "pixel_auroc",
    "pixel_average_precision",
    "pixel_f1_max",
    "pixel_metrics",
    "pro_and_auroc",
    "pro_auc",
    "pro_curve",
    "resampled_image_metrics",
    "resampled_pixel_metrics",
    "roc_curve",
    "spro_auc",
    "spro_metrics",
]

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)
_ONE_CLASS = np.array([0.0, 1.0])

ArrayOrList = np.ndarray | Sequence[np.ndarray]
# Of one image: the mask of each defect, and how many of its pixels suffice.
Defects = Sequence[tuple[np.ndarray, int]]


def _as_images(values: ArrayOrList, name: str) -> list[np.ndarray]:
    """One 2-D array an image, not copied."""
    images = [np.asarray(image) for image in values]
    if not images:
        raise ValueError(f"{name} holds no image")
    for i, image in enumerate(images):
        if image.dtype.kind not in "buif":
            raise TypeError(f"{name}[{i}] must hold real numbers, got {image.dtype}")
        if image.ndim != 2 or not image.size:
            raise ValueError(f"{name}[{i}] must be a non-empty [H, W] array, got shape {image.shape}")
    return images


def _as_binary(mask: np.ndarray, name: str) -> np.ndarray:
    """Whether each pixel is defective; the values are 0 and one of 1 and 255."""
    if mask.dtype == bool:
        return mask
    high = mask.max()
    defective = mask == high
    # With the highest value known to be 1 or 255, everything else must be exactly 0.
    if high == 0 and not mask.any():
        return np.zeros(mask.shape, dtype=bool)
    if high not in (1, 255) or mask[~defective].any():
        raise ValueError(f"{name} must be binary: bool, or only 0 and 1, or only 0 and 255")
    return defective


def _checked(
    maps: ArrayOrList, masks: ArrayOrList, inside: ArrayOrList | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Maps and masks; nothing outside the regions of interest is defective."""
    maps, masks = _as_images(maps, "maps"), _as_images(masks, "masks")
    if len(maps) != len(masks):
        raise ValueError(f"maps and masks must be as many: got {len(maps)} and {len(masks)}")
    defective = [_as_binary(mask, f"masks[{i}]") for i, mask in enumerate(masks)]
    for i, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        if scores.shape != mask.shape:
            raise ValueError(f"maps[{i}] has shape {scores.shape}, masks[{i}] has {mask.shape}")
        if not np.isfinite(scores).all():
            raise ValueError(f"maps[{i}] holds NaN or infinity")
    if inside is not None:
        _check_inside(inside, masks)
        defective = [mask & within for mask, within in zip(defective, inside, strict=True)]
    if not any(mask.any() for mask in defective):
        raise ValueError("masks hold no defective pixel")
    if all(mask.all() for mask in _inner(defective, inside)):
        raise ValueError("masks hold no background pixel")
    return maps, defective


def _check_inside(inside: ArrayOrList, masks: ArrayOrList) -> None:
    if len(inside) != len(masks):
        raise ValueError(f"inside and masks must be as many: got {len(inside)} and {len(masks)}")
    for i, (within, mask) in enumerate(zip(inside, masks, strict=True)):
        if within.dtype != bool or within.shape != mask.shape:
            raise ValueError(
                f"inside[{i}] must be bool {list(mask.shape)}, got {within.dtype} {list(within.shape)}"
            )


def _inner(values: Iterable[np.ndarray], inside: ArrayOrList | None) -> Iterator[np.ndarray]:
    """The pixels of each image in its region of interest, in a row; without regions, all as they are."""
    if inside is None:
        yield from values
    else:
        yield from (value[within] for value, within in zip(values, inside, strict=True))


def _check_max_fpr(max_fpr: float) -> None:
    if isinstance(max_fpr, bool) or not isinstance(max_fpr, numbers.Real):
        raise TypeError(f"max_fpr must be a real number, got {type(max_fpr).__name__}")
    if not (math.isfinite(max_fpr) and 0 < max_fpr <= 1):
        raise ValueError(f"max_fpr must lie in (0, 1], got {max_fpr}")


def _regions(masks: list[np.ndarray], sizes: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield region numbers of each mask, counted on from image to image; append the regions' sizes."""
    count = 0
    for mask in masks:
        labels, found = ndimage.label(mask, _EIGHT_CONNECTED) if mask.any() else (mask, 0)
        if found:
            sizes.append(np.bincount(labels.ravel(), minlength=found + 1)[1:])
            if count:
                np.add(labels, count, out=labels, where=mask)
            count += found
        yield labels


def _rank_regions(
    maps: list[np.ndarray], masks: list[np.ndarray], inside: ArrayOrList | None = None
) -> tuple[ranking.Ranking, np.ndarray]:
    """Ranked pixels, and the weight of each class by which every region counts the same."""
    sizes: list[np.ndarray] = []
    ranked = ranking.rank(list(_inner(maps, inside)), _inner(_regions(masks, sizes), inside))
    return ranked, _equal_weights(sizes)


def _equal_weights(sizes: list[np.ndarray]) -> np.ndarray:
    """What a pixel of each class weighs where every region counts the same, by the regions' sizes."""
    return np.concatenate([[0.0], 1.0 / np.concatenate(sizes)])


def pro_and_auroc(maps: ArrayOrList, masks: ArrayOrList, max_fpr: float = 0.3) -> tuple[float, float]:
    """PRO and pixel AUROC from one sort.

    Parameters
    ----------
    maps, masks, max_fpr
        As for ``pro_auc``.

    Returns
    -------
    pro, auroc : float
        Equal to ``pro_auc`` and ``pixel_auroc``.

    Raises
    ------
    TypeError, ValueError
        As for ``pro_auc``.
    """
    _check_max_fpr(max_fpr)
    maps, masks = _checked(maps, masks)
    ranked, weights = _rank_regions(maps, masks)
    pixel_weights = np.ones_like(weights)
    pixel_weights[0] = 0.0
    return ranking.area(ranked, weights, max_fpr), ranking.area(ranked, pixel_weights)


def pixel_metrics(
    maps: ArrayOrList, masks: ArrayOrList, inside: ArrayOrList | None = None
) -> dict[str, float]:
    """All metrics of maps, from one sort.

    Parameters
    ----------
    maps, masks
        As for ``pro_auc``.
    inside : array of bool [B, H, W], or sequence of [H, W], optional
        Regions of interest: pixels outside are left out of every count. What a region cuts off a defect is no
        part of it; a defect that it cuts in two is two.

    Returns
    -------
    dict
        ``pro`` and ``pro_5``, ``pro_auc`` up to 0.3 and to 0.05; ``pixel_auroc``; ``pixel_ap``,
        ``pixel_average_precision``; ``pixel_f1_max``.

    Raises
    ------
    TypeError, ValueError
        As for ``pro_auc``.
    """
    ranked, weights = _rank_regions(*_checked(maps, masks, inside), inside)
    pixel_weights = np.ones_like(weights)
    pixel_weights[0] = 0.0
    precise = ranking.precision(ranked)
    return {
        "pro": ranking.area(ranked, weights, 0.3),
        "pro_5": ranking.area(ranked, weights, 0.05),
        "pixel_auroc": ranking.area(ranked, pixel_weights),
        "pixel_ap": precise.average,
        "pixel_f1_max": precise.f1_max,
    }


def pro_auc(maps: ArrayOrList, masks: ArrayOrList, max_fpr: float = 0.3) -> float:
    """Area under the per-region overlap curve up to a false positive rate, divided by that rate.

    At a threshold, the per-region overlap is the share of a defect's pixels found, averaged over the
    8-connected defects of all images, so that a small defect counts as much as a large one. The false
    positive rate is the share of background pixels found, over all images.

    Parameters
    ----------
    maps : real array [B, H, W], or sequence of [H, W]
        Anomaly scores, higher is more anomalous; finite. Sizes may differ from image to image.
    masks : array [B, H, W], or sequence of [H, W]
        Defective pixels: bool, or 0 and 1, or 0 and 255; of the shapes of ``maps``.
    max_fpr : float
        Where the integral ends, in (0, 1]; the curve is interpolated linearly there.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    TypeError
        Values that are not real numbers.
    ValueError
        NaN or infinity, shapes that differ, masks that are not binary, no defective or no background
        pixel, or ``max_fpr`` out of range.

    References
    ----------
    Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2.

    Examples
    --------
    >>> maps, masks = np.zeros((1, 8, 8)), np.zeros((1, 8, 8), bool)
    >>> masks[0, 2:4, 2:4] = True
    >>> maps[0, 2:4, 2:4] = 1.0
    >>> pro_auc(maps, masks)
    1.0
    """
    _check_max_fpr(max_fpr)
    ranked, weights = _rank_regions(*_checked(maps, masks))
    return ranking.area(ranked, weights, max_fpr)


def _rank_defects(maps: ArrayOrList, defects: Sequence[Defects]) -> tuple[ranking.Ranking, np.ndarray]:
    """Ranked pixels, background first, and weights by which every defect counts 1 once it is saturated."""
    maps = _as_images(maps, "maps")
    if len(maps) != len(defects):
        raise ValueError(f"maps and defects must be as many: got {len(maps)} and {len(defects)}")
    background, highest, weights = [], [], [0.0]
    for i, (scores, found) in enumerate(zip(maps, defects, strict=True)):
        free = np.ones(scores.shape, dtype=bool)
        for mask, saturation in found:
            mask = _as_binary(np.asarray(mask), f"defects[{i}]")
            if mask.shape != scores.shape:
                raise ValueError(f"maps[{i}] has shape {scores.shape}, defects[{i}] has {mask.shape}")
            free &= ~mask
            inside = scores[mask]
            if not 1 <= saturation <= len(inside):
                raise ValueError(
                    f"defects[{i}]: saturation must lie in [1, {len(inside)}], its pixels, got {saturation}"
                )
            # Those beyond add nothing: at every threshold the highest ones are found first.
            highest.append(np.partition(inside, len(inside) - saturation)[len(inside) - saturation :])
            weights.append(1.0 / saturation)
        background.append(scores[free])
    if not highest:
        raise ValueError("defects hold no defective pixel")
    if not any(len(scores) for scores in background):
        raise ValueError("defects hold no background pixel")
    classes = [np.zeros(len(scores), np.uint32) for scores in background]
    classes += [np.full(len(scores), number, np.uint32) for number, scores in enumerate(highest, start=1)]
    return ranking.rank(background + highest, classes), np.array(weights)


def spro_auc(maps: ArrayOrList, defects: Sequence[Defects], max_fpr: float = 0.05) -> float:
    """Area under the saturated per-region overlap curve up to a false positive rate, divided by that rate.

    As ``pro_auc``, with two differences: what counts as a defect is given, not found as a connected region,
    and a defect counts as wholly found as soon as so many of its pixels are as suffice. Where a part is
    missing, say, it may be marked anywhere in the place where it should be.

    Parameters
    ----------
    maps : real array [B, H, W], or sequence of [H, W]
        Anomaly scores, higher is more anomalous; finite. Sizes may differ from image to image.
    defects : sequence of sequence of (mask, saturation)
        Of each image its defects, none of a good one: the pixels, as in ``pro_auc``, and how many of them
        suffice, at least 1. Those of one image may overlap; background is what is in none of them.
    max_fpr : float
        Where the integral ends, in (0, 1]; the curve is interpolated linearly there.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    TypeError
        Values that are not real numbers.
    ValueError
        NaN or infinity, shapes that differ, masks that are not binary, a saturation out of range, no
        defective or no background pixel, or ``max_fpr`` out of range.

    References
    ----------
    Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and
    Localization", IJCV 2022, section 4.

    Examples
    --------
    >>> maps, mask = np.zeros((1, 8, 8)), np.zeros((8, 8), bool)
    >>> mask[2:4, 2:4] = True
    >>> maps[0, 2, 2] = 1.0
    >>> spro_auc(maps, [[(mask, 1)]])
    1.0
    """
    _check_max_fpr(max_fpr)
    ranked, weights = _rank_defects(maps, defects)
    return ranking.area(ranked, weights, max_fpr)


def spro_metrics(maps: ArrayOrList, defects: Sequence[Defects]) -> dict[str, float]:
    """Saturated PRO as papers on MVTec LOCO give it, from one sort.

    Parameters
    ----------
    maps, defects
        As for ``spro_auc``.

    Returns
    -------
    dict
        ``spro_5`` and ``spro_30``, ``spro_auc`` up to 0.05 and to 0.3.

    Raises
    ------
    TypeError, ValueError
        As for ``spro_auc``.
    """
    ranked, weights = _rank_defects(maps, defects)
    return {"spro_5": ranking.area(ranked, weights, 0.05), "spro_30": ranking.area(ranked, weights, 0.3)}


def pixel_auroc(maps: ArrayOrList, masks: ArrayOrList) -> float:
    """Area under the ROC curve over the pixels of all images together.

    Parameters
    ----------
    maps, masks
        As for ``pro_auc``.

    Returns
    -------
    float
        The probability that a defective pixel scores higher than a background pixel, ties counting half.

    Raises
    ------
    TypeError, ValueError
        As for ``pro_auc``.
    """
    maps, masks = _checked(maps, masks)
    return ranking.area(ranking.rank(maps, masks), _ONE_CLASS)


def pixel_average_precision(maps: ArrayOrList, masks: ArrayOrList) -> float:
    """Average precision over the pixels of all images together.

    The sum over all thresholds of precision times the recall gained there; no interpolation. What a
    detector by chance has is the share of defective pixels.

    Parameters
    ----------
    maps, masks
        As for ``pro_auc``.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    TypeError, ValueError
        As for ``pro_auc``.
    """
    return ranking.precision(ranking.rank(*_checked(maps, masks))).average


def pixel_f1_max(maps: ArrayOrList, masks: ArrayOrList) -> float:
    """The highest F1 that one threshold reaches over the pixels of all images together.

    That threshold is chosen with the truth at hand, which a user does not have.

    Parameters
    ----------
    maps, masks
        As for ``pro_auc``.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    TypeError, ValueError
        As for ``pro_auc``.
    """
    return ranking.precision(ranking.rank(*_checked(maps, masks))).f1_max


def pro_curve(
    maps: ArrayOrList,
    masks: ArrayOrList,
    max_fpr: float = 1.0,
    points: int = 300,
    inside: ArrayOrList | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Per-region overlap over the false positive rate, for plotting.

    Parameters
    ----------
    maps, masks, max_fpr
        As for ``pro_auc``.
    points : int
        At most so many points, at least 3; the steps of the whole curve that are left out are smaller
        than ``2 / (points - 2)`` of either axis.
    inside
        As for ``pixel_metrics``.

    Returns
    -------
    fpr, pro : ndarray of float64 [K]
        Ascending, from (0, 0) to the point at ``max_fpr``.

    Raises
    ------
    TypeError, ValueError
        As for ``pro_auc``, or ``points`` is not an integer of at least 3.
    """
    _check_max_fpr(max_fpr)
    ranked, weights = _rank_regions(*_checked(maps, masks, inside), inside)
    return ranking.curve(ranked, weights, max_fpr, points)


def roc_curve(
    maps: ArrayOrList, masks: ArrayOrList, points: int = 300, inside: ArrayOrList | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """True over false positive rate of the pixels of all images together, for plotting.

    Parameters
    ----------
    maps, masks, points, inside
        As for ``pro_curve``.

    Returns
    -------
    fpr, tpr : ndarray of float64 [K]
        Ascending, from (0, 0) to (1, 1).

    Raises
    ------
    TypeError, ValueError
        As for ``pro_curve``.
    """
    maps, masks = _checked(maps, masks, inside)
    ranked = ranking.rank(list(_inner(maps, inside)), _inner(masks, inside))
    return ranking.curve(ranked, _ONE_CLASS, 1.0, points)


def _checked_images(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of images, and which of these are anomalous."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.dtype.kind not in "buif" or labels.dtype.kind not in "buif":
        raise TypeError(f"scores and labels must hold real numbers, got {scores.dtype} and {labels.dtype}")
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"scores must be a non-empty [B] array, got shape {scores.shape}")
    if scores.shape != labels.shape:
        raise ValueError(f"scores has shape {scores.shape}, labels has {labels.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity")
    anomalous = _as_binary(labels, "labels")
    if anomalous.all() or not anomalous.any():
        raise ValueError("labels must name both normal and anomalous images, got only one kind")
    return scores, anomalous


def _rank_images(scores: np.ndarray, labels: np.ndarray) -> ranking.Ranking:
    scores, anomalous = _checked_images(scores, labels)
    return ranking.rank([scores], [anomalous])


def image_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve over images.

    Parameters
    ----------
    scores : real array [B]
        One score an image, higher is more anomalous; finite.
    labels : array [B]
        Which images are anomalous: bool, or 0 and 1.

    Returns
    -------
    float
        The probability that an anomalous image scores higher than a normal one, ties counting half.

    Raises
    ------
    TypeError
        Values that are not real numbers.
    ValueError
        NaN or infinity, shapes that differ, labels that are not binary or of only one kind.

    Examples
    --------
    >>> image_auroc(np.array([0.1, 0.4, 0.3, 0.9]), np.array([0, 0, 1, 1]))
    0.75
    """
    return ranking.area(_rank_images(scores, labels), _ONE_CLASS)


def image_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Average precision over images; see ``pixel_average_precision``.

    Parameters
    ----------
    scores, labels
        As for ``image_auroc``.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    TypeError, ValueError
        As for ``image_auroc``.
    """
    return ranking.precision(_rank_images(scores, labels)).average


def image_f1_max(scores: np.ndarray, labels: np.ndarray) -> float:
    """The highest F1 that one threshold reaches over images; see ``pixel_f1_max``.

    Parameters
    ----------
    scores, labels
        As for ``image_auroc``.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    TypeError, ValueError
        As for ``image_auroc``.

    Examples
    --------
    >>> image_f1_max(np.array([0.1, 0.4, 0.3, 0.9]), np.array([0, 0, 1, 1]))
    0.8
    """
    return ranking.precision(_rank_images(scores, labels)).f1_max


def f1_score(called: np.ndarray, labels: np.ndarray) -> float:
    """F1 of verdicts: the harmonic mean of precision and recall.

    Parameters
    ----------
    called, labels : array of bool [B]
        Which images are called anomalous, and which are; not all are neither.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        Shapes differ, or nothing is anomalous or called so.
    """
    called, labels = np.asarray(called, bool), np.asarray(labels, bool)
    if called.shape != labels.shape:
        raise ValueError(f"called has shape {called.shape}, labels has {labels.shape}")
    named = int(called.sum()) + int(labels.sum())
    if not named:
        raise ValueError("called and labels name nothing anomalous")
    return 2 * int((called & labels).sum()) / named


def image_roc_curve(
    scores: np.ndarray, labels: np.ndarray, points: int = 300
) -> tuple[np.ndarray, np.ndarray]:
    """True over false positive rate of images, for plotting.

    Parameters
    ----------
    scores, labels
        As for ``image_auroc``.
    points : int
        As for ``pro_curve``.

    Returns
    -------
    fpr, tpr : ndarray of float64 [K]
        Ascending, from (0, 0) to (1, 1).

    Raises
    ------
    TypeError, ValueError
        As for ``image_auroc``, or ``points`` is not an integer of at least 3.
    """
    return ranking.curve(_rank_images(scores, labels), _ONE_CLASS, 1.0, points)


def resampled_pixel_metrics(
    maps: ArrayOrList, masks: ArrayOrList, counts: np.ndarray, inside: ArrayOrList | None = None
) -> dict[str, np.ndarray]:
    """All metrics of maps for many resamples of the images, from one sort.

    Parameters
    ----------
    maps, masks
        As for ``pro_auc``.
    counts : array of integers [R, B]
        How often each resample holds each image, up to 32,767 times.
    inside
        As for ``pixel_metrics``.

    Returns
    -------
    dict of ndarray of float64 [R]
        As ``pixel_metrics`` of the images written out that often, up to rounding; NaN where a resample has no
        defective or no background pixel.

    Raises
    ------
    TypeError, ValueError
        As for ``pro_auc``, or ``counts`` is not as described.

    Notes
    -----
    Memory beside the inputs is three times the float32 maps while they are sorted and half of them after
    that, however many resamples there are.
    """
    sizes: list[np.ndarray] = []
    maps, masks = _checked(maps, masks, inside)
    ranked = resampling.rank(list(_inner(maps, inside)), _inner(_regions(masks, sizes), inside))
    found = resampling.sweep(ranked, _equal_weights(sizes), counts, (0.3, 0.05))
    return {
        "pro": found.areas[0],
        "pro_5": found.areas[1],
        "pixel_auroc": found.auroc,
        "pixel_ap": found.average,
        "pixel_f1_max": found.f1_max,
    }


def resampled_image_metrics(
    scores: np.ndarray, labels: np.ndarray, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """All metrics of image scores for many resamples of the images, from one sort.

    Parameters
    ----------
    scores, labels
        As for ``image_auroc``.
    counts : array of integers [R, B]
        As for ``resampled_pixel_metrics``.

    Returns
    -------
    dict of ndarray of float64 [R]
        ``image_auroc``, ``image_ap`` and ``image_f1_max``; NaN where a resample has images of one kind only.

    Raises
    ------
    TypeError, ValueError
        As for ``image_auroc``, or ``counts`` is not as described.
    """
    scores, anomalous = _checked_images(scores, labels)
    # Each image is a single pixel, and each anomalous one a region.
    classes = np.where(anomalous, np.cumsum(anomalous), 0)
    ranked = resampling.rank(np.split(scores, len(scores)), np.split(classes, len(scores)))
    found = resampling.sweep(ranked, np.append(0.0, np.ones(classes.max())), counts)
    return {"image_auroc": found.auroc, "image_ap": found.average, "image_f1_max": found.f1_max}
