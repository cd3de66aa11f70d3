"""The paper's section 5: a Local-Net that learned without a teacher, beside the built-in one.

One category is trained several times with the same settings; only Local-Net differs. By default that is a
small training: one patch size, 32 pixels at stride 8, and half of the usual steps, batch and copies.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.folders import list_images
from glance_fast.data.images import resize
from glance_fast.data.layouts import normal_images
from glance_fast.errors import UserError
from glance_fast.evaluation.inputs import find_category, read_photographs
from glance_fast.evaluation.summary import defective_of
from glance_fast.experiments import figures
from glance_fast.experiments.categories import METRICS, NO_MATTER, Table, measured
from glance_fast.experiments.study import Row, study
from glance_fast.jobs.output import apart
from glance_fast.jobs.train import train_folder
from glance_fast.progress import Reporter
from glance_fast.run import MODEL, is_unfinished, load
from glance_fast.tiles import whole_only
from glance_fast.training.distill import LEAST_IMAGES
from glance_fast.training.self_supervised import distill_self_supervised, random_student, whiten

# A category in few minutes.
DEFAULTS = {"patch": 32, "stride": 8, "steps": 150, "batch": 8, "variants": 120}
STEPS = 500
# What Local-Net comes from. All but the first are not fine-tuned: that takes the teacher.
FINE_TUNED, DISTILLED, OWN, PHOTOS, RANDOM = (
    "distilled, fine-tuned",
    "distilled",
    "own images",
    "photographs",
    "random",
)
COLUMNS = {"category": str, "local_net": str, **dict.fromkeys(METRICS, float), "seconds": float}
RUNS, NETS, PICTURE = "runs", "local-nets", "self-supervised.png"


def run_self_supervised(
    data: Path,
    out: Path,
    config: Config,
    *,
    photos: Path | None = None,
    steps: int = STEPS,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    memory_mib: int | None = None,
    reporter: Reporter,
) -> list[Row]:
    """Train and evaluate on one category with Local-Nets of several origins.

    They are the built-in, distilled one, fine-tuned by the teacher and as it is; a self-supervised one of the
    category's own normal images; one of photographs; and random weights, the floor.

    Parameters
    ----------
    data : Path
        The category.
    out : Path
        Folder to write: ``results.csv``, ``self-supervised.png``, ``experiment.json``, Local-Nets in
        ``local-nets`` and models in ``runs``.
    config : Config
        Settings of all models; ``finetune_steps`` is that of the fine-tuned one.
    photos : Path, optional
        Photographs of anything; without them that Local-Net is left out.
    steps : int
        Of self-supervised training.
    resume, overwrite : bool
        As for ``run_categories``.
    device, memory_mib
        As for ``glance_fast.fit``.
    reporter : Reporter
        Shows progress.

    Returns
    -------
    list of dict
        Rows of ``results.csv``: ``category``, ``local_net``, the metrics of ``METRICS``, and ``seconds`` of
        all training, Local-Net's of this experiment included.

    Raises
    ------
    UserError
        There is no such category, it or ``photos`` holds fewer than 16 images, nothing is to be fine-tuned,
        or ``out`` cannot be written or holds another experiment.
    """
    apart(out, data, *([photos] if photos else []))
    whole_only(config, "self-supervised")
    if not any(map(config.finetune_steps_of, range(len(config.patches)))):
        raise UserError("finetune_steps: 0 leaves nothing to compare with; leave it away")
    sources = {OWN: normal_images(data)} | ({PHOTOS: list_images(photos)} if photos else {})
    for place, paths in zip((data, photos), sources.values(), strict=False):
        if len(paths) < LEAST_IMAGES:
            raise UserError(f"{place}: {len(paths)} images; at least {LEAST_IMAGES} are needed to distill")
    category = find_category(data, out)
    settings = {"category": category.name, "photos": photos and str(photos), "distill_steps": steps}
    settings |= {k: v for k, v in asdict(config).items() if k not in NO_MATTER}
    with study(
        out,
        "self-supervised",
        settings,
        COLUMNS,
        (RUNS, NETS, PICTURE),
        resume=resume,
        overwrite=overwrite,
    ) as table:
        size = config.image_size
        photographs = read_photographs(category, lambda image: resize(image, size), size)
        defective = defective_of(category.samples)
        for origin in (FINE_TUNED, DISTILLED, *sources, RANDOM):
            if table.find(local_net=origin):
                continue
            reporter.say(f"{category.name}: {origin}")
            started = time.monotonic()
            nets = []
            for patch in config.patches if origin in (*sources, RANDOM) else ():
                path = out / NETS / f"{_folder(origin)}-{patch}.safetensors"
                if not path.exists() and origin == RANDOM:
                    _write_random(sources[OWN], path, patch, config)
                elif not path.exists():
                    work = path.with_name(f"{path.name}.checkpoint")
                    distill_self_supervised(
                        sources[origin],
                        path,
                        work,
                        patch,
                        steps=steps,
                        seed=config.seed,
                        reporter=reporter,
                        device=device,
                        size=size,
                    )
                nets.append(path)
            run = out / RUNS / _folder(origin)
            if not (run / MODEL).exists():
                train_folder(
                    data,
                    run,
                    config if origin == FINE_TUNED else dataclasses.replace(config, finetune_steps=0),
                    resume=is_unfinished(run),
                    local_nets=nets,
                    device=device,
                    memory_mib=memory_mib,
                    reporter=reporter,
                )
            seconds = time.monotonic() - started
            result = load(run, device, memory_mib=memory_mib).score(photographs.prepared)
            row: Row = {"category": category.name, "local_net": origin, "seconds": round(seconds, 1)}
            table.add(row | measured(result.maps, photographs.masks, defective, result.scores))
        figures.save(out / PICTURE, figures.dots(tables(table.rows), METRICS))
    return table.rows


def tables(rows: Sequence[Row]) -> list[Table]:
    """The rows of ``results.csv`` as a table a metric: a Local-Net a line."""
    return [
        Table(metric, [rows[0]["category"]], [(row["local_net"], [row[metric]]) for row in rows])
        for metric in METRICS
    ]


def _folder(origin: str) -> str:
    """What a Local-Net's files are called."""
    return origin.replace(", ", "-").replace(" ", "-")


def _write_random(paths: Sequence[Path], out: Path, patch: int, config: Config) -> None:
    """A Local-Net of the weights that self-supervised training starts from, whitened on the category."""
    student = random_student(patch, config.seed)
    with ImageCache(paths, config.image_size) as cache:
        whiten(student, cache, np.arange(len(cache)))
    student.save(out, {"teacher": None, "steps": 0, "seed": config.seed})
