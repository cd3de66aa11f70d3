"""BTAD: ``train/ok``, ``test/{ok,ko}``, ``ground_truth/ko/<name>.png`` or ``.bmp``."""

from __future__ import annotations

from pathlib import Path

from glance_fast.data.folders import list_images
from glance_fast.data.layouts.record import Category, Layout, mask_named, samples_below
from glance_fast.errors import UserError


def _holds(data: Path) -> bool:
    return (data / "train" / "ok").is_dir() or (data / "test" / "ko").is_dir()


def _normal(data: Path) -> list[Path]:
    good = data / "train" / "ok"
    if not good.is_dir():
        raise UserError(f"{data}: no folder 'train/ok' in it; put the normal images there")
    return list_images(good)


def _category(data: Path) -> Category:
    test = data / "test"
    if not test.is_dir():
        raise UserError(f"{data}: no folder 'test' in it, which should hold test/ok and test/ko")
    find = mask_named(".png", ".bmp", "_mask.png")
    samples = samples_below(test, data / "ground_truth", find, ".png", classes=True)
    return Category(data, LAYOUT.name, data, samples, searched=(test,))


LAYOUT = Layout("BTAD", _holds, _normal, _category)
