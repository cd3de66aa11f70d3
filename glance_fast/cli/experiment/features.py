"""``glance-fast experiment features``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from glance_fast.cli.console import console, out_console, tell, tell_json
from glance_fast.cli.options import Device, Json, Memory, Out, Overwrite, Quiet, Run, Seed, Threads


def features(
    run: Run,
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="An MVTec category: test/<defect>/ and ground_truth/<defect>/."),
    ],
    out: Out,
    patches: Annotated[
        int,
        typer.Option(
            min=10,
            metavar="N",
            help="Patches to draw of each size, half of them with something of a defect in them, as far as "
            "there are so many.",
        ),
    ] = 800,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show local and global features as each head sees them (Fig. 5).

    Draws patches of defective test images, and lays their features out by
    t-SNE: circles are patches, triangles their surroundings, dark ones are
    anomalous. A picture for each patch size, as PNG and as PDF.

    Also says how well each head's score tells patches that are anomalous by
    more than half of their area from those with no defect: AUROC over all
    patches of the defective images.

    [dim]glance-fast experiment features run mvtec/transistor --out features[/dim]
    """
    from glance_fast.device import use_threads
    from glance_fast.experiments.features import features as experiment
    from glance_fast.progress import Reporter

    use_threads(threads)
    with Reporter(console) as reporter:
        found = experiment(
            run,
            data,
            out,
            patches=patches,
            seed=seed or 0,
            device=device,
            memory_mib=memory,
            overwrite=overwrite,
            reporter=reporter,
        )
    if as_json:
        tell_json({"heads": [dataclasses.asdict(row) for row in found]})
        return
    table = Table("head", "patch", "AUROC", "anomalous patches", "normal patches")
    for row in found:
        auroc = "-" if row.auroc is None else f"{row.auroc:.3f}"
        table.add_row(row.head, f"{row.patch} px", auroc, str(row.anomalous), str(row.normal))
    out_console.print(table)
    tell(f"pictures: {out}")
