"""The command line: a module a command, put together here."""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Annotated

import typer
from PIL import Image

from glance_fast.cli.bench import bench
from glance_fast.cli.calibrate import calibrate
from glance_fast.cli.console import out_console
from glance_fast.cli.demo import demo
from glance_fast.cli.distill import distill
from glance_fast.cli.evaluate import evaluate
from glance_fast.cli.experiment import experiment
from glance_fast.cli.explain import explain
from glance_fast.cli.export import export
from glance_fast.cli.group import Commands
from glance_fast.cli.score_dir import score_dir
from glance_fast.cli.serve import serve
from glance_fast.cli.settings import settings
from glance_fast.cli.signals import stop_on_signals
from glance_fast.cli.train import train
from glance_fast.cli.update import update
from glance_fast.cli.watch import watch

app = typer.Typer(
    name="glance-fast",
    cls=Commands,
    help="""Learn what good parts look like from photographs of them, then show
where others differ.

[dim]glance-fast train photos/good --out run
glance-fast score-dir run photos/new --out scores --overlays[/dim]""",
    epilog="Exit codes: 0 done; 1 failed, and the last line says why; 2 wrong use of options; "
    "3 some images could not be scored; 130 stopped by Ctrl-C or SIGTERM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from glance_fast import __version__

        out_console.print(f"glance-fast {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    # No docstring: it would take the place of the help above.
    pass


for command in (
    *(train, score_dir, watch, serve, calibrate, update),
    *(explain, evaluate, bench, export, settings, distill, demo),
):
    app.command(command.__name__.replace("_", "-"))(command)
app.add_typer(experiment, name="experiment")


def main() -> None:
    """Run the command line."""
    # Threads that wait soon give their processor up: PyTorch and Numba have pools of their own, and while one
    # waits, the other works. On a machine that other work shares, six times as fast; alone, 5 % slower.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "1000"
    # Files that are too large or damaged are refused by name; Pillow's own warnings would say it twice.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    for stream in (sys.stdout, sys.stderr):
        # A path may hold what the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    stop_on_signals()
    app(prog_name="glance-fast")
