"""Maps of test images whose truth is not public, as MVTec's server for AD 2 takes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from glance_fast.data.images import read_image, write_png
from glance_fast.data.layouts import Category
from glance_fast.data.roi import Masks, resize_scores
from glance_fast.data.score_maps import write_tiff
from glance_fast.errors import UserError
from glance_fast.model import NOT_FINITE, Glance
from glance_fast.tiles import prepared, score_images

MAPS, THRESHOLDED = "anomaly_images", "anomaly_images_thresholded"
_LARGEST = float(np.finfo(np.float16).max)


def write_submission(
    model: Glance,
    category: Category,
    out: Path,
    engine: str = "auto",
    precision: str = "auto",
    advance: Callable[[int], object] | None = None,
    roi: Masks | None = None,
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
    roi : Masks, optional
        Regions of interest, given at the model's image size, in place of its own.

    Raises
    ------
    ImageError
        An image cannot be read, or is too deep for the model; or its mask of ``roi`` is missing or wrong.
    UserError
        A file cannot be written, or a score is not finite.
    """
    threshold = model.calibration.pixel_threshold
    together = model.at_once(precision) if model.config.tile is None else 1
    for start in range(0, len(category.unlabelled), together):
        paths = category.unlabelled[start : start + together]
        images = [read_image(path) for path in paths]
        regions = None
        if roi is not None:
            both = zip(paths, images, strict=True)
            regions = [roi.of(path, category.place(path), image.shape[:2]) for path, image in both]
        ready = [prepared(model, *pair) for pair in zip(images, paths, strict=True)]
        found = score_images(model, ready, engine, precision, regions)
        for path, image, seen in zip(paths, images, found, strict=True):
            if not np.isfinite(seen.map).all():
                raise UserError(f"{path}: {NOT_FINITE}")
            full = resize_scores(seen.map, image.shape[:2], seen.inside)
            place = Path(category.name) / category.place(path)
            halves = np.clip(full, -_LARGEST, _LARGEST).astype(np.float16)
            write_tiff(out / MAPS / place.with_suffix(".tiff"), halves)
            if math.isfinite(threshold):
                above = (full > threshold).astype(np.uint8) * 255
                write_png(out / THRESHOLDED / place.with_suffix(".png"), above)
        if advance:
            advance(start + len(paths))
