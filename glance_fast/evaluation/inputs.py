"""What is evaluated: the test images of a category, each listed, decoded and prepared once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.depth import Unlike, shown_as, unlike
from glance_fast.data.images import Pixels, read_image, resize
from glance_fast.data.layouts import (
    Category,
    Defect,
    TestSample,
    open_category,
    read_defects,
    read_sample_mask,
)
from glance_fast.data.roi import Masks
from glance_fast.errors import ImageError
from glance_fast.evaluation.truth import resize_truth

# Longer side of the pictures in the report, pixels.
SHOWN_SIDE = 384


@dataclass(frozen=True)
class Photographs:
    """The pixels of N test images, in the order of the category's samples.

    Attributes
    ----------
    prepared : list of ndarray
        [H, W, 3], at the model's image size, as ``Glance.prepare`` gives them.
    masks : ndarray
        bool [N, H, W], the ground truth at that size.
    sizes : list of (int, int)
        Height and width of each file.
    kept : int
        Regions that would have vanished at the model's size (``resize_truth``).
    shown : list of (ndarray, ndarray or None)
        Each image as the report may show it, uint8 [h, w, 3], and its mask, bool [h, w], where it has one.
    seconds : float
        That decoding and preparing took.
    defects : list of list of Defect, or None
        Of each image its defects, at the model's size; None where the category has no saturation thresholds.
    inside : list of ndarray, or None
        bool [H, W] of each image, its region of interest; None where none was given.
    unlike : Unlike
        Numbers of images whose depth is not that of the photographs in training.
    """

    prepared: list[Pixels]
    masks: NDArray[np.bool_]
    sizes: list[tuple[int, int]]
    kept: int
    shown: list[tuple[NDArray[np.uint8], NDArray[np.bool_] | None]]
    seconds: float
    defects: list[list[Defect]] | None = None
    inside: list[NDArray[np.bool_]] | None = None
    unlike: Unlike = field(default_factory=Unlike)


def find_category(data: str | Path, out: str | Path) -> Category:
    """The test images of a category, of which the maps can be written to a folder.

    Parameters
    ----------
    data : path
        A category, in any layout of ``glance_fast.data.layouts``.
    out : path
        Folder to write to, for ``Category.targets``.

    Raises
    ------
    UserError
        ``data`` is no such category, some defective images have masks and others have none, two images would
        have one map, or ``out`` lies among the test images.
    """
    category = open_category(data)
    category.targets(Path(out))
    return category


def read_photographs(
    category: Category,
    prepare: Callable[[Pixels], Pixels],
    size: tuple[int, int],
    roi: Masks | None = None,
    white: int | None = None,
) -> Photographs:
    """Read every image and mask, so that bad ones are known before the long work begins.

    Parameters
    ----------
    category : Category
    prepare : callable
        ``Glance.prepare``.
    size : (height, width)
        The model's image size.
    roi : Masks, optional
        Regions of interest, given at that size.
    white : int, optional
        The model's (``Calibration.white``); without it, the report shows each image of more than 8 bits by
        its own.

    Raises
    ------
    ImageError
        Images or masks cannot be read: all of them are named.
    """
    masks = np.zeros((len(category.samples), *size), dtype=bool)
    prepared, sizes, shown, defects, inside = [], [], [], [], []
    errors: list[ImageError] = []
    kept, seconds, odd = 0, 0.0, Unlike()
    for i, sample in enumerate(category.samples):
        try:
            started = time.perf_counter()
            image = read_image(sample.path)
            prepared.append(_prepared(sample.path, prepare, image))
            seconds += time.perf_counter() - started
            sizes.append(image.shape[:2])
            mask, found = read_truth(category, sample, sizes[-1])
            if roi is not None:
                inside.append(roi.of(sample.path, category.place(sample.path), sizes[-1]))
        except ImageError as error:
            errors.append(error)
            continue
        masks[i], forced = resize_truth(mask, size)
        kept += forced
        defects.append([_resized(defect, size) for defect in found])
        odd += unlike(image, white)
        shown.append(to_be_shown(image, mask if sample.masks else None, white))
    raise_all(errors)
    known = None if category.saturations is None else defects
    where = None if roi is None else inside
    return Photographs(prepared, masks, sizes, kept, shown, seconds, known, where, odd)


def _prepared(path: Path, prepare: Callable[[Pixels], Pixels], image: Pixels) -> Pixels:
    """An image prepared, or an error that names its file."""
    try:
        return prepare(image)
    except ImageError as error:
        raise ImageError(path, error.reason) from error


def to_be_shown(
    image: Pixels, mask: NDArray[np.bool_] | None, white: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """An image and its mask, if it has one, at the size of the report's pictures."""
    ratio = SHOWN_SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * ratio)) for side in image.shape[:2])
    small = height, width
    return shown_as(resize(image, small), white), None if mask is None else resize_truth(mask, small)[0]


def raise_all(errors: Sequence[ImageError]) -> None:
    """Raise one error that names all of them, if there are any."""
    if len(errors) > 1:
        first, *others = errors
        listed = "; ".join(map(str, others))
        raise ImageError(first.path, f"{first.reason}; and {len(others)} more: {listed}")
    if errors:
        raise errors[0]


def read_truth(
    category: Category, sample: TestSample, size: tuple[int, int]
) -> tuple[NDArray[np.bool_], list[Defect]]:
    """What is defective, and each defect where the category has saturation thresholds; every file once."""
    if category.saturations is None:
        return read_sample_mask(sample, size), []
    defects = read_defects(sample, size, category.saturations)
    mask = np.zeros(size, dtype=bool)
    for defect in defects:
        mask |= defect.mask
    return mask, defects


def _resized(defect: Defect, size: tuple[int, int]) -> Defect:
    """A defect at another size, of which the same share suffices."""
    mask, _ = resize_truth(defect.mask, size)
    return Defect(mask, max(1, round(defect.saturation * mask.sum() / defect.mask.sum())))
