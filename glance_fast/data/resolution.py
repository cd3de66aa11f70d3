"""How large a pixel of a photograph is in the world, as its file says: its map says the same."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import tifffile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.Image import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from glance_fast.data.deep_files import DAMAGE, TIFF

LEAST, MOST = 1e-4, 1e8
"""Pixels a unit of length that are believed: a pixel of a hundred metres is, and one of an atom's size."""

Unit = Literal["INCH", "CENTIMETER"]
# Tags of TIFF and EXIF.
_ACROSS, _DOWN, _UNIT, _ORIENTATION = 282, 283, 296, 274
# What numbers of units mean, in TIFF and EXIF, and in JFIF; others are none.
_TIFF_UNITS: dict[Any, Unit] = {2: "INCH", 3: "CENTIMETER"}
_JFIF_UNITS: dict[Any, Unit] = {1: "INCH", 2: "CENTIMETER"}
_METRES_IN_AN_INCH = 0.0254
# By a file's first bytes. Pillow's own open() refuses large images, of which the header alone is wanted here.
_OPENERS: dict[bytes, Callable[[BinaryIO], ImageFile]] = {
    b"\x89PN": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"BM": BmpImageFile,
}


class Resolution(NamedTuple):
    """Pixels a unit of length.

    Attributes
    ----------
    across, down : float
        Along a row, and along a column, of the upright photograph.
    unit : {"INCH", "CENTIMETER"}
        By tifffile's names.
    """

    across: float
    down: float
    unit: Unit


def resolution_of(source: str | Path | bytes) -> Resolution | None:
    """The resolution that an image file states.

    That is XResolution and YResolution of TIFF, pHYs of PNG, pixels per metre of BMP, the density of JFIF,
    and where there is none of these, what EXIF says. Where ``read_image`` swaps the sides, they are swapped.

    Parameters
    ----------
    source : path or bytes
        A file, of which the header alone is read, however large it is; or all that is in it.

    Returns
    -------
    Resolution or None
        None where the file states none, no unit of length (JFIF's 1x1 is an aspect), or nonsense: zero,
        negative, infinite, beyond ``LEAST`` and ``MOST``; and where it is damaged or no such file, which is
        for others to say.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            start = file.read(4)
            file.seek(0)
            if start in TIFF:
                found, orientation = _of_tiff(file)
            else:
                opener = next((o for first, o in _OPENERS.items() if start.startswith(first)), None)
                if opener is None:
                    return None
                with opener(file) as image:
                    found, orientation = _of_header(image)
    except (OSError, *DAMAGE):
        return None
    if found is None or not all(LEAST <= value <= MOST for value in found[:2]):
        return None
    across, down, unit = found
    return Resolution(down, across, unit) if orientation in (5, 6, 7, 8) else found


def _of_tiff(file: BinaryIO) -> tuple[Resolution | None, int]:
    with tifffile.TiffFile(file) as tiff:
        tags = tiff.pages.first.tags
        given = {code: tags.valueof(code) for code in (_ACROSS, _DOWN, _UNIT)}
        return _of_tags(given), tags.valueof(_ORIENTATION, default=1)


def _of_header(image: ImageFile) -> tuple[Resolution | None, int]:
    """Of an image that is opened, and not decoded."""
    # PNG's own getexif() would decode all pixels to see what stands behind them.
    tags = Image.getexif(image)
    orientation = tags.get(_ORIENTATION, 1)
    info = image.info
    if info.get("jfif_unit") in _JFIF_UNITS:
        across, down = info["jfif_density"]
        return Resolution(across, down, _JFIF_UNITS[info["jfif_unit"]]), orientation
    if isinstance(image, PngImageFile | BmpImageFile) and "dpi" in info:
        # Whole pixels a metre stand in the file.
        across, down = (round(value / _METRES_IN_AN_INCH) / 100 for value in info["dpi"])
        return Resolution(across, down, "CENTIMETER"), orientation
    return _of_tags(tags), orientation


def _of_tags(tags: Any) -> Resolution | None:
    # TIFF means inches where no unit is given.
    unit = _TIFF_UNITS.get(2 if tags.get(_UNIT) is None else tags.get(_UNIT))
    across, down = tags.get(_ACROSS), tags.get(_DOWN)
    if unit is None or across is None or down is None:
        return None
    return Resolution(_number(across), _number(down), unit)


def _number(value: Any) -> float:
    """A rational of tifffile's or of Pillow's; NaN where it divides by zero."""
    above, below = value if isinstance(value, tuple) else (value, 1)
    return float(above) / float(below) if below else math.nan
