"""Test images and their regions of interest: the truth is cut to these, and only what lies in them counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.layouts import Category, Defect
from glance_fast.errors import UserError
from glance_fast.evaluation.inputs import Photographs
from glance_fast.evaluation.map_files import Maps
from glance_fast.evaluation.metrics import ArrayOrList

Inside = Sequence[NDArray[np.bool_]]


def photographs_within(
    category: Category, photographs: Photographs, inside: Inside
) -> tuple[Category, Photographs, list[NDArray[np.bool_]]]:
    """Photographs whose truth is cut to regions of interest, bool [H, W] each.

    Images whose defects all lie outside are left out: they are not good, and there is nothing to find in
    them. The category's notes say how many, and what share of the pixels counts.

    Raises
    ------
    UserError
        No image is left.
    """
    masks = list(photographs.masks)
    left, category = _left(category, masks, inside)
    where = [inside[i] for i in left]
    return (
        category,
        dataclasses.replace(
            photographs,
            prepared=[photographs.prepared[i] for i in left],
            masks=np.stack([masks[i] & inside[i] for i in left]),
            sizes=[photographs.sizes[i] for i in left],
            shown=[photographs.shown[i] for i in left],
            defects=_cut(photographs.defects, left, inside),
            inside=where,
        ),
        where,
    )


def maps_within(category: Category, maps: Maps, inside: Inside) -> tuple[Category, Maps]:
    """Maps as ``photographs_within`` has photographs; outside the region each has its least value inside."""
    left, category = _left(category, maps.masks, inside)
    return category, dataclasses.replace(
        maps,
        maps=[np.where(inside[i], maps.maps[i], maps.maps[i][inside[i]].min()) for i in left],
        masks=[maps.masks[i] & inside[i] for i in left],
        shown=[maps.shown[i] for i in left],
        defects=_cut(maps.defects, left, inside),
        inside=[inside[i] for i in left],
    )


def pixels_within(maps: ArrayOrList, inside: Inside | None) -> ArrayOrList:
    """The pixels of each map that lie inside, in a row; without regions, the maps as they are."""
    return maps if inside is None else [m[i] for m, i in zip(maps, inside, strict=True)]


def _left(category: Category, masks: ArrayOrList, inside: Inside) -> tuple[list[int], Category]:
    """Which images are left, and the category of these alone."""
    hidden = [mask.any() and not (mask & i).any() for mask, i in zip(masks, inside, strict=True)]
    left = np.flatnonzero(~np.array(hidden)).tolist()
    if not left:
        raise UserError(
            f"{category.data}: all defects lie outside the region of interest, and no image is left"
        )
    share = float(np.mean([i.mean() for i in inside]))
    notes = [f"Only the region of interest counts, {share:.0%} of the pixels."]
    if any(hidden):
        notes.append(f"Images whose defects all lie outside the region of interest: {sum(hidden)}. Left out.")
    samples = [category.samples[i] for i in left]
    return left, dataclasses.replace(category, samples=samples, notes=(*category.notes, *notes))


def _cut(
    defects: list[list[Defect]] | None, left: Sequence[int], inside: Inside
) -> list[list[Defect]] | None:
    """Defects within; of one of which a part is cut off, the same share of the rest suffices."""
    if defects is None:
        return None
    found = []
    for i in left:
        cut = [(d, d.mask & inside[i]) for d in defects[i]]
        found.append(
            [
                Defect(mask, max(1, round(d.saturation * mask.sum() / d.mask.sum())))
                for d, mask in cut
                if mask.any()
            ]
        )
    return found
