"""Local-Net's training: distillation from a teacher (Eq. 1) under the compactness loss (Eq. 2)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache as cache_result
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.files import digest_of
from glance_fast.device import has_bf16, pick_device
from glance_fast.errors import UserError
from glance_fast.nets.global_start import GlobalStart
from glance_fast.nets.preprocess import to_input
from glance_fast.nets.student import BATCH, Student
from glance_fast.nets.teacher import Teacher
from glance_fast.progress import Reporter
from glance_fast.training.loop import COLUMNS, Log, Stage, digest_of_images, remember, run_stage
from glance_fast.training.pretrain import global_start_stage
from glance_fast.training.sampling import augment, draw_indices, step_generator
from glance_fast.training.symmetry import Symmetry, vary

SIZE = 256
LEAST_IMAGES = 16
MOST_HELD_OUT = 48
RATE = 3e-3
# A photograph of anything may be mirrored.
MIRRORS = Symmetry(turns=False, mirrors=True)
# Photographs over which the teacher is measured and the student whitened.
SAMPLE = 128
# λ_k and λ_c of Eq. 3.
LAMBDA_K, LAMBDA_C = 1.0, 1.0
WEIGHT_DECAY = 1e-4
# The stem comes from the teacher and moves slowly.
STEM_RATE = 0.1
# What a distillation must be gone on with, as messages call it.
BEGUN = "begun.json"
NAMES = {
    "student": "another student",
    "images": "other photographs",
    "teacher": "another teacher",
    "steps": "another number of steps",
    "seed": "another seed",
}
# Of augmentation: pixels, and share.
SHIFT, BRIGHTNESS = 16, 0.2


class Photographs(NamedTuple):
    """Photographs of anything, and which of them are trained on and which are held out."""

    cache: ImageCache
    train: np.ndarray
    held_out: np.ndarray


def local_stage(
    name: str,
    student: Student,
    teacher: Teacher,
    photographs: Photographs,
    *,
    steps: int,
    seed: int,
    bf16: bool,
) -> Stage:
    """The stage that trains ``student``, Eq. 3."""
    cache, train, held_out = photographs

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(seed, name, number)
        images = torch.from_numpy(cache.batch(train[draw_indices(len(train), BATCH, generator)]))
        images = augment(vary(images, MIRRORS, generator), SHIFT, BRIGHTNESS, generator)
        fit, compact = student.losses(teacher, images, bf16)
        parts = {"imitation": float(fit.detach()), "compactness": float(compact.detach())}
        return LAMBDA_K * fit + LAMBDA_C * compact, parts

    @cache_result
    def variance() -> float:
        images = (torch.from_numpy(cache.batch(part)).to(student.mean.device) for part in _batches(held_out))
        parts = [student.target(teacher, to_input(part)) for part in images]
        return float(torch.cat([p.transpose(0, 1).flatten(1) for p in parts], dim=1).var(1).mean())

    def validate() -> dict[str, float]:
        losses = [
            student.losses(teacher, torch.from_numpy(cache.batch(part)), bf16)[0]
            for part in _batches(held_out)
        ]
        loss = float(torch.stack(losses).mean())
        # The target was standardised on other images.
        return {"held_out_loss": loss, "r2": 1 - loss / variance()}

    stem = [*student.local.conv1.parameters(), *student.local.layer1.parameters()]
    known = set(map(id, stem))
    rest = [p for m in (student.local, student.decoder) for p in m.parameters() if id(p) not in known]
    groups = [
        {"params": stem, "lr": RATE * STEM_RATE, "weight_decay": WEIGHT_DECAY},
        {"params": rest, "lr": RATE, "weight_decay": WEIGHT_DECAY},
    ]
    modules = {"local": student.local, "decoder": student.decoder}
    return Stage(name, steps, modules, groups, step, BATCH, validate)


def _batches(indices: np.ndarray) -> list[np.ndarray]:
    return np.array_split(indices, -(-len(indices) // BATCH))


def distill_local(
    paths: Sequence[Path],
    out: Path,
    work: Path,
    patch: int,
    teacher: Teacher,
    *,
    steps: int,
    seed: int,
    reporter: Reporter,
    device: str | torch.device = "auto",
) -> str:
    """Make a Local-Net from photographs: ``glance-fast distill --student local-32``.

    Parameters
    ----------
    paths : sequence of Path
        Photographs; those that cannot be read are reported and left out.
    out : Path
        File to write.
    work : Path
        Folder for checkpoints and the log while it runs; removed at the end.
    patch : int
        Side of its patches, pixels: 32 or 64.
    teacher : Teacher
        ResNet-18 through layer3.
    steps, seed : int
        Of the training.
    reporter : Reporter
        Shows progress.
    device : str or torch.device
        "auto" (CUDA where there is one), "cpu" or "cuda".

    Returns
    -------
    str
        Figures of the result in one line.

    Raises
    ------
    UserError
        Fewer than 16 photographs can be read, what ``work`` holds was begun with something else, the device
        is not available, or something cannot be written.
    """
    device = pick_device(device)
    name = f"local-{patch}"
    given = {"student": name, "teacher": digest_of(teacher.state_dict()), "steps": steps, "seed": seed}
    with open_photographs(paths, work, given, reporter) as photographs:
        student = Student(patch)
        student.local.start_from(teacher)
        student, teacher = student.to(device), teacher.to(device)
        sample = torch.from_numpy(photographs.cache.batch(photographs.train[:SAMPLE]))
        student.measure_teacher(teacher, sample)
        bf16 = has_bf16(device)
        stage = local_stage(name, student, teacher, photographs, steps=steps, seed=seed, bf16=bf16)
        loss = train_alone(stage, work, reporter)
        student.whiten(sample)
        notes = {"teacher": "ResNet-18, ImageNet", "photographs": len(photographs.cache)}
        student.save(out, notes | {"steps": steps, "seed": seed, "held_out_loss": loss})
    shutil.rmtree(work)
    return f"{steps} steps, held-out loss {loss:.3f}"


def distill_global_start(
    paths: Sequence[Path],
    out: Path,
    work: Path,
    *,
    steps: int,
    seed: int,
    reporter: Reporter,
    device: str | torch.device = "auto",
) -> str:
    """Make the masked Global-Net's start from photographs: ``glance-fast distill --student global``.

    It learns from the built-in Local-Nets. Parameters, what is returned and errors are as for
    ``distill_local``.
    """
    device = pick_device(device)
    given = {"student": "global", "teacher": None, "steps": steps, "seed": seed}
    with open_photographs(paths, work, given, reporter) as photographs:
        start = GlobalStart(Config(net="pyramid").patches).to(device)
        bf16 = has_bf16(device)
        stage = global_start_stage(start, *photographs, steps=steps, symmetry=MIRRORS, seed=seed, bf16=bf16)
        loss = train_alone(stage, work, reporter)
        notes = {"teacher": "the built-in Local-Nets", "photographs": len(photographs.cache)}
        start.save(out, notes | {"steps": steps, "seed": seed, "held_out_loss": loss})
    shutil.rmtree(work)
    return f"{steps} steps, held-out loss {loss:.3f}"


@contextmanager
def open_photographs(
    paths: Sequence[Path],
    work: Path,
    given: dict[str, Any],
    reporter: Reporter,
    size: tuple[int, int] = (SIZE, SIZE),
) -> Iterator[Photographs]:
    """Read photographs, note what is begun, choose those that are held out, and seed what is random."""
    with reporter.task("reading images", len(paths)) as advance:
        cache = ImageCache(paths, size, progress=advance)
    with cache:
        for error in cache.errors:
            reporter.say(f"left out: {error}")
        if len(cache) < LEAST_IMAGES:
            raise UserError(f"{len(cache)} usable photographs: at least {LEAST_IMAGES} are needed to distill")
        remember(work / BEGUN, {**given, "images": digest_of_images(cache)}, NAMES, work)
        order = np.random.default_rng(given["seed"]).permutation(len(cache))
        count = min(MOST_HELD_OUT, len(cache) // 8)
        torch.manual_seed(given["seed"])
        yield Photographs(cache, np.sort(order[count:]), np.sort(order[:count]))


def train_alone(stage: Stage, work: Path, reporter: Reporter, columns: tuple[str, ...] = COLUMNS) -> float:
    """Train to the end: the loss on held-out photographs."""
    log = Log(work / "log.csv", columns)
    run_stage(stage, work, log, reporter.step, minutes=2.0)
    return float(log.rows[-1]["held_out_loss"])
