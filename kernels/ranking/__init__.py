"""Sorted accumulation behind PRO and AUROC: exact with ties, in memory of twice the float32 maps.

``rank`` orders all pixels once; ``area`` and ``curve`` then sweep the threshold from the highest score
down. The same sweep gives a ROC curve (every anomalous pixel weighs the same) and a PRO curve (every
anomalous *region* weighs the same: a pixel weighs one over its region's size).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from glance_fast.kernels.ranking import cpu, reference

__all__ = ["Precision", "Ranking", "area", "curve", "precision", "rank"]

# Ranks and classes are 32 bits wide.
_LARGEST = (1 << 32) - 1
_BACKENDS: dict[str, ModuleType] = {"auto": cpu, "cpu": cpu, "reference": reference}


def _backend(name: str) -> ModuleType:
    if name not in _BACKENDS:
        raise ValueError(f"backend must be one of {sorted(_BACKENDS)}, got {name!r}")
    return _BACKENDS[name]


def checked_classes(scores: Sequence[np.ndarray], classes: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """Yield the classes one by one, so that a caller can make them as they are consumed."""
    number = 0
    for number, label in enumerate(classes, start=1):
        if number > len(scores):
            break
        label = np.asarray(label)
        if label.dtype.kind not in "bui":
            raise TypeError(f"classes[{number - 1}] must hold integers, got {label.dtype}")
        if label.size != scores[number - 1].size:
            raise ValueError(
                f"classes[{number - 1}] has {label.size} pixels, its scores {scores[number - 1].size}"
            )
        if label.size and (label.min() < 0 or label.max() > _LARGEST):
            raise ValueError(f"classes[{number - 1}] must lie in [0, 2**32 - 1]")
        yield label
    if number != len(scores):
        raise ValueError(f"classes and scores must be as many: got {number} and {len(scores)}")


def checked_scores(scores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The scores as arrays; refused where they cannot be ranked."""
    arrays = [np.asarray(score) for score in scores]
    for i, score in enumerate(arrays):
        if score.dtype.kind not in "buif" or score.dtype.itemsize > 8:
            raise TypeError(f"scores[{i}] must hold real numbers of at most 64 bits, got {score.dtype}")
        if not np.isfinite(score).all():
            raise ValueError(f"scores[{i}] holds NaN or infinity")
    pixels = sum(score.size for score in arrays)
    if not 0 < pixels <= _LARGEST:
        raise ValueError(f"scores must hold 1 to {_LARGEST} pixels, got {pixels}")
    return arrays


class Ranking(NamedTuple):
    """All pixels in ascending order of score.

    Attributes
    ----------
    background : ndarray of uint32 [N0]
        The scores of background pixels, as integers of the same order.
    regions : ndarray of uint64 [N1]
        Pixels of regions: such a score in the high 32 bits, the class in the low 32.
    """

    background: np.ndarray
    regions: np.ndarray


def rank(scores: Sequence[np.ndarray], classes: Iterable[np.ndarray], *, backend: str = "auto") -> Ranking:
    """Order pixels by score and keep the class of each.

    Parameters
    ----------
    scores : sequence of real arrays
        One array of any shape an image; finite. -0.0 equals 0.0.
    classes : iterable of integer arrays
        As many, of the same sizes: 0 is background, r >= 1 the r-th region. Consumed one by one.
    backend : {"auto", "cpu", "reference"}
        "auto" is "cpu".

    Returns
    -------
    Ranking
        Integers that are equal where scores are equal, and larger where they are larger.

    Raises
    ------
    TypeError
        A dtype that is not real and at most 64 bits wide (scores) or not integer (classes).
    ValueError
        No pixel, scores that are not finite, sizes that differ, or a class out of range.

    Notes
    -----
    Values that float32 holds exactly (float32, float16, small integers, a float64 that came from them)
    take 8 bytes a pixel in all. If any other float64 or integer is among them, all are ranked exactly
    through an argsort, which takes up to 28 bytes a pixel.
    """
    chosen = _backend(backend)
    arrays = checked_scores(scores)
    return Ranking(*chosen.rank(arrays, checked_classes(arrays, classes)))


class Precision(NamedTuple):
    """How precise a ranking is over all thresholds, pixels of regions against background.

    Attributes
    ----------
    average : float
        Average precision: the mean over region pixels of the precision where the threshold is their score.
    f1_max : float
        The highest F1 of any threshold.
    precision, recall : float
        There; of several such thresholds, at the highest.
    """

    average: float
    f1_max: float
    precision: float
    recall: float


def precision(ranked: Ranking, *, backend: str = "auto") -> Precision:
    """Average precision and the highest F1, all regions being one class.

    Parameters
    ----------
    ranked : Ranking
        From ``rank``.
    backend : {"auto", "cpu", "reference"}
        "auto" is "cpu".

    Returns
    -------
    Precision

    Raises
    ------
    TypeError
        ``ranked`` is no Ranking.
    ValueError
        There is no region pixel, or ``backend`` is unknown.
    """
    if not isinstance(ranked, Ranking):
        raise TypeError(f"ranked must come from rank(), got {type(ranked).__name__}")
    if not len(ranked.regions):
        raise ValueError("ranked holds no region pixel (class 1 or above)")
    return Precision(*_backend(backend).precision(*ranked))


def checked_weights(weights: np.ndarray) -> np.ndarray:
    """Weights of classes as float64; refused where they are no such."""
    weights = np.ascontiguousarray(weights, dtype=np.float64)
    if weights.ndim != 1 or not len(weights) or weights[0] != 0:
        raise ValueError("weights must be [classes], with 0 for the background at index 0")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("weights must be finite and not negative")
    return weights


def check_limit(limit: float) -> None:
    """Refuse what is no share of the background."""
    if isinstance(limit, bool) or not isinstance(limit, numbers.Real):
        raise TypeError(f"limit must be a real number, got {type(limit).__name__}")
    if not (math.isfinite(limit) and 0 < limit <= 1):
        raise ValueError(f"limit must lie in (0, 1], got {limit}")


def _checked_sweep(ranked: Ranking, weights: np.ndarray, limit: float) -> np.ndarray:
    if not isinstance(ranked, Ranking):
        raise TypeError(f"ranked must come from rank(), got {type(ranked).__name__}")
    if not len(ranked.background):
        raise ValueError("ranked holds no background pixel (class 0)")
    weights = checked_weights(weights)
    check_limit(limit)
    labels = ranked.regions & np.uint64(_LARGEST)
    if len(labels) and labels.max() >= len(weights):
        raise ValueError(f"weights has {len(weights)} entries, the largest class is {labels.max()}")
    if not weights[labels].any():
        raise ValueError("ranked holds no pixel of a class with a positive weight")
    return weights


def area(ranked: Ranking, weights: np.ndarray, limit: float = 1.0, *, backend: str = "auto") -> float:
    """Area under the curve (share of background, share of weight) up to a share of background.

    Parameters
    ----------
    ranked : Ranking
        From ``rank``.
    weights : array of float [classes]
        What a pixel of each class adds to the curve; 0 at index 0.
    limit : float
        Where the integral ends, in (0, 1]; the curve is interpolated linearly there.
    backend : {"auto", "cpu", "reference"}
        "auto" is "cpu".

    Returns
    -------
    float
        The area divided by ``limit``, in [0, 1].

    Raises
    ------
    TypeError, ValueError
        An argument is not as described above, or there are no pixels of background or none of a class with
        a positive weight.
    """
    return _backend(backend).area(*ranked, _checked_sweep(ranked, weights, limit), float(limit))


def curve(
    ranked: Ranking, weights: np.ndarray, limit: float = 1.0, points: int = 300, *, backend: str = "auto"
) -> tuple[np.ndarray, np.ndarray]:
    """Points of the curve that ``area`` integrates, for plotting.

    Parameters
    ----------
    ranked, weights, limit, backend
        As for ``area``.
    points : int
        At most so many points, at least 3. Points of the whole curve are left out only where neither
        coordinate moves by ``2 / (points - 2)`` of its range.

    Returns
    -------
    x, y : ndarray of float64 [K]
        Ascending, from (0, 0) to the (interpolated) point at ``limit``; K <= points.

    Raises
    ------
    TypeError, ValueError
        As for ``area``, or ``points`` is not an integer of at least 3.
    """
    if isinstance(points, bool) or not isinstance(points, numbers.Integral):
        raise TypeError(f"points must be an integer, got {type(points).__name__}")
    if points < 3:
        raise ValueError(f"points must be at least 3, got {points}")
    weights = _checked_sweep(ranked, weights, limit)
    return _backend(backend).curve(*ranked, weights, float(limit), int(points))
