"""Ground truth at the model's image size: the one rule by which anything is scored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from glance_fast.data.masks import resize_mask

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


def resize_truth(mask: NDArray[np.bool_], size: tuple[int, int]) -> tuple[NDArray[np.bool_], int]:
    """A mask at another size, with all of its regions.

    A pixel is true where more than half of it is covered. An 8-connected region that would vanish by this is
    kept as the one pixel that it covers most: leaving out what is hard to see would flatter a model.

    Parameters
    ----------
    mask : ndarray of bool, shape [H, W]
    size : (height, width)
        In pixels.

    Returns
    -------
    mask : ndarray of bool, shape [height, width]
        May be the one given, where it has this size.
    kept : int
        Regions that would have vanished.
    """
    height, width = size
    resized = resize_mask(mask, size)
    if resized is mask:
        return mask, 0
    regions, _ = ndimage.label(mask, _EIGHT_CONNECTED)
    put_back = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
        y, x = np.nonzero(regions[rows, columns] == number)
        # Of each pixel of the region, the one of the new size that its centre falls into.
        y = (2 * (y + rows.start) + 1) * height // (2 * mask.shape[0])
        x = (2 * (x + columns.start) + 1) * width // (2 * mask.shape[1])
        if not resized[y, x].any():
            place = np.bincount(y * width + x).argmax()
            put_back.append((place // width, place % width))
    for row_column in put_back:
        resized[row_column] = True
    return resized, len(put_back)
