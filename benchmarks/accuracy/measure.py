"""What both baselines share: the ResNet, from distances to maps; figures and time of anything that scores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from glance_fast.evaluation import metrics
from glance_fast.nets.preprocess import to_input
from glance_fast.nets.teacher import Teacher, load_teacher

WEIGHTS = "resnet18-imagenet-through-layer3-bn-folded.safetensors"
SMOOTHING = 4.0  # standard deviation of the Gaussian on the map, pixels
BATCH = 8  # images at once through the ResNet
TIMED_THREADS = 2
SETTLE, REPEATS = 5, 30  # runs before, and runs of which the median counts


class Baseline(Protocol):
    """What PatchCore and PaDiM have in common."""

    def fit(self, images: np.ndarray) -> Baseline:
        """Learn from normal images, uint8 [N, H, W, 3]."""

    def maps(self, images: np.ndarray) -> np.ndarray:
        """Score images, uint8 [N, H, W, 3]: maps [N, H, W]."""


def resnet() -> Teacher:
    """Read the ImageNet ResNet-18 below ``GLANCE_FAST_WEIGHTS``."""
    if "GLANCE_FAST_WEIGHTS" not in os.environ:
        raise SystemExit(f"GLANCE_FAST_WEIGHTS is not set: it names the folder that holds {WEIGHTS}")
    return load_teacher(Path(os.environ["GLANCE_FAST_WEIGHTS"]) / WEIGHTS)


def trunk(teacher: Teacher, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Layers 1 to 3 of images, uint8 [N, H, W, 3]: 64, 128 and 256 channels at strides 4, 8 and 16."""
    first = teacher.layer1(F.max_pool2d(F.relu(teacher.conv1(to_input(images))), 3, 2, 1))
    second = teacher.layer2(first)
    return first, second, teacher.layer3(second)


def to_maps(distances: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Distances of a grid of places [N, h, w] to smoothed maps [N, H, W]."""
    maps = F.interpolate(distances[:, None].float(), size, mode="bilinear")[:, 0].numpy()
    return gaussian_filter(maps, (0, SMOOTHING, SMOOTHING))


def figures(maps: np.ndarray, scores: np.ndarray, masks: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """PRO up to 30 % of false positives, pixel AUROC and image AUROC.

    Parameters
    ----------
    maps : [T, H, W]
        How anomalous each pixel is.
    scores : [T]
        How anomalous each image is.
    masks, labels : bool [T, H, W], bool [T]
        What is defective.
    """
    pro, pixel = metrics.pro_and_auroc(maps, masks)
    return {"pro": pro, "pixel_auroc": pixel, "image_auroc": metrics.image_auroc(scores, labels)}


def time_one(maps: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> float:
    """Milliseconds from the pixels of one image, uint8 [H, W, 3], to its map: trunk, distances, smoothing."""
    return milliseconds(lambda: maps(image[None]))


def milliseconds(run: Callable[[], object]) -> float:
    """Time a call with two threads: the median of many, after warm-up."""
    before = torch.get_num_threads()
    torch.set_num_threads(TIMED_THREADS)
    try:
        found = []
        for _ in range(SETTLE + REPEATS):
            started = time.perf_counter()
            run()
            found.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return 1e3 * median(found[SETTLE:])
