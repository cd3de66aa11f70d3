"""Anomaly maps as pictures: colours on a scale that is the same for every image of a run.

Nothing is stretched by an image's own content. A map that is stretched to its own maximum shows something
bright on every good part; on a scale from what is normal (dark) to twice the threshold (bright) a good part
stays dark, and two pictures can be compared.
"""

from __future__ import annotations

import math
from functools import cache

import matplotlib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import find_boundaries

from glance_fast.calibration import Calibration
from glance_fast.data.score_maps import resize_map
from glance_fast.evaluation.metrics import ArrayOrList

COLOURS = "inferno"
"""Perceptually uniform, also for the colour blind and in grey."""
FOUND = (64, 224, 255)
"""Outline of what the model marks; not among ``COLOURS``, so it is seen on every map."""
TRUTH = (92, 255, 128)
"""Outline of the ground truth."""

# The map's share in the blend grows over this part of the scale, from nothing (what is normal stays as it was
# photographed) to full before the threshold, which is at half (what is found is never a faint tint).
_OPACITY, _CLEAR_BELOW, _FULL_FROM = 0.75, 0.18, 0.45
# An outline is a pixel wide for every so many pixels of the picture's longer side.
_PIXELS_PER_WIDTH = 220


def display_range(
    calibration: Calibration, maps: ArrayOrList | None = None
) -> tuple[float, float, float | None]:
    """The scale of all pictures of a run.

    Parameters
    ----------
    calibration : Calibration
        Of the model.
    maps : ndarray, float32 [B, H, W], or sequence of ndarray, optional
        What the scale comes from where the model has no threshold (it was never calibrated): from their
        median to their maximum.

    Returns
    -------
    low, high : float
        0, which is the mean of normal pixels (standardised scores) or the least possible score (the paper's
        blend), and twice the pixel threshold, so that the threshold lies in the middle of the colours.
    outline : float or None
        The pixel threshold, if there is one.
    """
    threshold = calibration.pixel_threshold
    if math.isfinite(threshold):
        # A threshold below the mean of normal pixels is odd but possible; the scale must still ascend.
        reach = threshold if threshold > 0 else max(abs(threshold), 1.0)
        return threshold - reach, threshold + reach, threshold
    return (0.0, 1.0, None) if maps is None or not len(maps) else range_of_maps(maps)


def range_of_maps(maps: ArrayOrList) -> tuple[float, float, None]:
    """As ``display_range`` where there is no threshold, of maps [H, W] of any sizes, one at least."""
    pixels = np.concatenate([np.ravel(score_map) for score_map in maps])
    low, high = float(np.median(pixels, overwrite_input=True)), float(pixels.max())
    return low, high if high > low else low + 1.0, None


def heat(map01: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A map in colours.

    Parameters
    ----------
    map01 : real array [...]
        From 0 (dark) to 1 (bright); values outside are clipped.

    Returns
    -------
    ndarray of uint8, shape [..., 3]
        RGB.

    Raises
    ------
    ValueError
        A value is NaN.
    """
    values = np.asarray(map01, dtype=np.float32)
    if np.isnan(values).any():
        raise ValueError("map01 holds NaN")
    return _table()[np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)]


def overlay(
    image_rgb: NDArray[np.uint8],
    score_map: NDArray[np.float32],
    low: float,
    high: float,
    outline: float | None = None,
) -> NDArray[np.uint8]:
    """A photograph with its map over it: untouched where it is normal, glowing where it is not.

    Parameters
    ----------
    image_rgb : ndarray of uint8, shape [H, W, 3]
    score_map : ndarray of float32, shape [h, w]
        Of any size; brought to that of the image.
    low, high : float
        Scores at the two ends of the colours (``display_range``), the same for all images of a run.
    outline : float, optional
        Pixels that score above it are outlined.

    Returns
    -------
    ndarray of uint8, shape [H, W, 3]
        A new array.

    Raises
    ------
    ValueError
        ``low < high`` does not hold, or a score is NaN.
    """
    size = image_rgb.shape[:2]
    scores = score_map if score_map.shape == size else resize_map(score_map, size)
    share = scale(scores, low, high)
    if np.isnan(share).any():
        raise ValueError("score_map holds NaN")
    # Most of a photograph is left as it is.
    tinted = share > _CLEAR_BELOW
    share, photograph = share[tinted], image_rgb[tinted].astype(np.float32)
    alpha = _OPACITY * np.clip((share - _CLEAR_BELOW) / (_FULL_FROM - _CLEAR_BELOW), 0, 1)[:, None]
    picture = image_rgb.copy()
    picture[tinted] = np.rint(photograph + alpha * (heat(share) - photograph))
    return picture if outline is None else draw_outline(picture, scores > outline, FOUND)


def scale(scores: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Scores from ``low`` to ``high`` as 0 to 1, clipped."""
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    return np.clip((scores - np.float32(low)) / np.float32(high - low), 0, 1)


def draw_outline(
    image_rgb: NDArray[np.uint8], region: NDArray[np.bool_], colour: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """A copy of an image ``[H, W, 3]`` with the border of a region ``[H, W]`` drawn around it.

    The line runs outside the region, so that it hides nothing of the defect; a dark line beside it keeps it
    visible on a bright part.
    """
    picture = image_rgb.copy()
    if not region.any():
        return picture
    width = max(1, round(max(region.shape) / _PIXELS_PER_WIDTH))
    line = find_boundaries(region, connectivity=2, mode="outer")
    line = ndimage.binary_dilation(line, iterations=width - 1) if width > 1 else line
    line &= ~region
    if region.all():
        # There is no outside: along the picture's border.
        line[:width] = line[-width:] = line[:, :width] = line[:, -width:] = True
    rim = ndimage.binary_dilation(line, iterations=width) & ~line & ~region
    picture[rim] //= 2
    picture[line] = colour
    return picture


def colour_stops(count: int = 9) -> list[str]:
    """The colours from dark to bright as CSS, for a legend."""
    places = np.linspace(0, 255, count).round().astype(int)
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in _table()[places]]


@cache
def _table() -> NDArray[np.uint8]:
    colours = matplotlib.colormaps[COLOURS](np.arange(256), bytes=True)
    table = np.ascontiguousarray(colours[:, :3])
    table.setflags(write=False)
    return table
