"""Maps of test images whose truth is not public, as MVTec's server for AD 2 takes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from glance_fast.data.images import read_image, resize_map, write_png, write_tiff
from glance_fast.data.layouts import Category
from glance_fast.errors import UserError
from glance_fast.model import Glance

MAPS, THRESHOLDED = "anomaly_images", "anomaly_images_thresholded"
_LARGEST = float(np.finfo(np.float16).max)


def write_submission(
    model: Glance,
    category: Category,
    out: Path,
    engine: str = "auto",
    precision: str = "auto",
    advance: Callable[[int], object] | None = None,
) -> None:
    """Score the test images of a category whose truth is not public, and write what the server wants.

    ``<out>/anomaly_images/<category>/<split>/<name>.tiff`` (float16) and
    ``<out>/anomaly_images_thresholded/<category>/<split>/<name>.png`` (255 where a pixel lies above the
    model's pixel threshold, 0 elsewhere), at each image's own size. These two folders with all eight objects,
    and nothing else, are a submission: MVTec's ``check_and_prepare_data_for_upload.py`` checks and packs it.

    Parameters
    ----------
    model : Glance
        Trained. Without thresholds, only maps are written, which the server takes, too.
    category : Category
        Nothing is written where all of its truth is public.
    out : Path
        Folder to write to.
    engine, precision : str
        As for ``Glance.score``.
    advance : callable, optional
        Called with the number of images done.

    Raises
    ------
    ImageError
        An image cannot be read, or is too deep for the model.
    UserError
        A file cannot be written, or a score is not finite.
    """
    threshold = model.calibration.pixel_threshold
    together = model.at_once(precision)
    for start in range(0, len(category.unlabelled), together):
        paths = category.unlabelled[start : start + together]
        images = [read_image(path) for path in paths]
        result = model.score(
            [model.prepare(*pair) for pair in zip(images, paths, strict=True)], engine, precision
        )
        for path, image, score_map in zip(paths, images, result.maps, strict=True):
            if not np.isfinite(score_map).all():
                raise UserError(
                    f"{path}: its scores are not finite; try precision fp32, or train the model again"
                )
            full = resize_map(score_map, image.shape[:2])
            place = Path(category.name) / category.place(path)
            halves = np.clip(full, -_LARGEST, _LARGEST).astype(np.float16)
            write_tiff(out / MAPS / place.with_suffix(".tiff"), halves)
            if math.isfinite(threshold):
                found = (full > threshold).astype(np.uint8) * 255
                write_png(out / THRESHOLDED / place.with_suffix(".png"), found)
        if advance:
            advance(start + len(paths))
