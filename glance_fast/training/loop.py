"""One loop for every training: steps, schedule, checkpoints, resume, progress, log."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glance_fast.data.cache import ImageCache
from glance_fast.data.files import read_json, read_tensors, write_tensors, write_text
from glance_fast.errors import UserError, excerpt, quoted
from glance_fast.training.parallel import ALONE, Workers

# Parts of the loss: of Local-Net (Eq. 1 and 2), then of Global-Net and the distortion head (Eq. 7 and 9).
LOCAL_PARTS, GLOBAL_PARTS = ("imitation", "compactness"), ("inconsistency", "distortion")
COLUMNS = (
    *("stage", "step", "seconds", "images_per_second", "loss"),
    *(*LOCAL_PARTS, *GLOBAL_PARTS, "held_out_loss", "held_out_distortion", "r2"),
)
# Seconds after a signal to stop within which another is taken for the same.
PATIENCE = 1.0
WARMUP = 0.1
CLIP = 2.0


@dataclass
class Stage:
    """One training: what is trained, and what a step computes.

    Attributes
    ----------
    name : str
        Of its checkpoint and of its rows in the log.
    steps : int
        How many.
    modules : dict of nn.Module
        What is trained, by name.
    groups : list of dict
        Parameter groups of AdamW; ``lr`` is the peak of the one-cycle schedule.
    step : callable
        From the step's number to the loss and its parts, by their columns in the log.
    batch : int
        Images a step, for the progress bar.
    validate : callable, optional
        To the columns ``held_out_loss``, ``r2`` and, where there is one, ``held_out_distortion`` of the log,
        from held-out images; called ``VALIDATIONS`` times in all.
    row : dict
        Of the log, as far as it is known; set by every step.
    advice : str
        What to do where the loss is not finite, if anything can be done.
    divided : tuple of nn.Module
        Of several processes, each shows these its share of a batch: their BatchNorm is to see all of it.
    """

    name: str
    steps: int
    modules: dict[str, nn.Module]
    groups: list[dict]
    step: Callable[[int], tuple[Tensor, dict[str, float]]]
    batch: int
    validate: Callable[[], dict[str, float]] | None = None
    row: dict = field(default_factory=dict)
    advice: str = ""
    divided: tuple[nn.Module, ...] = ()


VALIDATIONS = 10


class Log:
    """``log.csv``: a row now and then, kept through a resume.

    Parameters
    ----------
    path : Path
        The file; what it holds already is kept, also that of an earlier version.
    columns : tuple of str
        What it has a column for.
    """

    def __init__(self, path: Path, columns: tuple[str, ...] = COLUMNS) -> None:
        self.path, self.columns = path, columns
        self.rows: list[dict[str, str]] = []
        if path.is_file():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    rows = [_of_this_version(row) for row in csv.DictReader(file)]
                self.rows = [{name: row.get(name) or "" for name in columns} for row in rows]
                for row in self.rows:
                    int(row["step"])
            except (ValueError, KeyError, TypeError, csv.Error) as error:
                raise UserError(f"{path}: damaged; move it away, and the training goes on") from error

    def rewind(self, stage: str, step: int) -> None:
        """Forget rows of ``stage`` after ``step``: they will be computed again."""
        self.rows = [r for r in self.rows if r["stage"] != stage or int(r["step"]) <= step]

    def add(self, row: dict) -> None:
        """Append a row and write the file."""
        self.rows.append({name: _format(row.get(name, "")) for name in self.columns})
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())


def _of_this_version(row: dict[str, str]) -> dict[str, str]:
    """A row of a log; earlier versions called the parts of every stage's loss first and second."""
    if "first" in row:
        parts = LOCAL_PARTS if row["stage"].startswith("local-") else GLOBAL_PARTS
        row = row | dict(zip(parts, (row["first"], row["second"]), strict=True))
        row["held_out_distortion"] = row["held_out_second"]
    return row


def _format(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def remember(path: Path, given: dict[str, Any], names: dict[str, str], place: Path) -> None:
    """Keep what a training is begun with, and refuse to go on with anything else.

    Parameters
    ----------
    path : Path
        JSON file beside the checkpoints; written where there is none yet.
    given : dict
        What the result depends on, as JSON has it. What a file of an earlier version lacks counts as None.
    names : dict of str
        What people call another value of each entry of ``given``.
    place : Path
        Where people find the training.

    Raises
    ------
    UserError
        The training was begun with something else, the file is damaged, or it cannot be written.
    """
    if not path.is_file():
        write_text(path, json.dumps(given, indent=2) + "\n")
        return
    try:
        before = read_json(path.read_text(encoding="utf-8"))
        changed = [key for key in given if before.get(key) != given[key]]
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged; `overwrite=True` begins anew") from error
    if changed:
        raise begun_with(names[changed[0]], place)


def begun_with(what: str, place: Path) -> UserError:
    """What to raise where the training at ``place`` was begun with something else than is given now."""
    return UserError(f"{place}: was begun with {what}; give the same, or `overwrite=True` begins anew")


def digest_of_images(cache: ImageCache) -> str:
    """Of the names of images and of their pixels."""
    digest = hashlib.sha256()
    for index, path in enumerate(cache.paths):
        digest.update(path.name.encode("utf-8", "surrogateescape"))
        digest.update(cache.batch([index]).tobytes())
    return digest.hexdigest()


def one_cycle(step: int, steps: int) -> float:
    """Share of the peak learning rate: up for the first tenth, then down a cosine to nothing."""
    up = max(1, round(WARMUP * steps))
    if step < up:
        return (step + 1) / up
    return 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, steps - up)))


@contextmanager
def stop_between_steps() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that no step is cut in half; a second one, later, cuts.

    Later by ``PATIENCE``: torchrun hands Ctrl-C on as SIGINT and, at once, as SIGTERM.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    asked = math.inf

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if time.monotonic() > asked + PATIENCE:
            raise KeyboardInterrupt
        asked = min(asked, time.monotonic())
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_stage(
    stage: Stage,
    folder: Path,
    log: Log,
    report: Callable[[Stage, int], None],
    minutes: float,
    workers: Workers = ALONE,
) -> None:
    """Train a stage to its end, from its checkpoint where there is one.

    Parameters
    ----------
    stage : Stage
        Its modules are changed in place and left in evaluation mode.
    folder : Path
        For ``<stage>.safetensors``: weights and, until the end, the optimizer's state.
    log : Log
        Gets rows.
    report : callable
        Called after every step with the stage and the number of steps done.
    minutes : float
        Time between checkpoints.
    workers : Workers
        Who shares the work: call this in each. The first one reads and writes files.

    Raises
    ------
    UserError
        The checkpoint is damaged, or training diverged.
    KeyboardInterrupt
        Passed on, after a checkpoint was written.
    """
    path = folder / f"{stage.name}.safetensors"
    optimizer = optimizer_of(stage)
    done = _begin(path, stage, optimizer, workers)
    log.rewind(stage.name, done)
    every = max(1, stage.steps // VALIDATIONS)
    started = saved = time.monotonic()
    first = done
    for module in stage.modules.values():
        module.train()
    with stop_between_steps() as stop, workers.synced(*stage.divided):
        while done < stage.steps:
            value, parts = take_step(stage, optimizer, done, workers)
            done += 1
            now = time.monotonic()
            rate = (done - first) * stage.batch / max(now - started, 1e-9)
            stage.row = {"stage": stage.name, "step": done, "seconds": now - started}
            stage.row |= {"images_per_second": rate, "loss": value, **parts}
            if done % every == 0 or done == stage.steps:
                _validate(stage)
                if workers.first:
                    log.add(stage.row)
            report(stage, done)
            # All stop after the same step.
            stopping = workers.any(stop.is_set())
            if done < stage.steps and (stopping or now - saved > 60 * minutes):
                if workers.first:
                    _save(path, stage, optimizer, done)
                saved = time.monotonic()
                if stopping:
                    raise KeyboardInterrupt
        if done > first and workers.first:
            _save(path, stage, None, done)
        if workers.any(stop.is_set()):
            raise KeyboardInterrupt
    for module in stage.modules.values():
        module.eval()


def optimizer_of(stage: Stage) -> torch.optim.Optimizer:
    """What trains a stage's parameters; ``peak`` of a group is its largest learning rate."""
    return torch.optim.AdamW([{**group, "peak": group["lr"]} for group in stage.groups])


def take_step(
    stage: Stage, optimizer: torch.optim.Optimizer, number: int, workers: Workers = ALONE
) -> tuple[float, dict[str, float]]:
    """Step ``number`` of a stage, whose modules are in training mode: its loss and that one's parts.

    Raises
    ------
    UserError
        The loss is not finite.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * one_cycle(number, stage.steps)
    optimizer.zero_grad(set_to_none=True)
    loss, parts = stage.step(number)
    value = loss.item()
    if not math.isfinite(value):
        advice = f"; {stage.advice}" if stage.advice else ""
        raise UserError(f"training diverged at step {number} of {stage.name}{advice}")
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    workers.average(parameters)
    nn.utils.clip_grad_norm_(parameters, CLIP)
    optimizer.step()
    return value, parts


def _validate(stage: Stage) -> None:
    if stage.validate is None:
        return
    for module in stage.modules.values():
        module.eval()
    with torch.inference_mode():
        stage.row |= stage.validate()
    for module in stage.modules.values():
        module.train()


def _save(path: Path, stage: Stage, optimizer: torch.optim.Optimizer | None, done: int) -> None:
    tensors = {
        f"{name}/{key}": value
        for name, module in stage.modules.items()
        for key, value in module.state_dict().items()
    }
    if optimizer is not None:
        state = optimizer.state_dict()["state"]
        for index, values in state.items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in values.items()}
    write_tensors(path, tensors, {"step": done, "steps": stage.steps})


def _begin(path: Path, stage: Stage, optimizer: torch.optim.Optimizer, workers: Workers) -> int:
    """Steps done, by the checkpoint where there is one; every process holds what the first one does."""
    done = _load(path, stage, optimizer) if workers.first and path.is_file() else 0
    states = {name: module.state_dict() for name, module in stage.modules.items()}
    done, states, state = workers.of_first([done, states, optimizer.state_dict()])
    if not workers.first:
        for name, module in stage.modules.items():
            module.load_state_dict(states[name])
        optimizer.load_state_dict(state)
    return done


def _load(path: Path, stage: Stage, optimizer: torch.optim.Optimizer) -> int:
    tensors, notes = read_tensors(path, "remove it to train this stage anew")
    damaged = f"{path}: damaged checkpoint; remove it to train this stage anew"
    try:
        done, steps = int(notes["step"]), int(notes["steps"])
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{damaged} ({quoted(error)})") from error
    if steps != stage.steps:
        raise UserError(f"{path}: made for {steps} steps, not {stage.steps}; resume with the same settings")
    if not 0 <= done <= steps:
        raise UserError(f"{damaged} (step {done})")
    state: dict[int, dict[str, Tensor]] = {}
    try:
        for name in [name for name in tensors if name.startswith("optimizer/")]:
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensors.pop(name)
        for name, module in stage.modules.items():
            prefix = f"{name}/"
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
        if done < steps:
            _check_state(state, optimizer, done)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{damaged} ({excerpt(str(error).splitlines()[0])})") from error
    return done


def _check_state(state: dict[int, dict[str, Tensor]], optimizer: torch.optim.Optimizer, done: int) -> None:
    """Raise ``ValueError`` for a state that the optimizer would take, and fail with at its next step."""
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    for index, values in state.items():
        shape = parameters[index].shape
        found = {key: value.shape for key, value in values.items()}
        if found != {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}:
            raise ValueError(f"optimizer/{index} is of another model")
        if not 1 <= values["step"].item() <= done or (values["exp_avg_sq"] < 0).any():
            raise ValueError(f"optimizer/{index} cannot be")
