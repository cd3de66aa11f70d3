"""``glance-fast experiment self-supervised``."""

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


def self_supervised(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A category, such as one of MVTec AD.")],
    out: Out,
    photos: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Photographs of anything, for a Local-Net that learns from them."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Of self-supervised training.")] = 500,
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
    """Train with Local-Nets that had no teacher (section 5 of the paper).

    The same training of one category, with patches of 32 pixels alone unless
    --set says otherwise, by five Local-Nets: the built-in one, fine-tuned and
    as it is; self-supervised ones of the category's images and of
    photographs; and random weights. Writes results.csv, self-supervised.png,
    and the models. Give --set symmetry=..., or each finds its own.

    On three test beds the category's own images were as good as the default
    in the mean: better for a texture, worse for an object.

    [dim]glance-fast experiment self-supervised mvtec/cable --out alone[/dim]
    """
    from glance_fast.cli.experiment.tables import print_table
    from glance_fast.config import Config
    from glance_fast.device import use_threads
    from glance_fast.experiments import self_supervised as experiment
    from glance_fast.experiments.study import resumable
    from glance_fast.progress import Reporter

    use_threads(threads)
    ctx.meta[RESUMABLE] = lambda: resumable(out)
    given = given_settings(None, config, settings, seed=seed)
    with Reporter(console) as reporter:
        rows = experiment.run_self_supervised(
            data,
            out,
            Config(**{**experiment.DEFAULTS, **given}),
            photos=photos,
            steps=steps,
            resume=resume,
            overwrite=overwrite,
            device=device,
            memory_mib=memory,
            reporter=reporter,
        )
    if as_json:
        tell_json({"rows": rows})
        return
    lines = [(row["local_net"], [row[metric] for metric in experiment.METRICS]) for row in rows]
    print_table(out_console, rows[0]["category"], list(experiment.METRICS.values()), lines)
    tell(f"results: {out / 'results.csv'}")
