"""The library speaks of arguments, the command line of flags; one place turns the one into the other."""

import ast
import re
from pathlib import Path

import pytest
import typer

import glance_fast
from glance_fast.cli import app
from glance_fast.cli.flags import as_flags

PACKAGE = Path(glance_fast.__file__).parent
COMMANDS = typer.main.get_command(app).commands
COMMANDS = COMMANDS | COMMANDS["experiment"].commands


@pytest.mark.parametrize(
    ("command", "message", "said"),
    [
        ("score-dir", "`resume` and `overwrite` clash", "--resume and --overwrite clash"),
        ("score-dir", "`shard=2/4` with `resume=True` makes them", "--shard 2/4 with --resume makes them"),
        ("score-dir", "allow more (`memory_mib`)", "allow more (--memory-mib)"),
        ("train", "or a masked net (`net=pyramid`)", "or a masked net (--set net=pyramid)"),
        ("score-dir", "or a masked net (`net=pyramid`)", "or a masked net (net=pyramid)"),
        ("train", "`steps=9` and `shard`", "--steps 9 and shard"),
        ("evaluate", "a smaller `image_size`", "a smaller image_size"),
        ("evaluate", "odd`name.png: `resume=yes or no`", "odd`name.png: resume=yes or no"),
        (None, "give `out`", "give out"),
    ],
)
def test_arguments_become_flags(command, message, said):
    assert as_flags(message, COMMANDS.get(command)) == said


def test_no_message_of_the_library_names_a_flag():
    # A whole command, such as glance-fast train --resume, is no flag of the call that failed.
    flag = re.compile(r"(?<![\w-])--[a-z]")
    command = re.compile(r"(glance-fast|torchrun) [^;()]*")
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                words = " ".join(
                    part.value
                    for part in ast.walk(node)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                )
                if flag.search(command.sub("", words)):
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert found == []


def test_every_argument_that_the_library_names_exists():
    known = {
        flag.removeprefix("--").replace("-", "_")
        for command in COMMANDS.values()
        for parameter in command.params
        for flag in parameter.opts
    } | set(glance_fast.Config.__dataclass_fields__)
    named = set()
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for part in ast.walk(node) if isinstance(node, ast.Raise) else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    named |= set(re.findall(r"(?<!`)`([a-z_]+)[`=]", part.value))
    assert named and named <= known
