"""A plain folder: photographs of good parts to learn from; ``good`` beside defects to evaluate with."""

from __future__ import annotations

from pathlib import Path

from glance_fast.data.folders import list_images, subfolders
from glance_fast.data.layouts.record import Category, Layout, is_good, mask_named, samples_below
from glance_fast.errors import UserError

# Parts of a data set, and no kinds of defects.
_PARTS = frozenset(("train", "validation", "test"))
# Folders of masks: taken for photographs, they would be found as easily as nothing else.
_TRUTHS = ("ground_truth", "masks", "mask")


def _sorted(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders of good parts in a folder, and folders of defects; none where it holds parts of a data set."""
    found = [path for path in subfolders(folder) if path.name not in _TRUTHS]
    if any(path.name in _PARTS for path in found):
        return [], []
    good = [path for path in found if is_good(path.name)]
    return good, [path for path in found if path not in good]


def _holds(data: Path) -> bool:
    return any(all(_sorted(folder)) for folder in (data / "test", data / "train", data))


def _normal(data: Path) -> list[Path]:
    train = data / "train"
    if train.is_dir():
        good, _ = _sorted(train)
        if good:
            return list_images(good[0])
        raise UserError(f"{data}: has a folder 'train' but no 'train/good'; put the normal images there")
    for name in ("test", "ground_truth"):
        # Learning from all images below would take the defects for normal.
        if (data / name).is_dir():
            raise UserError(f"{data}: has a folder '{name}' but no 'train/good'; put the normal images there")
    good, others = _sorted(data)
    if good and others:
        beside = ", ".join(path.name for path in others)
        raise UserError(
            f"{data}: has a folder '{good[0].name}' beside others ({beside}); give {good[0]} to learn from "
            "it alone"
        )
    return list_images(data)


def _category(data: Path) -> Category:
    test = data / "test" if (data / "test").is_dir() else data
    if test is data and not all(_sorted(data)):
        raise UserError(
            f"{data}: no folder 'test' in it, which should hold test/good and test/<defect>, and no folder "
            "'good' beside folders of defects"
        )
    truth = next((data / name for name in _TRUTHS if (data / name).is_dir()), data / _TRUTHS[0])
    samples = samples_below(test, truth, mask_named("_mask.png", ".png"), "_mask.png")
    return Category(data, LAYOUT.name, data, samples, searched=(test,))


LAYOUT = Layout("plain folder", _holds, _normal, _category)
