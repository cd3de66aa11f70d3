"""Folders of images: which are normal, which test image has which mask."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.images import read_mask
from glance_fast.errors import ImageError, UserError

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
)
"""File names that are taken for images, in lower case. What is in them decides later whether they are."""


def list_images(folder: str | Path) -> list[Path]:
    """Find all images below a folder.

    Parameters
    ----------
    folder : path
        Searched with all its subfolders; links to folders are followed, each real folder is entered once.
        Files and folders whose names start with a dot are left out (among them the ``._name`` files that
        macOS leaves behind).

    Returns
    -------
    list of pathlib.Path
        Below ``folder`` as it was given, in natural order (``2.png`` before ``10.png``), the same on every
        system.

    Raises
    ------
    UserError
        The folder is missing, is a file, cannot be read, or holds no image.
    """
    folder = Path(folder)
    found = list(walk_images(folder))
    if not found:
        kinds = " ".join(sorted(SUFFIXES))
        raise UserError(f"{folder}: no image in this folder or below it (looked for {kinds})")
    return sorted(found, key=lambda path: _natural_key(path.relative_to(folder)))


def walk_images(folder: Path) -> Iterator[Path]:
    """The images of ``list_images``, in no order; none is not refused.

    Raises
    ------
    UserError
        The folder is missing, is a file, or cannot be read.
    """
    _check_folder(folder)
    seen: set[tuple[int, int]] = set()
    folders, links = [folder], list[Path]()
    while folders or links:
        # Links last: a folder that is reached in both ways is listed under its own name.
        current = folders.pop() if folders else links.pop(0)
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = current / entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        (links if entry.is_symlink() else folders).append(path)
                    elif path.suffix.lower() in SUFFIXES:
                        yield path  # a broken link, too: reading it says so, leaving it out would not
        except OSError as error:
            raise UserError(f"{current}: the folder cannot be read: {error.strerror or error}") from error


def normal_images(data: str | Path) -> list[Path]:
    """Find the normal images to learn from.

    Parameters
    ----------
    data : path
        A category in MVTec's layout (then the images of ``train/good``), or any folder that holds normal
        images only.

    Returns
    -------
    list of pathlib.Path
        In natural order.

    Raises
    ------
    UserError
        As ``list_images``; or the folder is laid out like a category but has no ``train/good``; or it holds
        several categories, of which one must be chosen.
    """
    data = Path(data)
    _check_folder(data)
    good = data / "train" / "good"
    if good.is_dir():
        return list_images(good)
    if (data / "train").is_dir():
        raise UserError(f"{data}: has a folder 'train' but no 'train/good'; put the normal images there")
    categories = _categories(data)
    if categories:
        listed = ", ".join(categories)
        raise UserError(
            f"{data}: holds several categories ({listed}); give one of them, such as {data / categories[0]}"
        )
    for name in ("test", "ground_truth"):
        # Learning from all images below would take the defects for normal.
        if (data / name).is_dir():
            raise UserError(f"{data}: has a folder '{name}' but no 'train/good'; put the normal images there")
    return list_images(data)


def categories(root: str | Path) -> list[tuple[str, Path]]:
    """List the categories below a folder, each with its name.

    Raises
    ------
    UserError
        The folder is missing or cannot be read, or there is none.
    """
    root = Path(root)
    _check_folder(root)
    if (root / "train" / "good").is_dir():
        return [(root.resolve().name, root)]
    names = _categories(root)
    if not names:
        raise UserError(f"{root}: no category in this folder; each is a folder that holds train/good")
    return [(name, root / name) for name in names]


@dataclass(frozen=True)
class TestSample:
    """One test image.

    Parameters
    ----------
    path : pathlib.Path
        The image.
    defect : str
        The name of its folder; ``"good"`` for a normal image.
    mask : pathlib.Path or None
        Its ground truth; None for a normal image.
    """

    __test__ = False  # pytest takes the name for one of its own

    path: Path
    defect: str
    mask: Path | None


def mvtec_test(data: str | Path) -> list[TestSample]:
    """List the test images of a category in MVTec's layout.

    Parameters
    ----------
    data : path
        Holds ``test/<defect>/<name>.png`` and, for every defect but ``good``,
        ``ground_truth/<defect>/<name>_mask.png`` or ``ground_truth/<defect>/<name>.png``.

    Returns
    -------
    list of TestSample
        By defect, then by name, in natural order.

    Raises
    ------
    UserError
        No such layout, an image outside the folders of the defects, or a defective image without a mask.
    """
    data = Path(data)
    _check_folder(data)
    test = data / "test"
    if not test.is_dir():
        categories = _categories(data)
        hint = f"; give one of the categories in it: {', '.join(categories)}" if categories else ""
        raise UserError(
            f"{data}: no folder 'test' in it, which should hold test/good and test/<defect>{hint}"
        )

    samples: list[TestSample] = []
    missing: list[tuple[Path, Path]] = []
    for path in list_images(test):
        defect, *inner = path.relative_to(test).parts
        if not inner:
            raise UserError(f"{path}: lies directly in 'test'; move it to test/good or to test/<defect>")
        if defect == "good":
            samples.append(TestSample(path, defect, None))
            continue
        beside = data / "ground_truth" / Path(defect, *inner).parent
        candidates = (beside / f"{path.stem}_mask.png", beside / f"{path.stem}.png")
        mask = next((candidate for candidate in candidates if candidate.is_file()), None)
        if mask is None:
            missing.append((path, candidates[0]))
        samples.append(TestSample(path, defect, mask))
    if missing:
        path, expected = missing[0]
        others = f" ({len(missing) - 1} more like it)" if len(missing) > 1 else ""
        raise UserError(f"{path}: has no mask; expected {expected}{others}")
    return samples


def read_sample_mask(sample: TestSample, image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read the ground truth of a test image.

    Parameters
    ----------
    sample : TestSample
        Without a mask, nothing is defective.
    image_size : (height, width)
        Of the image as it is in its file.

    Returns
    -------
    ndarray of bool, shape [height, width]

    Raises
    ------
    ImageError
        The mask cannot be read, is not binary, or has another size than the image.
    """
    height, width = image_size
    if sample.mask is None:
        return np.zeros((height, width), dtype=bool)
    mask = read_mask(sample.mask)
    if mask.shape != (height, width):
        sizes = f"the mask is {mask.shape[1]}x{mask.shape[0]}, its image {width}x{height}"
        raise ImageError(sample.mask, f"{sizes} ({sample.path}); they must be equal")
    return mask


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise UserError(f"{folder}: is a file, not a folder; give the folder that holds the images")
    raise UserError(f"{folder}: no such folder")


def _categories(data: Path) -> list[str]:
    """Names of the subfolders that are categories in MVTec's layout."""
    try:
        names = [path.name for path in data.iterdir() if (path / "train" / "good").is_dir()]
    except OSError as error:
        raise UserError(f"{data}: the folder cannot be read: {error.strerror or error}") from error
    return sorted(names, key=lambda name: _natural_key(Path(name)))


def _natural_key(path: Path) -> tuple[list[list[str | int]], str]:
    """Order by folder, digits as numbers, letters without case; the name itself decides between equals."""
    parts: list[list[str | int]] = []
    for part in path.parts:
        pieces = re.split(r"([0-9]+)", part.casefold())
        parts.append([int(piece) if place % 2 else piece for place, piece in enumerate(pieces)])
    return parts, path.as_posix()
