"""Which files count, in which order, and what is said where a folder is not what it should be."""

from pathlib import Path

import numpy as np
import pytest

from glance_fast.data import folders
from glance_fast.data.folders import list_images, mvtec_test, normal_images, read_sample_mask
from glance_fast.data.images import write_png
from glance_fast.errors import ImageError, UserError


def _picture(path: Path, value: int = 0, size: tuple[int, int] = (6, 8)) -> Path:
    write_png(path, np.full((*size, 3), value, np.uint8))
    return path


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


@pytest.mark.parametrize("use", [list_images, normal_images, mvtec_test])
def test_folder_that_is_none(tmp_path, use):
    with pytest.raises(UserError, match="no such folder"):
        use(tmp_path / "missing")
    _touch(tmp_path, "file.png")
    with pytest.raises(UserError, match="is a file, not a folder"):
        use(tmp_path / "file.png")


def test_folder_without_images(tmp_path):
    _touch(tmp_path, "notes.txt")
    with pytest.raises(UserError, match=r"no image in this folder .*\.png"):
        list_images(tmp_path)


def test_folder_that_cannot_be_read(tmp_path, monkeypatch):
    _touch(tmp_path, "1.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        list_images(tmp_path)


# ---------------------------------------------------------------- normal_images


def test_normal_images_of_a_category_and_of_any_folder(tmp_path):
    _touch(tmp_path, "mvtec/train/good/1.png", "mvtec/test/bad/2.png", "plain/deep/3.png", "plain/4.png")
    assert _names(tmp_path, normal_images(tmp_path / "mvtec")) == ["mvtec/train/good/1.png"]
    assert _names(tmp_path, normal_images(tmp_path / "plain")) == ["plain/4.png", "plain/deep/3.png"]


@pytest.mark.parametrize(
    ("files", "phrase"),
    [
        (["train/1.png"], "'train' but no 'train/good'"),
        (["test/crack/1.png"], "'test' but no 'train/good'"),
        (["ground_truth/crack/1.png"], "'ground_truth' but no 'train/good'"),
        (["c10/train/good/1.png", "c2/train/good/1.png", "c3/x.png"], r"\(c2, c10\); give one of them.*c2"),
    ],
)
def test_normal_images_refuses_other_layouts(tmp_path, files, phrase):
    _touch(tmp_path, *files)
    with pytest.raises(UserError, match=phrase):
        normal_images(tmp_path)


# ---------------------------------------------------------------- mvtec_test


def test_samples_and_masks(tmp_path):
    _touch(tmp_path, "test/good/0.png", "test/crack/10.png", "test/crack/2.png", "test/hole/1.jpg")
    _touch(
        tmp_path, "ground_truth/crack/10_mask.png", "ground_truth/crack/2.png", "ground_truth/hole/1_mask.png"
    )
    _touch(tmp_path, "ground_truth/crack/2_mask.png.txt")
    samples = mvtec_test(tmp_path)
    assert _names(tmp_path / "test", [s.path for s in samples]) == [
        "crack/2.png",
        "crack/10.png",
        "good/0.png",
        "hole/1.jpg",
    ]
    assert [s.defect for s in samples] == ["crack", "crack", "good", "hole"]
    truth = tmp_path / "ground_truth"
    assert [s.mask for s in samples] == [
        truth / "crack" / "2.png",
        truth / "crack" / "10_mask.png",
        None,
        truth / "hole" / "1_mask.png",
    ]


@pytest.mark.parametrize(
    ("files", "phrase"),
    [
        (["train/good/1.png"], "no folder 'test'"),
        (["bottle/train/good/1.png"], "no folder 'test'.*categories in it: bottle"),
        (["test/1.png"], "lies directly in 'test'"),
        (["test/crack/1.png"], "1.png: has no mask; expected .*1_mask.png$"),
        (
            ["test/crack/1.png", "test/crack/2.png", "ground_truth/hole/1_mask.png"],
            r"has no mask.*\(1 more like",
        ),
        (["test/notes.txt"], "no image"),
    ],
)
def test_test_folder_refused(tmp_path, files, phrase):
    _touch(tmp_path, *files)
    with pytest.raises(UserError, match=phrase):
        mvtec_test(tmp_path)


def test_sample_mask(tmp_path):
    truth = np.zeros((6, 8), np.uint8)
    truth[1:3, 4:7] = 255
    write_png(tmp_path / "m.png", truth)
    sample = folders.TestSample(tmp_path / "i.png", "crack", tmp_path / "m.png")
    np.testing.assert_array_equal(read_sample_mask(sample, (6, 8)), truth > 0)
    with pytest.raises(ImageError, match=r"the mask is 8x6, its image 6x8 \(.*i.png\)"):
        read_sample_mask(sample, (8, 6))
    normal = read_sample_mask(folders.TestSample(tmp_path / "i.png", "good", None), (5, 4))
    assert normal.shape == (5, 4) and normal.dtype == bool and not normal.any()
