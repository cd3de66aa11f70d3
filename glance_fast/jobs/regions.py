"""``regions.jsonl``: where on each image of ``scores.csv`` something was found, from the maps beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from glance_fast.data.files import write_text
from glance_fast.data.score_maps import read_map_rows
from glance_fast.errors import ImageError, UserError
from glance_fast.evaluation.regions import Region, RegionFinder
from glance_fast.jobs.table import read_rows

REGIONS, COCO = "regions.jsonl", "regions.coco.json"
# Maps that are read at a time.
THREADS, AT_ONCE = 2, 64
# Pixels of a map that are held at a time.
TOGETHER = 1 << 24


def write_regions(out: Path, table: Path, threshold: float | None, coco: bool = False) -> int:
    """Write the connected regions of all maps that lie above a threshold.

    Parameters
    ----------
    out : Path
        What ``score_directory`` wrote; gets ``regions.jsonl``: a line for each image that has a score, with
        ``path``, ``height``, ``width`` and ``regions``, those with ``box``, ``area``, ``peak`` and
        ``centroid`` in the image's own pixels, as ``Region.as_dict`` has them, the highest peak first.
    table : Path
        Its ``scores.csv``.
    threshold : float or None
        The model's ``pixel_threshold``; None where it has none.
    coco : bool
        Whether to write ``regions.coco.json`` too: boxes in the format of COCO, of one category.

    Returns
    -------
    int
        How many regions there are.

    Raises
    ------
    UserError
        There is no threshold; a map cannot be read, or a file cannot be written.
    """
    if threshold is None:
        raise UserError("`regions`: the model is not calibrated, and has no threshold that regions lie above")
    names = [row.path for row in read_rows(table).values() if not row.error]
    lines, annotations, images = [], list[dict[str, Any]](), list[dict[str, Any]]()
    for name, (height, width), found in _found(out, names, threshold):
        size = {"height": height, "width": width}
        lines.append(json.dumps({"path": name, **size, "regions": [r.as_dict() for r in found]}))
        images.append({"id": len(images) + 1, "file_name": name, **size})
        for region in found:
            annotations.append(_annotation(region, len(annotations) + 1, len(images)))
    write_text(out / REGIONS, "".join(f"{line}\n" for line in lines))
    if coco:
        whole = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "anomalous"}],
        }
        write_text(out / COCO, json.dumps(whole) + "\n")
    return len(annotations)


def _found(
    out: Path, names: Iterable[str], threshold: float
) -> Iterator[tuple[str, tuple[int, int], list[Region]]]:
    """Name, size and regions of each map, in order."""

    def find(name: str) -> tuple[str, tuple[int, int], list[Region]]:
        path = out / "maps" / f"{name}.tiff"
        finder: RegionFinder | None = None
        height = width = 0
        try:
            for rows in read_map_rows(path, TOGETHER):
                finder = finder or RegionFinder(rows.shape[1], threshold)
                finder.add(rows)
                height, width = height + len(rows), rows.shape[1]
        except ImageError as error:
            raise UserError(f"{error}; `resume=True` makes a map anew that is missing") from error
        return name, (height, width), finder.regions() if finder else []

    ordered = list(names)
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(ordered), AT_ONCE):
            yield from pool.map(find, ordered[start : start + AT_ONCE])


def _annotation(region: Region, number: int, image: int) -> dict[str, Any]:
    """A region as COCO has it: [x, y, width, height]."""
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [region.left, region.top, region.right - region.left, region.bottom - region.top],
        "area": region.area,
        "score": float(f"{region.peak:.9g}"),
        "iscrowd": 0,
    }
