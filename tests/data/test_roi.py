"""Masks of regions of interest: found, read, refused; and maps that are resized within them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import box, save

from glance_fast.data.roi import Masks, at_size, resize_scores
from glance_fast.data.score_maps import resize_map
from glance_fast.errors import ImageError, UserError

PLACE = Path("a/1.jpg")


def of(masks, shape=(64, 64), place=PLACE):
    return masks.of(Path("photos") / place, place, shape)


def test_one_mask_is_for_all_photographs(tmp_path):
    path = save(tmp_path / "roi.png", box())
    own = Masks(path)
    assert own.single and (of(own) == (box() > 0)).all()
    # A photograph twice as large in pixels is of the same shape.
    assert of(own, (128, 128)).sum() == 4 * of(own).sum()
    given = Masks(path, (32, 32))
    for shape in ((64, 64), (640, 640), (641, 640)):
        assert of(given, shape).shape == (32, 32) and of(given, shape).sum() == of(own).sum() / 4
    assert (of(Masks(save(tmp_path / "ones.png", box(1)))) == of(own)).all()


@pytest.mark.parametrize("name", ["a/1.png", "a/1_mask.png", "a/1.bmp"])
def test_masks_of_a_folder_are_called_like_the_photographs(tmp_path, name):
    save(tmp_path / name, box())
    save(tmp_path / "a" / "10.png", box(part=(slice(0, 3), slice(0, 3))))
    masks = Masks(tmp_path)
    assert not masks.single and (of(masks) == (box() > 0)).all()
    assert of(masks, place=Path("a/10.tiff")).sum() == 9
    # As in the layouts of test images.
    assert (of(masks, place=Path("test/a/1.png")) == (box() > 0)).all()


@pytest.mark.parametrize(
    ("mask", "shape"), [((64, 64), (60, 64)), ((40, 30), (30, 40)), ((10, 13), (1000, 1450))]
)
def test_a_mask_of_another_shape_names_both_files_and_sizes(tmp_path, mask, shape):
    one = save(tmp_path / "roi.png", box(size=mask, part=(slice(2, 8), slice(2, 8))))
    folder = save(
        tmp_path / "masks" / "a" / "1.png", box(size=mask, part=(slice(2, 8), slice(2, 8)))
    ).parent.parent
    for masks, path in ((one, one), (folder, folder / "a" / "1.png")):
        with pytest.raises(ImageError) as error:
            of(Masks(masks, (32, 32)), shape)
        assert str(error.value) == (
            f"photos/a/1.jpg: is {shape[1]}x{shape[0]}, and the mask of its region of interest, {path}, is "
            f"{mask[1]}x{mask[0]}: not the same shape; make the mask from such a photograph"
        )


@given(st.integers(20, 3000), st.integers(20, 3000), st.integers(10, 400))
def test_a_photograph_made_smaller_is_of_its_shape(height, width, longest):
    """Rounded to whole pixels, as every program does."""
    ratio = longest / max(height, width)
    small = max(1, round(height * ratio)), max(1, round(width * ratio))
    masks = object.__new__(Masks)
    masks._check_shape(Path("photo"), (height, width), Path("mask"), small)
    masks._check_shape(Path("photo"), small, Path("mask"), small)


def test_a_photograph_without_its_mask_or_with_two(tmp_path):
    save(tmp_path / "a" / "2.png", box())
    with pytest.raises(
        ImageError, match=r"^photos/a/1\.jpg: has no mask of its region .* expected .*/a/1\.png$"
    ):
        of(Masks(tmp_path))
    for name in ("1.png", "1_mask.png"):
        save(tmp_path / "a" / name, box())
    with pytest.raises(
        ImageError, match=r"^photos/a/1\.jpg: has two masks .*/a/1\.png and .*1_mask\.png; keep"
    ):
        of(Masks(tmp_path))


def test_masks_that_are_none(tmp_path):
    empty = save(tmp_path / "empty.png", box(0))
    grey = save(tmp_path / "grey.png", box(100))
    dot = save(tmp_path / "dot.png", box(size=(2000, 2000), part=(slice(4, 5), slice(4, 5))))
    (tmp_path / "nothing").mkdir()
    for path, message in (
        (tmp_path / "none.png", "no such file or folder; `roi` is a mask, or a folder of masks"),
        (empty, "nothing is marked in it; white is where to look"),
        (grey, "not a binary mask: it holds 100 among 2 values"),
        (dot, "nothing of it is left at 64x64 pixels; mark more of it"),
        (tmp_path / "nothing", "no image in this folder or below it"),
    ):
        with pytest.raises(UserError) as error:
            Masks(path, (64, 64))
        assert str(error.value).startswith(f"{path}: {message}") and "\n" not in str(error.value)
    for i, wrong in enumerate((empty, grey)):
        folder = tmp_path / f"masks{i}" / "a"
        folder.mkdir(parents=True)
        wrong.rename(folder / "1.png")
        with pytest.raises(
            ImageError, match=r"^photos/a/1\.jpg: its mask .*/a/1\.png: (nothing is|not a binary)"
        ):
            of(Masks(folder.parent, (64, 64)))
    with pytest.raises(UserError, match=r"^roi: a mask is bool \[H, W\], not float64 \[3\]"):
        at_size(np.zeros(3), (2, 2))


def test_what_tells_masks_apart(tmp_path):
    one = save(tmp_path / "masks" / "1.png", box())
    same, other = (
        save(tmp_path / "2.png", box(1)),
        save(tmp_path / "3.png", box(part=(slice(0, 9), slice(0, 9)))),
    )
    assert Masks(one).provenance == Masks(same).provenance != Masks(other).provenance
    assert Masks(tmp_path / "masks").provenance == str((tmp_path / "masks").resolve())
    assert Masks(one).among(tmp_path) and Masks(tmp_path / "masks").among(tmp_path / "masks")
    assert not Masks(same).among(tmp_path / "masks")


def test_nothing_from_outside_comes_into_a_map_that_is_resized():
    inside = box(size=(16, 20), part=(slice(4, 9), slice(3, 15))) > 0
    scores = np.random.default_rng(0).random((16, 20)).astype(np.float32)
    low = np.where(inside, scores, np.float32(-7))
    for size in ((64, 80), (23, 17), (8, 10)):
        found = resize_scores(low, size, inside)
        assert found.shape == size and found.dtype == np.float32
        kept = found > -7
        assert scores[inside].min() - 1e-6 <= found[kept].min() and found.max() <= scores[inside].max() + 1e-6
        assert abs(kept.mean() - inside.mean()) < 0.08 and (found[~kept] == -7).all()
        # Far within, as without a region.
        deep = resize_map(np.where(inside, np.float32(1), np.float32(0)), size) == 1
        np.testing.assert_allclose(found[deep], resize_map(low, size)[deep], rtol=1e-5)
    for whole in (None, np.ones((16, 20), bool)):
        assert (resize_scores(scores, (64, 80), whole) == resize_map(scores, (64, 80))).all()
