"""Masks are read as they are meant, or refused in one line."""

import numpy as np
import pytest
from PIL import Image

from glance_fast.data.images import write_png
from glance_fast.data.masks import read_classes, read_mask, resize_mask
from glance_fast.errors import ImageError


def _grey_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


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
