"""Which images the report shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.score_maps import resize_map
from glance_fast.data.table import printable
from glance_fast.evaluation.inputs import Category
from glance_fast.evaluation.metrics import ArrayOrList
from glance_fast.evaluation.report import Example, Group

# The most that are shown of a kind: a model that misses everything would otherwise make a report that no
# browser opens.
MOST_WRONG, HIGHEST_GOOD = 24, 3


def _shown_path(place: Path) -> Path:
    """Where an image lies, without the folder that most layouts have all of them in."""
    return place.relative_to("test") if place.parts[0] == "test" else place


def choose_pictures(
    category: Category,
    shown: Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_] | None]],
    maps: ArrayOrList,
    scores: NDArray[np.floating],
    anomalous: NDArray[np.bool_] | None,
) -> list[Group]:
    """What the report shows: of each defect the clearest, the median and the missed; good images come last.

    Parameters
    ----------
    category : Category
    shown : sequence
        As in ``Photographs``.
    maps : sequence of ndarray
        Real [H, W] of each image.
    scores : ndarray
        Real [N].
    anomalous : ndarray or None
        bool [N]; None where the model has no threshold.
    """

    def example(i: int, why: str) -> Example:
        sample = category.samples[i]
        image, mask = shown[i]
        return Example(
            name=printable(_shown_path(category.place(sample.path))),
            score=float(scores[i]),
            anomalous=None if anomalous is None else bool(anomalous[i]),
            defective=sample.defect != "good",
            why=why,
            image=image,
            mask=mask,
            map=maps[i],
        )

    members: dict[str, list[int]] = {}
    for i in np.argsort(-scores, kind="stable"):
        members.setdefault(category.samples[i].defect, []).append(int(i))
    groups = []
    for defect in dict.fromkeys(sample.defect for sample in category.samples):
        ranked = members[defect]
        if defect == "good":
            wrong = [i for i in ranked if anomalous is not None and anomalous[i]]
            picked = dict.fromkeys(ranked[:HIGHEST_GOOD] + wrong[:MOST_WRONG], "")
            title, kind = "Good images with the highest scores", "false alarms"
        else:
            wrong = [i for i in reversed(ranked) if anomalous is not None and not anomalous[i]]
            picked = {ranked[0]: "clearest"}
            if len(ranked) > 1:
                picked.setdefault(ranked[len(ranked) // 2], "median")
            picked = dict.fromkeys(wrong[:MOST_WRONG], "") | picked
            picked = {i: picked[i] for i in ranked if i in picked}
            title, kind = f"Defect: {printable(defect)}", "missed images"
        hidden = sum(i not in picked for i in wrong)
        remark = f"{hidden} more {kind} stand in scores.csv." if hidden > 0 else ""
        group = Group(title, [example(i, why) for i, why in picked.items()], remark)
        groups.append((defect == "good", group))
    # Good images last.
    return [group for _, group in sorted(groups, key=lambda pair: pair[0])]


def with_small_maps(groups: Sequence[Group]) -> list[Group]:
    """Groups with maps of any size and type as float32, at the size of their pictures."""

    def small(example: Example) -> Example:
        score_map = resize_map(np.asarray(example.map, np.float32), example.image.shape[:2])
        return dataclasses.replace(example, map=score_map)

    return [dataclasses.replace(group, examples=[*map(small, group.examples)]) for group in groups]
