"""What every reader of image files shares: opening, refusing, decoding, turning upright.

Whatever is wrong with a file becomes an ``ImageError`` of one line.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from glance_fast.data.deep_files import DAMAGE, FLOATING, FRAMES, check_tiff, orientation_of
from glance_fast.errors import ImageError, TooLargeError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""What is read, by content and never by the file's name. Pillow's other decoders stay out of reach."""

# They tell of damaged files, as we do, and would do so on stderr where nobody listens to them.
for _name in ("tifffile", "PIL"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
"""An image: of 8 bits, or of more, as stored."""

COLOUR_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""Pillow's names of pixels of up to 8 bits a channel."""
EMPTY = "is empty (0 bytes)"


def load(path: Path) -> tuple[Image.Image, int]:
    """Open and decode a file: the image as stored, and the EXIF orientation still to be applied."""
    with in_one_line(path):
        check_file(path)
        with path.open("rb") as file:
            return _decode(path, file)


def _decode(path: Path, file: BinaryIO) -> tuple[Image.Image, int]:
    """An open file as ``load`` gives it; within ``in_one_line``."""
    with Image.open(file, formats=FORMATS) as image:
        check_header(path, image)
        image.load()
        # After load(): for TIFF, Pillow has then turned the pixels already and dropped the tag.
        return image.copy(), orientation_of(image)


def check_file(path: Path) -> None:
    """Refuse what is no file, or an empty one."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ImageError(path, "is a folder, not an image")
    if not stat.S_ISREG(mode):
        raise ImageError(path, "is not a regular file")  # opening a named pipe would wait for ever
    if path.stat().st_size == 0:
        raise ImageError(path, EMPTY)


@contextmanager
def in_one_line(path: Path) -> Iterator[None]:
    """Raise whatever opening and decoding a file raise as an ``ImageError``."""
    try:
        yield
    except ImageError:
        raise  # a ValueError, too
    except FileNotFoundError:
        raise ImageError(path, "no such file") from None
    except PermissionError:
        raise ImageError(path, "no permission to read it") from None
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise ImageError(
            path, f"is not an image of a kind that is read ({kinds}), or its header is damaged"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLargeError(path, _bomb("it")) from None
    except MemoryError:
        raise ImageError(path, "does not fit into memory") from None
    except OSError as error:
        if error.errno is not None:  # the system's complaint, not a decoder's
            raise ImageError(path, f"cannot be read: {error.strerror}") from error
        raise ImageError(path, _damaged(error)) from error
    except DAMAGE as error:
        raise ImageError(path, _damaged(error)) from error


def check_header(path: Path, image: Image.Image) -> None:
    """Refuse what the header already gives away, before any memory is spent on pixels."""
    check_size(path, *image.size)
    # An MPO is what Pillow calls a JPEG with more behind it; its first image is the photograph.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(path, FRAMES)
    if image.mode == "F":
        raise ImageError(path, FLOATING)
    if image.mode not in COLOUR_MODES and image.mode != "I" and not image.mode.startswith("I;16"):
        raise ImageError(path, f"has pixels of mode {image.mode}, which is not read; save it as RGB or grey")
    if isinstance(image, TiffImageFile):
        check_tiff(path, image)


def check_size(path: Path, width: int, height: int) -> None:
    """Refuse what holds too many pixels, or none."""
    # Pillow only warns up to twice its limit. We compare for ourselves instead of turning the warning into an
    # error: warnings.catch_warnings changes the state of the whole process, and files are read in threads.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise TooLargeError(path, _bomb(f"{width}x{height}"))
    if width < 1 or height < 1:
        raise ImageError(path, f"has no pixels ({width}x{height})")


def upright(array: NDArray, orientation: int) -> NDArray:
    """Apply the EXIF orientation to ``[H, W, ...]``: 2 to 4 mirror or turn by 180°, 5 to 8 swap the sides."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def rgb_of(path: Path, image: Image.Image) -> Pixels:
    if image.mode in COLOUR_MODES:
        if "transparency" in image.info:
            # Pillow would warn about palettes, or look for another colour to stand for the transparent one.
            # On a copy: the image may be the caller's.
            image = image.copy()
            del image.info["transparency"]
        return np.array(image.convert("RGB"))
    return three_channels(deep_values(path, image).astype(np.uint16))


def three_channels(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """One channel [H, W] repeated three times; three as they are."""
    return np.repeat(values[:, :, None], 3, axis=2) if values.ndim == 2 else values


def deep_values(path: Path, image: Image.Image) -> NDArray[np.int32]:
    """Grey values of more than 8 bits, within 0 to 65535."""
    values = np.asarray(image).astype(np.int32)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        reason = (
            f"has integer pixels from {low} to {high}, beyond 16 bits (0 to 65535); save it with 8 or 16 bits"
        )
        raise ImageError(path, reason)
    return values


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    if int(height) != height or int(width) != width or height < 1 or width < 1:
        raise ValueError(f"size must be (height, width), two positive integers, not {size}")
    return int(height), int(width)


def _bomb(size: str) -> str:
    limit = f"{Image.MAX_IMAGE_PIXELS:,} pixels"
    return f"too large: {size} is above the limit of {limit} (PIL.Image.MAX_IMAGE_PIXELS); tile or reduce it"


def _damaged(error: Exception) -> str:
    detail = " ".join(str(error).split()) or type(error).__name__
    return f"damaged or truncated: {detail}"
