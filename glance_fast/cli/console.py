"""What the command line says, and where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glance_fast.errors import on_one_line

if TYPE_CHECKING:
    from glance_fast.model import Glance

FEW = 4  # metrics that a table of 80 characters shows with lines between them

# Results go to stdout; progress and remarks, which --quiet keeps back, and errors to stderr.
out_console, console, error_console = Console(), Console(stderr=True), Console(stderr=True)


def print_metrics(results: dict[str, dict], shown: Sequence[str] | None = None) -> None:
    from glance_fast.evaluation.summary import METRICS, SATURATED, SHOWN

    shown = shown or SHOWN
    heads, look = [(METRICS | SATURATED)[key][0] for key in shown], dict[str, Any]()
    if len(shown) > FEW:
        heads = [head.replace(" ", "\n", 1) for head in heads]
        look = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    table = Table("", *heads, **look)
    for name, metrics in results.items():
        for label, row in ((name, metrics), *((f"  {d}", m) for d, m in metrics.get("defects", {}).items())):
            values = (row.get(key) for key in shown)
            # A folder's name may look like markup.
            table.add_row(escape(label), *("-" if v is None else f"{v:.3f}" for v in values))
    out_console.print(table)


def print_intervals(found: dict[str, Any], shown: Sequence[str]) -> None:
    """The intervals of metrics, a line each, which any number of them fits."""
    from glance_fast.evaluation.summary import METRICS

    table = Table(f"95 % interval of {found['bootstrap']} resamples", "from", "to")
    for key in shown:
        ends = found["intervals"].get(key)
        table.add_row(METRICS[key][0], *(f"{end:.3f}" for end in ends) if ends else ("-", "-"))
    out_console.print(table)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def say(line: str) -> None:
    """A remark."""
    # Not print: a path may look like markup or like an emoji.
    console.out(on_one_line(line), highlight=False)


def complain(line: str) -> None:
    """An error."""
    error_console.out(on_one_line(line), highlight=False)


def tell(line: str) -> None:
    """A result."""
    out_console.out(line, highlight=False)


def tell_json(values: dict[str, Any]) -> None:
    """A result for programs: one JSON object."""
    tell(json.dumps(values, indent=2, allow_nan=False))


def be_quiet(wanted: bool) -> bool:
    """Keep progress and remarks back, or not."""
    console.quiet = wanted
    return wanted


def tell_precision(model: Glance, wanted: str) -> None:
    """Say it where another precision is taken than was asked for."""
    from glance_fast.model import NO_BF16

    if wanted not in ("auto", model.chosen_precision(wanted)):
        say(NO_BF16)
