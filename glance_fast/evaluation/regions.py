"""Where on an image something was found: connected regions of a map above a threshold."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Pixels that touch at a corner belong together, as in MVTec's protocol.
EIGHT = np.ones((3, 3), dtype=bool)


class Region(NamedTuple):
    """A connected region of pixels.

    Attributes
    ----------
    top, left, bottom, right : int
        Its box, half-open, in pixels.
    area : int
        Pixels.
    peak : float
        The largest value in it.
    y, x : float
        Mean place of its pixels; that of the first row or column is 0.
    """

    top: int
    left: int
    bottom: int
    right: int
    area: int
    peak: float
    y: float
    x: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON; coordinates with a hundredth of a pixel, the peak with the digits of a float32."""
        return {
            "box": {"top": self.top, "left": self.left, "bottom": self.bottom, "right": self.right},
            "area": self.area,
            "peak": float(f"{self.peak:.9g}"),
            "centroid": {"y": round(self.y, 2), "x": round(self.x, 2)},
        }


def find_regions(score_map: NDArray[np.float32], threshold: float) -> list[Region]:
    """The 8-connected regions of a map that lie above a threshold.

    Parameters
    ----------
    score_map : ndarray of float32, shape [H, W]
        Finite. Of the image's own size, so that the regions are in its pixels.
    threshold : float
        Such as the model's ``pixel_threshold``; an infinite one finds nothing.

    Returns
    -------
    list of Region
        The one with the highest peak first.

    Raises
    ------
    ValueError
        The map is not ``[H, W]``.
    """
    if score_map.ndim != 2:
        raise ValueError(f"a map must be [H, W], not {list(score_map.shape)}")
    finder = RegionFinder(score_map.shape[1], threshold)
    finder.add(score_map)
    return finder.regions()


class RegionFinder:
    """Finds the regions of a map whose rows come some at a time: it holds what lies above the threshold.

    Parameters
    ----------
    width : int
        Of the map, pixels.
    threshold : float
        As for ``find_regions``.
    """

    def __init__(self, width: int, threshold: float) -> None:
        # The threshold is a float64, and NumPy would round it to the type of the map.
        self._threshold = np.float64(threshold)
        self._top = 0
        # Of the last row, to which region each pixel belongs; 0 for none.
        self._border = np.zeros(width, np.int64)
        self._parts: list[_Part] = []
        # Which part each one is joined to; the first stands for what is in none.
        self._joined = [0]

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take the next rows, [n, W]."""
        if not len(rows):
            return
        labels, count = ndimage.label(rows > self._threshold, EIGHT)
        first = len(self._joined)
        self._joined += range(first, first + count)
        for number, (high, wide) in enumerate(ndimage.find_objects(labels, count), start=1):
            inside = labels[high, wide] == number
            y, x = np.nonzero(inside)
            self._parts.append(
                _Part(
                    self._top + high.start,
                    wide.start,
                    self._top + high.stop,
                    wide.stop,
                    len(y),
                    float(rows[high, wide][inside].max()),
                    (self._top + high.start) * len(y) + int(y.sum()),
                    wide.start * len(x) + int(x.sum()),
                )
            )
        here = np.where(labels[0] > 0, labels[0] + first - 1, 0)
        for shift in (-1, 0, 1):
            before = self._border[max(shift, 0) : len(here) + min(shift, 0)]
            below = here[max(-shift, 0) : len(here) + min(-shift, 0)]
            both = (before > 0) & (below > 0)
            for one, other in set(zip(before[both].tolist(), below[both].tolist(), strict=True)):
                self._joined[self._root(one)] = self._root(other)
        self._border = np.where(labels[-1] > 0, labels[-1] + first - 1, 0)
        self._top += len(rows)

    def regions(self) -> list[Region]:
        """Of all rows that came; the one with the highest peak first."""
        whole: dict[int, _Part] = {}
        for number, part in enumerate(self._parts, start=1):
            root = self._root(number)
            whole[root] = whole[root].with_(part) if root in whole else part
        found = [Region(*part[:6], part.sum_y / part.area, part.sum_x / part.area) for part in whole.values()]
        return sorted(found, key=lambda region: -region.peak)

    def _root(self, number: int) -> int:
        while self._joined[number] != number:
            self._joined[number] = self._joined[self._joined[number]]
            number = self._joined[number]
        return number


class _Part(NamedTuple):
    """What rows that came together have of a region: as ``Region``, and sums of the places of its pixels."""

    top: int
    left: int
    bottom: int
    right: int
    area: int
    peak: float
    sum_y: int
    sum_x: int

    def with_(self, other: _Part) -> _Part:
        """Both together."""
        return _Part(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
            self.area + other.area,
            max(self.peak, other.peak),
            self.sum_y + other.sum_y,
            self.sum_x + other.sum_x,
        )
