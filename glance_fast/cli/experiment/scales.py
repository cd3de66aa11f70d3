"""``glance-fast experiment scales``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glance_fast.cli.console import console, out_console, tell, tell_json
from glance_fast.cli.group import RESUMABLE
from glance_fast.cli.options import (
    ConfigFile,
    Device,
    Json,
    Memory,
    Out,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    Settings,
    Threads,
    given_settings,
)
from glance_fast.errors import UserError


def scales(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A category with test images.")],
    out: Out,
    strides: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B", help="Strides of patches of 32 and of 64 pixels; repeatable. 8,16 and 16,32."
        ),
    ] = None,
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
    """Compare patch sizes and strides, alone and together (section 5).

    Trains a model for every pair of strides; each patch size alone, the
    mean of their maps and the larger one come from the same nets. Writes
    results.csv, scales.png and the models in runs/.

    [dim]glance-fast experiment scales mvtec/transistor --out scales[/dim]
    """
    from glance_fast.cli.experiment.tables import print_table
    from glance_fast.device import use_threads
    from glance_fast.experiments import scales as experiment
    from glance_fast.experiments.measure import METRICS
    from glance_fast.experiments.study import resumable
    from glance_fast.progress import Reporter

    use_threads(threads)
    ctx.meta[RESUMABLE] = lambda: resumable(out)
    with Reporter(console) as reporter:
        rows = experiment.run_scales(
            data,
            out,
            given_settings(None, config, settings, seed=seed),
            [_pair(text) for text in strides] if strides else experiment.STRIDES,
            resume=resume,
            overwrite=overwrite,
            device=device,
            memory_mib=memory,
            reporter=reporter,
        )
    if as_json:
        tell_json({"rows": rows})
        return
    for table in experiment.tables(rows):
        print_table(out_console, METRICS[table.metric], table.columns, table.rows)
    tell(f"results: {out / 'results.csv'}")


def _pair(text: str) -> tuple[int, int]:
    try:
        first, second = map(int, text.split(","))
    except ValueError:
        raise UserError(f"--strides {text}: expected two integers, such as 8,16") from None
    return first, second
