"""``glance-fast train``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from glance_fast.cli.console import console, tell
from glance_fast.cli.group import RESUMABLE
from glance_fast.cli.options import (
    ConfigFile,
    Device,
    Overwrite,
    PresetOption,
    Quiet,
    Resume,
    Seed,
    Settings,
    Threads,
    given_settings,
    parse_tile,
)
from glance_fast.jobs.output import one_of
from glance_fast.jobs.ranks import this_process


def train(
    ctx: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder of photographs of good parts; a category of MVTec AD, AD 2 or LOCO, of VisA or "
            "BTAD; or a CSV file (path, label; split).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Run folder to write.")],
    preset: PresetOption = None,
    config: ConfigFile = None,
    settings: Settings = None,
    seed: Seed = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Training steps of Global-Net, for each patch size."),
    ] = None,
    tile: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Learn from tiles of N pixels a side: for large photographs, where positions mean nothing. "
            "auto: image_size, so that no pixel is lost.",
        ),
    ] = None,
    local_net: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Local-Net from glance-fast distill, in place of the built-in one; repeatable.",
        ),
    ] = None,
    teacher_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="ResNet-18 (.safetensors) to fine-tune Local-Net by, in place of the built-in one.",
        ),
    ] = None,
    roi: Annotated[
        Path | None,
        typer.Option(
            metavar="MASK",
            help="Region of interest of all photographs, white in an image of 0 and 255; the model keeps it.",
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    memory: Annotated[
        int | None,
        typer.Option(
            "--memory-mib",
            min=1,
            metavar="N",
            help="MiB that calibration may take beside the model; 2048, on a GPU 8192.",
        ),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Learn what good parts look like.

    Writes a run folder: model.safetensors, config.toml, calibration.json,
    log.csv. Images that cannot be read are named and left out; at least 8
    are needed, a few hundred are better.

    Ctrl-C leaves a checkpoint; the same command with --resume goes on to
    the very result that an uninterrupted training has.

    Processes that torchrun started share the work, on one machine or on
    several, each on a CUDA device of its own; what they learn is the same.

    [dim]glance-fast train photos/good --out run
    glance-fast train photos/good --out run --set image_size=384 --steps 1000[/dim]
    """
    from glance_fast.config import Config
    from glance_fast.device import use_threads
    from glance_fast.jobs.train import settings_of_unfinished, train_folder
    from glance_fast.progress import Reporter
    from glance_fast.run import is_unfinished

    use_threads(threads)
    ctx.meta[RESUMABLE] = lambda: is_unfinished(out)
    one_of(resume, overwrite)
    before = asdict(settings_of_unfinished(out)) if resume else {}
    given = given_settings(preset, config, settings, seed=seed, steps=steps, tile=parse_tile(tile))
    resolved = Config(**(before | given))
    wanted = given.get("image_size", resolved.image_size)
    started = time.monotonic()
    first = this_process().rank == 0
    with Reporter(console if first else Console(quiet=True)) as reporter:
        if wanted not in (resolved.image_size, list(resolved.image_size), resolved.image_size[0]):
            reporter.say(
                f"image_size {wanted} rounded to {resolved.image_size[0]}x{resolved.image_size[1]}, "
                "which patches and strides cover whole"
            )
        train_folder(
            data,
            out,
            resolved,
            resume=resume,
            overwrite=overwrite,
            local_nets=local_net or (),
            teacher_weights=teacher_weights,
            device=device,
            memory_mib=memory,
            roi=roi,
            reporter=reporter,
        )
    if first:
        tell(f"{out}: trained in {time.monotonic() - started:.0f} s")
