"""``glance-fast update``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from glance_fast.cli.console import console, out_console, say, tell, tell_json
from glance_fast.cli.flags import as_flags
from glance_fast.cli.options import Device, Json, Memory, Quiet, Run, Threads
from glance_fast.errors import UserError

if TYPE_CHECKING:
    from glance_fast.jobs.update import Update


def update(
    ctx: typer.Context,
    run: Run,
    good: Annotated[
        Path | None, typer.Argument(metavar="GOOD", help="Folder of new photographs of good parts.")
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take the last update back, bit for bit; without GOOD.")
    ] = False,
    old: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The photographs that it was trained on; only for a run without normal.safetensors.",
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    memory: Memory = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let new good parts count as normal, without training anew.

    The statistics of what is normal, and the threshold with them, become
    what all photographs together give: exactly, for the run keeps what is
    needed of the earlier ones. The nets stay as they are. Says what changed
    for the new photographs, which the model has not seen in either case.

    Replaces model.safetensors, calibration.json and normal.safetensors of
    the run folder; --undo brings back what was there before. Images that
    cannot be read, and those that the model knows, are left out.

    [dim]glance-fast update run photos/more-good
    glance-fast update run --undo[/dim]
    """
    from glance_fast.device import use_threads
    from glance_fast.jobs.update import undo_update, update_run
    from glance_fast.progress import Reporter

    if undo == (good is not None):
        raise UserError("give either a folder of photographs of good parts, or `undo`")
    if undo:
        undo_update(run)
        if as_json:
            tell_json({"undone": str(run)})
        else:
            tell(f"{run}: as it was before the last update")
        return
    assert good is not None  # or the line above had been said
    use_threads(threads)
    with Reporter(console) as reporter:
        done = update_run(run, good, old=old, device=device, memory_mib=memory, reporter=reporter)
    if caution := as_flags(done.caution(), ctx.command):
        say(caution)
    if as_json:
        strange = [{"path": path, "score": score} for path, score in done.strange]
        tell_json(asdict(done) | {"strange": strange})
    else:
        _print(done)


def _print(done: Update) -> None:
    """What changed, in a table."""
    table = Table("", "before", "after")
    sides = done.before, done.after
    for name, values in (
        ("photographs behind the statistics", [str(side.photographs) for side in sides]),
        ("threshold", [f"{side.threshold:.2f}" for side in sides]),
        (
            f"scores of the {done.new} new, mean ± deviation",
            [f"{side.mean:.2f} ± {side.std:.2f}" for side in sides],
        ),
        (
            "of these above the threshold",
            [f"{side.false_alarms} ({side.false_alarms / done.new:.0%})" for side in sides],
        ),
    ):
        table.add_row(name, *values)
    out_console.print(table)
