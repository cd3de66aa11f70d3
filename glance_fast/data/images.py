"""Images in and out, and images at another size.

Every file becomes the same thing, RGB ``[H, W, 3]`` as a person would see it upright, or an ``ImageError``
whose one line says what is wrong with it: uint8, or uint16 as stored where a file has more than 8 bits.
Nothing is guessed and nothing is stretched by its own content: two photographs of the same brightness stay
equally bright (``glance_fast.data.depth``).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from glance_fast.data.decoding import (
    EMPTY,
    FORMATS,
    Pixels,
    check_file,
    check_header,
    checked_size,
    in_one_line,
    rgb_of,
    three_channels,
    upright,
)
from glance_fast.data.deep_files import TIFF, deep_reader, orientation_of, read_tiff
from glance_fast.data.files import atomic_write
from glance_fast.errors import ImageError, UserError

# Reduction by the filter that averaging beforehand leaves, at least.
_GAP = 3


def read_image(path: str | Path) -> Pixels:
    """Read an image file as RGB.

    ==================  ================================================================================
    one channel         repeated three times (1 bit: 0 and 255)
    16 bits             uint16 as stored, grey or colours, whatever range they use: 0 to 4095 of a
                        camera of 12 bits. 32-bit integers are read so where they hold 16-bit values
    alpha               dropped, the colours as they are stored
    palette, CMYK       converted to RGB of 8 bits; colour profiles are not applied
    EXIF orientation    applied
    more channels       refused, as colours beside which others are: spectral bands
    several frames      refused: animated GIF, PNG and WebP, multi-page TIFF. Of a camera's JPEG with a
                        preview behind it (MPO), the photograph is read
    ==================  ================================================================================

    Parameters
    ----------
    path : path
        A PNG, JPEG, BMP, TIFF, WebP, GIF or PPM file, whatever its name.

    Returns
    -------
    ndarray of uint8 or uint16, shape [H, W, 3]
        Contiguous and writable.

    Raises
    ------
    ImageError
        The file is missing, unreadable, damaged, truncated, of another kind, has floating-point or negative
        pixels, channels beside three colours and alpha, several frames, or more pixels than
        ``PIL.Image.MAX_IMAGE_PIXELS`` (``TooLargeError``).
    """
    path = Path(path)
    with in_one_line(path):
        check_file(path)
        with path.open("rb") as file:
            return _read(path, file)


def decode_image(data: bytes, name: str = "image") -> Pixels:
    """Read an image as RGB from the bytes of its file, by the rules of ``read_image``.

    Parameters
    ----------
    data : bytes
        All of the file.
    name : str
        What to call it in a message; never opened.

    Returns
    -------
    ndarray of uint8 or uint16, shape [H, W, 3]
        Contiguous and writable.

    Raises
    ------
    ImageError
        As ``read_image``.
    """
    path = Path(name)
    with in_one_line(path):
        if not data:
            raise ImageError(path, EMPTY)
        return _read(path, io.BytesIO(data))


def as_rgb(image: Pixels | Image.Image) -> Pixels:
    """An array or a PIL image as RGB, by the rules of ``read_image``.

    Parameters
    ----------
    image : ndarray of uint8 or uint16, [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], or PIL image
        A fourth channel is alpha, and left out as it is of a file. Of PIL images, grey ones alone have more
        than 8 bits: Pillow has no others.

    Returns
    -------
    ndarray of uint8 or uint16, shape [H, W, 3]

    Raises
    ------
    ImageError
        A PIL image that ``read_image`` would refuse: damaged, truncated, of several frames, ...
    UserError
        It is something else.
    """
    if isinstance(image, Image.Image):
        path = Path("image")
        with in_one_line(path):
            check_header(path, image)
            return upright(rgb_of(path, image), orientation_of(image))
    array = np.asarray(image)
    if (
        array.dtype not in (np.uint8, np.uint16)
        or not 2 <= array.ndim <= 3
        or (array.ndim == 3 and array.shape[2] not in (1, 3, 4))
    ):
        raise UserError(
            "an image is a path, a PIL image, or a uint8 or uint16 array [H, W], [H, W, 3] or [H, W, 4], "
            f"not {array.dtype} {list(array.shape)}"
        )
    if 0 in array.shape:
        raise UserError(f"an image of shape {list(array.shape)} holds no pixel")
    array = array[..., :3] if array.ndim == 3 else array[..., None]
    return np.broadcast_to(array, (*array.shape[:2], 3))


def resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize an RGB image with antialiasing (Lanczos, its support scaled with the reduction).

    Parameters
    ----------
    image : ndarray of uint8 or uint16, shape [H, W, 3]
    size : (height, width)
        In pixels. The aspect ratio is not kept.

    Returns
    -------
    ndarray of the same type, shape [height, width, 3]
        Always a new array.

    Raises
    ------
    TypeError
        ``image`` is neither uint8 nor uint16.
    ValueError
        ``image`` is not ``[H, W, 3]`` or ``size`` is not two positive integers.
    """
    size = checked_size(size)
    if image.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"image must be uint8 or uint16, not {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be [H, W, 3], not {list(image.shape)}")
    if image.shape[:2] == size:
        return image.copy()
    if image.dtype == np.uint8:
        return np.array(_resized(Image.fromarray(image), size))
    # Pillow has no colours of 16 bits, and no filters for integers of so many.
    planes = [Image.fromarray(image[..., channel].astype(np.float32)) for channel in range(3)]
    resized = np.stack([np.asarray(_resized(plane, size)) for plane in planes], axis=2)
    return np.rint(resized.clip(0, 65535)).astype(np.uint16)


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """What ``resize`` does, of 8 bits or of float32."""
    (height, width), (cols, rows) = size, picture.size
    # Above a reduction by 6, whole pixels are averaged first: the result hardly differs, the time no longer
    # grows with the filter's support.
    across, down = max(cols // (_GAP * width), 1), max(rows // (_GAP * height), 1)
    if (across, down) != (1, 1):
        picture = picture.reduce((across, down))
    # Rows first and then columns: in one call Pillow before 13 does the same, and later ones begin with what
    # takes less time, which gives other pixels.
    lanczos, lines = Image.Resampling.LANCZOS, picture.height
    picture = picture.resize((width, lines), lanczos, (0, 0, cols / across, lines))
    return picture.resize((width, height), lanczos, (0, 0, width, rows / down))


def write_png(path: str | Path, rgb: NDArray[np.uint8]) -> None:
    """Write an 8-bit PNG, whole or not at all.

    Parameters
    ----------
    path : path
        The file; parent folders are made.
    rgb : ndarray of uint8, shape [H, W, 3] or [H, W]
        RGB, or grey for two dimensions.

    Raises
    ------
    TypeError
        ``rgb`` is not uint8.
    ValueError
        ``rgb`` has another shape.
    UserError
        The file cannot be written.
    """
    data = encode_png(rgb)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def encode_png(rgb: NDArray[np.uint8]) -> bytes:
    """What ``write_png`` writes."""
    if rgb.dtype != np.uint8:
        raise TypeError(f"an image must be uint8, not {rgb.dtype}")
    if rgb.ndim != 2 and (rgb.ndim != 3 or rgb.shape[2] != 3):
        raise ValueError(f"an image must be [H, W, 3] or [H, W], not {list(rgb.shape)}")
    buffer = io.BytesIO()
    # Lossless at every level; 3 takes half as long again for a twenty-fifth fewer bytes.
    Image.fromarray(rgb).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _read(path: Path, file: BinaryIO) -> Pixels:
    """An open file as ``read_image`` gives it; within ``in_one_line``."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            check_header(path, image)
            read_deep = deep_reader(image, file)
            if read_deep is None:
                image.load()
                return upright(rgb_of(path, image), orientation_of(image))
    except UnidentifiedImageError:
        file.seek(0)
        if file.read(4) not in TIFF:
            raise
        read_deep = read_tiff
    values, orientation = read_deep(path, file)
    return upright(three_channels(values), orientation)
