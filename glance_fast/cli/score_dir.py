"""``glance-fast score-dir``."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from glance_fast.cli.console import complain, console, count, say, tell, tell_json, tell_precision
from glance_fast.cli.group import SOME_IMAGES_FAILED
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
from glance_fast.cli.output import apart, one_of, output
from glance_fast.cli.ranks import ranks
from glance_fast.errors import UserError

if TYPE_CHECKING:
    from glance_fast.jobs.shards import Shard
    from glance_fast.jobs.table import Summary


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
    threads: Threads = None,
    memory: Memory = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Score only what scores.csv lacks, and what failed.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Score every Nth photograph, beginning with the Kth."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score photographs: a map of every pixel and one number each.

    Writes scores.csv (path, score, above, anomalous, error), maps/*.tiff
    (float32, each image's own size), run.json and, if asked, overlays/*.png.

    score counts standard deviations from what good photographs score, and
    above is the share of good photographs that score as high: 0.01 is one
    in a hundred. anomalous is 1 where score lies above the threshold.

    Exit code 3 says that some images could not be scored; column error of
    scores.csv says why. Stopped, it goes on with --resume, and so it does
    when photographs were added.

    Several machines share the work: --shard 1/4 on one, and so on to 4/4,
    with one --out on a disk that all see; the last to finish joins their
    tables. Processes that torchrun started share it without --shard, each
    on a CUDA device of its own.

    [dim]glance-fast score-dir run photos/new --out scores --overlays[/dim]
    """
    from glance_fast.device import use_threads
    from glance_fast.jobs.directory import deal_directory, find_images, score_directory
    from glance_fast.jobs.shards import (
        WHOLE,
        Shard,
        check_folder,
        files_of,
        join,
        joined,
        parse_shard,
        parts_in,
    )
    from glance_fast.progress import Reporter
    from glance_fast.run import load

    use_threads(threads)
    how = {"engine": engine.value, "precision": precision.value}
    with ranks() as here, contextlib.ExitStack() as folder:
        part = Shard(here.rank + 1, here.count) if here.launched else parse_shard(shard or str(WHOLE))
        # With other commands, which begin and end when they will.
        shared = part != WHOLE and not here.launched
        # The first process speaks for all: what is wrong is said once, and ends the others.
        if here.rank == 0:
            if here.launched and shard:
                raise UserError("--shard: torchrun's processes share the work by themselves; leave it away")
            if shared and overwrite:
                raise UserError("--overwrite would delete what other shards did; choose another --out")
            one_of(resume, overwrite)
            apart(out, run, images)
            find_images(images, out)
            parts = [path.name for path in files_of(out, parts_in(out))]
            if shared and check_folder(out, part, resume):
                if as_json:
                    tell_json(_as_json(out / "scores.csv", part, joined(out, part)))
                else:
                    tell(f"shard {part} is done, and joined: {out / 'scores.csv'}")
                say("for what is new or failed, give --resume without --shard")
                return
            ours = ("scores.csv", "run.json", "maps", "overlays", *parts)
            if resume and not any((out / name).is_file() for name in ("scores.csv", "run.json", *parts)):
                raise UserError(f"{out}: nothing to resume there; leave --resume away to begin")
            model = load(run, here.device(device), memory_mib=memory)
            # Before what an earlier one wrote is replaced.
            model.check(engine.value, precision.value)
            tell_precision(model, precision.value)
            folder.enter_context(output(out, ours, overwrite, resume, shared))
            if resume and here.count > 1:
                deal_directory(model, images, out, here.count, **how)
        here.wait()
        if here.rank > 0:
            model = load(run, here.device(device), memory_mib=memory)
        with (
            Reporter(console if here.rank == 0 else Console(quiet=True)) as reporter,
            reporter.task(f"scoring shard {part}" if part != WHOLE else "scoring", None) as advance,
        ):
            summary = score_directory(
                model, images, out, **how, overlays=overlays, resume=resume, shard=part, progress=advance
            )
            here.wait()
        if here.rank > 0:
            return
        whole = join(out, part) if part != WHOLE else summary
    if whole is None and here.launched:
        raise UserError(f"{out}: not what the other processes wrote to; --out must be on a disk that all see")
    table = out / "scores.csv" if whole else part.table(out)
    summary = whole or summary
    for remark in summary.remarks:
        say(remark)
    told = f"{count(summary.scored, 'image')} scored, {summary.anomalous} anomalous: {table}"
    if as_json:
        tell_json(_as_json(table, part, summary))
    else:
        tell(told if whole else f"shard {part}: {told}")
    if summary.errors:
        complain(f"{count(summary.errors, 'image')} could not be scored; column error of {table} says why")
        raise typer.Exit(SOME_IMAGES_FAILED)


def _as_json(table: Path, shard: Shard, summary: Summary) -> dict[str, Any]:
    return {"table": str(table), "shard": str(shard), **asdict(summary)}
