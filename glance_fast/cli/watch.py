"""``glance-fast watch``."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from glance_fast.cli.console import complain, count, say, tell_precision
from glance_fast.cli.flags import as_flags
from glance_fast.cli.group import SOME_IMAGES_FAILED
from glance_fast.cli.options import (
    Device,
    Engine,
    EngineOption,
    Memory,
    Precision,
    PrecisionOption,
    Quiet,
    Run,
    Threads,
)


def watch(
    ctx: typer.Context,
    run: Run,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder that fills; - for paths on standard input; a video file; or a camera "
            "(/dev/video0, rtsp://...).",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Add the lines to this file, not to stdout."),
    ] = None,
    take_all: Annotated[
        bool, typer.Option("--all", help="Of a folder, score the images too that are there already.")
    ] = False,
    every: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of a video or camera, score every Nth frame.")
    ] = 1,
    overlays: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write pictures of the maps over the images to this folder."),
    ] = None,
    engine: EngineOption = Engine.auto,
    precision: PrecisionOption = Precision.auto,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    quiet: Quiet = False,
) -> None:
    """Score images as they come: one JSON object a line for each.

    path, score, above and anomalous are those of score-dir; milliseconds is
    the time from when an image was found to its score; error is null, or it
    says why there is no score, and the next image is scored all the same.

    Of a folder, each new image below it is scored once, as soon as it has
    not changed for half a second. None is left out: where they come faster
    than they are scored, a line on stderr says how many wait. Of a camera,
    frames are left out then, and counted.

    Ctrl-C ends it. With standard input and with a video it ends by itself;
    exit code 3 says then that some images could not be scored.

    [dim]glance-fast watch run incoming --out scores.jsonl[/dim]
    """
    from glance_fast.device import use_threads
    from glance_fast.jobs.sources import open_source
    from glance_fast.jobs.watch import add_lines
    from glance_fast.jobs.watch import watch as lines_of
    from glance_fast.run import load

    def remark(line: str) -> None:
        say(as_flags(line, ctx.command))

    use_threads(threads)
    images = open_source(source, take_all=take_all, every=every, say=remark)
    model = load(run, device, precision.value, memory)
    tell_precision(model, precision.value)
    lines = lines_of(model, images, engine=engine.value, overlays=overlays, say=remark)
    scored = anomalous = errors = 0
    try:
        with add_lines(out) if out else nullcontext(_print) as add, closing(lines):
            for line in lines:
                add(line.to_json())
                errors += line.error is not None
                scored += line.error is None
                anomalous += line.anomalous is True
    finally:
        say(f"{count(scored, 'image')} scored, {anomalous} anomalous")
    if errors:
        complain(f"{count(errors, 'image')} could not be scored; error of their lines says why")
        raise typer.Exit(SOME_IMAGES_FAILED)


def _print(line: str) -> None:
    # At once, also to a program that reads them.
    print(line, flush=True)
