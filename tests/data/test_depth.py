"""Images of more than 8 bits become what a model knows: one white for all, found in its training."""

import deep
import numpy as np
import pytest

from glance_fast.data.depth import Unlike, deepened, fitted, levels, shown_as, unlike, white_of
from glance_fast.data.images import resize
from glance_fast.errors import ImageError

SIZE = (20, 12)
# Pillow cuts bytes off between rows and columns, where the filter overshoots: not of values in the middle.
EIGHT = deep.noise(3, 7).astype(np.uint8) + np.uint8(64)
TWELVE = deep.noise(3, 12)


@pytest.mark.parametrize(
    ("largest", "white"),
    [(0, 255), (255, 255), (256, 1023), (1023, 1023), (1024, 4095), (4095, 4095), (4096, 16383)],
)
def test_white_is_the_end_of_the_bits_used(largest, white):
    assert white_of(largest) == white


def test_white_of_all_bits():
    assert white_of(16384) == white_of(65535) == 65535


def test_images_of_8_bits_are_as_ever():
    np.testing.assert_array_equal(fitted(EIGHT, SIZE, None), resize(EIGHT, SIZE))
    assert levels(EIGHT, None) is EIGHT
    assert unlike(EIGHT, None) == Unlike()
    assert shown_as(EIGHT) is EIGHT


def test_more_bits_than_a_model_knows_are_refused():
    with pytest.raises(ImageError, match=r"^a.png: has more than 8 bits, and the photographs that the model"):
        fitted(TWELVE, SIZE, None, "a.png")


def test_a_photograph_of_any_depth_is_equally_bright():
    # The same scene by a camera of 8, 12 and 16 bits.
    seen = [levels(fitted(deepened(EIGHT, white), SIZE, white), white) for white in (255, 4095, 65535)]
    for found in seen:
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, resize(EIGHT, SIZE), atol=1.1)
    np.testing.assert_allclose(seen[1], seen[2], atol=0.07)
    # Of 8 bits, for a model of more.
    np.testing.assert_array_equal(fitted(EIGHT, EIGHT.shape[:2], 4095), deepened(EIGHT, 4095))
    np.testing.assert_allclose(levels(fitted(EIGHT, SIZE, 65535), 65535), resize(EIGHT, SIZE), atol=1e-3)


def test_brightness_is_not_stretched_by_a_single_image():
    dark = TWELVE // 4
    bright, dim = (levels(fitted(image, SIZE, 4095), 4095) for image in (TWELVE, dark))
    assert 3.5 < bright.mean() / dim.mean() < 4.5


def test_lower_bits_are_kept():
    steps = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    image = np.repeat(steps[..., None], 3, axis=2)
    found = levels(fitted(image, (64, 64), 4095), 4095)
    assert len(np.unique(found)) == 4096
    assert found.min() == 0 and found.max() == 255


def test_values_above_white_are_white():
    image = TWELVE.copy()
    image[3:9, 3:9] = 50_000
    found = fitted(image, image.shape[:2], 4095)
    assert found.max() == 4095 and (found[3:9, 3:9] == 4095).all()
    np.testing.assert_array_equal(found[10:], image[10:])
    # Where the filter overshoots, too.
    assert fitted(image, (61, 47), 4095).max() == 4095


def test_what_is_fitted_stays_as_it_is():
    for image in (TWELVE, EIGHT):
        once = fitted(image, SIZE, 4095)
        np.testing.assert_array_equal(fitted(once, SIZE, 4095), once)


@pytest.mark.parametrize("size", [(5, 4), (40, 50), (3, 60), (23, 17)])
def test_resizing_of_16_bits_is_that_of_8(size):
    found = resize(EIGHT.astype(np.uint16) * 256, size)
    assert found.dtype == np.uint16
    # Bytes are rounded twice.
    np.testing.assert_allclose(found / 256, resize(EIGHT, size), atol=1.6)
    with pytest.raises(TypeError, match="uint8 or uint16"):
        resize(EIGHT.astype(np.float32), size)


def test_what_is_unlike_is_counted_and_said():
    assert unlike(EIGHT, 4095) == Unlike(shallow=1)
    assert unlike(TWELVE, 4095) == Unlike()
    assert unlike(TWELVE, 1023) == Unlike(above=1)
    many = unlike(EIGHT, 4095) + unlike(TWELVE, 1023) + unlike(TWELVE, 1023)
    assert many == Unlike(1, 2)
    first, second = many.remarks()
    assert first.startswith("1 image has 8 bits, and those in training had more")
    assert second.startswith("2 images hold values of more bits than those in training")
    assert Unlike().remarks() == ()


def test_an_image_is_shown_by_the_models_white():
    picture = shown_as(TWELVE, 4095)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, np.rint(TWELVE * (255 / 4095)).astype(np.uint8))
    np.testing.assert_array_equal(shown_as(TWELVE), picture)
    assert shown_as(TWELVE, 1023).mean() > 2 * picture.mean() * 0.8
