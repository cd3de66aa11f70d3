"""Tables of experiments on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[float | None]]],
    means: int = 0,
) -> None:
    """Print names and three digits each, ``-`` where there is no value; a line above the last ones, means."""
    table = Table("", *map(escape, columns), title=escape(title), title_justify="left")
    for number, (name, values) in enumerate(rows):
        if means and number == len(rows) - means:
            table.add_section()
        # A folder's name may look like markup.
        table.add_row(escape(name), *("-" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
