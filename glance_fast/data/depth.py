"""Photographs of more than 8 bits: which of their stored values is white.

A file of 16 bits does not say how many of them its camera uses: 4095 is white of one with 12 bits. So the
white of a model is found once, from all photographs of its training together, kept with the model, and counts
for every image that it scores; never from a single image, and two photographs of the same brightness stay
equally bright. It is the largest value of the bits that the training uses, not the largest value in it: a hot
pixel or a few photographs more do not move it, two trainings from one camera agree, and a defect may be
brighter than every good part. Black is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.images import Pixels, resize
from glance_fast.errors import ImageError

Levels = NDArray[np.uint8] | NDArray[np.float32]
"""What nets see of images: from 0 to 255, and whole numbers where images have 8 bits."""

# Bits that cameras have, and formats.
BITS = (8, 10, 12, 14, 16)


@dataclass(frozen=True)
class Unlike:
    """Numbers of images whose depth is not that of the photographs in training.

    Attributes
    ----------
    shallow : int
        Of 8 bits, where those had more.
    above : int
        That hold values above the model's white.
    """

    shallow: int = 0
    above: int = 0

    def __add__(self, other: Unlike) -> Unlike:
        return Unlike(self.shallow + other.shallow, self.above + other.above)

    def remarks(self) -> tuple[str, ...]:
        """What to say of them."""
        out = []
        if self.shallow:
            have = "image has" if self.shallow == 1 else "images have"
            out.append(
                f"{self.shallow} {have} 8 bits, and those in training had more: 255 was taken for their white"
            )
        if self.above:
            hold = "image holds" if self.above == 1 else "images hold"
            out.append(
                f"{self.above} {hold} values of more bits than those in training, and these were taken for "
                "white; look whether the camera's depth or exposure has changed"
            )
        return tuple(out)


def white_of(largest: int) -> int:
    """The stored value that is white where this is the largest one: all ones of the ``BITS`` that hold it."""
    return next((1 << bits) - 1 for bits in BITS if largest < 1 << bits)


def unlike(image: Pixels, white: int | None) -> Unlike:
    """Of an image as it is stored, whether its depth is not that of the photographs in training."""
    if white is None:
        return Unlike()
    if image.dtype == np.uint8:
        return Unlike(shallow=1)
    return Unlike(above=int(image.max() > white))


def check_depth(image: Pixels, white: int | None, name: str | Path = "image") -> None:
    """Refuse an image of more than 8 bits for a model that knows nothing of their range.

    Raises
    ------
    ImageError
        With ``name``.
    """
    if white is None and image.dtype != np.uint8:
        raise ImageError(
            name,
            "has more than 8 bits, and the photographs that the model was trained on have 8: which of its "
            "values is white is not known; save it as those were, or train with such images",
        )


def fitted(image: Pixels, size: tuple[int, int], white: int | None, name: str | Path = "image") -> Pixels:
    """An image at a model's size and of its depth; one that is so already stays as it is.

    Parameters
    ----------
    image : ndarray, uint8 or uint16 [H, W, 3]
        As stored.
    size : (height, width)
        In pixels.
    white : int or None
        The model's white; None where it was trained on images of 8 bits.
    name : str or Path
        What to call the image in a message.

    Returns
    -------
    ndarray, [height, width, 3]
        uint8 where there is no white. Else uint16 of 0 to ``white``: larger values are cut off, and those of
        an image of 8 bits are multiplied so that 255 becomes white.

    Raises
    ------
    ImageError
        As ``check_depth``.
    """
    check_depth(image, white, name)
    if white is None:
        return resize(image, size)
    if image.dtype == np.uint8:
        return deepened(resize(image, size), white)
    limit = np.uint16(white)
    # Once more, for the filter overshoots at edges.
    return np.minimum(resize(np.minimum(image, limit), size), limit)


def deepened(image: Pixels, white: int) -> NDArray[np.uint16]:
    """Values of 8 bits as stored ones of which ``white`` is the largest."""
    return ((image.astype(np.uint32) * white + 127) // 255).astype(np.uint16)


def levels(images: NDArray, white: int | None) -> NDArray:
    """``Levels`` of fitted images; what they are already stays as it is."""
    if images.dtype != np.uint16:
        return images
    assert white is not None  # or they would not be fitted
    return images * np.float32(255 / white)


def shown_as(image: Pixels, white: int | None = None) -> NDArray[np.uint8]:
    """An image for the eye, of 8 bits; its own bits say what is white where nothing else does."""
    if image.dtype == np.uint8:
        return image.astype(np.uint8, copy=False)
    white = white or white_of(int(image.max()))
    return np.rint(np.minimum(image, np.uint16(white)) * np.float32(255 / white)).astype(np.uint8)
