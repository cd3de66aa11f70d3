"""What a person sees while something long runs: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from glance_fast.errors import on_one_line

# Seconds between lines where there is no terminal.
QUIET = 30.0


class Steps(Protocol):
    """What is told of a training: its name, how many steps it has, images a step, and figures."""

    name: str
    steps: int
    batch: int
    row: dict[str, Any]


class Reporter:
    """Shows progress on a console.

    Parameters
    ----------
    console : Console
        Where to; bars if it is a terminal, lines if not, nothing if it is quiet.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            # Bars take stdout and stderr over: a quiet console would swallow what others print there.
            disable=console.quiet or not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said = time.monotonic()

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print one line."""
        self.console.print(on_one_line(line), highlight=False, markup=False, emoji=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Callable[..., None]]:
        """A bar; gives a function to call with (done) or (done, total)."""
        bar = self._progress.add_task(name, total=total, note="")
        started = time.monotonic()

        def advance(done: int, of: int | None = total) -> None:
            self._progress.update(bar, completed=done, total=of)
            self._line(f"{name}: {done}" + (f" of {of}" if of else ""))

        yield advance
        self._progress.remove_task(bar)
        self.say(f"{name}: {time.monotonic() - started:.0f} s")

    def step(self, stage: Steps, done: int) -> None:
        """Show that ``done`` steps of a stage are done."""
        row = stage.row
        note = f"{row['images_per_second']:.0f} images/s  loss {row['loss']:.3f}"
        if "r2" in row:
            note += f"  held-out R² {row['r2']:.3f}"
        if stage.name not in self._tasks:
            self._tasks[stage.name] = self._progress.add_task(stage.name, total=stage.steps, note="")
        self._progress.update(self._tasks[stage.name], completed=done, total=stage.steps, note=note)
        left = (stage.steps - done) * stage.batch / max(row["images_per_second"], 1e-9)
        line = f"{stage.name}: {done} of {stage.steps}  {note}  {left:.0f} s left"
        if done == stage.steps:
            self._progress.remove_task(self._tasks.pop(stage.name))
            self.say(f"{stage.name}: {stage.steps} steps, {row['seconds']:.0f} s  {note}")
            self._said = time.monotonic()
        else:
            self._line(line)

    def _line(self, line: str) -> None:
        if not self.console.is_terminal and time.monotonic() - self._said > QUIET:
            self.say(line)
            self._said = time.monotonic()
