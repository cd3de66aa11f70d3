"""MVTec AD: ``train/good``, ``test/<defect>``, ``ground_truth/<defect>/<name>_mask.png``.

VisA in its converted form is laid out like this, too.
"""

from __future__ import annotations

from pathlib import Path

from glance_fast.data.layouts.record import Category, Layout, mask_named, samples_below, train_good
from glance_fast.errors import UserError


def _holds(data: Path) -> bool:
    both = (data / "test").is_dir() and (data / "ground_truth").is_dir()
    return both or (data / "train" / "good").is_dir()


def _category(data: Path) -> Category:
    test = data / "test"
    if not test.is_dir():
        raise UserError(f"{data}: no folder 'test' in it, which should hold test/good and test/<defect>")
    find = mask_named("_mask.png", ".png")
    samples = samples_below(test, data / "ground_truth", find, "_mask.png")
    return Category(data, LAYOUT.name, data, samples, searched=(test,))


LAYOUT = Layout("MVTec AD", _holds, train_good, _category)
