"""What the pages show and nobody types: every command's options, the settings, numbers of patches.

A page asks for it by a comment alone on its line, which ``conf.py`` has replaced::

    <!-- command score-dir -->   usage, help and options of a command; of a group, those of its commands
    <!-- commands -->            a table of all commands, each a link to its page
    <!-- settings -->            a table of all settings of a training
    <!-- patches -->             how many patches images of several sizes have

``python docs/generate.py score-dir`` prints what the first one stands for.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from enum import Enum
from typing import Any

import typer.main
from rich.text import Text

from glance_fast.cli import app

MARK = re.compile(r"^<!-- (commands|settings|patches|command (.+?)) -->$", re.MULTILINE)
# In prose; dashes would be made of its hyphens.
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
SIZES = (192, 256, 384, 512, 768, 1024)


def with_generated(markdown: str) -> str:
    """A page with what is generated in place of the marks."""
    return MARK.sub(_generated, markdown)


def _generated(mark: re.Match[str]) -> str:
    if mark[2]:
        return command_reference(mark[2])
    tables = {"commands": command_table, "settings": settings_table, "patches": patch_table}
    return tables[mark[1]]()


def commands() -> dict[str, Any]:
    """All commands of the application, by name, in its order."""
    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def command_reference(name: str) -> str:
    """Usage, help, arguments and options of a command as Markdown; of a group, of all that is in it."""
    command = commands()[name]
    if not hasattr(command, "commands"):
        return _reference(f"glance-fast {name}", command)
    inner = (
        f"### {name} {one}\n\n{_reference(f'glance-fast {name} {one}', part)}"
        for one, part in command.commands.items()
    )
    return "\n\n".join([*_help(command), *inner])


def _reference(words: str, command: Any) -> str:
    arguments = [p for p in command.params if not p.opts[0].startswith("-")]
    options = [p for p in command.params if p.opts[0].startswith("-") and not p.hidden]
    places = [p.metavar if p.required else f"[{p.metavar}]" for p in arguments]
    usage = " ".join([words, "[OPTIONS]", *places])
    parts = [f"```text\n{usage}\n```", *_help(command)]
    if arguments:
        rows = ((f"`{place}`", p.help) for place, p in zip(places, arguments, strict=True))
        parts.append(_table(("argument", ""), rows))
    parts.append(_table(("option", "", "default"), ((_flags(p), p.help, _default(p)) for p in options)))
    return "\n\n".join(parts)


def _help(command: Any) -> Iterator[str]:
    """The paragraphs of a command's help; what is dim in a terminal is an example to run."""
    text = re.sub(r"\[dim\](.*?)\[/dim\]", r"\n```sh\n\1\n```\n", command.help, flags=re.DOTALL)
    blocks = re.split(r"(```sh\n.*?\n```)", text, flags=re.DOTALL)
    for block in filter(str.strip, blocks):
        plain = Text.from_markup(block.strip()).plain
        if not block.startswith("```"):
            yield _escaped(plain)
        else:
            yield "\n".join(line.strip() for line in plain.splitlines())


def _flags(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar}"
    long = sorted(option.opts, key=lambda name: not name.startswith("--"))
    return ", ".join(f"`{name}{value}`" for name in [*long, *option.secondary_opts])


def _default(option: Any) -> str:
    if option.required:
        return "must be given"
    value = option.default
    if value is None or value is False:
        return ""
    if value is True:
        return f"`{option.opts[0]}`"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def command_table() -> str:
    """All commands and what each does, in a line."""
    rows = (
        (f"[`{name}`](commands/{name}.md)", next(iter(_help(command))).split("\n\n")[0])
        for name, command in commands().items()
    )
    return _table(("command", ""), rows)


def settings_table() -> str:
    """All settings: defaults, limits, meanings."""
    from glance_fast.config import Config, allowed, json_schema

    defaults = Config()
    rows = []
    for name, part in json_schema()["properties"].items():
        value = getattr(defaults, name)
        shown = "-" if value is None else f"`{json.dumps(value)}`"
        rows.append((f"`{name}`", shown, allowed(part), part["description"].replace("``", "`")))
    return _table(("setting", "default", "allowed", "meaning"), rows)


def patch_table() -> str:
    """Patches of an image with the default patch sizes, by its size."""
    from glance_fast.config import Config

    configs = [Config(image_size=size) for size in SIZES]
    counts = [tuple(len(grid) for grid in config.grids) for config in configs]
    usual = sum(len(grid) for grid in Config().grids)
    heads = ("`image_size`", *(f"patches of {patch}" for patch in configs[0].patches), "patches, 256 = 1")
    rows = (
        (f"{size}", *map(str, found), f"{sum(found) / usual:.1f}")
        for size, found in zip(SIZES, counts, strict=True)
    )
    return _table(heads, rows)


def _table(heads: tuple[str, ...], rows: Any) -> str:
    lines = [heads, ["---"] * len(heads)]
    for first, *rest in rows:
        cells = (cell or "" for cell in rest)
        lines.append([first, *(c if c.startswith("`") else _escaped(_plain(c)) for c in cells)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(cell: str) -> str:
    """A help text without rich's markup and on one line."""
    return " ".join(Text.from_markup(cell).plain.split())


def _escaped(text: str) -> str:
    """Text that Markdown shows as it stands, and options in it as code."""
    return OPTION.sub(r"`\g<0>`", re.sub(r"([*_<|])", r"\\\1", text))


if __name__ == "__main__":
    print(command_reference(" ".join(sys.argv[1:])))
