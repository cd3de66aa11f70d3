"""What both baselines share: a ResNet's layers at every place, and from distances of places to maps."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from glance_fast.nets.preprocess import to_input
from glance_fast.nets.teacher import Teacher

SMOOTHING = 4.0  # standard deviation of the Gaussian on the map, pixels
BATCH = 8  # images at once through the ResNet


def trunk(teacher: Teacher, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Layers 1 to 3 of images, uint8 [N, H, W, 3]: 64, 128 and 256 channels at strides 4, 8 and 16."""
    first = teacher.layer1(F.max_pool2d(F.relu(teacher.conv1(to_input(images))), 3, 2, 1))
    second = teacher.layer2(first)
    return first, second, teacher.layer3(second)


def to_maps(distances: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Distances of a grid of places [N, h, w] to smoothed maps [N, H, W]."""
    maps = F.interpolate(distances[:, None].float(), size, mode="bilinear")[:, 0].numpy()
    return gaussian_filter(maps, (0, SMOOTHING, SMOOTHING))
