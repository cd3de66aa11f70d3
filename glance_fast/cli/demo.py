"""``glance-fast demo``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from glance_fast.cli.console import console, print_metrics, tell, tell_json
from glance_fast.cli.options import Device, Json, Overwrite, Quiet
from glance_fast.jobs.output import output


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write.")] = Path(
        "glance-fast-demo"
    ),
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train, score, evaluate and report on built-in photographs, in minutes.

    Grass, gravel and brick with planted defects; report.html shows images,
    truth, maps and overlays. Needs no network and no data of yours.

    [dim]glance-fast demo --out demo[/dim]
    """
    from glance_fast.device import pick_device
    from glance_fast.jobs.demo import run_demo
    from glance_fast.progress import Reporter

    ours = ("data", "runs", "results", "report.html", "metrics.json")
    # What is wrong with it is said before an old demo is replaced.
    chosen = pick_device(device)
    started = time.monotonic()
    with output(out, ours, overwrite), Reporter(console) as reporter:
        results = run_demo(out, reporter, device=chosen)
    if as_json:
        tell_json(results)
    else:
        print_metrics(results)
        tell(f"{time.monotonic() - started:.0f} s; report: {out / 'report.html'}")
