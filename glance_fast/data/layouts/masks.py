"""Ground truth of a test image, read from its masks."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.layouts.record import Saturation, TestSample
from glance_fast.data.masks import read_classes, read_mask
from glance_fast.errors import ImageError


class Defect(NamedTuple):
    """One defect of an image.

    Attributes
    ----------
    mask : ndarray of bool, shape [H, W]
        Its pixels.
    saturation : int
        How many of them suffice for it to count as found.
    """

    mask: NDArray[np.bool_]
    saturation: int


def read_sample_mask(sample: TestSample, image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read the ground truth of a test image.

    Parameters
    ----------
    sample : TestSample
        Without masks, nothing is defective.
    image_size : (height, width)
        Of the image as it is in its file.

    Returns
    -------
    ndarray of bool, shape [height, width]
        True where any of its masks is.

    Raises
    ------
    ImageError
        A mask cannot be read, is not binary where it must be, or has another size than the image.
    """
    whole = np.zeros(image_size, dtype=bool)
    for path in sample.masks:
        mask = read_classes(path) > 0 if sample.classes else read_mask(path)
        _check_size(sample, path, mask, image_size)
        whole |= mask
    return whole


def read_defects(
    sample: TestSample, image_size: tuple[int, int], saturations: dict[int, Saturation]
) -> list[Defect]:
    """Read the defects of a test image, each of which has a mask of its own.

    Parameters
    ----------
    sample : TestSample
        Its masks hold numbers of classes.
    image_size : (height, width)
        Of the image as it is in its file.
    saturations : dict of int to Saturation
        By the value of a mask.

    Returns
    -------
    list of Defect
        One a mask.

    Raises
    ------
    ImageError
        A mask cannot be read, has another size than the image, or does not hold one value beside 0, of those
        in ``saturations``.
    """
    defects = []
    for path in sample.masks:
        values = read_classes(path)
        _check_size(sample, path, values, image_size)
        found = [int(value) for value in np.unique(values) if value]
        if len(found) != 1:
            listed = ", ".join(map(str, found)) or "none"
            raise ImageError(path, f"needed is one value beside 0, of one kind of defect; it holds {listed}")
        if found[0] not in saturations:
            known = ", ".join(map(str, sorted(saturations)))
            raise ImageError(
                path, f"holds the value {found[0]}, but defects_config.json of its category names {known}"
            )
        mask = values > 0
        defects.append(Defect(mask, saturations[found[0]].pixels(int(mask.sum()))))
    return defects


def _check_size(sample: TestSample, path: Path, mask: NDArray, image_size: tuple[int, int]) -> None:
    if mask.shape != image_size:
        height, width = image_size
        sizes = f"the mask is {mask.shape[1]}x{mask.shape[0]}, its image {width}x{height}"
        raise ImageError(path, f"{sizes} ({sample.path}); they must be equal")
