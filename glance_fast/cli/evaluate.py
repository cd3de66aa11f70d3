"""``glance-fast evaluate``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from glance_fast.cli.console import (
    console,
    print_intervals,
    print_metrics,
    say,
    tell,
    tell_json,
    tell_precision,
)
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
    RoiOption,
    Threads,
)
from glance_fast.errors import UserError
from glance_fast.jobs.output import apart, output


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Run folder of glance-fast train; or a folder of maps in the layout that MVTec's own "
            "evaluation reads, <category>/test/<defect>/<name>.tiff, or its <category>.",
        ),
    ],
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
    bootstrap: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="95 % intervals of the metrics, from N resamples of the test images (1000 is usual).",
        ),
    ] = 0,
    roi: RoiOption = None,
    engine: EngineOption = Engine.auto,
    precision: PrecisionOption = Precision.auto,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model, or maps of another method, where defects are known.

    Writes metrics.json (PRO, AUROC, average precision and F1 of pixels and
    images, overall and for each defect), curves.png, report.html,
    scores.csv, and the maps in the layout that MVTec's own evaluation reads.
    Maps that are given are measured at the images' own sizes, as it does.

    [dim]glance-fast evaluate run mvtec/transistor --out report[/dim]
    [dim]glance-fast evaluate maps mvtec/transistor --out report[/dim]
    """
    from glance_fast.data.roi import Masks
    from glance_fast.device import use_threads
    from glance_fast.evaluation import evaluate as evaluation
    from glance_fast.evaluation import summary
    from glance_fast.evaluation.submission import MAPS, THRESHOLDED
    from glance_fast.progress import Reporter
    from glance_fast.run import is_run, load

    apart(out, run, data, *([roi] if roi else []))
    category = evaluation.find_category(data, out)
    saturated = category.saturations is not None
    known = summary.metrics_of(saturated)
    shown = list(known) if metrics == "all" else [name.strip() for name in metrics.split(",")]
    summary.check_shown(shown, saturated)
    use_threads(threads)
    work: Callable[..., dict[str, Any]]

    def masks_of(size: tuple[int, int] | None) -> Masks | None:
        return Masks(roi, size) if roi else None

    if run.is_dir() and not is_run(run):
        files = evaluation.find_maps(run, category, out)
        for name, given in (
            ("engine", engine is not Engine.auto),
            ("precision", precision is not Precision.auto),
            ("device", device != "auto"),
            ("memory_mib", memory is not None),
        ):
            if given:
                raise UserError(f"`{name}`: {run} holds maps, which no model is to compute; leave it out")
        with Reporter(console) as reporter, reporter.task("reading", None) as advance:
            maps = evaluation.read_maps(files, category, advance, masks_of(None))
        work = partial(evaluation.evaluate_maps, maps)
    else:
        model = load(run, device, memory_mib=memory)
        # Before what an earlier one wrote is replaced.
        model.check(engine.value, precision.value)
        model.memory_share(precision.value)
        masks = masks_of(model.config.image_size)
        photographs = None
        if overwrite and model.config.tile is None:
            size, white = model.config.image_size, model.calibration.white
            photographs = evaluation.read_photographs(category, model.prepare, size, masks, white)
        tell_precision(model, precision.value)
        work = partial(
            evaluation.evaluate,
            model,
            engine=engine.value,
            precision=precision.value,
            photographs=photographs,
            roi=masks,
        )
    ours = ("metrics.json", "scores.csv", "curves.png", "report.html", "maps", MAPS, THRESHOLDED)
    with (
        output(out, ours, overwrite),
        Reporter(console) as reporter,
        reporter.task("evaluating", None) as advance,
    ):
        found = work(category, out, shown=shown, bootstrap=bootstrap, progress=advance)
    if as_json:
        tell_json(found)
    else:
        say(str(category))
        print_metrics({category.name: found}, shown)
        if bootstrap:
            print_intervals(found, shown)
        for note in found["notes"]:
            say(note)
        tell(f"report: {out / 'report.html'}")
