"""Images and masks in, maps and overlays out.

Every file becomes the same thing, RGB ``[H, W, 3]`` as a person would see it upright, or an ``ImageError``
whose one line says what is wrong with it: uint8, or uint16 as stored where a file has more than 8 bits.
Nothing is guessed and nothing is stretched by its own content: two photographs of the same brightness stay
equally bright (``glance_fast.data.depth``).
"""

from __future__ import annotations

import io
import logging
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from glance_fast.data.deep_files import (
    DAMAGE,
    FLOATING,
    FRAMES,
    TIFF,
    check_tiff,
    deep_reader,
    orientation_of,
    read_tiff,
)
from glance_fast.data.files import atomic_write
from glance_fast.errors import ImageError, TooLargeError, UserError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""What is read, by content and never by the file's name. Pillow's other decoders stay out of reach."""

# They tell of damaged files, as we do, and would do so on stderr where nobody listens to them.
for _name in ("tifffile", "PIL"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
"""An image: of 8 bits, or of more, as stored."""

_COLOUR_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_EMPTY = "is empty (0 bytes)"
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
        _check_file(path)
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
            raise ImageError(path, _EMPTY)
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
            _check_header(path, image)
            return _upright(_as_rgb(path, image), orientation_of(image))
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


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """Read a ground-truth mask.

    Parameters
    ----------
    path : path
        An image of one channel, or of colours that are all grey, whose values are 0 and 255, 0 and 1, or 0
        and 65535 in a file of 16 bits. A single one of these values everywhere is a mask, too. Alpha is
        ignored.

    Returns
    -------
    ndarray of bool, shape [H, W]
        True where the defect is.

    Raises
    ------
    ImageError
        As ``read_image``; or the mask has colours, or other values than the above (a JPEG's, an annotation's
        with several classes).
    """
    path = Path(path)
    image, orientation = _load(path)
    values, deep = _mask_values(
        path, image, "not a binary mask: it has colours; needed is one channel, 0 and 255"
    )
    found = np.unique(values)
    for full in (1, 255, 65535) if deep else (1, 255):
        if np.isin(found, (0, full)).all():
            return _upright(values == full, orientation)
    odd = found[~np.isin(found, (0, 255))][0]
    reason = f"not a binary mask: it holds {odd} among {len(found)} values; needed: 0 and 255, or 0 and 1"
    raise ImageError(path, reason)


def read_classes(path: str | Path) -> NDArray[np.integer]:
    """Read a mask whose values are numbers of classes.

    Parameters
    ----------
    path : path
        An image of one channel, of a palette (whose indices are the numbers), or of colours that are all
        grey. Alpha is ignored.

    Returns
    -------
    ndarray of integers, shape [H, W]
        As stored; 0 where nothing is marked.

    Raises
    ------
    ImageError
        As ``read_image``; or the mask has colours.
    """
    path = Path(path)
    image, orientation = _load(path)
    if image.mode == "P":
        return _upright(np.asarray(image), orientation)
    values, _ = _mask_values(path, image, "has colours; needed is one channel that holds numbers of classes")
    return _upright(values, orientation)


def resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize a mask: a pixel is true where more than half of it is covered.

    Parameters
    ----------
    mask : ndarray of bool, shape [H, W]
    size : (height, width)
        In pixels.

    Returns
    -------
    ndarray of bool, shape [height, width]
        The mask itself where it has this size.

    Raises
    ------
    ValueError
        ``size`` is not two positive integers.
    """
    height, width = _checked_size(size)
    if mask.shape == (height, width):
        return mask
    # The box filter's output is the covered share of each pixel. "> 0" would grow every defect by a ring of
    # pixels.
    share = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    return np.asarray(share) > 0.5


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
    size = _checked_size(size)
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


def resize_map(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a float32 map [H, W] bilinearly (antialiased where it shrinks) to (height, width)."""
    height, width = _checked_size(size)
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
        _check_file(path)
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
            _check_size(path, page.imagewidth, page.imagelength)
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
        _check_file(path)
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
        _check_size(path, cols, rows)
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


def write_tiff(path: str | Path, values: NDArray[np.float32] | NDArray[np.float16]) -> None:
    """Write an anomaly map as a TIFF of one channel, uncompressed, whole or not at all.

    Parameters
    ----------
    path : path
        The file; parent folders are made.
    values : ndarray of float32 or float16, shape [H, W]
        Written as they are.

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
    data = encode_tiff(values)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def tiff_rows(path: str | Path, shape: tuple[int, int]) -> Iterator[Callable[[NDArray[np.float32]], None]]:
    """Write the file of ``write_tiff`` a few rows at a time, whole or not at all.

    Parameters
    ----------
    path : path
        The file; parent folders are made.
    shape : (height, width)
        Of the map, pixels.

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
    height, width = _checked_size(shape)
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
        tifffile.imwrite(temporary, shape=shape, dtype=np.float32, photometric="minisblack", metadata=None)
        with tifffile.TiffFile(temporary) as whole:
            start = whole.pages.first.dataoffsets[0]
        with temporary.open("r+b") as file:
            file.seek(start)
            yield write
        if left:
            raise ValueError(f"{left} rows of the map are missing")


def encode_tiff(values: NDArray[np.floating]) -> bytes:
    """What ``write_tiff`` writes."""
    if values.dtype not in (np.float32, np.float16):
        raise TypeError(f"a map must be float32 or float16, not {values.dtype}")
    if values.ndim != 2:
        raise ValueError(f"a map must be [H, W], not {list(values.shape)}")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="minisblack", metadata=None)
    return buffer.getvalue()


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


def _load(path: Path) -> tuple[Image.Image, int]:
    """Open and decode a file: the image as stored, and the EXIF orientation still to be applied."""
    with in_one_line(path):
        _check_file(path)
        with path.open("rb") as file:
            return _decode(path, file)


def _decode(path: Path, file: BinaryIO) -> tuple[Image.Image, int]:
    """An open file as ``_load`` gives it; within ``in_one_line``."""
    with Image.open(file, formats=FORMATS) as image:
        _check_header(path, image)
        image.load()
        # After load(): for TIFF, Pillow has then turned the pixels already and dropped the tag.
        return image.copy(), orientation_of(image)


def _read(path: Path, file: BinaryIO) -> Pixels:
    """An open file as ``read_image`` gives it; within ``in_one_line``."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_header(path, image)
            read_deep = deep_reader(image, file)
            if read_deep is None:
                image.load()
                return _upright(_as_rgb(path, image), orientation_of(image))
    except UnidentifiedImageError:
        file.seek(0)
        if file.read(4) not in TIFF:
            raise
        read_deep = read_tiff
    values, orientation = read_deep(path, file)
    return _upright(_three(values), orientation)


def _check_file(path: Path) -> None:
    """Refuse what is no file, or an empty one."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ImageError(path, "is a folder, not an image")
    if not stat.S_ISREG(mode):
        raise ImageError(path, "is not a regular file")  # opening a named pipe would wait for ever
    if path.stat().st_size == 0:
        raise ImageError(path, _EMPTY)


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


def _check_header(path: Path, image: Image.Image) -> None:
    """Refuse what the header already gives away, before any memory is spent on pixels."""
    _check_size(path, *image.size)
    # An MPO is what Pillow calls a JPEG with more behind it; its first image is the photograph.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(path, FRAMES)
    if image.mode == "F":
        raise ImageError(path, FLOATING)
    if image.mode not in _COLOUR_MODES and image.mode != "I" and not image.mode.startswith("I;16"):
        raise ImageError(path, f"has pixels of mode {image.mode}, which is not read; save it as RGB or grey")
    if isinstance(image, TiffImageFile):
        check_tiff(path, image)


def _check_size(path: Path, width: int, height: int) -> None:
    """Refuse what holds too many pixels, or none."""
    # Pillow only warns up to twice its limit. We compare for ourselves instead of turning the warning into an
    # error: warnings.catch_warnings changes the state of the whole process, and files are read in threads.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise TooLargeError(path, _bomb(f"{width}x{height}"))
    if width < 1 or height < 1:
        raise ImageError(path, f"has no pixels ({width}x{height})")


def _upright(array: NDArray, orientation: int) -> NDArray:
    """Apply the EXIF orientation to ``[H, W, ...]``: 2 to 4 mirror or turn by 180°, 5 to 8 swap the sides."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def _as_rgb(path: Path, image: Image.Image) -> Pixels:
    if image.mode in _COLOUR_MODES:
        if "transparency" in image.info:
            # Pillow would warn about palettes, or look for another colour to stand for the transparent one.
            # On a copy: the image may be the caller's.
            image = image.copy()
            del image.info["transparency"]
        return np.array(image.convert("RGB"))
    return _three(_deep_values(path, image).astype(np.uint16))


def _three(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """One channel [H, W] repeated three times; three as they are."""
    return np.repeat(values[:, :, None], 3, axis=2) if values.ndim == 2 else values


def _deep_values(path: Path, image: Image.Image) -> NDArray[np.int32]:
    """Grey values of more than 8 bits, within 0 to 65535."""
    values = np.asarray(image).astype(np.int32)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        reason = (
            f"has integer pixels from {low} to {high}, beyond 16 bits (0 to 65535); save it with 8 or 16 bits"
        )
        raise ImageError(path, reason)
    return values


def _mask_values(path: Path, image: Image.Image, coloured: str) -> tuple[NDArray, bool]:
    """Values ``[H, W]`` of a mask as stored, and whether they may use 16 bits; what to say of colours."""
    if image.mode not in _COLOUR_MODES:
        return _deep_values(path, image), True
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L")), False
    rgb = _as_rgb(path, image)
    if (rgb != rgb[:, :, :1]).any():
        raise ImageError(path, coloured)
    return rgb[:, :, 0], False


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
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
