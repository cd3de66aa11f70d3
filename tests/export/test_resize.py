"""Resizing in a graph: the same pixels as scoring's, to the bit."""

import numpy as np
import pytest
import torch

from glance_fast.data.depth import fitted, levels
from glance_fast.data.images import resize
from glance_fast.export.resize import DeepResize, Resize

SIZES = [
    (1, 1),
    (5, 7),
    (64, 48),
    (64, 200),
    (63, 100),
    (333, 217),
    # Whole pixels are averaged first, along one axis or both; the last boxes are whole or not.
    (384, 48),
    (385, 300),
    (64, 577),
    (1151, 1000),
    (1000, 2003),
]


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_resizing_of_images(size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    # Edges, at which the filter leaves the range of a pixel.
    images[1] = np.where(images[1] > 127, 255, 0)
    found = Resize(64, 48)(torch.from_numpy(images))
    assert found.dtype == torch.float32 and found.shape == (2, 3, 64, 48)
    for image, small in zip(images, found, strict=True):
        np.testing.assert_array_equal(small.permute(1, 2, 0).numpy(), resize(image, (64, 48)))


@pytest.mark.parametrize("white", [1023, 4095, 65535])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_resizing_of_deeper_images(size, white):
    rng = np.random.default_rng(0)
    images = rng.integers(0, min(white + 200, 65536), (2, *size, 3)).astype(np.uint16)
    images[1] = np.where(images[1] > white // 2, white, 0)
    found = DeepResize(64, 48, white)(torch.from_numpy(images))
    assert found.dtype == torch.float32 and found.shape == (2, 3, 64, 48)
    for image, small in zip(images, found, strict=True):
        expected = levels(fitted(image, (64, 48), white), white)
        np.testing.assert_array_equal(small.permute(1, 2, 0).numpy(), expected)
