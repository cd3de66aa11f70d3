"""Table 3: one class of CIFAR-10 against the nine others, for every class (section 4.3).

Trained on the training images of one class; tested on its test images and as many outliers, drawn by the
seed from the test images of the other classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from glance_fast.data.cifar10 import CLASSES, Cifar10, read_cifar10
from glance_fast.device import has_bf16, pick_device
from glance_fast.errors import UserError
from glance_fast.evaluation.metrics import image_auroc
from glance_fast.experiments import figures, paper
from glance_fast.experiments.one_class import Recipe, fit_one_class
from glance_fast.experiments.study import Row, study
from glance_fast.jobs.output import apart
from glance_fast.nets.builtin import builtin_teacher
from glance_fast.nets.teacher import Teacher
from glance_fast.progress import Reporter

# Of the scores, by their columns.
AUROCS = {
    "auroc": "calibrated",
    "auroc_paper": "paper",
    "auroc_iad": "inconsistency",
    "auroc_dad": "distortion",
}
COLUMNS = {"class": str, "seed": int, **dict.fromkeys(AUROCS, float), "cpu_seconds": float}
# What the table shows: columns of ``results.csv``, then those of the paper's table.
SHOWN = {"ours": "auroc", "Eq. 13": "auroc_paper", "IAD": "auroc_iad", "DAD": "auroc_dad"}
PRINTED = {"paper": "cifar10", "GradCon": "cifar10_gradcon"}
PICTURE = "cifar10.png"
DEVIATIONS = (
    "differs from the paper: Local-Net was distilled from 1,000 photographs, not from ImageNet; scores are "
    "of an image and its mirror image, calibrated on training images held out (Eq. 13: as it stands)"
)


def run_cifar10(
    data: Path,
    out: Path,
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
    recipe: Recipe | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    reporter: Reporter,
) -> list[Row]:
    """Train on every class alone, and tell its test images from those of the others.

    Parameters
    ----------
    data : Path
        CIFAR-10, as ``read_cifar10`` takes it.
    out : Path
        Folder to write: ``results.csv``, ``cifar10.png``, ``experiment.json``.
    classes : sequence of str
        Names of the classes to measure.
    seed : int
        Of everything random; others may follow in the same folder, with ``resume``.
    recipe : Recipe, optional
        Of all trainings; the defaults if not given.
    resume : bool
        Go on with what is there: rows of the same class and seed are not measured again.
    overwrite : bool
        Delete what an earlier one wrote.
    device : str
        As for ``glance_fast.fit``.
    reporter : Reporter
        Shows progress.

    Returns
    -------
    list of dict
        Rows of ``results.csv``: ``class``, ``seed``, image AUROC of the calibrated score (``auroc``), of
        Eq. 13 as it stands (``auroc_paper``), of each head alone (``auroc_iad``, ``auroc_dad``), and
        ``cpu_seconds`` of training and scoring, over all threads.

    Raises
    ------
    UserError
        ``data`` cannot be read or has no test image of other classes, a class is none of CIFAR-10's, the
        device is not available, or ``out`` cannot be written or holds another experiment.
    """
    check_classes(classes)
    apart(out, data)
    recipe, place = recipe or Recipe(), pick_device(device)
    with reporter.task("reading images", None) as advance:
        images = read_cifar10(data, advance)
    for name in classes:
        _check_images(data, images, name)
    settings = {"images": images.digest()[:16], **asdict(recipe)}
    with study(out, "cifar10", settings, COLUMNS, (PICTURE,), resume=resume, overwrite=overwrite) as table:
        teacher = builtin_teacher().to(place)
        for name in classes:
            if not table.find(**{"class": name, "seed": seed}):
                table.add(_measured(images, name, seed, recipe, teacher, reporter))
        figures.save(out / PICTURE, picture(table.rows))
    return table.rows


def check_classes(classes: Sequence[str]) -> None:
    """Refuse names that are none of CIFAR-10's, or none at all."""
    unknown = [name for name in classes if name not in CLASSES]
    if unknown or not classes:
        got = f", got {', '.join(unknown)}" if unknown else ""
        raise UserError(f"classes: expected some of {', '.join(CLASSES)}{got}")


def draw_outliers(labels: NDArray[np.int64], label: int, seed: int) -> NDArray[np.int64]:
    """Draw test images of other classes, as many as there are of one.

    Parameters
    ----------
    labels : ndarray, int64 [N]
        Of the test images.
    label : int
        The class.
    seed : int
        The draw depends on it, the class and ``labels`` alone.

    Returns
    -------
    ndarray, int64 [M]
        Places, from the first to the last; all others' where these are fewer.
    """
    others = np.flatnonzero(labels != label)
    count = min(int((labels == label).sum()), len(others))
    return np.sort(np.random.default_rng((seed, label)).choice(others, count, replace=False))


def lines(rows: Sequence[Row]) -> list[tuple[str, list[float]]]:
    """What the table shows of every class, means over seeds, and last the mean of all classes."""
    found: list[tuple[str, list[float]]] = []
    for name in (name for name in CLASSES if any(row["class"] == name for row in rows)):
        of_class = [row for row in rows if row["class"] == name]
        ours = [fmean(row[column] for row in of_class) for column in SHOWN.values()]
        found.append((name, [*ours, *(paper.figure_of(table, name) for table in PRINTED.values())]))
    if len(found) > 1:
        found.append(
            ("mean", [fmean(column) for column in zip(*(values for _, values in found), strict=True)])
        )
    return found


def picture(rows: Sequence[Row]) -> Figure:
    """Bars: ours beside the paper's and the next best that it prints."""
    shown = lines(rows)
    heads = [*SHOWN, *PRINTED]
    bars = [heads.index(head) for head in ("ours", *PRINTED)]
    figure, (axes,) = figures.panels(1, 0.62 * len(shown) + 1.6, 3.4)
    width = 0.8 / len(bars)
    for number, place in enumerate(bars):
        left = [at + (number - (len(bars) - 1) / 2) * width for at in range(len(shown))]
        axes.bar(
            left,
            [values[place] for _, values in shown],
            width,
            color=figures.COLOURS[number],
            label=heads[place],
        )
    axes.set_xticks(range(len(shown)), [name for name, _ in shown], rotation=30, ha="right")
    axes.set_ylabel("Image AUROC", fontsize=9)
    # Chance is where bars begin.
    axes.set_ylim(0.5, 1)
    figure.legend(loc="outside lower center", ncols=len(bars), frameon=False, fontsize=8)
    return figure


def _check_images(data: Path, images: Cifar10, name: str) -> None:
    """Refuse a class of which there is too little to measure anything."""
    label = CLASSES.index(name)
    for part, labelled, least in (("train", images.train, 8), ("test", images.test, 1)):
        if (labelled.labels == label).sum() < least:
            raise UserError(f"{data}: has less than {least} {part} images of the class {name}")
    if (images.test.labels == label).all():
        raise UserError(f"{data}: has no test image of another class than {name}")


def _measured(
    images: Cifar10, name: str, seed: int, recipe: Recipe, teacher: Teacher, reporter: Reporter
) -> Row:
    """The row of one class."""
    label = CLASSES.index(name)
    outliers = images.test.images[draw_outliers(images.test.labels, label, seed)]
    normal = images.test.of(label)
    started = time.process_time()
    device = next(teacher.parameters()).device
    model = fit_one_class(
        images.train.of(label),
        teacher,
        recipe,
        name=name,
        seed=seed,
        device=device,
        bf16=has_bf16(device),
        reporter=reporter,
    )
    scores = model.score(np.concatenate([normal, outliers]))
    seconds = time.process_time() - started
    truth = np.arange(len(scores.calibrated)) >= len(normal)
    found = {column: image_auroc(getattr(scores, kind), truth) for column, kind in AUROCS.items()}
    return {"class": name, "seed": seed, **found, "cpu_seconds": round(seconds, 1)}
