"""``glance-fast distill``."""

from __future__ import annotations

import shutil
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from glance_fast.cli.console import console, tell
from glance_fast.cli.group import RESUMABLE
from glance_fast.cli.options import Device, Overwrite, Quiet, Resume
from glance_fast.errors import UserError
from glance_fast.jobs.output import check_file, one_of


class StudentKind(StrEnum):
    """What ``distill`` makes."""

    local32 = "local-32"
    local64 = "local-64"
    global_ = "global"


def distill(
    ctx: typer.Context,
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of photographs of anything.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write (.safetensors).")],
    teacher_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="ResNet-18 as .safetensors: torchvision's state dictionary, or with BatchNorm folded. "
            "The built-in one if not given.",
        ),
    ] = None,
    student: Annotated[
        StudentKind,
        typer.Option(
            metavar="NAME",
            help="local-32, local-64: a Local-Net for that patch size; "
            "global: where a masked Global-Net starts from.",
        ),
    ] = StudentKind.local32,
    self_supervised: Annotated[
        bool,
        typer.Option(
            "--self-supervised",
            help="No teacher: two views of a patch agree. IMAGES may be the good parts themselves.",
        ),
    ] = False,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Training steps.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of everything random.")] = 0,
    device: Device = "auto",
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make the built-in weights anew, from photographs and a ResNet-18.

    The package ships with all of them, and with a ResNet-18 to learn from. A
    Local-Net of your own goes to train --local-net; global replaces the file
    of the package itself.

    [dim]glance-fast distill photos --out local-32.safetensors[/dim]
    """
    from glance_fast.data.folders import list_images
    from glance_fast.device import pick_device
    from glance_fast.nets.builtin import builtin_teacher
    from glance_fast.nets.teacher import load_teacher
    from glance_fast.progress import Reporter
    from glance_fast.training.distill import distill_global_start, distill_local
    from glance_fast.training.self_supervised import distill_self_supervised

    one_of(resume, overwrite)
    work = out.with_name(out.name + ".checkpoint") if out.name else out
    ctx.meta[RESUMABLE] = work.exists
    check_file(out, overwrite, "local-32.safetensors")
    if work.exists() and not (resume or overwrite):
        raise UserError(
            f"{work}: an unfinished one is there; --resume goes on with it, --overwrite begins anew"
        )
    if resume and not work.exists():
        raise UserError(f"{out}: nothing to resume there; leave --resume away to begin")
    if teacher_weights is not None and student is StudentKind.global_:
        raise UserError("--student global learns from the built-in Local-Nets; leave --teacher-weights away")
    if self_supervised and student is StudentKind.global_:
        raise UserError("--self-supervised makes a Local-Net: --student local-32 or local-64")
    if self_supervised and teacher_weights is not None:
        raise UserError("--self-supervised has no teacher; leave --teacher-weights away")
    teacher = None
    if student is not StudentKind.global_ and not self_supervised:
        teacher = load_teacher(teacher_weights) if teacher_weights else builtin_teacher()
    paths = list_images(images)
    chosen = pick_device(device)
    if overwrite and work.exists():
        shutil.rmtree(work)
    with Reporter(console) as reporter:
        if student is StudentKind.global_:
            figures = distill_global_start(
                paths, out, work, steps=steps, seed=seed, reporter=reporter, device=chosen
            )
        else:
            patch = int(student.value.removeprefix("local-"))
            make = partial(distill_local, teacher=teacher) if teacher else distill_self_supervised
            figures = make(paths, out, work, patch, steps=steps, seed=seed, reporter=reporter, device=chosen)
    tell(f"{out}: {figures}")
