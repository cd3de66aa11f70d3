"""Masks: of defects, of classes of them, of regions of interest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glance_fast.data.decoding import COLOUR_MODES, checked_size, deep_values, load, rgb_of, upright
from glance_fast.errors import ImageError


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """Read a ground-truth mask.

    Parameters
    ----------
    path : path
        An image of one channel, or of colours that are all grey, whose values are 0 and 255, 0 and 1, or 0
        and 65535 in a file of 16 bits. A single one of these values everywhere is a mask, too. Alpha is
        ignored.

    Returns
    -------
    ndarray of bool, shape [H, W]
        True where the defect is.

    Raises
    ------
    ImageError
        As ``read_image``; or the mask has colours, or other values than the above (a JPEG's, an annotation's
        with several classes).
    """
    path = Path(path)
    image, orientation = load(path)
    values, deep = _mask_values(
        path, image, "not a binary mask: it has colours; needed is one channel, 0 and 255"
    )
    found = np.unique(values)
    for full in (1, 255, 65535) if deep else (1, 255):
        if np.isin(found, (0, full)).all():
            return upright(values == full, orientation)
    odd = found[~np.isin(found, (0, 255))][0]
    reason = f"not a binary mask: it holds {odd} among {len(found)} values; needed: 0 and 255, or 0 and 1"
    raise ImageError(path, reason)


def read_classes(path: str | Path) -> NDArray[np.integer]:
    """Read a mask whose values are numbers of classes.

    Parameters
    ----------
    path : path
        An image of one channel, of a palette (whose indices are the numbers), or of colours that are all
        grey. Alpha is ignored.

    Returns
    -------
    ndarray of integers, shape [H, W]
        As stored; 0 where nothing is marked.

    Raises
    ------
    ImageError
        As ``read_image``; or the mask has colours.
    """
    path = Path(path)
    image, orientation = load(path)
    if image.mode == "P":
        return upright(np.asarray(image), orientation)
    values, _ = _mask_values(path, image, "has colours; needed is one channel that holds numbers of classes")
    return upright(values, orientation)


def resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize a mask: a pixel is true where more than half of it is covered.

    Parameters
    ----------
    mask : ndarray of bool, shape [H, W]
    size : (height, width)
        In pixels.

    Returns
    -------
    ndarray of bool, shape [height, width]
        The mask itself where it has this size.

    Raises
    ------
    ValueError
        ``size`` is not two positive integers.
    """
    height, width = checked_size(size)
    if mask.shape == (height, width):
        return mask
    # The box filter's output is the covered share of each pixel. "> 0" would grow every defect by a ring of
    # pixels.
    share = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    return np.asarray(share) > 0.5


def _mask_values(path: Path, image: Image.Image, coloured: str) -> tuple[NDArray, bool]:
    """Values ``[H, W]`` of a mask as stored, and whether they may use 16 bits; what to say of colours."""
    if image.mode not in COLOUR_MODES:
        return deep_values(path, image), True
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L")), False
    rgb = rgb_of(path, image)
    if (rgb != rgb[:, :, :1]).any():
        raise ImageError(path, coloured)
    return rgb[:, :, 0], False
