"""How far metrics move with the choice of test images: percentile intervals by the bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glance_fast.errors import UserError
from glance_fast.evaluation import metrics
from glance_fast.evaluation.metrics import ArrayOrList
from glance_fast.evaluation.summary import METRICS, both

SHARE = 0.95
"""Of the resamples that lie within an interval."""


def check_bootstrap(resamples: int) -> None:
    """Refuse what is no number of resamples."""
    if resamples < 0:
        raise UserError(f"`bootstrap`: 0 (none) or more resamples, got {resamples}")


def draw_images(defective: NDArray[np.bool_], resamples: int, seed: int = 0) -> NDArray[np.int16]:
    """Draw images with replacement: as many good ones among the good, and defective among the defective.

    Parameters
    ----------
    defective : ndarray
        bool [N].
    resamples : int
        How many times all are drawn.
    seed : int

    Returns
    -------
    ndarray of int16 [resamples, N]
        How often each image was drawn.
    """
    rng = np.random.default_rng(seed)
    counts = np.zeros((resamples, len(defective)), np.int16)
    for kind in (False, True):
        members = np.flatnonzero(defective == kind)
        for drawn in counts if len(members) else ():
            picked = rng.integers(len(members), size=len(members))
            drawn[members] = np.bincount(picked, minlength=len(members))
    return counts


def add_intervals(
    found: dict[str, Any],
    maps: ArrayOrList,
    masks: ArrayOrList,
    scores: NDArray[np.floating],
    defective: NDArray[np.bool_],
    resamples: int,
    seed: int = 0,
    inside: ArrayOrList | None = None,
) -> None:
    """Add to what ``metrics.json`` says how far the metrics over all images spread.

    Parameters
    ----------
    found : dict
        From ``summarise``. Added are ``bootstrap``, the number of resamples; ``intervals``, of each metric
        the [low, high] between which 95 % of the resamples lie, None where it cannot be had; and to
        ``notes``, how many resamples have no pixel metrics, for all of their masks are empty: these are left
        out.
    maps, masks : sequence of ndarray
        Real [H, W] and bool [H, W] of each image.
    scores, defective : ndarray
        Real [N], bool [N].
    resamples : int
        At least 1.
    seed : int
        Of the draws.
    inside : sequence of ndarray, optional
        As for ``summarise``.
    """
    counts = draw_images(defective, resamples, seed)
    values: dict[str, NDArray[np.float64]] = {}
    if both(masks, inside):
        values |= metrics.resampled_pixel_metrics(maps, masks, counts, inside)
    if both(defective):
        values |= metrics.resampled_image_metrics(scores, defective, counts)
    known = {name: drawn[~np.isnan(drawn)] for name, drawn in values.items()}
    tails = [50 * (1 - SHARE), 50 * (1 + SHARE)]
    within = {name: np.percentile(drawn, tails).tolist() for name, drawn in known.items() if len(drawn)}
    found |= {"bootstrap": resamples, "intervals": dict.fromkeys(METRICS) | within}
    left_out = resamples - min(map(len, known.values()), default=resamples)
    if left_out:
        found["notes"].append(
            f"Resamples in which all masks are empty, or cover everything: {left_out} of {resamples}. The "
            "intervals of pixel metrics are those of the others."
        )
