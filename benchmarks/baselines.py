"""What a user would otherwise take, on the same test beds: PaDiM on the same ResNet-18.

PaDiM (Defard et al., 2021): layers 1 to 3, here with 3x3 means, 100 random dimensions, a Gaussian for each
position; the map smoothed by a Gaussian of 4 pixels, the image's score its maximum. All normal images are
used; nothing has to be held out.

    python -m benchmarks.baselines aligned any-angle texture
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from benchmarks.testbeds import KINDS, RESULTS, TEXTURE_SIZE, keep, prepare, test_set
from glance_fast.config import Config
from glance_fast.data.folders import ImageCache, normal_images
from glance_fast.evaluation import metrics
from glance_fast.nets.teacher import Teacher, load_teacher, to_input

WEIGHTS = "resnet18-imagenet-through-layer3-bn-folded.safetensors"
SMOOTHING = 4.0
DIMENSIONS = 100
BATCH = 8


@torch.inference_mode()
def features(teacher: Teacher, images: np.ndarray) -> Tensor:
    """3x3 means of layers 1 to 3, resized to the first one's grid: [N, C, h, w]."""
    out = []
    for part in torch.from_numpy(images).split(BATCH):
        x = F.max_pool2d(F.relu(teacher.conv1(to_input(part))), 3, 2, 1)
        maps = []
        for layer in (teacher.layer1, teacher.layer2, teacher.layer3):
            x = layer(x)
            maps.append(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
        size = maps[0].shape[-2:]
        out.append(torch.cat([F.interpolate(m, size, mode="bilinear") for m in maps], 1))
    return torch.cat(out)


def padim(teacher: Teacher, train: np.ndarray, test: np.ndarray, generator: torch.Generator) -> Tensor:
    """Mahalanobis distance of every patch at its position, [N, h, w]."""
    normal, found = (features(teacher, images) for images in (train, test))
    kept = torch.randperm(normal.shape[1], generator=generator)[:DIMENSIONS]
    size = normal.shape[2:]
    a, b = (f[:, kept].permute(2, 3, 0, 1).flatten(0, 1) for f in (normal, found))
    mean = a.mean(1, keepdim=True)
    covariance = (a - mean).mT @ (a - mean) / (a.shape[1] - 1) + 0.01 * torch.eye(DIMENSIONS)
    solved = torch.linalg.solve(covariance, (b - mean).mT)
    return ((b - mean).mT * solved).sum(1).clamp_min(0).sqrt().T.reshape(len(test), *size)


def main() -> None:
    """Run it on the test beds named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--work", type=Path, default=Path("runs/testbeds"), help="data")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if "GLANCE_FAST_WEIGHTS" not in os.environ:
        raise SystemExit(f"GLANCE_FAST_WEIGHTS is not set: it names the folder that holds {WEIGHTS}")
    teacher = load_teacher(Path(os.environ["GLANCE_FAST_WEIGHTS"]) / WEIGHTS)
    for kind in arguments.kinds:
        for name in KINDS[kind]:
            data = prepare(name, arguments.work)
            size = Config(image_size=TEXTURE_SIZE if kind == "texture" else 256).image_size
            cache = ImageCache(normal_images(data), size)
            train = cache.batch(range(len(cache)))
            test, truth = test_set(data, size)
            started = time.monotonic()
            distance = padim(teacher, train, test, torch.Generator().manual_seed(0))
            maps = F.interpolate(distance[:, None], size, mode="bilinear")[:, 0].numpy()
            maps = gaussian_filter(maps, (0, SMOOTHING, SMOOTHING))
            pro, pixel = metrics.pro_and_auroc(maps, truth["masks"])
            image = metrics.image_auroc(maps.max((1, 2)), truth["labels"])
            row = {"pro": pro, "pixel_auroc": pixel, "image_auroc": image}
            seconds = time.monotonic() - started
            keep(arguments.results, kind, name, "PaDiM", 0, seconds, {"maximum of the map": row})


if __name__ == "__main__":
    main()
