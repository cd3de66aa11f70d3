"""``glance-fast experiment categories``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glance_fast.cli.console import console, out_console, tell, tell_json
from glance_fast.cli.group import RESUMABLE, SOME_IMAGES_FAILED
from glance_fast.cli.options import (
    ConfigFile,
    Device,
    Json,
    Memory,
    Out,
    Overwrite,
    PresetOption,
    Quiet,
    Resume,
    Seed,
    Settings,
    Threads,
    given_settings,
)


def categories(
    ctx: typer.Context,
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder of categories, such as MVTec AD's.")],
    out: Out,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="PatchCore and PaDiM on the same ResNet-18, too.")
    ] = False,
    preset: PresetOption = None,
    config: ConfigFile = None,
    settings: Settings = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate on every category of a data set (Tables 1 and 2).

    One model each, all with the same settings. Writes results.csv,
    categories.png, the models in runs/ and a report of each in reports/.
    A category that cannot be read is named, and the others go on.

    [dim]glance-fast experiment categories mvtec --out tables --baselines[/dim]
    """
    from glance_fast.cli.experiment.tables import print_table
    from glance_fast.config import Config
    from glance_fast.device import use_threads
    from glance_fast.experiments import categories as experiment
    from glance_fast.experiments.measure import METRICS
    from glance_fast.experiments.paper import SOURCE
    from glance_fast.experiments.study import resumable
    from glance_fast.progress import Reporter

    use_threads(threads)
    ctx.meta[RESUMABLE] = lambda: resumable(out)
    with Reporter(console) as reporter:
        rows = experiment.run_categories(
            root,
            out,
            Config(**given_settings(preset, config, settings, seed=seed)),
            baselines=baselines,
            resume=resume,
            overwrite=overwrite,
            device=device,
            memory_mib=memory,
            reporter=reporter,
        )
    if as_json:
        tell_json({"rows": rows})
    else:
        found = experiment.tables(rows)
        for table in found:
            print_table(out_console, METRICS[table.metric], table.columns, table.rows, table.means)
        if any("paper" in table.columns for table in found):
            tell(f"paper: {SOURCE}")
        tell(f"results: {out / 'results.csv'}")
    if any(row["error"] for row in rows):
        raise typer.Exit(SOME_IMAGES_FAILED)
