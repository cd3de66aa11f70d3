"""What experiments measure: the metrics, a model that is trained once, tables of figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glance_fast.config import Config
from glance_fast.evaluation import metrics
from glance_fast.jobs.train import train_folder
from glance_fast.model import Glance
from glance_fast.progress import Reporter
from glance_fast.run import MODEL, is_unfinished, load

METRICS = {"pro": "PRO", "pixel_auroc": "Pixel AUROC", "image_auroc": "Image AUROC"}
# Folder of the models that an experiment trains.
RUNS = "runs"
# The fields of a Config by which two trainings may differ and yet give the same model.
NO_MATTER = ("checkpoint_minutes",)


@dataclass(frozen=True)
class Table:
    """One metric.

    Attributes
    ----------
    metric : str
        A key of ``METRICS``.
    columns : list of str
        What is compared.
    rows : list of (str, list of float or None)
        A name, and a figure a column.
    means : int
        How many of the rows, the last ones, are means of the others.
    """

    metric: str
    columns: list[str]
    rows: list[tuple[str, list[float | None]]]
    means: int = 0


def trained(
    data: Path, run: Path, config: Config, device: str, memory_mib: int | None, reporter: Reporter
) -> Glance:
    """The model of a category, trained or gone on with here where it is not there yet.

    Parameters
    ----------
    data, run, config, device, memory_mib, reporter
        As for ``train_folder``.
    """
    if not (run / MODEL).exists():
        train_folder(
            data,
            run,
            config,
            resume=is_unfinished(run),
            device=device,
            memory_mib=memory_mib,
            reporter=reporter,
        )
    return load(run, device, memory_mib=memory_mib)


def measured(
    maps: np.ndarray, masks: np.ndarray, defective: np.ndarray, scores: np.ndarray | None = None
) -> dict[str, float | None]:
    """The metrics of ``METRICS``, where they can be had.

    Parameters
    ----------
    maps : ndarray
        float32 [N, H, W].
    masks : ndarray
        bool [N, H, W].
    defective : ndarray
        bool [N].
    scores : ndarray, optional
        float32 [N], of the images; the largest values of their maps if not given.
    """
    found: dict[str, float | None] = dict.fromkeys(METRICS)
    if masks.any() and not masks.all():
        found["pro"], found["pixel_auroc"] = metrics.pro_and_auroc(maps, masks)
    if defective.any() and not defective.all():
        found["image_auroc"] = metrics.image_auroc(maps.max((1, 2)) if scores is None else scores, defective)
    return found
