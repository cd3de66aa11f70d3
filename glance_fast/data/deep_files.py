"""Files of more than 8 bits a channel whose lower bits Pillow would drop: colours of 16 bits, PGM and PPM.

Pillow decodes them all, with its checks for damage, but keeps the upper byte of each colour alone. The lower
bytes come from a second pass, in which it is told that the file has the other end first. What Pillow does not
know at all, tifffile may.
"""

from __future__ import annotations

import re
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from glance_fast.errors import ImageError

# Values [H, W] or [H, W, 3] as stored, and the EXIF orientation still to be applied.
Deep = tuple[NDArray[np.uint16], int]

# What Pillow's decoders let through on damaged files beside OSError; warnings, where those are made errors.
DAMAGE = (
    *(
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        RuntimeError,
        SyntaxError,
        TypeError,
        ValueError,
    ),
    *(struct.error, tifffile.TiffFileError, zlib.error, UserWarning),
)

FRAMES = "holds several frames or pages; save the one that is meant as a file of its own"
FLOATING = "has floating-point pixels, which have no fixed range; save it with 8 or 16 bits"
NOT_READ = "which is not read; save it as grey or RGB with 8 or 16 bits, unsigned"

# How TIFF files begin.
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags of TIFF.
_BITS, _SAMPLES, _PLANES, _FORMAT, _ORIENTATION = 258, 277, 284, 339, 274
_SEPARATE, _SIGNED = 2, 2
# How Pillow calls colours of 16 bits in a file: big or little end first, or as this machine has them.
_COLOURS = re.compile(r"(RGB|RGBX|RGBA|RGBa);16([BLN])")
_OTHER_END = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_GREY_ALPHA = "LA;16B"
# Netpbm's header: the kind, then width, height and the largest value, with comments between them.
_NETPBM = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)" + rb"\s")
_LONGEST_HEADER = 1 << 16


def check_tiff(path: Path, image: TiffImageFile) -> None:
    """Refuse what Pillow would read wrongly without a word.

    Raises
    ------
    ImageError
        Channels beside three colours and alpha, which it would drop, or signed bytes.
    """
    tags = image.tag_v2
    if image.mode != "CMYK" and (samples := tags.get(_SAMPLES, 1)) > 4:
        raise ImageError(path, _too_many(samples))
    if _SIGNED in tags.get(_FORMAT, ()) and max(tags.get(_BITS, (1,))) <= 8:
        raise ImageError(path, f"has pixels of type int8, {NOT_READ}")


def deep_reader(image: ImageFile, file: BinaryIO) -> Callable[[Path, BinaryIO], Deep] | None:
    """What reads an open file of which Pillow would drop or stretch something; None where it would not.

    Parameters
    ----------
    image : PIL image
        Opened from ``file``, and not yet decoded.
    file : binary file
        Read from anew; within ``images.in_one_line``, as all that is returned.
    """
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(_BITS, (1,))
        # Of channels that lie one after the other, Pillow takes each for bytes, whatever it is told.
        if image.tag_v2.get(_PLANES) == _SEPARATE and len(bits) > 1 and max(bits) > 8:
            return read_tiff
    raw = _raw_mode(image)
    if _COLOURS.fullmatch(raw):
        return _read_halves
    if raw == _GREY_ALPHA:
        return _read_grey_alpha
    if image.format == "PPM":
        file.seek(0)
        head = _NETPBM.match(file.read(_LONGEST_HEADER))
        return _read_netpbm if head and int(head[4]) > 255 else None
    return None


def read_tiff(path: Path, file: BinaryIO) -> Deep:
    """A TIFF of 16 bits that Pillow does not read, or what is wrong with one that nothing reads.

    Raises
    ------
    ImageError
        In one line.
    """
    file.seek(0)
    with tifffile.TiffFile(file, name=path.name) as tiff:
        if len(tiff.pages) != 1:
            raise ImageError(path, FRAMES)
        page = tiff.pages.first
        if page.imagewidth * page.imagelength > (Image.MAX_IMAGE_PIXELS or sys.maxsize):
            raise Image.DecompressionBombError
        grey = page.photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE)
        if not grey and page.photometric != tifffile.PHOTOMETRIC.RGB:
            kind = tifffile.PHOTOMETRIC(page.photometric).name.lower()
            raise ImageError(path, f"has pixels of kind {kind} with {page.bitspersample} bits, {NOT_READ}")
        if page.samplesperpixel > (2 if grey else 4):
            raise ImageError(path, _too_many(page.samplesperpixel))
        if page.dtype is not None and page.dtype.kind == "f":
            raise ImageError(path, FLOATING)
        if page.dtype != np.uint16:
            what = f"type {page.dtype}" if page.dtype else f"{page.bitspersample} bits"
            raise ImageError(path, f"has pixels of {what}, {NOT_READ}")
        try:
            values = page.asarray()
        except (ImportError, ValueError) as error:
            if "imagecodecs" not in str(error):
                raise
            how = tifffile.COMPRESSION(page.compression).name
            raise ImageError(
                path,
                f"{page.bitspersample} bits in this layout with {how} compression are not read; save it "
                "uncompressed, or install imagecodecs",
            ) from error
        values = np.moveaxis(values, 0, -1) if page.axes == "SYX" else values
        values = values.reshape(page.imagelength, page.imagewidth, -1).astype(np.uint16, copy=False)
        return values[..., 0] if grey else values[..., :3], page.tags.valueof(_ORIENTATION, default=1)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied to an image that is decoded."""
    # ImageOps.exif_transpose would also write the EXIF block anew, and fails on some that are merely odd.
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except (OSError, *DAMAGE):
        return 1  # a damaged block says nothing; upright is the standard's default


def _raw_mode(image: ImageFile) -> str:
    """How Pillow calls the pixels as they are stored."""
    how = image.tile[0][3] if image.tile else ""
    return str(how[0]) if isinstance(how, tuple) and how else str(how)


def _told(tile: Any, raw: str) -> Any:
    """A tile of Pillow's, with another way to read it."""
    codec, extents, offset, how = tile
    told = codec, extents, offset, (raw, *how[1:]) if isinstance(how, tuple) else raw
    # Earlier versions of Pillow have plain tuples.
    return tile._make(told) if hasattr(tile, "_make") else told


def _unpacked(file: BinaryIO, raw: str) -> tuple[NDArray[np.uint8], int]:
    """The pixels, told to Pillow to be stored as they are not, and the orientation still to be applied."""
    file.seek(0)
    with Image.open(file, formats=("PNG", "TIFF")) as image:
        image.tile = [_told(tile, raw) for tile in image.tile]
        image.load()
        # After load(): for TIFF, Pillow has then turned the pixels already and dropped the tag.
        return np.asarray(image), orientation_of(image)


def _read_halves(path: Path, file: BinaryIO) -> Deep:
    """Colours of 16 bits: Pillow's upper bytes, and the lower ones by the other end."""
    file.seek(0)
    with Image.open(file, formats=("PNG", "TIFF")) as image:
        found = _COLOURS.fullmatch(_raw_mode(image))
    assert found
    # RGBa would be divided by its alpha; colours are taken as they are stored.
    kind, end = found[1].upper(), found[2]
    upper, orientation = _unpacked(file, f"{kind};16{end}")
    lower, _ = _unpacked(file, f"{kind};16{_OTHER_END[end]}")
    return _joined(upper[..., :3], lower[..., :3]), orientation


def _read_grey_alpha(path: Path, file: BinaryIO) -> Deep:
    """A PNG of grey and alpha, 16 bits each: told to be four bytes."""
    four, orientation = _unpacked(file, "RGBA")
    return _joined(four[..., 0], four[..., 1]), orientation


def _joined(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return upper.astype(np.uint16) * np.uint16(256) + lower


def _read_netpbm(path: Path, file: BinaryIO) -> Deep:
    """A PGM or PPM of more than 8 bits, whose values Pillow would stretch."""
    file.seek(0)
    data = file.read()
    head = _NETPBM.match(data)
    assert head
    width, height, most = (int(head[i]) for i in (2, 3, 4))
    shape = (height, width, 3) if head[1] in b"36" else (height, width)
    count, start = int(np.prod(shape)), head.end()
    values: NDArray[np.integer]
    if head[1] in b"23":
        words = re.sub(rb"#[^\r\n]*", b" ", data[start:]).split()
        values = np.array(words[:count], dtype=np.int64)
    else:
        values = np.frombuffer(data, ">u2", min(count, (len(data) - start) // 2), start)
    if len(values) < count:
        raise ValueError(f"{len(values)} of {count} values are there")
    if values.min() < 0 or values.max() > most:
        raise ValueError(f"a value does not lie within 0 to {most}, as its header says")
    return values.astype(np.uint16).reshape(shape), 1


def _too_many(channels: int) -> str:
    return (
        f"has {channels} channels; photographs have one, or three colours and maybe alpha: save the one or "
        "the three that tell most, or each channel as an image of its own"
    )
