"""Local-Net's training: distillation from a teacher (Eq. 1) under the compactness loss (Eq. 2)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache as cache_result
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.device import has_bf16
from glance_fast.errors import UserError
from glance_fast.nets.global_start import GlobalStart
from glance_fast.nets.preprocess import to_input
from glance_fast.nets.student import BATCH, Student
from glance_fast.nets.teacher import Teacher
from glance_fast.progress import Reporter
from glance_fast.training.loop import Log, Stage, run_stage
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


def local_stage(
    name: str,
    student: Student,
    teacher: nn.Module,
    cache: ImageCache,
    train: np.ndarray,
    held_out: np.ndarray,
    *,
    steps: int,
    rate: float,
    stem_rate: float,
    shift: int,
    brightness: float,
    symmetry: Symmetry,
    seed: int,
    bf16: bool,
) -> Stage:
    """The stage that trains ``student`` on images ``train`` of ``cache``, Eq. 3."""

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(seed, name, number)
        images = _batch(cache, train, generator, shift, brightness, symmetry)
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
        {"params": stem, "lr": rate * stem_rate, "weight_decay": WEIGHT_DECAY},
        {"params": rest, "lr": rate, "weight_decay": WEIGHT_DECAY},
    ]
    modules = {"local": student.local, "decoder": student.decoder}
    return Stage(name, steps, modules, groups, step, BATCH, validate)


def _batch(
    cache: ImageCache,
    train: np.ndarray,
    generator: torch.Generator,
    shift: int,
    brightness: float,
    symmetry: Symmetry,
) -> Tensor:
    images = torch.from_numpy(cache.batch(train[draw_indices(len(train), BATCH, generator)]))
    return augment(vary(images, symmetry, generator), shift, brightness, generator)


def _batches(indices: np.ndarray) -> list[np.ndarray]:
    return np.array_split(indices, -(-len(indices) // BATCH))


def distill(
    paths: Sequence[Path],
    out: Path,
    work: Path,
    teacher: Teacher | None,
    kind: str,
    *,
    steps: int,
    seed: int,
    reporter: Reporter,
) -> str:
    """Make a Local-Net or the masked Global-Net's start from photographs: ``glance-fast distill``.

    Parameters
    ----------
    paths : sequence of Path
        Photographs; those that cannot be read are reported and left out.
    out : Path
        File to write.
    work : Path
        Folder for checkpoints and the log while it runs; removed at the end.
    teacher : Teacher, optional
        ResNet-18 through layer3; not needed for "global".
    kind : {"local-32", "local-64", "global"}
        What to make.
    steps, seed : int
        Of the training.
    reporter : Reporter
        Shows progress.

    Returns
    -------
    str
        Figures of the result in one line.

    Raises
    ------
    UserError
        Fewer than 16 photographs can be read, or something cannot be written.
    """
    bf16 = has_bf16(torch.device("cpu"))
    with reporter.task("reading images", len(paths)) as advance:
        cache = ImageCache(paths, (SIZE, SIZE), progress=advance)
    with cache:
        for error in cache.errors:
            reporter.say(f"left out: {error}")
        if len(cache) < LEAST_IMAGES:
            raise UserError(f"{len(cache)} usable photographs: at least {LEAST_IMAGES} are needed to distill")
        order = np.random.default_rng(seed).permutation(len(cache))
        count = min(MOST_HELD_OUT, len(cache) // 8)
        train, held_out = np.sort(order[count:]), np.sort(order[:count])
        torch.manual_seed(seed)
        common = {"steps": steps, "rate": RATE, "seed": seed, "bf16": bf16}
        if kind == "global":
            start = GlobalStart(Config(net="pyramid").patches)
            stage = global_start_stage(
                start, cache, train, held_out, steps=steps, symmetry=MIRRORS, seed=seed, bf16=bf16
            )
        else:
            student = Student(int(kind.removeprefix("local-")))
            student.local.start_from(teacher)
            sample = torch.from_numpy(cache.batch(train[:SAMPLE]))
            student.measure_teacher(teacher, sample)
            stage = local_stage(
                kind,
                student,
                teacher,
                cache,
                train,
                held_out,
                stem_rate=STEM_RATE,
                shift=16,
                brightness=0.2,
                symmetry=MIRRORS,
                **common,
            )
        log = Log(work / "log.csv")
        run_stage(stage, work, log, reporter.step, minutes=2.0)
        last = log.rows[-1]
        notes = {
            "teacher": "the built-in Local-Nets" if kind == "global" else "ResNet-18, ImageNet",
            "photographs": len(cache),
            "steps": steps,
            "seed": seed,
            "held_out_loss": float(last["held_out_loss"]),
        }
        if kind == "global":
            start.save(out, notes)
        else:
            student.whiten(sample)
            student.save(out, notes)
    shutil.rmtree(work)
    return f"{steps} steps, held-out loss {float(last['held_out_loss']):.3f}"
