"""MVTec AD 2: ``train/good``, ``validation/good``, ``test_public`` with its truth, and splits without.

``test_public/{good,bad,ground_truth/bad}`` is what can be evaluated. The truth of ``test_private`` and
``test_private_mixed`` is MVTec's; its server takes their maps (``glance_fast.evaluation.submission``).
"""

from __future__ import annotations

from pathlib import Path

from glance_fast.data.folders import list_images
from glance_fast.data.layouts.record import Category, Layout, mask_named, samples_below, train_good
from glance_fast.errors import UserError

_PUBLIC, _PRIVATE = "test_public", ("test_private", "test_private_mixed")


def _holds(data: Path) -> bool:
    return any((data / split).is_dir() for split in (_PUBLIC, *_PRIVATE))


def _category(data: Path) -> Category:
    test = data / _PUBLIC
    if not test.is_dir():
        raise UserError(
            f"{data}: no folder '{_PUBLIC}' in it, which should hold good, bad and ground_truth/bad; "
            "of the other splits the truth is not public"
        )
    samples = samples_below(test, test / "ground_truth", mask_named("_mask.png"), "_mask.png")
    private = [data / split for split in _PRIVATE if (data / split).is_dir()]
    unlabelled = [path for split in private for path in list_images(split)]
    return Category(data, LAYOUT.name, data, samples, searched=(test, *private), unlabelled=unlabelled)


LAYOUT = Layout("MVTec AD 2", _holds, train_good, _category)
