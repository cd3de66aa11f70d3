"""What the library says of its arguments, in the words of the command line."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

# `name` or `name=value`, as the library's messages have them.
_ARGUMENT = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")


def as_flags(message: str, command: Any) -> str:
    """A message of the library with flags in place of arguments.

    Parameters
    ----------
    message : str
        `` `resume=True` `` in it becomes ``--resume``, `` `shard=2/4` `` becomes ``--shard 2/4``, and a
        value of a setting, `` `net=pyramid` ``, becomes ``--set net=pyramid`` where the command has
        ``--set``. Other names only lose their quotes.
    command : click.Command or None
        The one that was called. Its options are the flags.

    Returns
    -------
    str
    """
    from glance_fast.config import Config

    options = {}
    for parameter in command.params if command is not None else ():
        flag = next((name for name in parameter.opts if name.startswith("--")), None)
        if flag:
            options[flag.removeprefix("--").replace("-", "_")] = flag
    settings = {field.name for field in fields(Config)}

    def flag_of(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name in options:
            return options[name] if value in (None, "True") else f"{options[name]} {value}"
        if name in settings and value is not None and "set" in options:
            return f"--set {name}={value}"
        return name if value is None else f"{name}={value}"

    return _ARGUMENT.sub(flag_of, message)
