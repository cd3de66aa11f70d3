"""``glance-fast evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glance_fast.cli.console import console, print_metrics, say, tell, tell_json, tell_precision
from glance_fast.cli.options import (
    Device,
    Engine,
    EngineOption,
    Json,
    Memory,
    Out,
    Overwrite,
    Precision,
    PrecisionOption,
    Quiet,
    Run,
    Threads,
)
from glance_fast.jobs.output import apart, output


def evaluate(
    run: Run,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A category of MVTec AD, AD 2 or LOCO, of VisA or BTAD; a folder with good beside "
            "defects; or a CSV file (path, label; mask, split).",
        ),
    ],
    out: Out,
    metrics: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Metrics to show, separated by commas: pro, pro_5, pixel_auroc, pixel_ap, pixel_f1_max, "
            "image_auroc, image_ap, image_f1_max, for MVTec LOCO also spro_5, spro_30; or all. "
            "metrics.json has all of them.",
        ),
    ] = "pro,pixel_auroc,image_auroc",
    engine: EngineOption = Engine.auto,
    precision: PrecisionOption = Precision.auto,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on photographs whose defects are known.

    Writes metrics.json (PRO, AUROC, average precision and F1 of pixels and
    images, overall and for each defect), curves.png, report.html,
    scores.csv, and the maps in the layout that MVTec's own evaluation reads.

    [dim]glance-fast evaluate run mvtec/transistor --out report[/dim]
    """
    from glance_fast.device import use_threads
    from glance_fast.evaluation import evaluate as evaluation
    from glance_fast.evaluation import summary
    from glance_fast.evaluation.submission import MAPS, THRESHOLDED
    from glance_fast.progress import Reporter
    from glance_fast.run import load

    apart(out, run, data)
    category = evaluation.find_category(data, out)
    saturated = category.saturations is not None
    known = summary.metrics_of(saturated)
    shown = list(known) if metrics == "all" else [name.strip() for name in metrics.split(",")]
    summary.check_shown(shown, saturated)
    use_threads(threads)
    model = load(run, device, memory_mib=memory)
    # Before what an earlier one wrote is replaced.
    model.check(engine.value, precision.value)
    model.memory_share(precision.value)
    photographs = None
    if overwrite:
        photographs = evaluation.read_photographs(category, model.prepare, model.config.image_size)
    tell_precision(model, precision.value)
    ours = ("metrics.json", "scores.csv", "curves.png", "report.html", "maps", MAPS, THRESHOLDED)
    with (
        output(out, ours, overwrite),
        Reporter(console) as reporter,
        reporter.task("evaluating", None) as advance,
    ):
        found = evaluation.evaluate(
            model,
            category,
            out,
            engine=engine.value,
            precision=precision.value,
            progress=advance,
            photographs=photographs,
            shown=shown,
        )
    if as_json:
        tell_json(found)
    else:
        say(str(category))
        print_metrics({category.name: found}, shown)
        for note in found["notes"]:
            say(note)
        tell(f"report: {out / 'report.html'}")
