"""Rows of photographs: those of images too large to be decoded at once are the rows of the whole image."""

import sys

import deep
import numpy as np
import pytest
import tifffile
from PIL import Image

from glance_fast.data import strips as module
from glance_fast.data.images import read_image
from glance_fast.data.strips import Held, Streamed, open_strips
from glance_fast.errors import ImageError

SHAPE = 53, 40


@pytest.fixture
def large(monkeypatch):
    """Lets every image be too large to be decoded at once."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)


def save(path, mode="RGB", **how):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    smooth = np.stack([4 * y, 6 * x, 2 * y + 3 * x], axis=-1) + rng.integers(0, 4, (*SHAPE, 3))
    Image.fromarray(smooth.astype(np.uint8)).convert(mode).save(path, **how)
    return path


def in_parts(strips, depth=np.uint8):
    """All rows, read as tiles are: each part overlaps the one before."""
    height, out = strips.shape[0], []
    for top in range(0, height, 10):
        rows = strips.rows(top, min(top + 16, height))
        assert rows.dtype == depth
        out.append(rows[:10].copy())
    return np.concatenate(out)


@pytest.mark.parametrize(
    ("name", "mode", "how"),
    [
        ("a.png", "RGB", {}),
        ("a.png", "L", {}),
        ("a.png", "RGBA", {}),
        ("a.png", "LA", {}),
        ("a.tif", "RGB", {}),
        ("a.tif", "L", {"compression": "tiff_lzw"}),
        ("a.tif", "RGB", {"compression": "tiff_deflate"}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.gif", "L", {}),
    ],
)
def test_streamed_rows_are_those_of_the_image(tmp_path, monkeypatch, name, mode, how):
    path = save(tmp_path / name, mode, **how)
    whole = read_image(path)
    held = open_strips(path)
    assert isinstance(held, Held) and held.shape == SHAPE
    np.testing.assert_array_equal(in_parts(held), whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    streamed = open_strips(path)
    assert isinstance(streamed, Streamed) and streamed.shape == SHAPE
    np.testing.assert_array_equal(in_parts(streamed), whole)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "rgb.png", "rgb.tif", "rgba.png"])
def test_more_than_8_bits_are_streamed_as_they_are_stored(tmp_path, monkeypatch, name):
    values = deep.noise({"grey": 1, "rgb": 3, "rgba": 4}[name.split(".")[0]], 12, SHAPE)
    path = tmp_path / name
    if name.endswith("tif"):
        tifffile.imwrite(path, values, compression="deflate")
    else:
        path.write_bytes(deep.png(values))
    whole = read_image(path)
    assert whole.dtype == np.uint16 and whole.max() > 4000
    np.testing.assert_array_equal(in_parts(open_strips(path), np.uint16), whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    streamed = open_strips(path)
    assert isinstance(streamed, Streamed)
    np.testing.assert_array_equal(in_parts(streamed, np.uint16), whole)


def test_a_jpeg_is_nearly_the_same(tmp_path, monkeypatch):
    # Two decoders, whose rounding differs.
    path = save(tmp_path / "a.jpg", quality=95)
    whole = read_image(path).astype(int)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert np.abs(in_parts(open_strips(path)) - whole).max() <= 3


def test_rows_may_be_asked_for_again(tmp_path, large):
    strips = open_strips(save(tmp_path / "a.png"))
    first = strips.rows(0, 20).copy()
    np.testing.assert_array_equal(strips.rows(0, 8), first[:8])
    np.testing.assert_array_equal(strips.rows(8, 20), first[8:])


@pytest.mark.parametrize(
    ("name", "mode", "how", "message"),
    [
        ("a.jpg", "CMYK", {}, "this one is uchar, cmyk, of 4 channels"),
        ("a.tif", "F", {}, "this one is float, b-w, of 1 channels"),
        ("a.jpg", "RGB", {"exif": 6}, "is to be turned (EXIF orientation)"),
        ("a.gif", "L", {"frames": 2}, "holds several frames or pages"),
        ("a.ppm", "RGB", {}, "none of what is read in parts (PNG, JPEG, TIFF, WebP, GIF)"),
    ],
)
def test_what_is_not_read_in_parts_is_refused(tmp_path, large, name, mode, how, message):
    path = tmp_path / name
    if mode == "F":
        Image.fromarray(np.zeros(SHAPE, np.float32)).save(path)
    elif "exif" in how:
        exif = Image.Exif()
        exif[0x0112] = how["exif"]
        save(path, mode, exif=exif)
    elif "frames" in how:
        frames = [Image.fromarray(np.full(SHAPE, value, np.uint8)) for value in (0, 200)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    else:
        save(path, mode, **how)
    with pytest.raises(ImageError) as error:
        open_strips(path)
    assert message in error.value.reason and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_file_cut_short_is_told(tmp_path, large, name):
    path = save(tmp_path / name)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.raises(ImageError) as error:
        in_parts(open_strips(path))
    assert error.value.path == path and "damaged or truncated" in error.value.reason
    assert "\n" not in str(error.value)


def test_there_is_a_most(tmp_path, large, monkeypatch):
    monkeypatch.setattr(module, "MOST_PIXELS", 1000)
    with pytest.raises(ImageError, match="too large: 40x53 is above 1,000 pixels; cut it"):
        open_strips(save(tmp_path / "a.png"))


def test_without_pyvips_it_is_said_what_to_install(tmp_path, large, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(ImageError, match=r"too large .*pip install 'glance-fast\[large\]'"):
        open_strips(save(tmp_path / "a.png"))


def test_what_is_no_image_is_refused_as_ever(tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ImageError, match="is not an image of a kind that is read"):
        open_strips(tmp_path / "a.png")
