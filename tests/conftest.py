"""Shared by all tests: small data sets, small settings, a trained model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from glance_fast.config import Config
from glance_fast.data.folders import normal_images
from glance_fast.training.fit import fit
from glance_fast.training.progress import Reporter

if not torch.cuda.is_available():
    # Read when a kernel is defined, so before any is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

SMALL = {
    "image_size": 64,
    "patch": 32,
    "stride": 16,
    "width": 8,
    "finetune_steps": 2,
    "steps": 6,
    "batch": 4,
    "validation": 0.25,
}


@pytest.fixture
def small() -> dict:
    """Settings of a model that trains in seconds."""
    return dict(SMALL)


def draw_part(rng: np.random.Generator, size: int = 64, defect: bool = False) -> np.ndarray:
    """A striped plate with a disc: something that has structure, and a hole punched in it as a defect."""
    y, x = np.mgrid[:size, :size]
    plate = 110 + 40 * np.sin(x / 3) + rng.normal(0, 4, (size, size))
    plate[(y - size / 2) ** 2 + (x - size / 2) ** 2 < (size / 5) ** 2] = 210
    if defect:
        top, left = rng.integers(4, size - 20, 2)
        plate[top : top + 12, left : left + 12] = 10
    return np.repeat(plate.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MVTec category: 12 images in train/good, 3 good and 3 punched ones in test, masks."""
    root = tmp_path_factory.mktemp("data") / "plates"
    rng = np.random.default_rng(0)

    def save(image: np.ndarray, *place: str) -> None:
        path = root.joinpath(*place)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    for i in range(12):
        save(draw_part(rng), "train", "good", f"{i:03}.png")
    for i in range(3):
        save(draw_part(rng), "test", "good", f"{i:03}.png")
        image = draw_part(rng, defect=True)
        save(image, "test", "punched", f"{i:03}.png")
        save((image[..., 0] == 10).astype(np.uint8) * 255, "ground_truth", "punched", f"{i:03}_mask.png")
    return root


@pytest.fixture
def reporter() -> Reporter:
    """Progress that nobody sees."""
    return Reporter(Console(quiet=True))


@pytest.fixture(scope="session")
def run_folder(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a small model; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "plates"
    fit(normal_images(parts), run, Config(**SMALL), reporter=Reporter(Console(quiet=True)))
    return run
