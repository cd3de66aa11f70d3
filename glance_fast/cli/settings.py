"""``glance-fast settings``."""

from __future__ import annotations

import json
import re

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from glance_fast.cli.console import out_console, tell_json
from glance_fast.cli.options import Json, Quiet


def settings(as_json: Json = False, quiet: Quiet = False) -> None:
    """List all settings of a training: defaults, limits, meanings.

    Each is for train --set, or for a TOML file that train --config reads. A
    default of - depends on other settings, or is not needed by net surround.

    [dim]glance-fast settings --json[/dim]
    """
    from glance_fast.config import Config, allowed, json_schema

    schema = json_schema()
    if as_json:
        tell_json(schema)
        return
    defaults = Config()
    table = Table(box=SIMPLE, pad_edge=False)
    for head, share in (("setting", None), ("default", None), ("allowed", 2), ("meaning", 3)):
        table.add_column(head, no_wrap=share is None, ratio=share)
    for name, part in schema["properties"].items():
        value = getattr(defaults, name)
        shown = "-" if value is None else json.dumps(value)
        # Its first sentence; the others are in --json, and in help(Config).
        meaning = re.split(r"\. (?=[A-Z\"])", part["description"].rstrip("."))[0]
        table.add_row(name, *map(escape, (shown, allowed(part), meaning)))
    out_console.print(table)
