"""What is evaluated: the test images of a category, each listed, decoded and prepared once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.folders import TestSample, mvtec_test, read_sample_mask
from glance_fast.data.images import read_image, resize
from glance_fast.errors import ImageError, UserError
from glance_fast.evaluation.truth import resize_truth

# Longer side of the pictures in the report, pixels.
SHOWN_SIDE = 384


@dataclass(frozen=True)
class Category:
    """The test images of a category.

    Attributes
    ----------
    data : Path
        Its folder.
    samples : list of TestSample
    """

    data: Path
    samples: list[TestSample]

    @property
    def name(self) -> str:
        """That of its folder, however that was given."""
        return self.data.name if self.data.name not in ("", "..") else self.data.resolve().name

    def targets(self, out: Path) -> list[Path]:
        """Where below ``out`` the map of each sample goes.

        Raises
        ------
        UserError
            ``out`` lies among the test images, or two images would have one map.
        """
        test = self.data / "test"
        if out.resolve().is_relative_to(test.resolve()):
            raise UserError(
                f"{out}: lies among the test images, and maps would be taken for images; choose another"
            )
        owners: dict[Path, Path] = {}
        for sample in self.samples:
            target = out / "maps" / self.name / "test" / sample.path.relative_to(test).with_suffix(".tiff")
            if target in owners:
                # MVTec's layout knows images by their names without suffix, and so do the masks.
                raise UserError(
                    f"{sample.path}: has the same name as {owners[target].name}; rename one of them"
                )
            owners[target] = sample.path
        return list(owners)


@dataclass(frozen=True)
class Photographs:
    """The pixels of N test images, in the order of the category's samples.

    Attributes
    ----------
    prepared : list of ndarray
        uint8 [H, W, 3], at the model's image size.
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
    """

    prepared: list[NDArray[np.uint8]]
    masks: NDArray[np.bool_]
    sizes: list[tuple[int, int]]
    kept: int
    shown: list[tuple[NDArray[np.uint8], NDArray[np.bool_] | None]]
    seconds: float


def find_category(data: str | Path, out: str | Path) -> Category:
    """The test images of a category, of which the maps can be written to a folder.

    Parameters
    ----------
    data : path
        A category in MVTec's layout.
    out : path
        Folder to write to, for ``Category.targets``.

    Raises
    ------
    UserError
        ``data`` is no such category, an image has no mask, two images would have one map, or ``out`` lies
        among the test images.
    """
    category = Category(Path(data), mvtec_test(data))
    category.targets(Path(out))
    return category


def read_photographs(
    category: Category, prepare: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], size: tuple[int, int]
) -> Photographs:
    """Read every image and mask, so that bad ones are known before the long work begins.

    Parameters
    ----------
    category : Category
    prepare : callable
        ``Glance.prepare``.
    size : (height, width)
        The model's image size.

    Raises
    ------
    ImageError
        Images or masks cannot be read: all of them are named.
    """
    masks = np.zeros((len(category.samples), *size), dtype=bool)
    prepared, sizes, shown = [], [], []
    errors: list[ImageError] = []
    kept, seconds = 0, 0.0
    for i, sample in enumerate(category.samples):
        try:
            started = time.perf_counter()
            image = read_image(sample.path)
            prepared.append(prepare(image))
            seconds += time.perf_counter() - started
            sizes.append(image.shape[:2])
            mask = read_sample_mask(sample, sizes[-1])
        except ImageError as error:
            errors.append(error)
            continue
        masks[i], forced = resize_truth(mask, size)
        kept += forced
        ratio = SHOWN_SIDE / max(sizes[-1])
        small = tuple(max(1, round(side * ratio)) for side in sizes[-1])
        shown.append((resize(image, small), None if sample.mask is None else resize_truth(mask, small)[0]))
    if len(errors) > 1:
        first, *others = errors
        listed = "; ".join(map(str, others))
        raise ImageError(first.path, f"{first.reason}; and {len(others)} more: {listed}")
    if errors:
        raise errors[0]
    return Photographs(prepared, masks, sizes, kept, shown, seconds)
