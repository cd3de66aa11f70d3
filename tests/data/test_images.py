"""Every odd image becomes the right pixels; every bad file one line that says what is wrong."""

import errno
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from glance_fast.data.files import atomic_write, remove_stale, write_text
from glance_fast.data.images import (
    as_rgb,
    decode_image,
    read_classes,
    read_image,
    read_map,
    read_mask,
    resize,
    resize_mask,
    write_png,
    write_tiff,
)
from glance_fast.errors import ImageError, UserError

GREY = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)
DEEP = np.array([[0, 128, 129], [257, 32896, 65535]], np.uint16)


def _grey_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _noise(height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_header(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head)


# ---------------------------------------------------------------- good but odd


def _rgb(path):
    Image.fromarray(RGB).save(path)
    return RGB


def _one_channel(path):
    Image.fromarray(GREY).save(path)
    return _grey_rgb(GREY)


def _one_bit(path):
    Image.fromarray(GREY > 120).save(path)
    return _grey_rgb(np.where(GREY > 120, 255, 0))


def _grey_alpha(path):
    Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(255 - GREY)]).save(path)
    return _grey_rgb(GREY)


def _rgb_alpha(path):
    Image.fromarray(np.dstack([RGB, GREY])).save(path)  # one pixel fully transparent, its colour still counts
    return RGB


def _palette(path):
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), mode=None).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 8, 9])
    image.save(path)
    colours = np.array([[10, 20, 30], [200, 100, 0], [7, 8, 9]])
    return colours[[[0, 1, 2], [2, 1, 0]]]


def _palette_transparent(path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.save(path, transparency=b"\x00\x80")
    return np.array([[10, 20, 30], [200, 100, 0]])[[[0, 1], [1, 0]]]


def _rgb_transparent(path):
    Image.fromarray(RGB).save(path, transparency=(0, 150, 255))
    return RGB


def _cmyk(path):
    Image.merge("CMYK", [Image.fromarray(c) for c in (*(255 - RGB).transpose(2, 0, 1), GREY * 0)]).save(path)
    return RGB


def _deep_png(path):
    Image.fromarray(DEEP).save(path)
    return _grey_rgb(DEEP)


def _deep_tiff_big_endian(path):
    tifffile.imwrite(path, DEEP, byteorder=">")
    return _grey_rgb(DEEP)


def _deep_tiff_32(path):
    tifffile.imwrite(path, DEEP.astype(np.int32))
    return _grey_rgb(DEEP)


def _deep_pgm(path):
    path.write_bytes(b"P5 3 2 65535\n" + DEEP.astype(">u2").tobytes())
    return _grey_rgb(DEEP)


def _deep_rgb_png(path):
    deep = RGB.astype(np.uint16) * 257
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in deep)
    path.write_bytes(_png_header(3, 2, bits=16) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b""))
    return deep


def _one_frame_gif(path):
    _one_channel(path)
    return _grey_rgb(GREY)


def _webp(path):
    Image.fromarray(RGB).save(path, lossless=True)
    return RGB


def _damaged_exif(path):
    Image.fromarray(RGB).save(path, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    return RGB


def _jpeg_with_preview(path):
    flat = np.full((16, 16, 3), 120, np.uint8)
    preview = Image.fromarray(flat[:8, :8] // 2)
    Image.fromarray(flat).save(path, format="MPO", save_all=True, append_images=[preview], quality=100)
    return flat


ODD = [
    ("rgb.png", _rgb),
    ("rgb.bmp", _rgb),
    ("rgb.tiff", _rgb),
    ("rgb.ppm", _rgb),
    ("Prüfling № 7 好.png", _rgb),
    ("grey.png", _one_channel),
    ("bit.png", _one_bit),
    ("bit.tif", _one_bit),
    ("la.png", _grey_alpha),
    ("rgba.png", _rgb_alpha),
    ("palette.png", _palette),
    ("transparent.png", _palette_transparent),
    ("cmyk.tif", _cmyk),
    ("deep.png", _deep_png),
    ("deep.tif", _deep_png),
    ("deep_be.tif", _deep_tiff_big_endian),
    ("deep_32.tif", _deep_tiff_32),
    ("deep.pgm", _deep_pgm),
    ("deep_rgb.png", _deep_rgb_png),
    ("one.gif", _one_frame_gif),
    ("x.webp", _webp),
    ("exif.png", _damaged_exif),
    ("mpo.jpg", _jpeg_with_preview),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "make"), ODD, ids=[name for name, _ in ODD])
def test_odd_image_has_the_right_pixels(tmp_path, name, make):
    path = tmp_path / name
    expected = make(path)
    image = read_image(path)
    assert image.dtype == (np.uint16 if name.startswith("deep") else np.uint8)
    assert image.flags.c_contiguous and image.flags.writeable
    np.testing.assert_array_equal(image, expected)
    # The same from its bytes.
    image = decode_image(path.read_bytes())
    assert image.flags.c_contiguous and image.flags.writeable
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(RGB).save(path, exif=exif)
    stored = Image.fromarray(RGB)
    stored.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(read_image(path), np.asarray(ImageOps.exif_transpose(stored)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", [_palette_transparent, _rgb_transparent])
def test_a_pil_image_stays_as_it_was(tmp_path, make):
    rgb = make(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        image.load()
        before = dict(image.info)
        assert "transparency" in before
        np.testing.assert_array_equal(as_rgb(image), rgb)
        assert image.info == before


def test_content_decides_not_the_name(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    Image.fromarray(RGB).save(path, format="PNG")
    np.testing.assert_array_equal(read_image(path), RGB)


# ---------------------------------------------------------------- bad


def _cut(suffix, share, **options):
    def make(path):
        whole = path.with_name("whole" + suffix)
        Image.fromarray(_noise()).save(whole, **options)
        path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])

    return make


def _flipped_bytes(path):
    Image.fromarray(_noise()).save(path)
    body = bytearray(path.read_bytes())
    body[2000:2100] = bytes(100)
    path.write_bytes(body)


def _two_frames(path):
    frames = [Image.fromarray(_noise() // k) for k in (1, 2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _post_script(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


BAD = {
    "missing.png": (lambda path: None, "no such file"),
    "folder.png": (lambda path: path.mkdir(), "is a folder"),
    "empty.png": (lambda path: path.write_bytes(b""), "is empty"),
    "text.png": (lambda path: path.write_text("not an image\nat all\n"), "is not an image of a kind"),
    "eps.png": (_post_script, "is not an image of a kind"),
    "in_header.png": (_cut(".png", 0.001), "is not an image of a kind"),
    "half.png": (_cut(".png", 0.5), "damaged or truncated"),
    "nearly.png": (_cut(".png", 0.98), "damaged or truncated"),
    "half.jpg": (_cut(".jpg", 0.5), "damaged or truncated"),
    "half.bmp": (_cut(".bmp", 0.5), "damaged or truncated"),
    "half.tif": (_cut(".tif", 0.5), "damaged or truncated"),
    "half.webp": (_cut(".webp", 0.5, lossless=True), "damaged or truncated"),
    "flipped.png": (_flipped_bytes, "damaged or truncated"),
    "float.tif": (lambda path: tifffile.imwrite(path, np.ones((4, 4), np.float32)), "floating-point"),
    "wide.tif": (lambda path: tifffile.imwrite(path, np.full((2, 2), 70000, np.int32)), "beyond 16 bits"),
    "negative.tif": (lambda path: tifffile.imwrite(path, np.full((2, 2), -1, np.int16)), "beyond 16 bits"),
    "moving.gif": (_two_frames, "several frames"),
    "moving.png": (_two_frames, "several frames"),
    "moving.webp": (_two_frames, "several frames"),
    "pages.tif": (_two_frames, "several frames"),
    "lab.tif": (lambda path: Image.new("LAB", (2, 2)).save(path), "mode LAB"),
    # 10,000 x 10,000 is where Pillow only warns, 20,000 x 20,000 where it refuses.
    "large.png": (
        lambda path: path.write_bytes(_png_header(10_000, 10_000) + _chunk(b"IDAT", b"")),
        "too large",
    ),
    "bomb.png": (
        lambda path: path.write_bytes(_png_header(20_000, 20_000) + _chunk(b"IDAT", b"")),
        "too large",
    ),
    "nul\0.png": (lambda path: None, "null"),
    "x" * 300 + ".png": (lambda path: None, "cannot be read: File name too long"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD, ids=lambda name: ascii(name[:20]))
def test_bad_file_is_one_clear_line(tmp_path, name):
    make, phrase = BAD[name]
    make(tmp_path / name)
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / name)
    assert phrase in caught.value.reason
    assert caught.value.path == tmp_path / name
    assert "\n" not in str(caught.value)
    if "\0" not in name and (tmp_path / name[:200]).is_file():
        with pytest.raises(ImageError) as again:
            decode_image((tmp_path / name).read_bytes(), "sent")
        assert again.value.reason == caught.value.reason and str(again.value.path) == "sent"


@pytest.mark.parametrize("name", ["half.png", "half.tif", "flipped.png", "wide.tif", "moving.gif"])
def test_bad_pil_image_is_one_clear_line(tmp_path, name):
    make, phrase = BAD[name]
    make(tmp_path / name)
    # Opened, and not yet decoded.
    with Image.open(tmp_path / name) as image, pytest.raises(ImageError) as caught:
        as_rgb(image)
    assert phrase in caught.value.reason and "\n" not in str(caught.value)


def test_an_error_comes_out_of_a_worker_process_as_it_was():
    error = ImageError("a/b.png", "is empty (0 bytes)")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is ImageError
    assert (str(copy), copy.path, copy.reason) == (str(error), error.path, error.reason)


@pytest.mark.filterwarnings("error")
def test_bomb_is_refused_where_warnings_are_errors(tmp_path):
    BAD["large.png"][0](tmp_path / "x.png")
    with pytest.raises(ImageError, match="too large"):
        read_image(tmp_path / "x.png")


def test_raised_pixel_limit_is_heeded(tmp_path, monkeypatch):
    write_png(tmp_path / "x.png", _noise())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with pytest.raises(ImageError, match="too large"), pytest.warns(Image.DecompressionBombWarning):
        read_image(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(tmp_path / "x.png").shape == (64, 64, 3)


def test_no_permission(tmp_path, monkeypatch):
    write_png(tmp_path / "x.png", _noise())

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop a root user
    with pytest.raises(ImageError, match="no permission"):
        read_image(tmp_path / "x.png")


def test_decoder_that_says_much_is_still_one_line(tmp_path, monkeypatch):
    def complain(*_, **__):
        raise SyntaxError("first\n  second\n")

    write_png(tmp_path / "x.png", RGB)
    monkeypatch.setattr(Image, "open", complain)
    with pytest.raises(ImageError, match=r"damaged or truncated: first second$"):
        read_image(tmp_path / "x.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "pipe.png")


# ---------------------------------------------------------------- masks

SQUARE = np.zeros((6, 8), bool)
SQUARE[1:4, 2:5] = True


@pytest.mark.parametrize(
    "stored",
    [
        SQUARE * np.uint8(255),
        SQUARE * np.uint8(1),
        SQUARE,
        SQUARE * np.uint16(65535),
        SQUARE * np.uint16(1),
        _grey_rgb(SQUARE * np.uint8(255)),
        np.dstack([_grey_rgb(SQUARE * np.uint8(255)), np.full(SQUARE.shape, 255, np.uint8)]),
    ],
    ids=["0-255", "0-1", "1 bit", "16 bit", "16 bit 0-1", "rgb", "rgba"],
)
def test_mask_is_read(tmp_path, stored):
    Image.fromarray(stored).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, SQUARE)


@pytest.mark.parametrize(("value", "expected"), [(0, False), (1, True), (255, True)])
def test_mask_of_one_value(tmp_path, value, expected):
    write_png(tmp_path / "m.png", np.full((3, 4), value, np.uint8))
    assert (read_mask(tmp_path / "m.png") == expected).all()


@pytest.mark.parametrize(
    ("stored", "phrase"),
    [
        (np.array([[0, 1, 255]], np.uint8), "it holds 1 among 3"),
        (np.array([[0, 128]], np.uint8), "it holds 128 among 2"),
        (np.full((2, 2), 128, np.uint8), "it holds 128 among 1"),
        (np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8), "colours"),
        (np.array([[0, 300]], np.uint16), "it holds 300"),
    ],
)
def test_mask_that_is_not_binary(tmp_path, stored, phrase):
    Image.fromarray(stored).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=phrase):
        read_mask(tmp_path / "m.png")


def test_resized_mask_needs_more_than_half(tmp_path):
    big = np.zeros((4, 8), bool)
    big[0, 0] = True  # a quarter of its output pixel
    big[:2, 2] = True  # exactly half
    big[:2, 4:6] = big[2:, 6:] = True
    big[0, 6] = False
    big[2, 0:2] = big[3, 0] = True  # three quarters
    write_png(tmp_path / "m.png", big * np.uint8(255))
    expected = [[False, False, True, False], [True, False, False, True]]
    np.testing.assert_array_equal(resize_mask(read_mask(tmp_path / "m.png"), (2, 4)), expected)
    np.testing.assert_array_equal(
        resize_mask(read_mask(tmp_path / "m.png"), (8, 16)), big.repeat(2, 0).repeat(2, 1)
    )
    np.testing.assert_array_equal(resize_mask(read_mask(tmp_path / "m.png"), (4, 8)), big)


def test_resized_mask_is_the_majority_of_what_is_below(tmp_path):
    mask = np.random.default_rng(0).random((36, 45)) > 0.5
    write_png(tmp_path / "m.png", mask * np.uint8(255))
    majority = mask.reshape(12, 3, 15, 3).sum(axis=(1, 3)) >= 5
    np.testing.assert_array_equal(resize_mask(read_mask(tmp_path / "m.png"), (12, 15)), majority)


# ---------------------------------------------------------------- resize


def test_resize_does_not_alias():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # the finest pattern there is: without antialiasing it stays black or white
    small = resize(stripes, (64, 60))
    assert small.shape == (64, 60, 3)
    assert abs(small[8:-8, 8:-8].astype(int) - 128).max() <= 8


@pytest.mark.parametrize("size", [(32, 48), (7, 5), (200, 100)])
def test_resize_keeps_a_ramp_and_its_orientation(size):
    ramp = np.zeros((128, 96, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 128)[:, None].round()
    ramp[..., 1] = np.linspace(0, 255, 96).round()
    small = resize(ramp, size).astype(float)
    rows, columns = ((np.arange(n) + 0.5) / n for n in size)
    inner = slice(2, -2) if min(size) > 8 else slice(1, -1)
    assert np.abs(small[inner, inner, 0] - rows[inner, None] * 255).max() < 4
    assert np.abs(small[inner, inner, 1] - columns[inner] * 255).max() < 4
    assert small[..., 2].max() == 0


@pytest.mark.parametrize("size", [(60, 64), (300, 70), (1300, 500)])
def test_resize_does_not_depend_on_the_version_of_pillow(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    lanczos = Image.Resampling.LANCZOS
    # Columns that shrink more than rows are resized in this order by all versions.
    wide = image.swapaxes(0, 1) if size[0] > size[1] else image
    once = Image.fromarray(wide).resize((48, 64), lanczos, reducing_gap=3.0)
    np.testing.assert_array_equal(resize(wide, (64, 48)), once)
    if max(size) < 6 * 48:
        rows = Image.fromarray(image).resize((48, size[0]), lanczos)
        np.testing.assert_array_equal(resize(image, (64, 48)), rows.resize((48, 64), lanczos))


def test_resize_to_the_same_size_is_a_copy():
    image = _noise()
    same = resize(image, (64, 64))
    np.testing.assert_array_equal(same, image)
    assert not np.shares_memory(same, image)


@pytest.mark.parametrize(
    ("image", "size", "error"),
    [
        (np.zeros((4, 4, 3), np.float32), (2, 2), TypeError),
        (np.zeros((4, 4), np.uint8), (2, 2), ValueError),
        (np.zeros((4, 4, 3), np.uint8), (0, 2), ValueError),
        (np.zeros((4, 4, 3), np.uint8), (2.5, 2), ValueError),
    ],
)
def test_resize_refuses(image, size, error):
    with pytest.raises(error):
        resize(image, size)


def _palette(indices):
    image = Image.fromarray(indices, "P")
    image.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10, 0, 0, 0])
    return image


@pytest.mark.parametrize(
    "save",
    [
        Image.fromarray,
        lambda values: Image.fromarray(values.astype(np.uint16)),
        lambda values: Image.fromarray(_grey_rgb(values)),
        # Two classes may have one colour.
        _palette,
    ],
    ids=["grey", "16 bit", "rgb", "palette"],
)
def test_numbers_of_classes_are_read_as_they_are_stored(tmp_path, save):
    classes = SQUARE * np.uint8(3)
    classes[0, 0] = 2
    save(classes).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_classes(tmp_path / "m.png"), classes)


def test_colours_are_no_classes(tmp_path):
    Image.fromarray(np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(
        ImageError, match=r"m\.png: has colours; needed is one channel that holds numbers of cl"
    ):
        read_classes(tmp_path / "m.png")


# ---------------------------------------------------------------- writing


def test_written_files_read_back(tmp_path):
    for kind in (np.float16, np.float32):
        values = np.random.default_rng(0).normal(size=(5, 7)).astype(kind)
        write_tiff(tmp_path / "deep" / "a.tiff", values)
        back = tifffile.imread(tmp_path / "deep" / "a.tiff")
        assert back.dtype == kind
        np.testing.assert_array_equal(back, values)

    write_png(tmp_path / "a.png", RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)
    write_text(tmp_path / "a.csv", "Prüfling,1\n")
    assert (tmp_path / "a.csv").read_bytes() == "Prüfling,1\n".encode()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.png", "deep"]


MAP = np.random.default_rng(0).random((37, 53)).astype(np.float32)


def _by_tifffile(**options):
    return lambda path, values: tifffile.imwrite(path, values, **options)


def _by_pillow(compression, predictor=1):
    return lambda path, values: Image.fromarray(values).save(
        path, "TIFF", compression=compression, tiffinfo={317: predictor}
    )


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "write",
    [
        _by_tifffile(),
        _by_tifffile(byteorder=">"),
        _by_tifffile(compression="zlib"),
        _by_tifffile(compression="zlib", tile=(16, 32)),
        _by_tifffile(compression="lzma"),
    ],
    ids=["plain", "big-endian", "deflate", "tiles", "lzma"],
)
def test_a_map_is_read_as_it_stands_in_the_file(tmp_path, write, kind):
    write(tmp_path / "a.tiff", MAP.astype(kind))
    found = read_map(tmp_path / "a.tiff")
    assert found.dtype == np.dtype(kind) and found.dtype.isnative
    assert np.array_equal(found, MAP.astype(kind))


@pytest.mark.parametrize("predictor", [1, 3])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_float32_map_of_any_compression(tmp_path, compression, predictor):
    _by_pillow(compression, predictor)(tmp_path / "a.tiff", MAP)
    found = read_map(tmp_path / "a.tiff")
    assert found.dtype == np.float32 and np.array_equal(found, MAP)


@pytest.mark.parametrize("shape", [(1, 37, 53), (37, 53, 1), (1, 53), (53, 1)])
def test_a_map_of_one_channel_or_row(tmp_path, shape):
    values = np.resize(MAP, shape)
    tifffile.imwrite(tmp_path / "a.tiff", values)
    found = read_map(tmp_path / "a.tiff")
    assert found.shape == ((37, 53) if len(shape) == 3 else shape)
    assert np.array_equal(found.ravel(), values.ravel())


def _marked(place, value, kind=np.float32):
    values = MAP.astype(kind)
    values[place] = value
    return values


@pytest.mark.parametrize(
    ("values", "phrase"),
    [
        (_marked((3, 4), np.nan), "holds NaN, infinity, or a value too large for float32"),
        (_marked((0, 0), -np.inf), "holds NaN"),
        (_marked((0, 0), np.inf, np.float16), "holds NaN"),
        (_marked((0, 0), 1e60, np.float64), "too large for float32"),
        ((MAP * 255).astype(np.uint8), "holds uint8 [37, 53]; a map is float32 or float16"),
        (np.stack([MAP] * 3, -1), "holds float32 [37, 53, 3]; a map is"),
        (MAP.astype(np.complex64), "holds complex64"),
    ],
)
def test_what_is_no_map(tmp_path, values, phrase):
    tifffile.imwrite(tmp_path / "a.tiff", values, photometric="rgb" if values.ndim == 3 else None)
    with pytest.raises(ImageError) as caught:
        read_map(tmp_path / "a.tiff")
    assert phrase in str(caught.value) and str(caught.value).startswith(f"{tmp_path / 'a.tiff'}: ")


def test_a_map_of_several_pages(tmp_path):
    tifffile.imwrite(tmp_path / "a.tiff", np.stack([MAP, MAP]), photometric="minisblack")
    with pytest.raises(ImageError, match="holds 2 pages; a map is one, of one channel"):
        read_map(tmp_path / "a.tiff")


def test_a_damaged_map_is_one_line(tmp_path, capfd, monkeypatch):
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, MAP)
    whole = path.read_bytes()
    _by_pillow("tiff_lzw")(path, MAP)
    packed = path.read_bytes()
    for content in (b"", b"II*\0garbage", b"no tiff", whole[:3000], whole[:9], packed[:3000]):
        path.write_bytes(content)
        with pytest.raises(ImageError) as caught:
            read_map(path)
        assert "\n" not in str(caught.value)
    for gone, phrase in ((tmp_path / "none.tiff", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(ImageError, match=phrase):
            read_map(gone)
    path.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="too large: 53x37"):
        read_map(path)
    # tifffile's own remarks would be lines beside ours.
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "reason", [KeyError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package"), ImportError()]
)
def test_a_compression_that_nobody_here_decodes(tmp_path, monkeypatch, reason):
    def fail(page):
        raise reason

    tifffile.imwrite(tmp_path / "a.tiff", MAP.astype(np.float16))
    monkeypatch.setattr(tifffile.TiffPage, "asarray", fail)
    with pytest.raises(
        ImageError, match=r"float16 with NONE compression .*; save it uncompressed, or install"
    ):
        read_map(tmp_path / "a.tiff")


@pytest.mark.parametrize(
    ("write", "value", "error"),
    [
        (write_tiff, np.zeros((2, 2)), TypeError),
        (write_tiff, np.zeros((1, 2, 2), np.float32), ValueError),
        (write_png, np.zeros((2, 2, 3)), TypeError),
        (write_png, np.zeros((2, 2, 4), np.uint8), ValueError),
    ],
)
def test_wrong_array_is_refused_before_anything_is_written(tmp_path, write, value, error):
    with pytest.raises(error):
        write(tmp_path / "x", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_failed_write_leaves_the_old_file(tmp_path, failure):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(failure), atomic_write(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.startswith(".")
        temporary.write_text("half of the ne")
        raise failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_one_line(tmp_path):
    expected = pytest.raises(UserError, match=r"a\.txt: cannot be written: No space left")
    with expected as caught, atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("write", "value"),
    [(write_tiff, np.zeros((64, 64), np.float32)), (write_png, _noise(64, 64))],
    ids=["tiff", "png"],
)
def test_a_disk_that_fills_under_an_image_is_told_from_other_faults(tmp_path, write, value):
    resource = pytest.importorskip("resource")
    # A limit of a file's size stands for the end of the disk: the header fits, the pixels do not.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match=r"a\.image: cannot be written: File too large$") as caught:
            write(tmp_path / "a.image", value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.__cause__.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EROFS, "; choose another folder"),
        (errno.EACCES, "; change its permissions or choose another folder"),
        (errno.EPERM, "; change its permissions or choose another folder"),
        (errno.EIO, ""),
    ],
)
def test_a_place_that_may_not_be_written_needs_another(tmp_path, code, advice):
    with pytest.raises(UserError) as caught, atomic_write(tmp_path / "a.txt"):
        raise OSError(code, os.strerror(code))
    assert str(caught.value) == f"{tmp_path / 'a.txt'}: cannot be written: {os.strerror(code)}{advice}"


def test_stale_files_are_removed_where_they_are_ours_alone(tmp_path):
    out, name = tmp_path / "out", ".tmp-0123456789abcdef"
    ours = (f"{name}.csv", name, f"maps/{name}.tiff", f"maps/deep/er/{name}.tiff")
    others = (
        *(f"maps/{name}0.tiff", f"maps/{name.upper()}", "maps/.tmp-", "maps/.tmp-notes.txt", f"maps/a{name}"),
        *("a.csv", "maps/a.tiff", f"theirs/{name}.csv"),
    )
    for file in (*ours, *others):
        write_text(out / file, "x")
    write_text(tmp_path / "elsewhere" / name, "x")
    (out / "maps" / "link").symlink_to(tmp_path / "elsewhere")
    (out / "maps" / f"{name}.folder").mkdir()
    remove_stale(out, ("maps", "none", "a.csv"))
    left = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert left == set(others)
    assert (tmp_path / "elsewhere" / name).is_file() and (out / "maps" / f"{name}.folder").is_dir()


def test_a_killed_process_leaves_what_is_recognised_as_stale(tmp_path):
    code = "import os, sys; from glance_fast.data.files import atomic_write\n"
    code += "with atomic_write(sys.argv[1]) as path: path.write_text('half'); os._exit(1)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.tar.gz"], check=False, timeout=100)
    assert len(list(tmp_path.iterdir())) == 1
    remove_stale(tmp_path, ())
    assert not list(tmp_path.iterdir())


def test_target_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "x")  # its folder is a file
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "folder", "x")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def test_written_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
