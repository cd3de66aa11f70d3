"""Metrics of many resamples of the images, from one sort of all pixels.

``rank`` orders the pixels once, and keeps of which image each is. ``sweep`` then lowers the threshold once
for many resamples together: a pixel counts as often as its image was drawn, and none is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from glance_fast.kernels.ranking import check_limit, checked_classes, checked_scores, checked_weights
from glance_fast.kernels.resampling import cpu, reference

__all__ = ["Ranking", "Resampled", "rank", "sweep"]

_BACKENDS: dict[str, ModuleType] = {"auto": cpu, "cpu": cpu, "reference": reference}


def _backend(name: str) -> ModuleType:
    if name not in _BACKENDS:
        raise ValueError(f"backend must be one of {sorted(_BACKENDS)}, got {name!r}")
    return _BACKENDS[name]


class Ranking(NamedTuple):
    """All pixels from the highest score down, as far as metrics of resamples depend on it.

    A tie is a score that at least one region pixel has.

    Attributes
    ----------
    images : integer ndarray [N0]
        The image of each background pixel, by falling score; between two ties in any order.
    reached, passed : integer ndarray [ties]
        How many background pixels score higher than each tie, and how many as high or higher.
    starts : integer ndarray [ties + 1]
        Region pixels of a tie are those from ``starts[tie]`` to ``starts[tie + 1]``.
    classes : integer ndarray [N1]
        The class of each region pixel, by falling score.
    owners : ndarray of int64 [classes]
        The image that each class lies in; 0 at index 0, the background.
    pixels : ndarray of int64 [2, images]
        Background and region pixels of each image.
    """

    images: np.ndarray
    reached: np.ndarray
    passed: np.ndarray
    starts: np.ndarray
    classes: np.ndarray
    owners: np.ndarray
    pixels: np.ndarray


def _numbered_on(
    classes: Iterable[np.ndarray], highest: list[int], pixels: list[int]
) -> Iterator[np.ndarray]:
    """Yield the classes of each image; append the highest class so far, and the image's region pixels."""
    last = 0
    for i, label in enumerate(classes):
        inside = label[label > 0]
        if len(inside):
            if inside.min() <= last:
                raise ValueError(
                    f"classes[{i}] holds class {inside.min()} after class {last} of an earlier image: "
                    "regions must be numbered on from image to image"
                )
            last = int(inside.max())
        highest.append(last)
        pixels.append(len(inside))
        yield label


def rank(scores: Sequence[np.ndarray], classes: Iterable[np.ndarray], *, backend: str = "auto") -> Ranking:
    """Order pixels by score, and keep of which image each is.

    Parameters
    ----------
    scores : sequence of real arrays
        One array of any shape an image; finite. -0.0 equals 0.0.
    classes : iterable of integer arrays
        As many, of the same sizes: 0 is background, r >= 1 the r-th region, numbered on from image to image.
        Consumed one by one.
    backend : {"auto", "cpu", "reference"}
        "auto" is "cpu".

    Returns
    -------
    Ranking

    Raises
    ------
    TypeError
        A dtype that is not real and at most 64 bits wide (scores) or not integer (classes).
    ValueError
        No pixel, scores that are not finite, sizes that differ, or a class out of range or of two images.

    Notes
    -----
    Takes 12 bytes a pixel, and keeps 2 (16 and 4 with more than 65,536 images). Where a score is none that
    float32 holds exactly, all are ranked through ``numpy.unique``, which takes more.
    """
    chosen = _backend(backend)
    arrays = checked_scores(scores)
    highest: list[int] = []
    regions: list[int] = []
    labels = _numbered_on(checked_classes(arrays, classes), highest, regions)
    images, reached, passed, starts, by_score = chosen.rank(arrays, labels)
    owners = np.repeat(np.arange(len(arrays)), np.diff(highest, prepend=0))
    sizes = np.array([score.size for score in arrays])
    pixels = np.array([sizes - regions, regions])
    return Ranking(images, reached, passed, starts, by_score, np.append(0, owners), pixels)


class Resampled(NamedTuple):
    """Metrics of every resample; NaN where it has no background pixel, or none of a region.

    Attributes
    ----------
    areas : ndarray of float64 [limits, resamples]
        As ``ranking.area`` up to each limit, every class with its weight.
    auroc : ndarray of float64 [resamples]
        The same up to 1, all region pixels with one weight.
    average, f1_max : ndarray of float64 [resamples]
        As in ``ranking.Precision``.
    """

    areas: np.ndarray
    auroc: np.ndarray
    average: np.ndarray
    f1_max: np.ndarray


def sweep(
    ranked: Ranking,
    weights: np.ndarray,
    counts: np.ndarray,
    limits: Sequence[float] = (1.0,),
    *,
    backend: str = "auto",
) -> Resampled:
    """Metrics of resamples of the images.

    Parameters
    ----------
    ranked : Ranking
        From ``rank``.
    weights : array of float [classes]
        What a pixel of each class adds to the curve below which the areas lie; 0 at index 0, above 0
        elsewhere.
    counts : array of integers [resamples, images]
        How often each resample holds each image, up to 32,767 times.
    limits : sequence of float
        Where the areas end, in (0, 1].
    backend : {"auto", "cpu", "reference"}
        "auto" is "cpu", whose threads share the resamples.

    Returns
    -------
    Resampled
        Equal to ``ranking``'s metrics of the images repeated, up to rounding.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described above.
    """
    if not isinstance(ranked, Ranking):
        raise TypeError(f"ranked must come from rank(), got {type(ranked).__name__}")
    weights = checked_weights(weights)
    if len(weights) != len(ranked.owners) or not weights[1:].all():
        raise ValueError(f"weights must be above 0 for all {len(ranked.owners) - 1} classes of regions")
    for limit in limits:
        check_limit(limit)
    counts = np.asarray(counts)
    images = ranked.pixels.shape[1]
    if counts.dtype.kind not in "bui":
        raise TypeError(f"counts must hold integers, got {counts.dtype}")
    if counts.ndim != 2 or counts.shape[1] != images:
        raise ValueError(f"counts must be [resamples, {images} images], got shape {counts.shape}")
    if counts.size and not (counts.min() >= 0 and counts.max() <= cpu.MOST):
        raise ValueError(f"counts must lie in [0, {cpu.MOST}]")

    by_class = np.bincount(ranked.classes, minlength=len(weights)) * weights
    weight = np.bincount(ranked.owners, by_class, minlength=images)
    totals = np.array([*ranked.pixels, weight]) @ counts.T.astype(np.float64)
    defined = (totals > 0).all(axis=0)
    found = Resampled(np.full((len(limits), len(counts)), np.nan), *np.full((3, len(counts)), np.nan))
    if defined.any():
        ordered = ranked[:5]
        inside = counts[defined].astype(np.int16)
        values = _backend(backend).sweep(
            ordered, ranked.owners, weights, inside, totals[:, defined], [float(limit) for limit in limits]
        )
        for whole, part in zip(found, values, strict=True):
            whole[..., defined] = part
    return found
