"""``glance-fast bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from glance_fast.cli.console import console, count, out_console, say, tell, tell_json
from glance_fast.cli.options import Device, Json, Memory, Quiet, Run, Threads

if TYPE_CHECKING:
    from glance_fast.jobs.bench import Bench

# Images that agreement is measured on; more would say no more.
COMPARED = 4


def bench(
    run: Run,
    images: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGES", help="Folder of photographs of the kind; without it, noise is scored."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="JSON file to write as well.")
    ] = None,
    patchwise: Annotated[
        bool,
        typer.Option(
            "--patchwise/--no-patchwise",
            help="For masked nets: whether to run the paper's procedure too, which takes long.",
        ),
    ] = True,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how fast a model scores on this machine.

    In every precision the machine has: time an image, patches a second,
    memory, how well scores agree with those in fp32, and where time goes.

    A masked net (net = pyramid or paper) is measured with every engine, and
    its scores are compared with those of the paper's procedure.

    [dim]glance-fast bench run photos/new[/dim]
    """
    from glance_fast.data.files import write_text
    from glance_fast.data.folders import list_images
    from glance_fast.device import use_threads
    from glance_fast.jobs import bench as measure
    from glance_fast.jobs.output import check_file
    from glance_fast.progress import Reporter
    from glance_fast.run import load

    if out is not None:
        check_file(out, overwrite, "bench.json")
    paths = list_images(images) if images else []
    use_threads(threads)
    model = load(run, device, memory_mib=memory)
    photographs = (
        measure.photographs(paths, COMPARED, model.calibration.white) if images else measure.noise(model)
    )
    with Reporter(console) as reporter, reporter.task("measuring", None) as advance:
        found = measure.bench(model, photographs, patchwise=patchwise, progress=advance)
    if as_json:
        tell_json(found.as_dict())
    else:
        print_bench(found)
    if not images:
        say("agreement is that on noise; give a folder of photographs for what it is on yours")
    if out is not None:
        write_text(out, json.dumps(found.as_dict(), indent=2, allow_nan=False) + "\n")
        if not as_json:
            tell(str(out))


def print_bench(found: Bench) -> None:
    """Two tables: the engines, and the stages of the first one."""
    height, width = found.about["image_size"]
    patches = " + ".join(map(str, found.about["patches"]))
    machine = f"{found.about['device']}, {found.about['threads']} threads"
    tell(f"{height}x{width} pixels, {patches} patches; {machine}")
    if found.about["net"] != "surround" and found.about["device"] == "cpu" and not found.about["compiled"]:
        say("engine dense has no C code: install the package again where a C compiler is, and it is faster")
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("engine", no_wrap=True)
    for head in ("images", "ms/image", "patches/s", "times", "MiB", "differs", "agrees"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in found.rows:
        table.add_row(
            f"{row.engine} {row.precision}",
            str(row.images),
            f"{row.seconds * 1e3:.1f}",
            f"{row.patches:,.0f}",
            f"{row.times:.2f}",
            "-" if row.memory_mib is None else f"{row.memory_mib:.0f}",
            f"{row.difference:.1e}",
            "-" if row.agreement is None else f"{row.agreement:.5f}",
        )
    out_console.print(table)
    exact = found.about["compared_with"]
    for line in (
        f"images: scored at a time; times: as fast as {exact} fp32 alone; MiB: the most that was held;",
        "differs: from its patch scores, at most, as a share of the largest; agrees: Spearman",
        f"correlation with them ({count(found.about['images'], 'image')})",
    ):
        say(line)
    table = Table(f"stage of {found.rows[0].engine}, one image", box=SIMPLE)
    precisions = list(found.stages)
    for precision in precisions:
        table.add_column(f"{precision}, ms", justify="right")
        table.add_column("share", justify="right")
    totals = {p: sum(found.stages[p].values()) for p in precisions}
    for name in sorted(found.stages[precisions[0]], key=lambda n: -found.stages[precisions[0]][n]):
        cells = []
        for precision in precisions:
            seconds = found.stages[precision][name]
            cells += [f"{seconds * 1e3:.1f}", f"{seconds / totals[precision]:.0%}"]
        table.add_row(name, *cells)
    out_console.print(table)
