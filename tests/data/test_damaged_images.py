"""Images, masks and maps that are damaged, that lie, or that are no files: read, or refused in one line."""

import io
import os
import pickle
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from damage import Readings, damaged
from PIL import Image

from glance_fast.data.images import read_image
from glance_fast.data.masks import read_classes, read_mask
from glance_fast.data.score_maps import read_map, read_map_rows, size_of_map, write_tiff
from glance_fast.data.strips import open_strips
from glance_fast.errors import ImageError, TooLargeError

SIDE = 24
MIB = 1 << 20


def encoded(kind, mode="RGB", **how):
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **how)
    return buffer.getvalue()


def tiff(values, **how):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **how)
    return buffer.getvalue()


def exif():
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = 6, "maker" * 9
    return tags


IMAGES = {
    "a.png": encoded("PNG"),
    "palette.png": encoded("PNG", "P"),
    "alpha.png": encoded("PNG", "LA"),
    "a.jpg": encoded("JPEG", exif=exif()),
    "cmyk.jpg": encoded("JPEG", "CMYK"),
    "a.bmp": encoded("BMP"),
    "a.tif": encoded("TIFF"),
    "lzw.tif": encoded("TIFF", compression="tiff_lzw"),
    "deflate.tif": encoded("TIFF", compression="tiff_deflate"),
    "jpeg.tif": encoded("TIFF", compression="jpeg"),
    "deep.tif": tiff(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)),
    "tiles.tif": tiff(np.zeros((32, 32, 3), np.uint8), tile=(16, 16), photometric="rgb"),
    "big.tif": tiff(np.zeros((SIDE, SIDE), np.uint8), bigtiff=True),
    "a.webp": encoded("WEBP"),
    "lossless.webp": encoded("WEBP", lossless=True, exif=exif()),
    "a.gif": encoded("GIF"),
    "a.ppm": encoded("PPM"),
    "a.pbm": encoded("PPM", "1"),
}
VALUES = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32)
MAPS = {
    "plain.tif": tiff(VALUES, metadata=None),
    "strips.tif": tiff(VALUES, rowsperstrip=5),
    "half.tif": tiff(VALUES.astype(np.float16)),
    "deflate.tif": tiff(VALUES, compression="deflate", rowsperstrip=7),
    "lzma.tif": tiff(VALUES, compression="lzma"),
    "tiles.tif": tiff(VALUES, tile=(16, 16), compression="deflate"),
    "big.tif": tiff(VALUES, bigtiff=True, byteorder=">"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", IMAGES)
def test_a_damaged_image_is_read_or_named(tmp_path, monkeypatch, name):
    # Headers may say any size; more is refused than memory of the machine that tests would bear.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)
    path, readings = tmp_path / name, Readings()
    for data in damaged(IMAGES[name], 1, 8):
        path.write_bytes(data)
        for read in (read_image, read_mask, read_classes):
            readings(path, read, path)
    readings.tell(name)
    assert readings.refused > 20 and readings.read + readings.refused == 120


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "deflate.tif", "tiles.tif", "a.webp", "a.gif"])
def test_a_damaged_image_read_in_parts_is_read_or_named(tmp_path, monkeypatch, name):
    pytest.importorskip("pyvips")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path, readings = tmp_path / name, Readings()

    def read():
        strips = open_strips(path)
        if strips.shape[0] * strips.shape[1] < 1 << 20:
            for top in range(0, strips.shape[0], 16):
                strips.rows(top, min(top + 16, strips.shape[0]))

    for data in damaged(IMAGES[name], 2, 12):
        path.write_bytes(data)
        readings(path, read)
    readings.tell(f"{name} in parts")
    assert readings.refused > 10


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", MAPS)
def test_a_damaged_map_is_read_or_named(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)
    path, readings = tmp_path / name, Readings()

    def read():
        values = read_map(path)
        assert np.isfinite(values).all() and values.ndim == 2

    for data in damaged(MAPS[name], 3, 12):
        path.write_bytes(data)
        readings(path, read)
        readings(path, lambda: [len(rows) for rows in read_map_rows(path, 100)])
        assert size_of_map(path) is None or len(size_of_map(path)) == 2
    readings.tell(f"map {name}")
    assert readings.refused > 30


# ---------------------------------------------------------------- what unpacks to more than it says


def bomb(packed, rows=SIDE, compression=8):
    """A TIFF map of one strip that holds these bytes."""
    tags = [
        (256, 4, SIDE),
        (257, 4, rows),
        (258, 3, 32),
        (259, 3, compression),
        (262, 3, 1),
        (273, 4, 8 + 2 + 12 * 10 + 4),
        (277, 3, 1),
        (278, 4, rows),
        (279, 4, len(packed)),
        (339, 3, 3),
    ]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return head + entries + bytes(4) + packed


def test_a_map_that_unpacks_to_more_than_its_pixels_is_refused_before_it_does(tmp_path):
    lzma = pytest.importorskip("lzma")
    path, right = tmp_path / "map.tif", np.ones((SIDE, SIDE), np.float32).tobytes()
    path.write_bytes(bomb(zlib.compress(right)))
    assert (read_map(path) == 1).all(), "the file is right but for its bytes"
    large = bytes(256 * MIB)
    for packed, compression in (
        (zlib.compress(large), 8),
        (zlib.compress(large), 32946),
        (lzma.compress(large, preset=0), 34925),
        (lzma.compress(right) + lzma.compress(large, preset=0), 34925),
    ):
        path.write_bytes(bomb(packed, compression=compression))
        tracemalloc.start()
        try:
            with pytest.raises(ImageError, match=r"map\.tif: unpacks to more than its pixels"):
                read_map(path)
            assert tracemalloc.get_traced_memory()[1] < 32 * MIB
        finally:
            tracemalloc.stop()


def png(*chunks):
    whole = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def header(width, height):
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


PIXELS = b"IDAT", zlib.compress(bytes(SIDE * (1 + 3 * SIDE)))
PACKED = zlib.compress(bytes(64 * MIB))
END = b"IEND", b""


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [
        png(header(1 << 20, 1 << 20), PIXELS, END),
        png(header(SIDE, 1 << 16), PIXELS, END),
        png(header(SIDE, SIDE), (b"zTXt", b"a\0\0" + PACKED), PIXELS, END),
        png(header(SIDE, SIDE), (b"iTXt", b"a\0\1\0\0\0" + PACKED), PIXELS, END),
        png(header(SIDE, SIDE), (b"iCCP", b"a\0\0" + PACKED), PIXELS, END),
        png(header(SIDE, SIDE), (b"IDAT", PACKED), END),
        b"P6 99999 99999 255\n" + bytes(99),
        b"P6 24 24 99999999\n" + bytes(99),
        b"P6 " + b"9" * 5000 + b" 24 255\n",
        b"GIF89a" + b"\xff\xff" * 2 + b"\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\2",
        bomb(zlib.compress(bytes(64 * MIB)), rows=1 << 24),
    ],
    ids=lambda data: ascii(data[1:50]),
)
def test_a_header_that_lies_costs_little(tmp_path, data):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    readings = Readings()
    tracemalloc.start()
    try:
        for read in (read_image, read_mask):
            readings(path, read, path)
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- what is no image, or no file


def test_what_is_no_regular_file_is_named_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "one.png").symlink_to("two.png")
    (tmp_path / "two.png").symlink_to("one.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "under.png").write_bytes(IMAGES["a.png"])
    readings = Readings()
    paths = [*tmp_path.iterdir(), tmp_path / "under.png/a.png", tmp_path / ("x" * 300), tmp_path / "a\0b.png"]
    for path in paths:
        for read in (read_image, read_mask, read_map, open_strips, lambda path: [*read_map_rows(path, 9)]):
            try:
                read(path)
            except ImageError as error:
                readings.refused += 1
                assert "\n" not in error.reason
            else:
                assert path.name == "under.png"
    readings.tell("no files")
    assert (readings.refused, readings.read) == (5 * 9 + 3, 0)


class Trap:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return self.place.touch, ()


def test_other_kinds_of_files_are_named_and_nothing_in_them_is_run(tmp_path):
    path, readings = tmp_path / "a.png", Readings()
    array = io.BytesIO()
    np.save(array, np.array([Trap(tmp_path / "sprung")], dtype=object), allow_pickle=True)
    for data in (
        pickle.dumps(Trap(tmp_path / "sprung")),
        array.getvalue(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run showpage\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
        b"PK\3\4" + bytes(99),
        b"#!/bin/sh\ntouch sprung\n",
        b"\x7fELF" + bytes(99),
        bytes(99),
        b"\xff" * 99,
        "größe".encode(),
    ):
        path.write_bytes(data)
        for read in (read_image, read_mask, read_map, open_strips):
            assert readings(path, read, path)
    assert not (tmp_path / "sprung").exists()
    readings.tell("other kinds")


def test_pages_that_lead_back_to_themselves_end(tmp_path):
    path = tmp_path / "loop.tif"
    data = bytearray(bomb(zlib.compress(VALUES.tobytes())))
    after = 8 + 2 + 12 * 10
    data[after : after + 4] = struct.pack("<I", 8)
    path.write_bytes(data)
    readings = Readings()
    for read in (read_image, read_mask, read_map, size_of_map):
        readings(path, read, path)
    assert readings.refused >= 2


def test_a_large_image_whose_name_is_no_utf8_is_read_or_named(tmp_path, monkeypatch):
    pytest.importorskip("pyvips")
    path = tmp_path / "latin-\udce9.png"
    path.write_bytes(IMAGES["a.png"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(TooLargeError):
        read_image(path)
    with pytest.raises(ImageError, match="its name is no UTF-8"):
        open_strips(path)


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif", "a.gif"])
def test_a_large_image_that_another_took_the_place_of_is_read_anew(tmp_path, monkeypatch, name):
    pytest.importorskip("pyvips")
    path = tmp_path / name
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path.write_bytes(IMAGES[name])
    before = open_strips(path).rows(0, SIDE)
    Image.new("RGB", (SIDE, SIDE)).save(path)
    assert before.any() and not open_strips(path).rows(0, SIDE).any()


def test_a_map_cut_between_its_rows_is_named(tmp_path):
    path = tmp_path / "map.tif"
    write_tiff(path, VALUES)
    path.write_bytes(path.read_bytes()[: -4 * SIDE])
    with pytest.raises(ImageError, match="pixels are missing at its end"):
        list(read_map_rows(path, 100))
