"""Shared by all tests: small data sets, small settings, a trained model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from samples import MASKED, SMALL, draw_deep_part, draw_part

from glance_fast.config import Config
from glance_fast.data.layouts import normal_images
from glance_fast.device import use_threads
from glance_fast.progress import Reporter
from glance_fast.training.fit import fit

# pytest-xdist tells its processes how wide the terminal is, and consoles keep what they find first.
os.environ.pop("COLUMNS", None)
# As the command line does it: Numba would change PyTorch's threads in the midst of a test. Processes of
# pytest-xdist share the processors.
use_threads(max(torch.get_num_threads() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), 1))
if not torch.cuda.is_available():
    # Read when a kernel is defined, so before any is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def small() -> dict:
    """Settings of a model that trains in seconds."""
    return dict(SMALL)


@pytest.fixture
def masked() -> dict:
    """The same settings with a masked net."""
    return dict(MASKED)


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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Rounding follows the number of threads: a module's tests compute with as many as workers do."""
    before = torch.get_num_threads()
    use_threads(1)
    yield
    use_threads(before)


@pytest.fixture
def reporter() -> Reporter:
    """Progress that nobody sees."""
    return Reporter(Console(quiet=True))


@pytest.fixture(scope="session")
def run_folder(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a small model; not to be changed."""
    return _trained(SMALL, parts, tmp_path_factory.mktemp("runs") / "plates")


@pytest.fixture(scope="session")
def masked_run(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a small model with a masked net; not to be changed."""
    return _trained(MASKED, parts, tmp_path_factory.mktemp("runs") / "masked")


@pytest.fixture(scope="session")
def deep_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``parts``, by a camera of 12 bits whose files have 16: PNG and TIFF, grey."""
    root = tmp_path_factory.mktemp("deep") / "plates"
    rng = np.random.default_rng(0)

    def save(image: np.ndarray, *place: str) -> None:
        path = root.joinpath(*place)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    for i in range(12):
        save(draw_deep_part(rng), "train", "good", f"{i:03}.{'png' if i % 2 else 'tif'}")
    for i in range(3):
        save(draw_deep_part(rng), "test", "good", f"{i:03}.png")
        image = draw_deep_part(rng, defect=True)
        save(image, "test", "punched", f"{i:03}.png")
        save((image < 400).astype(np.uint8) * 255, "ground_truth", "punched", f"{i:03}_mask.png")
    return root


@pytest.fixture(scope="session")
def deep_run(deep_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a small model that was trained on 12 bits; not to be changed."""
    return _trained(SMALL, deep_parts, tmp_path_factory.mktemp("runs") / "deep")


def _trained(settings: dict, parts: Path, run: Path) -> Path:
    fit(normal_images(parts), run, Config(**settings), device="cpu", reporter=Reporter(Console(quiet=True)))
    return run
