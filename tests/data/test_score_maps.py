"""Maps are read as they stand in their files; what is no map is one line that says so."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from glance_fast.data.score_maps import read_map
from glance_fast.errors import ImageError

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
