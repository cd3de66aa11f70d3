"""``glance-fast experiment panel``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from glance_fast.cli.console import console, count, out_console, tell, tell_json
from glance_fast.cli.options import Device, Json, Memory, Out, Overwrite, Quiet, Run, Seed, Threads

if TYPE_CHECKING:
    from glance_fast.experiments.panel import Measured


def panel(
    run: Run,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="An MVTec category; train/good holds what the run was trained on."
        ),
    ],
    out: Out,
    choose: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            help="defects: drawn, as many of each type of defect; worst or best: by PRO over the image "
            "alone; random; or paths of test images, separated by commas.",
        ),
    ] = "defects",
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=50,
            metavar="N",
            help="Images to show; if not given, one a type of defect, and 6 for worst, best and random.",
        ),
    ] = None,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="No maps without Global-Net, as in Fig. 3; needs no train/good."),
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show photographs, truth and maps in rows (Figs. 3 and 4).

    Beside the map stands what it would be without Global-Net: how far each
    patch is from the normal ones of its place, whatever is around it. Both
    go from what is normal to twice their own threshold. A picture for print,
    as PNG and as PDF; results.csv has all defective images.

    [dim]glance-fast experiment panel run mvtec/transistor --out panel[/dim]
    """
    from glance_fast.device import use_threads
    from glance_fast.experiments.panel import CHOICES
    from glance_fast.experiments.panel import panel as experiment
    from glance_fast.progress import Reporter

    use_threads(threads)
    with Reporter(console) as reporter:
        found = experiment(
            run,
            data,
            out,
            choose=choose if choose in CHOICES else [path.strip() for path in choose.split(",")],
            rows=rows,
            plain=plain,
            seed=seed or 0,
            device=device,
            memory_mib=memory,
            overwrite=overwrite,
            reporter=reporter,
        )
    if as_json:
        tell_json({"images": [dataclasses.asdict(row) for row in found]})
        return
    _print(found, plain)
    tell(f"picture: {out / 'panel.png'}")


def _print(found: list[Measured], plain: bool) -> None:
    """The rows of the picture, then the means of all images that were measured, by type of defect."""
    table = Table("", "PRO", *(() if plain else ("PRO without Global-Net",)))

    def add(name: str, *values: float | None) -> None:
        # A file's name may look like markup.
        table.add_row(escape(name), *("-" if v is None else f"{v:.3f}" for v in values[: 1 if plain else 2]))

    for row in sorted(found, key=lambda row: row.row or len(found) + 1):
        if row.row is not None:
            add(row.image, row.pro, row.pro_local)
    table.add_section()
    # Whether an image has a PRO depends on its truth alone: both maps of it have one, or neither.
    known = [row for row in found if row.pro is not None]
    kinds = {row.defect: [other for other in known if other.defect == row.defect] for row in known}
    groups = [*kinds.items(), *([("all", known)] if len(kinds) > 1 else [])]
    for name, rows in groups:
        add(
            f"{name}: mean of {count(len(rows), 'image')}",
            mean(row.pro or 0.0 for row in rows),
            mean(row.pro_local or 0.0 for row in rows),
        )
    out_console.print(table)
