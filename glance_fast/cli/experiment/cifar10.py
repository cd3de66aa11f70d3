"""``glance-fast experiment cifar10``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glance_fast.cli.console import console, out_console, tell, tell_json
from glance_fast.cli.group import RESUMABLE
from glance_fast.cli.options import Device, Json, Out, Overwrite, Quiet, Resume, Seed, Threads


def cifar10(
    ctx: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="CIFAR-10: its binary or Python batches, or train/<class>, test/<class>."
        ),
    ],
    out: Out,
    classes: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Classes, separated by commas; all if not given.")
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell one class of CIFAR-10 from all others (section 4.3, Table 3).

    Trains on each class alone and tests on its test images and as many of
    the others'. Writes results.csv and cifar10.png. With --resume, another
    --seed adds its rows to those that are there.

    [dim]glance-fast experiment cifar10 cifar-10-batches-bin --out cifar10[/dim]
    """
    from glance_fast.cli.experiment.tables import print_table
    from glance_fast.data.cifar10 import CLASSES
    from glance_fast.device import use_threads
    from glance_fast.experiments import cifar10 as experiment
    from glance_fast.experiments.paper import SOURCE
    from glance_fast.experiments.study import resumable
    from glance_fast.progress import Reporter

    use_threads(threads)
    ctx.meta[RESUMABLE] = lambda: resumable(out)
    with Reporter(console) as reporter:
        rows = experiment.run_cifar10(
            data,
            out,
            CLASSES if classes is None else [name.strip() for name in classes.split(",")],
            seed or 0,
            resume=resume,
            overwrite=overwrite,
            device=device,
            reporter=reporter,
        )
    if as_json:
        tell_json({"rows": rows})
        return
    lines = experiment.lines(rows)
    heads = [*experiment.SHOWN, *experiment.PRINTED]
    print_table(out_console, "Image AUROC", heads, lines, means=lines[-1][0] == "mean")
    tell(f"CPU seconds a class: {max(row['cpu_seconds'] for row in rows):.0f} at most")
    tell(f"paper: {SOURCE}")
    tell(experiment.DEVIATIONS)
    tell(f"results: {out / 'results.csv'}")
