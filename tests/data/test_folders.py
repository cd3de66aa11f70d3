"""Which files count, in which order, and what is said where a folder is not what it should be."""

from pathlib import Path

import pytest

from glance_fast.data import folders
from glance_fast.data.folders import list_images, subfolders
from glance_fast.errors import UserError


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def _names(root: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


# ---------------------------------------------------------------- list_images


def test_order_is_natural_and_other_files_are_left_out(tmp_path):
    _touch(
        tmp_path, "10.png", "2.PNG", "1.JpEg", "b/1.tif", "a/10/x.bmp", "a/9/x.bmp", "Äpfel.webp", "A3.gif"
    )
    _touch(
        tmp_path,
        "a2.gif",
        "notes.txt",
        "png",
        ".hidden.png",
        "._2.png",
        ".git/1.png",
        "b/._1.tif",
        "x.png.tmp",
    )
    (tmp_path / "folder.png").mkdir()
    expected = [
        "1.JpEg",
        "2.PNG",
        "10.png",
        "a/9/x.bmp",
        "a/10/x.bmp",
        "a2.gif",
        "A3.gif",
        "b/1.tif",
        "Äpfel.webp",
    ]
    assert _names(tmp_path, list_images(tmp_path)) == expected
    assert list_images(str(tmp_path)) == list_images(tmp_path)


def test_equal_numbers_still_have_an_order(tmp_path):
    _touch(tmp_path, "1.png", "01.png", "001.png", "2/1.png", "02/1.png")
    assert _names(tmp_path, list_images(tmp_path)) == ["001.png", "01.png", "1.png", "02/1.png", "2/1.png"]


def test_links_are_followed_once(tmp_path):
    data = tmp_path / "data"
    _touch(data, "z/1.png")
    _touch(tmp_path, "elsewhere/2.png")
    (data / "a_same_as_z").symlink_to(data / "z", target_is_directory=True)
    (data / "zz_same_as_z").symlink_to(data / "z", target_is_directory=True)
    (data / "z" / "loop").symlink_to(data, target_is_directory=True)
    (data / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (data / "broken.png").symlink_to(tmp_path / "nowhere.png")
    assert _names(data, list_images(data)) == ["broken.png", "linked/2.png", "z/1.png"]


def test_folder_that_is_none(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        list_images(tmp_path / "missing")
    _touch(tmp_path, "file.png")
    with pytest.raises(UserError, match="is a file, not a folder"):
        list_images(tmp_path / "file.png")


def test_folder_without_images(tmp_path):
    _touch(tmp_path, "notes.txt")
    with pytest.raises(UserError, match=r"no image in this folder .*\.png"):
        list_images(tmp_path)


def test_folder_that_cannot_be_read(tmp_path, monkeypatch):
    _touch(tmp_path, "1.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folders.os, "scandir", refuse)
    for use in (list_images, subfolders):
        with pytest.raises(UserError, match="cannot be read: Permission denied"):
            use(tmp_path)


def test_subfolders_are_in_natural_order_and_links_count(tmp_path):
    _touch(tmp_path, "c10/x", "c9/x", ".hidden/x", "c1.png")
    (tmp_path / "b").symlink_to(tmp_path / "c9", target_is_directory=True)
    assert _names(tmp_path, subfolders(tmp_path)) == ["b", "c9", "c10"]
    assert subfolders(tmp_path / "c1.png") == subfolders(tmp_path / "none") == []


def test_links_that_lead_back_to_themselves_hide_no_other_image(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/a.png", "good.png"):
        (tmp_path / name).touch()
    (tmp_path / "one.png").symlink_to("two.png")
    (tmp_path / "two.png").symlink_to("one.png")
    (tmp_path / "loop").symlink_to("loop")
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a/a.png", "good.png", "one.png", "two.png"]
    assert subfolders(tmp_path) == [tmp_path / "a"]
