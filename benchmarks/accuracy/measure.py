"""Of anything that scores a bed: figures and time; and the ResNet that baselines take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from glance_fast.evaluation import metrics
from glance_fast.nets.teacher import Teacher, load_teacher

WEIGHTS = "resnet18-imagenet-through-layer3-bn-folded.safetensors"
TIMED_THREADS = 2
SETTLE, REPEATS = 5, 30  # runs before, and runs of which the median counts


def resnet() -> Teacher:
    """Read the ImageNet ResNet-18 below ``GLANCE_FAST_WEIGHTS``."""
    if "GLANCE_FAST_WEIGHTS" not in os.environ:
        raise SystemExit(f"GLANCE_FAST_WEIGHTS is not set: it names the folder that holds {WEIGHTS}")
    return load_teacher(Path(os.environ["GLANCE_FAST_WEIGHTS"]) / WEIGHTS)


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
