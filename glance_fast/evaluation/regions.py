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
    # The threshold is a float64, and NumPy would round it to the type of the map.
    labels, count = ndimage.label(score_map > np.float64(threshold), EIGHT)
    boxes = ndimage.find_objects(labels, count) if count else []
    found = []
    for number, (rows, columns) in enumerate(boxes, start=1):
        inside = labels[rows, columns] == number
        y, x = np.nonzero(inside)
        found.append(
            Region(
                rows.start,
                columns.start,
                rows.stop,
                columns.stop,
                len(y),
                float(score_map[rows, columns][inside].max()),
                rows.start + float(y.mean()),
                columns.start + float(x.mean()),
            )
        )
    return sorted(found, key=lambda region: -region.peak)
