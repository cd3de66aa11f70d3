"""``glance-fast score-dir``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glance_fast.cli.console import console, count, say, tell
from glance_fast.cli.group import SOME_IMAGES_FAILED
from glance_fast.cli.options import (
    Device,
    Engine,
    EngineOption,
    Out,
    Overwrite,
    Precision,
    PrecisionOption,
    Run,
)
from glance_fast.cli.output import apart, one_of, output
from glance_fast.errors import UserError


def score_dir(
    run: Run,
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="Folder of photographs, searched with its subfolders.")
    ],
    out: Out,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also write pictures of the maps over the images.")
    ] = False,
    engine: EngineOption = Engine.auto,
    precision: PrecisionOption = Precision.auto,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Score only what scores.csv lacks, and what failed.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Score photographs: a map of every pixel and one number each.

    Writes scores.csv (path, score, anomalous, error), maps/*.tiff (float32,
    each image's own size), run.json and, if asked, overlays/*.png.

    Exit code 3 says that some images could not be scored; column error of
    scores.csv says why. Stopped, it goes on with --resume, and so it does
    when photographs were added.

    [dim]glance-fast score-dir run photos/new --out scores --overlays[/dim]
    """
    from glance_fast.checkpoint import load
    from glance_fast.scoring.directory import find_images, score_directory
    from glance_fast.training.progress import Reporter

    one_of(resume, overwrite)
    apart(out, run, images)
    find_images(images, out)
    if resume and not any((out / name).is_file() for name in ("scores.csv", "run.json")):
        raise UserError(f"{out}: nothing to resume there; leave --resume away to begin")
    model = load(run, device)
    ours = ("scores.csv", "run.json", "maps", "overlays")
    with (
        output(out, ours, overwrite, resume),
        Reporter(console) as reporter,
        reporter.task("scoring", None) as advance,
    ):
        summary = score_directory(
            model,
            images,
            out,
            engine=engine.value,
            precision=precision.value,
            overlays=overlays,
            resume=resume,
            progress=advance,
        )
    for remark in summary.remarks:
        say(remark)
    tell(f"{count(summary.scored, 'image')} scored, {summary.anomalous} anomalous: {out / 'scores.csv'}")
    if summary.errors:
        failed = count(summary.errors, "image")
        say(f"{failed} could not be scored; column error of {out / 'scores.csv'} says why")
        raise typer.Exit(SOME_IMAGES_FAILED)
