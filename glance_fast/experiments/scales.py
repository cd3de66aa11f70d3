"""Section 5's first question: several patch sizes, and how their maps become one.

One model of both patch sizes is trained for each pair of strides. What its maps say alone, as a mean and as
the largest at each pixel comes from the same nets; an image's score follows: of one size its own, of both
the sum or the larger of their peaks. The paper has one size and leaves this open.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glance_fast.config import Config
from glance_fast.data.images import resize
from glance_fast.errors import UserError
from glance_fast.evaluation.inputs import find_category, read_photographs
from glance_fast.evaluation.summary import defective_of
from glance_fast.experiments import figures
from glance_fast.experiments.measure import METRICS, NO_MATTER, RUNS, Table, measured, trained
from glance_fast.experiments.study import Row, study
from glance_fast.jobs.output import apart
from glance_fast.maps import HeadMaps, blend_heads, combine
from glance_fast.model import Glance
from glance_fast.progress import Reporter
from glance_fast.tiles import whole_only

PATCHES = (32, 64)
STRIDES = ((8, 16), (16, 32))
MEAN, MAXIMUM = "mean", "maximum"
WAYS = (*(f"{patch} alone" for patch in PATCHES), MEAN, MAXIMUM)
COLUMNS = {"strides": str, "maps": str, **dict.fromkeys(METRICS, float), "patches": int, "seconds": float}
PICTURE = "scales.png"


def run_scales(
    data: Path,
    out: Path,
    settings: Mapping[str, Any],
    strides: Sequence[tuple[int, int]] = STRIDES,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    memory_mib: int | None = None,
    reporter: Reporter,
) -> list[Row]:
    """Train on a category with every pair of strides, and measure each patch size and both together.

    Parameters
    ----------
    data : Path
        The category.
    out : Path
        Folder to write: ``results.csv``, ``scales.png``, ``experiment.json``, models in ``runs``.
    settings : mapping
        Of all models, as ``Config`` takes them; without ``patch``, ``stride`` and ``blend``.
    strides : sequence of (int, int)
        Of patches of 32 and of 64 pixels.
    resume, overwrite, device, memory_mib, reporter
        As for ``run_categories``.

    Returns
    -------
    list of dict
        Rows of ``results.csv``: ``strides`` ("8, 16"), ``maps`` (one of ``WAYS``), the metrics, ``patches``
        that an image is scored by, ``seconds`` of training.

    Raises
    ------
    UserError
        ``data`` is no category with test images; settings do not fit; ``out`` cannot be written, or holds
        another experiment.
    """
    apart(out, data)
    category = find_category(data, out)
    fixed = [name for name in ("patch", "stride", "blend") if name in settings]
    if fixed:
        raise UserError(f"{fixed[0]}: is what this experiment varies, or needs; leave it away")
    # Made at once, so that strides that do not fit are known before hours of training.
    configs = [Config(**settings, patch=PATCHES, stride=tuple(pair)) for pair in strides]
    whole_only(configs[0], "scales")
    same = [{k: v for k, v in asdict(config).items() if k not in NO_MATTER} for config in configs]
    with study(
        out,
        "scales",
        {"data": category.name, "settings": same},
        COLUMNS,
        (RUNS, PICTURE),
        resume=resume,
        overwrite=overwrite,
    ) as table:
        for config in configs:
            label = ", ".join(map(str, config.strides))
            if table.find(strides=label, maps=WAYS[-1]):
                continue
            table.rows = [row for row in table.rows if row["strides"] != label]
            size = config.image_size
            photographs = read_photographs(category, partial(resize, size=size), size)
            started = time.monotonic()
            model = trained(data, out / RUNS / label.replace(", ", "-"), config, device, memory_mib, reporter)
            seconds = round(time.monotonic() - started, 1)
            counts = [len(grid) for grid in config.grids]
            for way, found in every_way(model, photographs.prepared).items():
                values = measured(found[0], photographs.masks, defective_of(category.samples), found[1])
                scored = counts[WAYS.index(way)] if way.endswith("alone") else sum(counts)
                table.add({"strides": label, "maps": way, **values, "patches": scored, "seconds": seconds})
        figures.save(out / PICTURE, figures.dots(tables(table.rows), METRICS))
    return table.rows


@torch.inference_mode()
def every_way(model: Glance, images: Sequence[np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Maps [N, H, W] and scores [N] of images by each of ``WAYS``.

    Parameters
    ----------
    model : Glance
        Calibrated, of both patch sizes.
    images : sequence of ndarray
        [H, W, 3], of the model's size.
    """
    config, calibration = model.config, model.calibration
    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {way: [] for way in WAYS}
    step = model.at_once()
    for start in range(0, len(images), step):
        batch = np.stack([model.prepare(image) for image in images[start : start + step]])
        maps = model.head_maps(model.patch_scores(batch))
        blends: list[torch.Tensor] = []
        for way, own, statistics in zip(WAYS, maps, calibration.scales, strict=False):
            alone = dataclasses.replace(calibration, scales=(dataclasses.replace(statistics, weight=1.0),))
            parts[way].append(combine([own], config, alone))
            blends.append(weighted(own, model, len(blends)))
        summed = dataclasses.replace(calibration, largest_peaks=False)
        parts[MEAN].append((torch.stack(blends).mean(0), combine(maps, config, summed)[1]))
        parts[MAXIMUM].append(combine(maps, config, calibration))
    return {
        way: (torch.cat([m for m, _ in found]).cpu().numpy(), torch.cat([s for _, s in found]).cpu().numpy())
        for way, found in parts.items()
    }


def weighted(maps: HeadMaps, model: Glance, index: int) -> torch.Tensor:
    """The blended map of one patch size as it counts beside the others."""
    statistics = model.calibration.scales[index]
    return statistics.weight * statistics.map.standardise(blend_heads(maps, statistics))


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table a metric: a line a pair of strides, a column each of ``WAYS``."""
    labels = list(dict.fromkeys(row["strides"] for row in rows))
    by_place = {(row["strides"], row["maps"]): row for row in rows}
    return [
        Table(
            metric,
            list(WAYS),
            [
                (f"strides {label}", [by_place.get((label, way), {}).get(metric) for way in WAYS])
                for label in labels
            ],
        )
        for metric in METRICS
    ]
