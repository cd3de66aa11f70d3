"""``regions.jsonl``: where on each image of ``scores.csv`` something was found, from the maps beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from glance_fast.data.score_maps import read_map_rows
from glance_fast.data.store import Folder, Store
from glance_fast.data.table import ScoreRow
from glance_fast.errors import ImageError, UserError
from glance_fast.evaluation.regions import Region, RegionFinder
from glance_fast.jobs.chunk import map_name
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
    return write_regions_of(Folder(out), read_rows(table).values(), threshold, coco)


def write_regions_of(
    out: Store, rows: Iterable[ScoreRow], threshold: float | None, coco: bool = False
) -> int:
    """As ``write_regions``, wherever the maps lie, of the rows of a ``scores.csv``."""
    if threshold is None:
        raise UserError("`regions`: the model is not calibrated, and has no threshold that regions lie above")
    names = [row.path for row in rows if not row.error]
    lines, annotations, images = [], list[dict[str, Any]](), list[dict[str, Any]]()
    for name, (height, width), found in _found(out, names, threshold):
        size = {"height": height, "width": width}
        lines.append(json.dumps({"path": name, **size, "regions": [r.as_dict() for r in found]}))
        images.append({"id": len(images) + 1, "file_name": name, **size})
        for region in found:
            annotations.append(_annotation(region, len(annotations) + 1, len(images)))
    out.write(REGIONS, "".join(f"{line}\n" for line in lines).encode())
    if coco:
        whole = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "anomalous"}],
        }
        out.write(COCO, f"{json.dumps(whole)}\n".encode())
    return len(annotations)


def _found(
    out: Store, names: Iterable[str], threshold: float
) -> Iterator[tuple[str, tuple[int, int], list[Region]]]:
    """Name, size and regions of each map, in order."""

    def find(name: str) -> tuple[str, tuple[int, int], list[Region]]:
        place = map_name(name)
        finder: RegionFinder | None = None
        height = width = 0
        try:
            with out.on_disk(place) as path:
                for rows in read_map_rows(path, TOGETHER):
                    finder = finder or RegionFinder(rows.shape[1], threshold)
                    finder.add(rows)
                    height, width = height + len(rows), rows.shape[1]
        except (ImageError, OSError) as error:
            reason = error.reason if isinstance(error, ImageError) else "no such file, or it may not be read"
            raise UserError(
                f"{out.at(place)}: {reason}; `resume=True` makes a map anew that is missing"
            ) from error
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
