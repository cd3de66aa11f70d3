"""Files of more than 8 bits keep every bit, however they are stored; bad ones get a clear line."""

import io
import struct
import zlib

import deep
import numpy as np
import pytest
import tifffile
from PIL import Image

from glance_fast.data.images import as_rgb, decode_image, read_image
from glance_fast.errors import ImageError, UserError


def _three(values):
    return np.repeat(values[..., None], 3, axis=2) if values.ndim == 2 else values[..., :3]


def _as_tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **{"metadata": None, **options})
    return buffer.getvalue()


def _by_hand(values, packed, compression, end="<"):
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    tags = {256: width, 257: height, 258: (16,) * channels, 259: compression, 277: channels}
    data = packed(values.astype(f"{end}u2").tobytes())
    return deep.tiff(data, {**tags, 262: 1 if channels == 1 else 2}, end)


def _pgm(values, most, kind=b"P5", comment=b""):
    height, width = values.shape[:2]
    head = kind + b"\n" + comment + b"%d %d\n%d\n" % (width, height, most)
    if kind in (b"P2", b"P3"):
        return head + b" ".join(b"%d" % value for value in values.ravel())
    return head + values.astype(">u2").tobytes()


GREY, COLOURS = deep.noise(1), deep.noise(3)
WITH_ALPHA, GREY_ALPHA = deep.noise(4), deep.noise(2)
OF_12_BITS = deep.noise(1, 12)
RGB = {"photometric": "rgb"}
FILES = {
    "grey png": (GREY, deep.png(GREY)),
    "grey and alpha png": (GREY_ALPHA[..., 0], deep.png(GREY_ALPHA)),
    "colours png": (COLOURS, deep.png(COLOURS)),
    "colours and alpha png": (WITH_ALPHA, deep.png(WITH_ALPHA)),
    "interlaced png": (COLOURS, deep.png(COLOURS, interlaced=True)),
    "interlaced grey and alpha png": (GREY_ALPHA[..., 0], deep.png(GREY_ALPHA, interlaced=True)),
    "grey tiff": (GREY, _as_tiff(GREY)),
    "colours tiff": (COLOURS, _as_tiff(COLOURS, **RGB)),
    "big-endian tiff": (COLOURS, _as_tiff(COLOURS, byteorder=">", **RGB)),
    "big tiff": (COLOURS, _as_tiff(COLOURS, bigtiff=True, **RGB)),
    "strips": (COLOURS, _as_tiff(COLOURS, rowsperstrip=5, **RGB)),
    "tiles": (COLOURS, _as_tiff(COLOURS, tile=(16, 16), **RGB)),
    "alpha tiff": (WITH_ALPHA, _as_tiff(WITH_ALPHA, extrasamples=["unassalpha"], **RGB)),
    "multiplied alpha tiff": (WITH_ALPHA, _as_tiff(WITH_ALPHA, extrasamples=["assocalpha"], **RGB)),
    "unknown fourth": (WITH_ALPHA, _as_tiff(WITH_ALPHA, extrasamples=["unspecified"], **RGB)),
    "deflate": (COLOURS, _as_tiff(COLOURS, compression="zlib", **RGB)),
    "deflate, differences": (COLOURS, _as_tiff(COLOURS, compression="zlib", predictor=2, **RGB)),
    "deflate, big-endian": (COLOURS, _as_tiff(COLOURS, compression="zlib", byteorder=">", **RGB)),
    "deflate, tiles": (COLOURS, _as_tiff(COLOURS, compression="zlib", tile=(16, 16), **RGB)),
    "deflate, alpha": (WITH_ALPHA, _as_tiff(WITH_ALPHA, compression="zlib", extrasamples=[2], **RGB)),
    "deflate, unknown fourth": (
        WITH_ALPHA,
        _as_tiff(WITH_ALPHA, compression="zlib", extrasamples=[0], **RGB),
    ),
    "lzw": (COLOURS, _by_hand(COLOURS, deep.lzw, 5)),
    "lzw, big-endian": (COLOURS, _by_hand(COLOURS, deep.lzw, 5, ">")),
    "lzw, grey": (GREY, _by_hand(GREY, deep.lzw, 5)),
    "packbits": (COLOURS, _by_hand(COLOURS, deep.packbits, 32773)),
    "planes": (COLOURS, _as_tiff(COLOURS.transpose(2, 0, 1), planarconfig="separate", **RGB)),
    "planes, big-endian": (
        COLOURS,
        _as_tiff(COLOURS.transpose(2, 0, 1), planarconfig="separate", byteorder=">", **RGB),
    ),
    "planes, deflate": (
        COLOURS,
        _as_tiff(COLOURS.transpose(2, 0, 1), planarconfig="separate", compression="zlib", **RGB),
    ),
    "grey and alpha tiff": (
        GREY_ALPHA[..., 0],
        _as_tiff(GREY_ALPHA, photometric="minisblack", extrasamples=["unassalpha"]),
    ),
    "32 bits": (GREY, _as_tiff(GREY.astype(np.uint32))),
    "signed, none negative": (OF_12_BITS, _as_tiff(OF_12_BITS.astype(np.int16))),
    "pgm": (OF_12_BITS, _pgm(OF_12_BITS, 4095)),
    "pgm, a comment": (OF_12_BITS, _pgm(OF_12_BITS, 4095, comment=b"# 9 9\n#\n")),
    "pgm, plain": (OF_12_BITS, _pgm(OF_12_BITS, 4095, b"P2")),
    "ppm": (COLOURS, _pgm(COLOURS, 65535, b"P6")),
    "ppm of 12 bits": (deep.noise(3, 12), _pgm(deep.noise(3, 12), 4095, b"P6")),
    "ppm, plain": (COLOURS, _pgm(COLOURS, 65535, b"P3")),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FILES)
def test_every_bit_is_kept(tmp_path, name):
    values, data = FILES[name]
    image = read_image(deep.write(tmp_path / "x", data))
    assert image.dtype == np.uint16 and image.flags.c_contiguous and image.flags.writeable
    np.testing.assert_array_equal(image, _three(values))
    np.testing.assert_array_equal(decode_image(data), image)


def test_twelve_bits_packed():
    values = deep.noise(1, 12, (4, 6))
    bits = "".join(f"{value:012b}" for value in values.ravel())
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    file = deep.tiff(data, {256: 6, 257: 4, 258: 12, 259: 1, 262: 1, 277: 1})
    np.testing.assert_array_equal(decode_image(file), _three(values))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("planes", [False, True])
def test_orientation_is_applied_once(orientation, planes):
    tag = [(274, 3, 1, orientation, True)]
    stored = COLOURS.transpose(2, 0, 1) if planes else COLOURS
    kind = {"planarconfig": "separate"} if planes else {}
    image = decode_image(_as_tiff(stored, extratags=tag, **kind, **RGB))
    eight = decode_image(_as_tiff((COLOURS >> 8).astype(np.uint8), extratags=tag, **RGB))
    np.testing.assert_array_equal(image >> 8, eight)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_says_nothing():
    whole = deep.png(COLOURS)
    turned = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, 3, 0, 0)
    for block, expected in ((b"MM\0*" + b"\xff" * 4, COLOURS), (turned, COLOURS[::-1, ::-1])):
        data = whole[:33] + deep.chunk(b"eXIf", block) + whole[33:]
        np.testing.assert_array_equal(decode_image(data), expected)


def test_files_of_8_bits_stay_what_pillow_makes_of_them():
    eight = (COLOURS >> 8).astype(np.uint8)
    for data in (_as_tiff(eight, **RGB), _as_tiff(eight, compression="zlib", **RGB)):
        image = decode_image(data)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, eight)
    # Values up to 100, which Pillow stretches.
    image = decode_image(b"P5 2 1 100\n\x00\x64")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[..., 0], [[0, 255]])


@pytest.mark.parametrize("kind", ["tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg", None])
@pytest.mark.parametrize("colours", [False, True])
def test_tiff_of_8_bits_is_read_with_the_usual_compressions(kind, colours):
    values = np.full((16, 24, 3), (200, 90, 30), np.uint8) if colours else np.full((16, 24), 90, np.uint8)
    values[:, 12:] //= 2
    file = io.BytesIO()
    Image.fromarray(values).save(
        file, "TIFF", compression=kind, **({"quality": 100} if kind == "jpeg" else {})
    )
    image = decode_image(file.getvalue())
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image, _three(values), atol=12 if kind == "jpeg" else 0)


def _cut(name, share=0.6):
    data = FILES[name][1]
    return data[: int(len(data) * share)]


def _spectral(channels, dtype, **options):
    values = np.zeros((4, 5, channels), dtype)
    return _as_tiff(values, **{"photometric": "minisblack", "planarconfig": "contig", **options})


FIVE = "has 5 channels; photographs have one, or three colours"
CUT = "damaged or truncated: "
BAD = {
    **{f"cut {name}": (_cut(name), CUT) for name in FILES if "tiff" not in name and "pgm" not in name},
    **{f"cut {name}": (_cut(name), CUT) for name in ("grey tiff", "colours tiff", "pgm", "pgm, plain")},
    "cut grey and alpha tiff": (_cut("grey and alpha tiff"), CUT),
    "tiff without its beginning's end": (_cut("colours tiff", 0.01), CUT),
    "five": (_spectral(5, np.uint16), FIVE),
    "five of 8 bits": (_spectral(5, np.uint8), FIVE),
    "five as colours and two": (_spectral(5, np.uint16, photometric="rgb"), FIVE),
    "five as colours and two of 8 bits": (_spectral(5, np.uint8, photometric="rgb"), FIVE),
    "five planes": (
        _as_tiff(np.zeros((5, 4, 6), np.uint16), photometric="minisblack", planarconfig="separate"),
        FIVE,
    ),
    "four": (_spectral(4, np.uint8), "has 4 channels; "),
    "colours, signed": (
        COLOURS.astype(np.int16),
        "has pixels of type int16, which is not read; save it as grey",
    ),
    "colours of 32 bits": (COLOURS.astype(np.uint32), "has pixels of type uint32, which is not read"),
    "half floats": (_as_tiff(GREY.astype(np.float16)), "floating-point"),
    "colours, floating-point": (COLOURS.astype(np.float32), "floating-point"),
    "grey of 64 bits": (_as_tiff(GREY.astype(np.uint64)), "has pixels of type uint64, which is not read"),
    "signed bytes": (_as_tiff(GREY.astype(np.int8)), "has pixels of type int8, which is not read"),
    "palette": (
        _as_tiff(GREY, photometric="palette", colormap=np.zeros((3, 65536), np.uint16)),
        "has pixels of kind palette with 16 bits, which is not read",
    ),
    "two pages": (_as_tiff(np.zeros((2, 4, 5, 3), np.uint16), **RGB), "several frames or pages"),
    "planes with lzw": (
        deep.tiff(b"", {256: 2, 257: 2, 258: (16, 16), 259: 5, 262: 1, 277: 2, 338: 2}),
        "16 bits in this layout with LZW compression are not read; save it uncompressed, or install image",
    ),
    "pgm with too large a value": (_pgm(OF_12_BITS, 1023), "does not lie within 0 to 1023"),
    "pgm with letters": (b"P2 2 1 4095\n17 x", CUT),
    "pgm with less than nothing": (b"P2 2 1 4095\n17 -4", "does not lie within 0 to 4095"),
    "bomb": (
        deep.tiff(b"", {256: 60_000, 257: 60_000, 258: (16, 16), 259: 1, 262: 1, 277: 2, 338: 2}),
        "too large",
    ),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_one_clear_line(tmp_path, name):
    data, phrase = BAD[name]
    data = data if isinstance(data, bytes) else _as_tiff(data, **RGB)
    path = deep.write(tmp_path / "x.tif", data)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert phrase in caught.value.reason and "\n" not in str(caught.value)
    assert caught.value.path == path


def test_damage_inside_is_found():
    body = bytearray(FILES["deflate"][1])
    body[len(body) // 2 : len(body) // 2 + 40] = bytes(40)
    with pytest.raises(ImageError, match="damaged or truncated"):
        decode_image(bytes(body))
    row = zlib.compress(b"\0" * 3)
    wrong = deep.png(COLOURS).replace(deep.png(COLOURS)[41:-16], row)
    with pytest.raises(ImageError, match="damaged or truncated"):
        decode_image(wrong)


def test_arrays_and_grey_pil_images_are_taken_as_stored():
    for array in (GREY, GREY[..., None], COLOURS, WITH_ALPHA):
        image = as_rgb(array)
        assert image.dtype == np.uint16
        np.testing.assert_array_equal(image, _three(array.squeeze()))
    image = as_rgb(Image.fromarray(GREY))
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, _three(GREY))
    with pytest.raises(UserError, match=r"uint8 or uint16 array .* not uint16 \[4, 5, 5\]"):
        as_rgb(np.zeros((4, 5, 5), np.uint16))
