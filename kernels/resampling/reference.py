"""What resampling means: every pixel of a resample repeated, and ranked by ``ranking``'s reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from glance_fast.kernels.ranking import reference


def rank(scores: Sequence[np.ndarray], classes: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The first five fields of ``Ranking``."""
    _, dense = np.unique(np.concatenate([np.ravel(score) for score in scores]), return_inverse=True)
    label = np.concatenate([np.ravel(label) for label in classes]).astype(np.uint32)
    image = np.repeat(np.arange(len(scores), dtype=np.uint32), [score.size for score in scores])
    # Negative ranks ascend where the scores fall.
    order = np.argsort(-dense, kind="stable")
    falling, label, image = -dense[order], label[order], image[order]
    background, region = falling[label == 0], falling[label > 0]
    ties, starts = np.unique(region, return_index=True)
    reached, passed = (np.searchsorted(background, ties, side) for side in ("left", "right"))
    return image[label == 0], reached, passed, np.append(starts, len(region)), label[label > 0]


def sweep(
    ranked: tuple[np.ndarray, ...],
    owners: np.ndarray,
    weights: np.ndarray,
    counts: np.ndarray,
    totals: np.ndarray,
    limits: Sequence[float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Areas, AUROC, average precision and highest F1 of every resample, as ``cpu.sweep`` gives them."""
    images, reached, passed, starts, classes = ranked
    # Whole numbers in the order of the scores: even at ties, odd between them.
    last = 2 * len(reached)
    ties_above = np.searchsorted(reached, np.arange(len(images)), side="right")
    tied = np.arange(len(images)) < np.append(0, passed)[ties_above]
    background = last + 1 - 2 * ties_above + tied
    region = np.repeat(last - 2 * np.arange(len(reached)), np.diff(starts))
    keys = region.astype(np.uint64) << np.uint64(32) | classes.astype(np.uint64)
    one = np.append(0.0, np.ones(len(weights) - 1))

    found = []
    for drawn in counts:
        pixels = np.sort(np.repeat(background, drawn[images])).astype(np.uint32)
        regions = np.sort(np.repeat(keys, drawn[owners[classes]]))
        areas = [reference.area(pixels, regions, weights, limit) for limit in limits]
        average, f1_max, _, _ = reference.precision(pixels, regions)
        found.append([reference.area(pixels, regions, one, 1.0), average, f1_max, *areas])
    roc, average, f1_max, *areas = np.array(found).T
    return np.array(areas).reshape(len(limits), len(counts)), roc, average, f1_max
