"""What the ranking means: every curve in full, by NumPy, in float64.

With the threshold t running down over the distinct scores, a curve has one point a threshold::

    x(t) = #{background pixels with score >= t} / #{background pixels}
    y(t) = sum of weight[class] over pixels with score >= t / the same sum over all pixels

and starts at (0, 0). Its area up to a limit is the trapezoidal one, the last piece cut by linear
interpolation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def rank(scores: Sequence[np.ndarray], classes: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Dense ranks: background uint32 [N0] ascending, regions uint64 [N1] = rank << 32 | class ascending."""
    flat = np.concatenate([np.ravel(score) for score in scores])
    label = np.concatenate([np.ravel(label) for label in classes]).astype(np.uint64)
    _, dense = np.unique(flat, return_inverse=True)
    background = np.sort(dense[label == 0]).astype(np.uint32)
    regions = np.sort(dense[label > 0].astype(np.uint64) << np.uint64(32) | label[label > 0])
    return background, regions


def full_curve(
    background: np.ndarray, regions: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both coordinates of every point, from (0, 0) to (1, 1)."""
    keys = np.concatenate([background.astype(np.uint64) << np.uint64(32), regions])
    keys = np.sort(keys)[::-1]
    high = keys >> np.uint64(32)
    label = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    # Pixels of one score enter together, so only the last of each run is a point.
    last = np.append(high[1:] != high[:-1], True)
    false_positives = np.cumsum(label == 0)[last]
    value = np.cumsum(weights[label])[last]
    x = np.concatenate([[0.0], false_positives / false_positives[-1]])
    y = np.concatenate([[0.0], value / value[-1]])
    return x, y


def cut_curve(
    background: np.ndarray, regions: np.ndarray, weights: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray]:
    """The part of the full curve with x <= limit, ended by an interpolated point at the limit."""
    x, y = full_curve(background, regions, weights)
    inside = int(np.searchsorted(x, limit, side="right"))
    if inside == len(x):
        return x, y
    share = (limit - x[inside - 1]) / (x[inside] - x[inside - 1])
    y_limit = y[inside - 1] + share * (y[inside] - y[inside - 1])
    return np.append(x[:inside], limit), np.append(y[:inside], y_limit)


def area(background: np.ndarray, regions: np.ndarray, weights: np.ndarray, limit: float) -> float:
    """Area under the curve for x in [0, limit], divided by the limit."""
    x, y = cut_curve(background, regions, weights, limit)
    return float(np.sum(0.5 * (y[1:] + y[:-1]) * np.diff(x)) / limit)


def precision(background: np.ndarray, regions: np.ndarray) -> tuple[float, float, float, float]:
    """Average precision; the highest F1, and precision and recall there."""
    high = np.concatenate([background.astype(np.uint64), regions >> np.uint64(32)])
    anomalous = np.arange(len(high)) >= len(background)
    order = np.argsort(high)[::-1]
    last = np.append(np.diff(high[order].astype(np.int64)) != 0, True)
    found = np.cumsum(anomalous[order])[last]
    share, recall = found / (np.flatnonzero(last) + 1), found / len(regions)
    average = float(np.sum(np.diff(recall, prepend=0.0) * share))
    f1 = 2 * found / (len(regions) + np.flatnonzero(last) + 1)
    best = int(np.argmax(f1))
    return average, float(f1[best]), float(share[best]), float(recall[best])


def curve(
    background: np.ndarray, regions: np.ndarray, weights: np.ndarray, limit: float, points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points of the curve up to the limit, thinned to at most ``points``."""
    x, y = cut_curve(background, regions, weights, limit)
    step = 2.0 / max(points - 2, 1)
    kept = [0]
    for i in range(1, len(x) - 1):
        if x[i] - x[kept[-1]] >= step * limit or y[i] - y[kept[-1]] >= step:
            kept.append(i)
    kept.append(len(x) - 1)
    return x[kept], y[kept]
