"""Maps that another method wrote, in the layout that MVTec's own evaluation reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.folders import list_images
from glance_fast.data.images import read_image
from glance_fast.data.layouts.masks import Defect
from glance_fast.data.roi import Masks
from glance_fast.data.score_maps import read_map
from glance_fast.data.table import printable
from glance_fast.errors import ImageError, UserError
from glance_fast.evaluation.inputs import Category, raise_all, read_truth, to_be_shown

SUFFIXES = (".tiff", ".tif")
"""Of map files, in lower case."""


@dataclass(frozen=True)
class MapFiles:
    """Where the maps of a category are.

    Attributes
    ----------
    folder : Path
        As it was given.
    paths : list of Path
        The file of each test image, in the order of the category's samples.
    others : list of Path
        Files that belong to no test image.
    """

    folder: Path
    paths: list[Path]
    others: list[Path]


@dataclass(frozen=True)
class Maps:
    """The maps of N test images and the truth, in the order of the category's samples, at the images' sizes.

    Attributes
    ----------
    folder : Path
        Where they were read.
    maps : list of ndarray
        float16, float32 or float64 [H, W].
    masks : list of ndarray
        bool [H, W].
    shown : list of (ndarray, ndarray or None)
        As in ``Photographs``.
    notes : list of str
        What to say of the files.
    defects : list of list of Defect, or None
        As in ``Photographs``.
    inside : list of ndarray, or None
        As in ``Photographs``, at the images' sizes.
    """

    folder: Path
    maps: list[NDArray[np.floating]]
    masks: list[NDArray[np.bool_]]
    shown: list[tuple[NDArray[np.uint8], NDArray[np.bool_] | None]]
    notes: list[str]
    defects: list[list[Defect]] | None
    inside: list[NDArray[np.bool_]] | None = None


def find_maps(folder: str | Path, category: Category, out: str | Path) -> MapFiles:
    """Find the map of each test image.

    Parameters
    ----------
    folder : path
        Holds ``<category>/test/<defect>/<name>.tiff``, or is that ``<category>`` folder. ``.tif`` is as good.
    category : Category
        The test images.
    out : path
        Folder to write to, for ``Category.targets``: where a map is expected is where we would write it.

    Raises
    ------
    UserError
        The folder holds no maps of this category, an image has none, or more than one.
    """
    folder, name = Path(folder), category.name
    root = folder / name if (folder / name / "test").is_dir() else folder
    if not (root / "test").is_dir():
        raise UserError(
            f"{folder}: neither a run folder (no model.safetensors in it) nor a folder of maps (neither "
            f"{name}/test nor test in it)"
        )
    found: dict[Path, list[Path]] = {}
    for path in list_images(root / "test"):
        if path.suffix.lower() in SUFFIXES:
            found.setdefault(path.relative_to(root).with_suffix(""), []).append(path)
    # Below the folder of the category.
    expected = [target.relative_to(Path(out) / "maps" / name) for target in category.targets(Path(out))]
    missing = [i for i, path in enumerate(expected) if path.with_suffix("") not in found]
    if missing:
        first = missing[0]
        more = f" ({len(missing) - 1} more like it)" if len(missing) > 1 else ""
        raise UserError(
            f"{category.samples[first].path}: has no map; expected {root / expected[first]}{more}"
        )
    paths = [found.pop(path.with_suffix("")) for path in expected]
    for several in paths:
        if len(several) > 1:
            raise UserError(f"{several[0]}: beside it lies {several[1].name}; an image has one map")
    others = [path for several in found.values() for path in several]
    return MapFiles(folder, [path for [path] in paths], others)


def read_maps(
    files: MapFiles,
    category: Category,
    progress: Callable[[int, int], None] | None = None,
    roi: Masks | None = None,
    white: int | None = None,
) -> Maps:
    """Read every map, image and mask.

    Parameters
    ----------
    files : MapFiles
    category : Category
        For which ``find_maps`` found them.
    progress : callable, optional
        Called with (images read, images in all).
    roi : Masks, optional
        Regions of interest, given at the images' sizes.
    white : int, optional
        As for ``read_photographs``.

    Raises
    ------
    ImageError
        Maps, images or masks cannot be read, a map is not finite, or has another size than its image: all of
        them are named.
    """
    maps, masks, shown, defects, inside = [], [], [], [], []
    errors: list[ImageError] = []
    count = len(category.samples)
    if progress:
        progress(0, count)
    for i, (sample, path) in enumerate(zip(category.samples, files.paths, strict=True), start=1):
        try:
            image = read_image(sample.path)
            height, width = image.shape[:2]
            score_map = read_map(path)
            if score_map.shape != (height, width):
                sizes = f"the map is {score_map.shape[1]}x{score_map.shape[0]}, its image {width}x{height}"
                raise ImageError(path, f"{sizes} ({sample.path}); they must be equal")
            mask, regions = read_truth(category, sample, (height, width))
            if roi is not None:
                inside.append(roi.of(sample.path, category.place(sample.path), (height, width)))
        except ImageError as error:
            errors.append(error)
        else:
            maps.append(score_map)
            masks.append(mask)
            defects.append(regions)
            shown.append(to_be_shown(image, mask if sample.masks else None, white))
        if progress:
            progress(i, count)
    raise_all(errors)
    notes = []
    if files.others:
        first = printable(files.others[0])
        notes.append(f"Map files without a test image: {len(files.others)}, the first {first}. Left out.")
    known = None if category.saturations is None else defects
    return Maps(files.folder, maps, masks, shown, notes, known, inside if roi else None)
