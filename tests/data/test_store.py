"""Folders on a disk and in a store: the same names, the same bytes, and no secret in what is said."""

import errno
import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from glance_fast.data.folders import list_images
from glance_fast.data.images import read_image
from glance_fast.data.store import Bucket, Folder, check_apart, is_url, open_store, without_secrets
from glance_fast.errors import ImageError, UserError

NAMES = ["2.png", "10.JPG", "a/1.png", "a/b/größe 部品.bmp"]
NO_IMAGES = [".hidden/1.png", "a/._1.png", "a/notes.txt", "maps/1.csv"]


@pytest.fixture
def folder(tmp_path):
    store = Folder(tmp_path / "store")
    (tmp_path / "store").mkdir()
    return store


@pytest.fixture
def bucket():
    """A store in this process's memory."""
    memory = pytest.importorskip("fsspec", reason="fsspec is missing: pip install -e '.[cluster]'").filesystem
    memory("memory").store.clear()
    yield Bucket("memory://bucket/store")
    memory("memory").store.clear()


@pytest.fixture(params=["folder", "bucket"])
def store(request):
    return request.getfixturevalue(request.param)


def test_files_are_written_listed_read_and_removed(store):
    assert store.names() == set() and store.text("run.json") is None
    for name in (*NAMES, *NO_IMAGES):
        store.write(name, name.encode())
    assert store.names() == {*NAMES, *NO_IMAGES}
    assert store.names("a") == {name for name in (*NAMES, *NO_IMAGES) if name.startswith("a/")}
    assert store.names("none") == set()
    assert store.images() == NAMES
    store.write("2.png", b"anew")
    assert store.read("2.png") == b"anew" and store.text("a/notes.txt") == "a/notes.txt"
    with store.on_disk("10.JPG") as path:
        assert path.read_bytes() == b"10.JPG"
    store.remove(["2.png", "a/1.png"])
    assert store.names() == {*NAMES, *NO_IMAGES} - {"2.png", "a/1.png"}
    store.remove([])
    with pytest.raises(FileNotFoundError):
        store.read("2.png")


def test_a_store_lists_what_a_folder_does(folder, bucket):
    for name in (*NAMES, *NO_IMAGES):
        folder.write(name, b"x")
        bucket.write(name, b"x")
    assert bucket.images() == folder.images()
    assert folder.images() == [path.relative_to(folder.path).as_posix() for path in list_images(folder.path)]


def test_no_image_is_told(store):
    store.write("notes.txt", b"x")
    with pytest.raises(UserError, match=r"store: no image in this folder or below it \(looked for .*\.png"):
        store.images()


def test_images_are_read_alike_and_what_is_wrong_with_one_is_its_own(store, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", dpi=(254, 127))
    store.write("a.png", buffer.getvalue())
    store.write("empty.png", b"")
    store.write("bad.png", b"bad")
    pixels, resolution = store.image("a.png")
    assert (pixels == image).all() and resolution == (100, 50, "CENTIMETER")
    for name, reason in (
        *(("empty.png", "is empty"), ("bad.png", "is not an image of a kind")),
        ("none.png", "no such file"),
    ):
        with pytest.raises(ImageError, match=reason):
            store.image(name)


def test_names_in_a_store_that_no_disk_can_have_are_refused(bucket):
    for name in ("../a.png", "a//b.png", "a/./b.png"):
        with pytest.raises(ImageError, match="has an empty part, or one of dots alone"):
            bucket.image(name)


def test_a_name_too_long_is_that_files_fault(bucket):
    with pytest.raises(UserError, match="File name too long") as caught:
        bucket.write("a" * 1020, b"")
    assert caught.value.__cause__.errno == errno.ENAMETOOLONG


def test_a_link_out_of_a_folder_is_not_written_through(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder.path / "maps").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out of it"):
        folder.write("maps/a.tiff", b"x")


def test_names_that_are_no_utf8(folder):
    name = os.fsdecode(b"gr\xf6sse.png")
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(folder.path / "a.png")
    try:
        (folder.path / "a.png").rename(folder.path / name)
    except OSError:
        pytest.skip("this file system takes no such names")
    assert folder.images() == [name] == list(folder.names())
    assert (folder.image(name)[0] == read_image(folder.path / name)).all()
    assert "\\xf6" in folder.at(name) or "\\udcf6" in folder.at(name)


def test_what_is_a_store_and_what_a_folder(tmp_path):
    assert is_url("s3://bucket/a") and is_url("gs://b") and not is_url("a/b") and not is_url(tmp_path)
    assert isinstance(open_store("a/b"), Folder) and isinstance(open_store(tmp_path), Folder)
    assert open_store(f"file://{tmp_path}/a%20b").path == tmp_path / "a b"
    assert (
        isinstance(open_store("s3://bucket/a/"), Bucket)
        and str(open_store("s3://bucket/a/")) == "s3://bucket/a"
    )
    assert str(pickle.loads(pickle.dumps(Bucket("s3://user:secret@host/a")))) == "s3://host/a"


@pytest.mark.parametrize(
    ("out", "images", "message"),
    [
        ("s3://b/a", "s3://b/a/", "is the folder that is read"),
        ("s3://b", "s3://b/a", "holds s3://b/a, which is read"),
        ("s3://b/a/scores", "s3://b/a", "would be taken for photographs"),
    ],
)
def test_out_and_images_are_apart(out, images, message):
    with pytest.raises(UserError, match=message):
        check_apart(open_store(out), open_store(images))
    check_apart(open_store("s3://b/ab"), open_store("s3://b/a"))
    check_apart(open_store("s3://b/a"), open_store("b/a"))


def test_no_secret_is_said():
    for secret in (
        "https://user:pw@host/a?X-Amz-Signature=pw",
        "at s3://k:pw@b/c: https://h/x?sig=pw refused",
    ):
        assert "pw" not in without_secrets(secret)
    assert without_secrets("https://user:pw@host/a?b=c") == "https://host/a"
    assert without_secrets("is s3://b/a there?") == "is s3://b/a there?"
    store = open_store("nostore://user:pw@host/a?sig=pw")
    assert "pw" not in store.identity
    if pytest.importorskip("fsspec", reason="fsspec is missing: pip install -e '.[cluster]'"):
        with pytest.raises(
            UserError, match="nostore://host/a: cannot be opened: fsspec knows no such"
        ) as caught:
            store.images()
        assert "pw" not in str(caught.value)


def test_fsspec_that_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"needs fsspec: pip install 'glance-fast\[cluster\]'"):
        Bucket("s3://bucket/a").names()
