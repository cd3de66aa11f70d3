"""``glance-fast experiment lambda``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glance_fast.cli.console import console, out_console, tell, tell_json
from glance_fast.cli.group import RESUMABLE
from glance_fast.cli.options import Device, Json, Memory, Out, Overwrite, Quiet, Resume, Threads


def lambda_(
    ctx: typer.Context,
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run folder of glance-fast train, or of experiment categories."),
    ],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="The category it was trained on, or all of them.")
    ],
    out: Out,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score by every share of the two heads, from 0 to 1 (Table 4).

    Nothing is trained again: the nets run once, and the blend of Eq. 13 is
    made of what they say. Writes results.csv and lambda.png.

    [dim]glance-fast experiment lambda run mvtec/transistor --out lambda[/dim]
    """
    from glance_fast.cli.experiment.tables import print_table
    from glance_fast.device import use_threads
    from glance_fast.experiments import lambda_s
    from glance_fast.experiments.paper import SOURCE
    from glance_fast.experiments.study import resumable
    from glance_fast.progress import Reporter

    use_threads(threads)
    ctx.meta[RESUMABLE] = lambda: resumable(out)
    with Reporter(console) as reporter:
        rows = lambda_s.run_lambda(
            run,
            data,
            out,
            resume=resume,
            overwrite=overwrite,
            device=device,
            memory_mib=memory,
            reporter=reporter,
        )
    if as_json:
        tell_json({"rows": rows})
        return
    found = lambda_s.curves(rows)
    by_share = {", ".join(names): dict(zip(*curve, strict=True)) for names, curve in found.items()}
    lines = [(name, [values.get(share) for share in lambda_s.SHARES]) for name, values in by_share.items()]
    print_table(out_console, "PRO by λ_s", [f"{share:g}" for share in lambda_s.SHARES], lines)
    if any(blend == "paper" for _, blend in found):
        tell(f"paper: {SOURCE}")
    tell(f"results: {out / 'results.csv'}")
