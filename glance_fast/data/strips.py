"""A photograph read from top to bottom, some rows at a time: one of any size fits into memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile

from glance_fast.data.decoding import in_one_line
from glance_fast.data.images import Pixels, read_image
from glance_fast.errors import ImageError, TooLargeError

# It tells of damaged files, as we do, where nobody listens.
logging.getLogger("pyvips").addHandler(logging.NullHandler())

MOST_PIXELS = 1 << 30
"""Of a photograph; its map has four bytes for each."""
ADVICE = "pip install 'glance-fast[large]' lets it be read in parts"
# By libvips' names, what ``read_image`` reads, too.
LOADERS = {"pngload": "PNG", "jpegload": "JPEG", "tiffload": "TIFF", "webpload": "WebP", "gifload": "GIF"}
DEPTHS = {"uchar": np.uint8, "ushort": np.uint16}
COLOURS = ("srgb", "rgb", "b-w", "rgb16", "grey16")


class Strips(Protocol):
    """Rows of an RGB image."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, pixels."""

    def rows(self, top: int, bottom: int) -> Pixels:
        """[bottom - top, width, 3]; ``top`` is never above that of the call before."""


class Held:
    """A whole image in memory.

    Parameters
    ----------
    image : ndarray [H, W, 3]
    """

    def __init__(self, image: Pixels) -> None:
        self._image = image

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self._image.shape[0], self._image.shape[1]

    def rows(self, top: int, bottom: int) -> Pixels:
        """[bottom - top, width, 3], a view."""
        return self._image[top:bottom]


class Streamed:
    """An image that libvips decodes while its rows are asked for.

    Parameters
    ----------
    path : path
        A file of a kind that ``read_image`` reads, of 8 or 16 bits, grey or RGB, alpha left out.

    Raises
    ------
    ImageError
        It is another, is damaged, has more than ``MOST_PIXELS``, or is to be turned (EXIF orientation); or
        pyvips is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            import pyvips
        except ImportError:
            raise ImageError(path, f"too large to be decoded at once; {ADVICE}") from None
        self._refusal = pyvips.Error
        try:
            # Anew each time: libvips keeps what it read of a name, and another file may have it now.
            image = pyvips.Image.new_from_file(
                str(path), access="sequential", fail_on="truncated", revalidate=True
            )
        except UnicodeEncodeError:
            raise ImageError(
                path, "too large to be decoded at once, and its name is no UTF-8; rename it"
            ) from None
        except pyvips.Error as error:
            kinds = ", ".join(LOADERS.values())
            reason = (
                f"too large to be decoded at once, and damaged or none of what is read in parts ({kinds})"
            )
            raise ImageError(path, reason) from error
        _check(self._path, image)
        self._image = image
        self._region = pyvips.Region.new(image)
        # What was read and may be asked for again, for tiles overlap.
        self._type = DEPTHS[image.format]
        self._kept = np.empty((0, image.width, image.bands), self._type)
        self._top = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self._image.height, self._image.width

    def rows(self, top: int, bottom: int) -> Pixels:
        """uint8 or uint16 [bottom - top, width, 3]; ``top`` is never above that of the call before.

        Raises
        ------
        ImageError
            The file is damaged there.
        """
        self._kept, self._top = self._kept[top - self._top :], top
        have = top + len(self._kept)
        if bottom > have:
            self._kept = np.concatenate([self._kept, self._read(have, bottom)])
        rows = self._kept[: bottom - top]
        return np.repeat(rows[..., :1], 3, axis=2) if rows.shape[2] < 3 else rows[..., :3]

    def _read(self, top: int, bottom: int) -> Pixels:
        width = self._image.width
        try:
            data = self._region.fetch(0, top, width, bottom - top)
        except self._refusal as error:
            raise ImageError(self._path, _damaged(error)) from error
        return np.frombuffer(data, self._type).reshape(bottom - top, width, -1)


def open_strips(path: str | Path) -> Strips:
    """Open an image: ``Held`` as ``read_image`` reads it, or ``Streamed`` where it is too large for that.

    Parameters
    ----------
    path : path

    Raises
    ------
    ImageError
        As ``read_image``, or ``Streamed``.
    """
    try:
        return Held(read_image(path))
    except TooLargeError:
        return Streamed(path)


def _check(path: Path, image: Any) -> None:
    """Refuse what is not read in parts."""
    loader = image.get("vips-loader")
    size = f"{image.width}x{image.height}"
    if loader not in LOADERS:
        raise ImageError(
            path, f"{size} is read in parts of {', '.join(LOADERS.values())} alone, not by {loader}"
        )
    if image.height * image.width > MOST_PIXELS:
        raise ImageError(path, f"too large: {size} is above {MOST_PIXELS:,} pixels; cut it")
    if image.get_n_pages() > 1:
        raise ImageError(
            path, "holds several frames or pages; save the one that is meant as a file of its own"
        )
    if "orientation" in image.get_fields() and image.get("orientation") > 1:
        raise ImageError(path, f"{size} is to be turned (EXIF orientation), and too large for that; turn it")
    if loader == "tiffload" and _ends_early(path):
        raise ImageError(path, "damaged or truncated: pixels are missing at its end")
    if image.format not in DEPTHS or image.interpretation not in COLOURS or image.bands > 4:
        raise ImageError(
            path,
            f"{size} is read in parts, of 8 or 16 bits, grey or RGB; this one is {image.format}, "
            f"{image.interpretation}, of {image.bands} channels",
        )


def _ends_early(path: Path) -> bool:
    """Whether a TIFF file lacks pixels, which libvips would make up."""
    with in_one_line(path), tifffile.TiffFile(path) as file:
        page = file.pages.first
        ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    return max(ends, default=0) > path.stat().st_size


def _damaged(error: Exception) -> str:
    return f"damaged or truncated: {' '.join(str(error).split())}"
