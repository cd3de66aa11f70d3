"""``glance-fast score-dir``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from glance_fast.cli.console import complain, console, count, say, tell, tell_json
from glance_fast.cli.flags import as_flags
from glance_fast.cli.group import RESUMABLE, SOME_IMAGES_FAILED
from glance_fast.cli.options import (
    Device,
    Engine,
    EngineOption,
    Json,
    Memory,
    Overwrite,
    Precision,
    PrecisionOption,
    Quiet,
    RoiOption,
    Run,
    Threads,
    parse_tile,
)
from glance_fast.errors import UserError
from glance_fast.jobs.ranks import this_process

if TYPE_CHECKING:
    from glance_fast.jobs.folder import Scored


def score_dir(
    ctx: typer.Context,
    run: Run,
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="Folder of photographs, searched with its subfolders.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write: a new one.")],
    tile: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Score by overlapping tiles of N pixels a side; auto: at the scale of training. A model "
            "trained with --tile does so anyhow.",
        ),
    ] = None,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also write pictures of the maps over the images.")
    ] = False,
    regions: Annotated[
        bool, typer.Option("--regions", help="Also write regions.jsonl: where something was found.")
    ] = False,
    coco: Annotated[
        bool, typer.Option("--coco", help="Also write regions.jsonl and, as COCO has it, regions.coco.json.")
    ] = False,
    roi: RoiOption = None,
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
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Score by workers of Ray: local starts it on this machine, HOST:PORT joins the cluster of "
            "that head. IMAGES and --out may then be URLs of a store: s3://bucket/new.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Workers of --cluster; if not given, as many as it has room for. Each takes a GPU, or "
            "--threads processors (4 if not given).",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score photographs: a map of every pixel and one number each.

    Writes scores.csv (path, score, above, anomalous, error), maps/*.tiff
    (float32, each image's own size), run.json and, if asked, overlays/*.png
    and regions.jsonl (box, area, peak and centroid of each region found).

    score counts standard deviations from what good photographs score, and
    above is the share of good photographs that score as high: 0.01 is one
    in a hundred. anomalous is 1 where score lies above the threshold.

    Exit code 3 says that some images could not be scored; column error of
    scores.csv says why. Stopped, it goes on with --resume, and so it does
    when photographs were added.

    Several machines share the work: --shard 1/4 on one, and so on to 4/4,
    with one --out on a disk that all see; the last to finish joins their
    tables. Processes that torchrun started share it without --shard, each
    on a CUDA device of its own. --cluster has Ray share it among workers,
    also from and to a store such as S3; one that dies is replaced.

    Large photographs are scored by --tile, whatever their size: score is
    then that of the worst tile.

    [dim]glance-fast score-dir run photos/new --out scores --overlays[/dim]
    """
    from glance_fast.device import use_threads
    from glance_fast.jobs.cluster import is_begun_at, score_cluster
    from glance_fast.jobs.folder import is_begun, score_folder
    from glance_fast.jobs.shards import WHOLE, parse_shard
    from glance_fast.progress import Reporter

    how: dict[str, Any] = {
        "engine": engine.value,
        "precision": precision.value,
        "overlays": overlays,
        "regions": regions,
        "coco": coco,
        "resume": resume,
        "overwrite": overwrite,
        "roi": roi,
        "device": device,
        "memory_mib": memory,
    }
    found: Scored | None
    with Reporter(console if this_process().rank == 0 else Console(quiet=True)) as reporter:
        if cluster is not None:
            if shard or tile:
                raise UserError(
                    "`cluster` scores all photographs, and each whole; leave `shard` and `tile` away"
                )
            ctx.meta[RESUMABLE] = lambda: is_begun_at(out)
            how |= {"cluster": cluster, "workers": workers, "threads": threads}
            found = score_cluster(run, images, out, **how, reporter=reporter)
        else:
            if workers:
                raise UserError("`workers` are those of `cluster`; give that as well")
            ctx.meta[RESUMABLE] = lambda: is_begun(Path(out), parse_shard(shard) if shard else WHOLE)
            use_threads(threads)
            found = score_folder(
                run, images, out, tile=parse_tile(tile), shard=shard, **how, reporter=reporter
            )
    if found is None:  # another process speaks for all
        return
    summary = found.summary
    remarks = [as_flags(remark, ctx.command) for remark in summary.remarks]
    for remark in remarks:
        say(remark)
    if as_json:
        record = asdict(summary) | {"remarks": remarks}
        tell_json({"table": str(found.table), "shard": str(found.shard), **record})
    elif found.before:
        tell(f"shard {found.shard} is done, and joined: {found.table}")
    else:
        told = f"{count(summary.scored, 'image')} scored, {summary.anomalous} anomalous: {found.table}"
        tell(told if found.whole else f"shard {found.shard}: {told}")
    if found.before:
        say("for what is new or failed, give --resume without --shard")
    if summary.errors:
        complain(
            f"{count(summary.errors, 'image')} could not be scored; column error of {found.table} says why"
        )
        raise typer.Exit(SOME_IMAGES_FAILED)
