"""Files of anomaly maps, and maps at another size. What a map is made of says ``glance_fast.maps``."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from glance_fast.data.decoding import check_file, check_size, checked_size, in_one_line
from glance_fast.data.deep_files import DAMAGE
from glance_fast.data.files import atomic_write
from glance_fast.data.resolution import Resolution
from glance_fast.errors import ImageError


def resize_map(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a float32 map [H, W] bilinearly (antialiased where it shrinks) to (height, width)."""
    height, width = checked_size(size)
    return np.array(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


def size_of_map(path: str | Path) -> tuple[int, int] | None:
    """Height and width of a map that ``write_tiff`` wrote; None where there is no such file."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            return page.imagelength, page.imagewidth
    except (OSError, *DAMAGE):
        return None


def read_map(path: str | Path) -> NDArray[np.floating]:
    """Read an anomaly map.

    Parameters
    ----------
    path : path
        A TIFF file of one page and one channel: float16, float32 or float64, compressed or not.

    Returns
    -------
    ndarray of float16, float32 or float64, shape [H, W]
        As they stand in the file; finite, also as float32.

    Raises
    ------
    ImageError
        The file is missing, unreadable, damaged, something else, or has more pixels than
        ``PIL.Image.MAX_IMAGE_PIXELS``; a value is NaN, infinite, or too large for float32; or tifffile needs
        the package imagecodecs for a compression that Pillow does not read either.
    """
    path = Path(path)
    with in_one_line(path):
        check_file(path)
        with tifffile.TiffFile(path) as file:
            if not len(file.pages):
                raise ValueError("no page in it")
            if len(file.pages) > 1:
                raise ImageError(path, f"holds {len(file.pages)} pages; a map is one, of one channel")
            page = file.pages.first
            if page.ndim != 2 or page.dtype is None or page.dtype.kind != "f":
                raise ImageError(
                    path, f"holds {page.dtype} {list(page.shape)}; a map is float32 or float16, one channel"
                )
            check_size(path, page.imagewidth, page.imagelength)
            _check_packed(path, page)
            values = _pixels(path, page)
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32, copy=False)).all()
    if not finite:
        raise ImageError(path, "holds NaN, infinity, or a value too large for float32; a map is finite")
    return values


def read_map_rows(path: str | Path, together: int) -> Iterator[NDArray[np.float32]]:
    """The rows of a map that ``write_tiff`` or ``tiff_rows`` wrote, of any size, some at a time.

    Parameters
    ----------
    path : path
    together : int
        Pixels to hold at a time, about.

    Yields
    ------
    ndarray of float32, shape [n, W]
        One below the other.

    Raises
    ------
    ImageError
        The file is missing, unreadable, or none of ours.
    """
    path = Path(path)
    with in_one_line(path):
        check_file(path)
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            if page.dtype != np.float32 or page.ndim != 2 or not page.is_contiguous:
                raise ImageError(path, "is not a map that glance-fast wrote")
            start, (height, width) = page.dataoffsets[0], page.shape
            kind = np.dtype(np.float32).newbyteorder(file.byteorder)
        if path.stat().st_size < start + 4 * height * width:
            raise ImageError(path, "damaged or truncated: pixels are missing at its end")
        step = max(1, together // width)
        with path.open("rb") as opened:
            opened.seek(start)
            for top in range(0, height, step):
                rows = min(step, height - top)
                values = np.frombuffer(opened.read(4 * rows * width), kind)
                yield values.reshape(rows, width).astype(np.float32, copy=False)


def _check_packed(path: Path, page: tifffile.TiffPage) -> None:
    """Refuse a map of which a strip or tile unpacks to more than its pixels; tifffile would unpack it all."""
    kinds = tifffile.COMPRESSION
    if page.compression not in (kinds.ADOBE_DEFLATE, kinds.DEFLATE, kinds.LZMA):
        return
    if page.is_tiled:
        rows, cols = page.tilelength, page.tilewidth
        check_size(path, cols, rows)
    else:
        rows, cols = min(page.rowsperstrip, page.imagelength), page.imagewidth
    most = rows * cols * page.bitspersample // 8
    file = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if count:
            file.seek(offset)
            if _unpacks_to_more(file.read(count), most, page.compression == kinds.LZMA):
                raise ImageError(path, "unpacks to more than its pixels; save it anew")


def _unpacks_to_more(packed: bytes, most: int, by_lzma: bool) -> bool:
    if not by_lzma:
        return len(zlib.decompressobj().decompress(packed, most + 1)) > most
    import lzma  # some builds of Python lack it

    unpacking = lzma.LZMADecompressor()
    try:
        unpacked = unpacking.decompress(packed, most + 1)
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from error
    if len(unpacked) <= most and not unpacking.eof:
        raise ValueError("its pixels end too early")
    # Behind the first stream, the reader of all would unpack another.
    return len(unpacked) > most or bool(unpacking.unused_data)


def _pixels(path: Path, page: tifffile.TiffPage) -> NDArray[np.floating]:
    """The pixels of a map."""
    try:
        values = page.asarray()
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    except (ImportError, KeyError, ValueError) as error:
        if "imagecodecs" not in str(error) and not isinstance(error, ImportError):
            raise
    # What tifffile decodes by itself is little. Pillow decodes more, but of float32 alone.
    if page.dtype != np.float32:
        how = f"{tifffile.COMPRESSION(page.compression).name} compression and predictor {page.predictor}"
        raise ImageError(
            path, f"{page.dtype} with {how} is not read; save it uncompressed, or install imagecodecs"
        )
    with path.open("rb") as opened, Image.open(opened, formats=("TIFF",)) as image:
        return np.array(image)


def write_tiff(
    path: str | Path,
    values: NDArray[np.float32] | NDArray[np.float16],
    resolution: Resolution | None = None,
) -> None:
    """Write an anomaly map as a TIFF of one channel, uncompressed, whole or not at all.

    Parameters
    ----------
    path : path
        The file; parent folders are made.
    values : ndarray of float32 or float16, shape [H, W]
        Written as they are.
    resolution : Resolution, optional
        Of the photograph, so that programs that measure lengths measure the map as they would measure it.

    Raises
    ------
    TypeError
        ``values`` are neither.
    ValueError
        ``values`` are not ``[H, W]``.
    UserError
        The file cannot be written.
    """
    # Into memory first: NumPy, which writes the pixels to a file, does not tell that the disk is full.
    data = encode_tiff(values, resolution)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def tiff_rows(
    path: str | Path, shape: tuple[int, int], resolution: Resolution | None = None
) -> Iterator[Callable[[NDArray[np.float32]], None]]:
    """Write the file of ``write_tiff`` a few rows at a time, whole or not at all.

    Parameters
    ----------
    path : path
        The file; parent folders are made.
    shape : (height, width)
        Of the map, pixels.
    resolution : Resolution, optional
        As for ``write_tiff``.

    Yields
    ------
    callable
        Takes the next rows, float32 [n, width]. All of them have to come.

    Raises
    ------
    ValueError
        The rows are others, or not as many as ``shape`` says.
    UserError
        The file cannot be written.
    """
    height, width = checked_size(shape)
    left = height

    def write(rows: NDArray[np.float32]) -> None:
        nonlocal left
        if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != width or len(rows) > left:
            found = f"{rows.dtype} {list(rows.shape)}"
            raise ValueError(f"{found} are no rows of a map that lacks {left} of {width} pixels")
        left -= len(rows)
        file.write(np.ascontiguousarray(rows).data)

    with atomic_write(path) as temporary:
        # Its header, and a hole in the file where the pixels are to be.
        tifffile.imwrite(temporary, shape=shape, dtype=np.float32, **_how(resolution))
        with tifffile.TiffFile(temporary) as whole:
            start = whole.pages.first.dataoffsets[0]
        with temporary.open("r+b") as file:
            file.seek(start)
            yield write
        if left:
            raise ValueError(f"{left} rows of the map are missing")


def encode_tiff(values: NDArray[np.floating], resolution: Resolution | None = None) -> bytes:
    """What ``write_tiff`` writes."""
    if values.dtype not in (np.float32, np.float16):
        raise TypeError(f"a map must be float32 or float16, not {values.dtype}")
    if values.ndim != 2:
        raise ValueError(f"a map must be [H, W], not {list(values.shape)}")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **_how(resolution))
    return buffer.getvalue()


def _how(resolution: Resolution | None) -> dict[str, Any]:
    """How tifffile is to write a map."""
    plain = {"photometric": "minisblack", "metadata": None}
    if resolution is None:
        return plain
    return plain | {"resolution": resolution[:2], "resolutionunit": resolution.unit}
