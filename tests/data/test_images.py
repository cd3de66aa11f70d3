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
from glance_fast.data.images import as_rgb, decode_image, read_image, resize, write_png
from glance_fast.data.score_maps import write_tiff
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
