"""The defective test images of a category."""

from __future__ import annotations

import dataclasses

from glance_fast.errors import UserError
from glance_fast.evaluation.inputs import Category


def defective(category: Category) -> Category:
    """The category with its defective images alone.

    Raises
    ------
    UserError
        There are none.
    """
    samples = [sample for sample in category.samples if sample.defect != "good"]
    if not samples:
        raise UserError(f"{category.data}: no defective test images; this needs some, with their masks")
    return dataclasses.replace(category, samples=samples)
