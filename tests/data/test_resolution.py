"""A photograph's resolution is found as its file states it, and stands in the map; nonsense is none."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from glance_fast.data.images import read_image
from glance_fast.data.resolution import Resolution, resolution_of
from glance_fast.data.score_maps import read_map, read_map_rows, tiff_rows, write_tiff

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
MAP = np.random.default_rng(0).random((6, 9)).astype(np.float32)


def exif(orientation=1, **tags):
    block = Image.Exif()
    block[274] = orientation
    for name, value in tags.items():
        block[{"across": 282, "down": 283, "unit": 296}[name]] = value
    return block


def save(path, **how):
    Image.fromarray(PIXELS).save(path, **how)
    return path


def by_tifffile(path, **how):
    tifffile.imwrite(path, PIXELS, metadata=None, **how)
    return path


def png(path, across, down, unit=1):
    """A PNG with pHYs, whole pixels a metre."""
    save(path)
    data = path.read_bytes()
    body = b"pHYs" + struct.pack(">IIB", across, down, unit)
    chunk = struct.pack(">I", 9) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(data[:33] + chunk + data[33:])
    return path


def jfif(path, across, down, unit, **how):
    save(path, **how)
    data = bytearray(path.read_bytes())
    assert data[6:10] == b"JFIF"
    data[13:18] = struct.pack(">BHH", unit, across, down)
    path.write_bytes(data)
    return path


STATED = {
    "tiff inch": (lambda p: by_tifffile(p, resolution=(300, 150), resolutionunit="INCH"), (300, 150, "INCH")),
    "tiff cm": (
        lambda p: by_tifffile(p, resolution=((11811, 100), 50), resolutionunit="CENTIMETER"),
        (118.11, 50, "CENTIMETER"),
    ),
    "tiff of Pillow": (lambda p: save(p, format="TIFF", dpi=(72, 96)), (72, 96, "INCH")),
    "big tiff": (
        lambda p: by_tifffile(p, bigtiff=True, resolution=(40, 50), resolutionunit="INCH"),
        (40, 50, "INCH"),
    ),
    "png": (lambda p: png(p.with_suffix(".png"), 11811, 3937), (118.11, 39.37, "CENTIMETER")),
    "bmp": (lambda p: save(p, format="BMP", dpi=(254, 254)), (100, 100, "CENTIMETER")),
    "jpeg inch": (lambda p: jfif(p.with_suffix(".jpg"), 300, 200, 1), (300, 200, "INCH")),
    "jpeg cm": (lambda p: jfif(p.with_suffix(".jpg"), 118, 59, 2), (118, 59, "CENTIMETER")),
    # JFIF's pair is an aspect, and EXIF states a length.
    "jpeg exif": (
        lambda p: jfif(p.with_suffix(".jpg"), 1, 1, 0, exif=exif(across=240.5, down=120.25, unit=3)),
        (240.5, 120.25, "CENTIMETER"),
    ),
    "exif without a unit": (
        lambda p: jfif(p.with_suffix(".jpg"), 1, 1, 0, exif=exif(across=240.0, down=120.0)),
        (240, 120, "INCH"),
    ),
    "png exif": (
        lambda p: save(p, format="PNG", exif=exif(across=240.0, down=120.0, unit=2)),
        (240, 120, "INCH"),
    ),
}


@pytest.mark.parametrize(("make", "expected"), STATED.values(), ids=STATED)
def test_a_resolution_is_as_the_file_states_it(tmp_path, make, expected):
    found = resolution_of(make(tmp_path / "a.tif"))
    assert found is not None and found.unit == expected[2]
    assert found[:2] == pytest.approx(expected[:2], rel=1e-9)


TURNED = {
    "jpeg": lambda p, o: jfif(p.with_suffix(".jpg"), 300, 200, 1, exif=exif(o)),
    "png": lambda p, o: save(p, format="PNG", dpi=(300, 200), exif=exif(o)),
    "tiff": lambda p, o: by_tifffile(
        p, resolution=(300, 200), resolutionunit="INCH", extratags=[(274, 3, 1, o, True)]
    ),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("make", TURNED.values(), ids=TURNED)
def test_sides_that_are_swapped_swap_it(tmp_path, make, orientation):
    path = make(tmp_path / "a.tif", orientation)
    turned = read_image(path).shape[:2] == (9, 6)
    assert turned == (orientation >= 5)
    across, down, _ = resolution_of(path)
    assert (across > down) != turned and {round(across / down, 3), round(down / across, 3)} == {1.5, 0.667}


def damaged(path):
    path.write_bytes(save(path, format="JPEG", dpi=(300, 300)).read_bytes()[:8])
    return path


def rationals(across, down, unit=2, kind=5):
    """A TIFF whose resolution is two pairs of numbers, whatever they are, said to be of a type of TIFF's."""

    def make(path):
        by_tifffile(path, resolution=(300, 200), resolutionunit="INCH")
        data = bytearray(path.read_bytes())
        with tifffile.TiffFile(path) as file:
            tags = {code: file.pages.first.tags[code] for code in (282, 283, 296)}
        for code, pair in ((282, across), (283, down)):
            struct.pack_into("<II", data, tags[code].valueoffset, *pair)
            struct.pack_into("<H", data, tags[code].offset + 2, kind)
        struct.pack_into("<H", data, tags[296].valueoffset, unit)
        path.write_bytes(data)
        return path

    return make


NONSENSE = {
    "nothing stated": lambda p: save(p, format="PNG"),
    "no unit": rationals((300, 1), (200, 1), unit=1),
    "unit 0": rationals((300, 1), (200, 1), unit=0),
    "zero": rationals((0, 1), (200, 1)),
    "one of them zero": rationals((300, 1), (0, 1)),
    "divided by zero": rationals((300, 0), (200, 1)),
    "zero by zero": rationals((0, 0), (0, 0)),
    "huge": rationals((4_000_000_000, 1), (200, 1)),
    "tiny": rationals((1, 4_000_000_000), (200, 1)),
    "png aspect": lambda p: png(p.with_suffix(".png"), 2, 1, unit=0),
    "png of zero": lambda p: png(p.with_suffix(".png"), 0, 0),
    "jfif aspect": lambda p: jfif(p.with_suffix(".jpg"), 1, 1, 0),
    "jfif of zero": lambda p: jfif(p.with_suffix(".jpg"), 0, 0, 1),
    "negative": rationals((2**32 - 300, 1), (200, 1), kind=10),
    "text": rationals((300, 1), (200, 1), kind=2),
    "webp": lambda p: save(p, format="WEBP"),
    "damaged": damaged,
    "missing": lambda p: p,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_no_resolution(tmp_path, make):
    assert resolution_of(make(tmp_path / "a.tif")) is None


def test_an_image_too_large_for_pillow_has_one(tmp_path, monkeypatch):
    paths = [png(tmp_path / "a.png", 100, 200), jfif(tmp_path / "a.jpg", 300, 300, 1)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert all(resolution_of(path) is not None for path in paths)


@pytest.mark.parametrize("stated", [Resolution(300, 150.5, "INCH"), Resolution(118.11, 39.37, "CENTIMETER")])
def test_a_map_states_it(tmp_path, stated):
    write_tiff(tmp_path / "whole.tiff", MAP, stated)
    with tiff_rows(tmp_path / "rows.tiff", MAP.shape, stated) as write:
        write(MAP[:4])
        write(MAP[4:])
    assert (tmp_path / "whole.tiff").read_bytes() == (tmp_path / "rows.tiff").read_bytes()
    with tifffile.TiffFile(tmp_path / "whole.tiff") as file:
        page = file.pages.first
        unit = {"INCH": 2, "CENTIMETER": 3}[stated.unit]
        assert page.get_resolution(unit) == pytest.approx(stated[:2], rel=1e-9)
        assert page.resolutionunit == unit
    with Image.open(tmp_path / "whole.tiff") as image:
        inch = 1 if stated.unit == "INCH" else 2.54
        assert image.info["dpi"] == pytest.approx([inch * value for value in stated[:2]], rel=1e-6)
    np.testing.assert_array_equal(read_map(tmp_path / "whole.tiff"), MAP)
    np.testing.assert_array_equal(np.concatenate([*read_map_rows(tmp_path / "rows.tiff", 20)]), MAP)


def test_a_map_of_a_photograph_without_one_states_none(tmp_path):
    write_tiff(tmp_path / "a.tiff", MAP)
    assert resolution_of(tmp_path / "a.tiff") is None
